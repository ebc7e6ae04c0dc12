"""How a stage is started, whoever starts it: as a process of its own that need not import torch.

Importing torch and transformers takes longer than a small stage's work. So the standard library's
fork server (`multiprocessing`) imports them at the first stage, and forks each stage: a process of
its own, with its own memory, threads and exit code, as if started by hand. The project's own
modules are imported in the stage, so that an edit takes effect in the next one.
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
        """Program and arguments, the program as a path from this folder."""
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
        """Variables beside the caller's: torchrun warns of its default unless it is said."""
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
        fork: with the fork server's imports, where processes may be forked that have imported;
            else its command is run as it is written.
        environment: variables beside those of this process.
        log: file to which it adds what it says; by default it has this process's streams.
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
    """`start` a stage and wait for its end; the exit code as a shell has it."""
    process = start(command, fork=fork, environment=environment, log=log)
    try:
        process.join()
    except BaseException:
        stop([process])
        raise
    return exit_code(process)


def stop(processes: Iterable[BaseProcess]) -> None:
    """End stages: wait for those that Ctrl-C has reached as well, interrupt the others, kill."""
    running = [process for process in processes if process.is_alive()]
    for number in (None, signal.SIGINT, signal.SIGKILL):
        for process in running:
            if number is not None and process.pid is not None:
                os.kill(process.pid, number)
        for process in running:
            process.join(SECONDS_TO_END)
        running = [process for process in running if process.is_alive()]


def exit_code(process: BaseProcess) -> int:
    """Of a stage that has ended: 128 and the number of the signal that ended it."""
    code = process.exitcode
    assert code is not None
    return code if code >= 0 else 128 - code


def first_ended(processes: Iterable[BaseProcess], seconds: float) -> BaseProcess | None:
    """One that has ended, waited for so long."""
    by_sentinel = {process.sentinel: process for process in processes}
    ended = wait(by_sentinel, seconds)
    return by_sentinel[ended[0]] if ended else None  # type: ignore[index]
