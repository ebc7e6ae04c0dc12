"""How a stage is started, whoever starts it: as a process of its own that need not import torch.

Importing torch and transformers takes longer than a small stage's work. So the standard library's
fork server (`multiprocessing`) imports them when the first stage starts, and every stage is forked
from it. A stage is still a process of its own, with its own memory, threads and exit code, as if
started by hand. The project's own modules are imported in the stage, so that an edit takes effect
in the next one.
"""

from __future__ import annotations

import multiprocessing
import os
import shlex
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from workflows.chain.forked import be_stage, exec_stage

PRELOADED = ["workflows.chain.preload"]
SECONDS_TO_END = 5.0
_SERVER = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Command:
    """A module's command line, as one would type it."""

    module: str
    arguments: Sequence[str]
    processes: int = 1

    @property
    def words(self) -> list[str]:
        """Return program and arguments; a program below this folder gets a relative path."""
        python, here = Path(sys.executable), Path.cwd()
        python = python.relative_to(here) if python.is_relative_to(here) else python
        launcher = [str(python), "-m"]
        if self.processes > 1:
            torchrun = str(python.with_name("torchrun"))
            # Without the dashes torchrun takes --run for an abbreviation of its own options.
            launcher = [torchrun, "--standalone", "--nproc-per-node", str(self.processes)]
            launcher += ["-m", "--"]
        return [*launcher, self.module, *self.arguments]

    @property
    def environment(self) -> dict[str, str]:
        """Return variables to add to the caller's.

        torchrun warns unless OMP_NUM_THREADS is set, so its default of 1 is set here.
        """
        several = self.processes > 1 and "OMP_NUM_THREADS" not in os.environ
        return {"OMP_NUM_THREADS": "1"} if several else {}

    def __str__(self) -> str:
        return shlex.join(self.words)


def start(
    command: Command,
    *,
    fork: bool = True,
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
) -> BaseProcess:
    """Start a stage, which is ended when this process ends, however that ends.

    Args:
        fork: fork the stage from the fork server and its imports, on systems where forking is
            safe after imports; else its command is run as it is written.
        environment: variables to add to those of this process.
        log: file to which the stage appends its output; by default it shares this process's
            streams.
    """
    # On macOS system libraries start threads, which a fork does not survive.
    work = be_stage if fork and sys.platform == "linux" else exec_stage
    _SERVER.set_forkserver_preload(PRELOADED if work is be_stage else [])
    variables = dict(os.environ) | command.environment | dict(environment or {})
    process = _SERVER.Process(target=work, args=(command, variables, log))
    process.start()
    return process


def run(
    command: Command,
    *,
    fork: bool = True,
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
) -> int:
    """`start` a stage, wait for its end and return its exit code as a shell has it."""
    process = start(command, fork=fork, environment=environment, log=log)
    try:
        process.join()
    except BaseException:
        stop([process])
        raise
    return exit_code(process)


def stop(processes: Iterable[BaseProcess]) -> None:
    """End stages: wait for those that Ctrl-C has also reached, interrupt the rest, then kill."""
    running = [process for process in processes if process.is_alive()]
    for number in (None, signal.SIGINT, signal.SIGKILL):
        for process in running:
            if number is not None and process.pid is not None:
                os.kill(process.pid, number)
        for process in running:
            process.join(SECONDS_TO_END)
        running = [process for process in running if process.is_alive()]


def exit_code(process: BaseProcess) -> int:
    """Return the exit code of a stage that has ended; after a signal, 128 plus its number."""
    code = process.exitcode
    assert code is not None
    return code if code >= 0 else 128 - code


def first_ended(processes: Iterable[BaseProcess], seconds: float) -> BaseProcess | None:
    """Wait until a process has ended and return it; None if all still run after `seconds`."""
    by_sentinel = {process.sentinel: process for process in processes}
    ended = wait(by_sentinel, seconds)
    return by_sentinel[ended[0]] if ended else None  # type: ignore[index]
