"""What a forked process does to become a stage, or one rank of a stage."""

from __future__ import annotations

import fcntl
import logging
import multiprocessing
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from workflows.chain.launch import Command

THREADS = "OMP_NUM_THREADS"


def be_stage(command: Command, environment: dict[str, str], log: Path | None) -> None:
    """Be a stage, with what the fork server has imported.

    Where the fork server could not import them safely, the stage's command is run instead.
    """
    preload = sys.modules.get("workflows.chain.preload")
    if preload is None or preload.PROBLEM:
        exec_stage(command, environment, log)
    imported_with = os.environ.get(THREADS)
    _enter(environment, log)
    wanted = os.environ.get(THREADS)
    threads = int(wanted) if wanted and wanted != imported_with else None
    if command.processes == 1:
        run_module(command, threads)
    else:
        run_ranks(command, threads)


def exec_stage(command: Command, environment: dict[str, str], log: Path | None) -> NoReturn:
    """Replace this process by the stage's command as it is written."""
    os.set_inheritable(_enter(environment, log), True)
    words = command.words
    os.execvp(words[0], words)


def _enter(environment: dict[str, str], log: Path | None) -> int:
    pipe = end_with_parent(signal.SIGTERM)
    os.environ.clear()
    os.environ.update(environment)
    if log is not None:
        with log.open("ab") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
    return pipe


def end_with_parent(number: signal.Signals) -> int:
    """Have this process get a signal when the process that asked for it ends, however that ends.

    Linux sends the signal when the pipe between the two closes; other systems send nothing.

    Returns:
        The file descriptor of the pipe.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    pipe = parent.sentinel
    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(pipe, fcntl.F_SETSIG, number)
        fcntl.fcntl(pipe, fcntl.F_SETFL, os.O_ASYNC)
    if not parent.is_alive():
        os.kill(os.getpid(), number)
    return pipe


def run_module(command: Command, threads: int | None) -> None:
    """Run a module as `python -m module arguments…` does.

    Args:
        threads: number of threads for torch, if OpenMP read another number when it was loaded.
    """
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    sys.argv = [command.module, *command.arguments]
    sys.path[0] = str(Path.cwd())
    for name in list(sys.modules):
        if name.partition(".")[0] in ("common", "stages", "workflows"):
            del sys.modules[name]  # to be imported as it is on the disk now
    try:
        runpy.run_module(command.module, run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def run_ranks(command: Command, threads: int | None) -> None:
    """Run a module as `torchrun --standalone --nproc-per-node N -m -- module arguments…` does.

    The agent is torchrun's own, but forks the ranks from this process. The exit code is that of the
    rank that failed first, where torchrun's is always 1.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("torch.distributed.elastic", "torch.multiprocessing"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # a rank says itself why it failed
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=command.processes,
        run_id=str(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="fork",
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
    )
    try:
        elastic_launch(config, be_rank)(command, threads)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode
        print(f"rank {rank} ended with exit code {code}, so all end", file=sys.stderr)
        sys.exit(code)
    except SignalException as told:
        sys.exit(128 + told.sigval)


def be_rank(command: Command, threads: int | None) -> None:
    """Be one rank of a stage; the environment that the agent has set says which."""
    end_with_parent(signal.SIGKILL)
    os.setsid()  # as torchrun: Ctrl-C goes to the agent, which tells all ranks
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)  # in place of the agent's handlers
    run_module(command, threads)
