"""Lines and progress, on the terminal or in a log. Text of models and data is made harmless."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")

LINE_EVERY = 60.0
"""Seconds between two lines about progress, where there is no terminal to show a bar on."""

_quiet = False
_answered = False


def set_quiet(quiet: bool) -> None:
    """Choose whether this process says only what went wrong."""
    global _quiet
    _quiet = quiet


def quiet() -> bool:
    """Return whether this process says only what went wrong."""
    return _quiet


def clean(text: str) -> str:
    """Return `text` without control or bidirectional characters, which could rewrite the screen."""
    return "".join(c for c in text if c in "\n\t" or not unicodedata.category(c).startswith("C"))


def python() -> str:
    """Return the interpreter to put into a command line: as short as it works from here."""
    here = Path(sys.executable)
    if shutil.which("python") == str(here):
        return "python"
    return str(here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here)


def command_line() -> str:
    """Return the command that this process runs, as one would type it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    words = ["-m", spec.name.removesuffix(".__main__")] if spec else sys.argv[:1]
    return shlex.join([python(), *words, *sys.argv[1:]])


def print_json(value: object) -> None:
    """Print one JSON object (or list) to standard output: the result of a command with `--json`."""
    global _answered
    _answered = True
    print(json.dumps(value), flush=True)


def answered() -> bool:
    """Return whether this process has printed its result as JSON."""
    return _answered


def say(line: str) -> None:
    """Print a line to standard output on rank 0, unless quiet."""
    if _heard():
        print(clean(line), flush=True)


def warn(line: str) -> None:
    """Print a warning to standard error, quiet or not."""
    print(f"warning: {clean(line)}", file=sys.stderr, flush=True)


@cache
def warn_once(line: str) -> None:
    """Print a warning as `warn` does, unless this process has printed the same one before."""
    warn(line)


def bars_wanted() -> bool:
    """Return whether to show progress bars: on a terminal, on rank 0, and unless quiet."""
    return sys.stderr.isatty() and _heard()


@contextmanager
def bar(label: str, total: int, unit: str = "completions") -> Iterator[Bar]:
    """Yield a progress bar on standard error; without a terminal, lines on standard output instead.

    Lines come every `LINE_EVERY` seconds, and only on rank 0; if quiet, nothing is shown.

    Args:
        label: what is at work.
        total: how much there is to do.
        unit: what is counted.
    """
    if not bars_wanted():
        yield Bar(ProgressLines(label, total, unit).advance if _heard() else None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total)
        yield Bar(lambda n: progress.advance(task, n))


class Bar:
    """A progress bar, as `bar` yields it; `advance` moves it."""

    def __init__(self, move: Callable[[int], object] | None = None) -> None:
        self._move = move

    def advance(self, amount: int = 1) -> None:
        if self._move is not None:
            self._move(amount)


class ProgressLines:
    """Progress as a line now and then, with the rate so far and the time left at that rate."""

    def __init__(
        self,
        label: str,
        total: int,
        unit: str,
        *,
        every: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin to count.

        Args:
            label: what is at work.
            total: how much there is to do.
            unit: what is counted.
            every: seconds between two lines; `LINE_EVERY` by default.
            clock: gives the time in seconds.
        """
        self._label, self._total, self._unit = label, total, unit
        self._every = LINE_EVERY if every is None else every
        self._clock = clock
        self._done = 0
        self._started = self._said = clock()

    def advance(self, amount: int) -> None:
        """Count `amount` more, and print a line if it is time and something is left to do."""
        self._done += amount
        now = self._clock()
        if now - self._said >= self._every and 0 < self._done < self._total:
            self._said = now
            say(self.line(now - self._started))

    def line(self, seconds: float) -> str:
        """Return the line, such as `rollout: 96 of 512 completions, 1.6/s, 4 min left`.

        With several processes it is rank 0's own part that is counted.
        """
        part = "" if os.environ.get("WORLD_SIZE", "1") == "1" else " on rank 0"
        counted = f"{self._label}: {self._done} of {self._total} {self._unit}{part}"
        if seconds <= 0:
            return counted
        left = (self._total - self._done) * seconds / self._done
        return f"{counted}, {rate_text(self._done, seconds)}, {duration_text(left)} left"


def rate_text(count: int, seconds: float) -> str:
    """Return `1.6/s`, or for what is slower than one in a second `2.5/min`."""
    per_second = count / seconds
    return f"{per_second:.1f}/s" if per_second >= 1 else f"{60 * per_second:.1f}/min"


def duration_text(seconds: float) -> str:
    """Return `40 s`, `12 min` or `2 h 5 min`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def track(items: Iterable[Item], label: str, total: int, unit: str) -> Iterator[Item]:
    """Yield the items while `bar` counts them."""
    with bar(label, total, unit) as shown:
        for item in items:
            yield item
            shown.advance()


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send to standard error whatever is written to standard output, by native libraries too.

    What a command prints on standard output is for programs: lines that are not its own must not
    get among them.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _heard() -> bool:
    return not _quiet and os.environ.get("RANK", "0") == "0"
