"""Lines and progress bars on the terminal. Text of models and data is made harmless first."""

from __future__ import annotations

import os
import shlex
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

Item = TypeVar("Item")

_quiet = False


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


def command_line() -> str:
    """Return the command that this process runs, as one would type it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    words = ["-m", spec.name.removesuffix(".__main__")] if spec else sys.argv[:1]
    return shlex.join(["python", *words, *sys.argv[1:]])


def say(line: str) -> None:
    """Print a line to standard output on rank 0, unless quiet."""
    if not _quiet and os.environ.get("RANK", "0") == "0":
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
    return not _quiet and sys.stderr.isatty() and os.environ.get("RANK", "0") == "0"


@contextmanager
def bar(label: str, total: int) -> Iterator[Bar]:
    """Yield a progress bar on standard error, or an invisible one where bars are not wanted."""
    if not bars_wanted():
        yield Bar()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total)
        yield Bar(lambda n: progress.advance(task, n))


class Bar:
    """A progress bar, as `bar` yields it; `advance` moves it."""

    def __init__(self, move: object = None) -> None:
        self._move = move

    def advance(self, amount: int = 1) -> None:
        if callable(self._move):
            self._move(amount)


def track(items: Iterable[Item], label: str, total: int) -> Iterator[Item]:
    """Yield the items while a progress bar counts them."""
    with bar(label, total) as shown:
        for item in items:
            yield item
            shown.advance()
