"""What a forked process does to be a stage, or the ranks of one."""

from __future__ import annotations

import ctypes
import json
import os
import re
import runpy
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from workflows.chain.client import ADDRESS, parse

HELD = (signal.SIGINT, signal.SIGTERM)
"""Signals that are blocked while we fork, until the child has its own handlers."""

_MAY_DIFFER = {
    *("MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MAKE_TERMERR", "MAKE_TERMOUT", "MFLAGS"),
    *("CHAIN", "FROM", "N", "NPROC", "PYTHON", "PYTHON3", "RECIPE", "RUN", "SET", "VENV"),
    *("OLDPWD", "PWD", "SHLVL", "_", "STAGED_GRPO_RUNS", ADDRESS),
}
"""Variables that no library reads when it is loaded."""

THREADS = "OMP_NUM_THREADS"
_SECONDS_TO_STOP_RANKS = 30.0  # as torchrun
_PR_SET_PDEATHSIG = 1


def become(client: socket.socket, streams: list[int], imported_in: Mapping[str, str] | None) -> int:
    """Be the stage that a client asks for.

    Args:
        streams: the client's standard streams.
        imported_in: environment of the process whose imports we have; None if they are no use.

    Returns:
        Its exit code, unless it ends the process by itself.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
    with client, client.makefile("rb") as said:
        request = json.loads(said.readline() or sys.exit(1))
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    command = request["command"]
    work = parse(command)
    assert work, "the client has understood it"
    if imported_in is None:
        os.execvp(command[0], command)
    if reason := why_not_here(imported_in, command[0]):
        print(f"chain: imports are not taken from the parent: {reason}", file=sys.stderr)
        os.execvp(command[0], command)
    if sys.stdout is not None:  # None where make's is closed
        sys.stdout.reconfigure(line_buffering=os.isatty(1))  # type: ignore[union-attr]
    processes, module, arguments = work
    if processes > 1:
        os.environ.setdefault(THREADS, "1")  # as torchrun
    wanted = os.environ.get(THREADS, "")
    threads = None if wanted == imported_in.get(THREADS, "") else int(wanted)
    if processes > 1:
        return run_ranks(processes, module, arguments, threads)
    return run_module(module, arguments, threads)


def why_not_here(imported_in: Mapping[str, str], program: str) -> str | None:
    """Why what was imported in that environment is not what `program` would import in ours."""
    if Path(program).absolute().parent != Path(sys.executable).parent:
        return f"{program} is not its Python"
    threads = os.environ.get(THREADS, "")
    can_be_applied = threads == imported_in.get(THREADS, "") or re.fullmatch(r"[1-9]\d*", threads)
    names = (imported_in.keys() | os.environ.keys()) - _MAY_DIFFER
    names -= {THREADS} if can_be_applied else set()
    differ = sorted(name for name in names if imported_in.get(name) != os.environ.get(name))
    return f"its environment had another {', '.join(differ)}" if differ else None


def run_module(module: str, arguments: list[str], threads: int | None) -> int:
    """As `python -m module arguments…`; a module that ends by itself does so.

    Args:
        threads: for torch, where OpenMP has read another number when it was loaded.
    """
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    sys.argv = [module, *arguments]
    sys.path[0] = str(Path.cwd())
    for name in [name for name in sys.modules if name.partition(".")[0] == "workflows"]:
        del sys.modules[name]  # as it is on the disk now
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


def run_ranks(count: int, module: str, arguments: list[str], threads: int | None) -> int:
    """As `torchrun --standalone --nproc-per-node count -m -- module arguments…`, but forked.

    Returns:
        The exit code of the first rank that failed (torchrun's is 1), or 0.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    us, pids = os.getpid(), []
    for rank in range(count):
        assert count_threads() == 1
        if (pid := os.fork()) == 0:
            as_process(_be_rank, us, rank, module, arguments, threads)
        pids.append(pid)
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    # Here and not in a rank, so that it outlives each of them; and now, since it is a thread.
    store = TCPStore(
        "127.0.0.1",
        port,
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    code = Ranks(pids).wait()
    del store
    return code


def _be_rank(
    launcher: int, rank: int, module: str, arguments: list[str], threads: int | None
) -> int:
    die_with(launcher, signal.SIGKILL)
    os.setsid()  # as torchrun: Ctrl-C goes to the launcher, which tells all ranks
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    return run_module(module, arguments, threads)


class Ranks:
    """Forked ranks: when one fails, or we are told to end, the others are ended."""

    def __init__(self, pids: list[int]) -> None:
        self.running = {os.pidfd_open(pid): (rank, pid) for rank, pid in enumerate(pids)}
        self.code = 0
        self.kill_at = float("inf")

    def wait(self) -> int:
        """Until all have ended; returns the first exit code that is not 0."""
        for number in HELD:
            signal.signal(number, self._told)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
        while self.running:
            ended = select.poll()
            for fd in self.running:
                ended.register(fd, select.POLLIN)
            for fd, _ in ended.poll(100):
                self._see_to(fd)
            if time.monotonic() > self.kill_at:
                self._send(signal.SIGKILL)
        return self.code

    def _see_to(self, fd: int) -> None:
        rank, pid = self.running.pop(fd)
        _, status = os.waitpid(pid, 0)
        os.close(fd)
        if not status or self.code:
            return
        self.code = exit_code(status)
        print(f"rank {rank} ended with exit code {self.code}, so all end", file=sys.stderr)
        self._end(signal.SIGTERM)

    def _told(self, number: int, _frame: object) -> None:
        self.code = self.code or 128 + number
        self._end(number)

    def _end(self, number: int) -> None:
        self.kill_at = min(self.kill_at, time.monotonic() + _SECONDS_TO_STOP_RANKS)
        self._send(number)

    def _send(self, number: int) -> None:
        for _, pid in self.running.values():
            with suppress(ProcessLookupError):
                os.killpg(pid, number)


def as_process(work: Callable[..., object], *arguments: object) -> NoReturn:
    """Do `work` and end as Python does after a program, but for what it would do at its exit.

    In a forked process that would be what its parent has to do once.
    """
    code: object = 1
    try:
        code = work(*arguments)
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        number = code if isinstance(code, int) else int(code is not None)
        closed = suppress(AttributeError, OSError, ValueError)
        with closed:
            if code is not None and not isinstance(code, int):
                print(code, file=sys.stderr)
        for stream in (sys.stdout, sys.stderr):
            with closed:
                stream.flush()
        os._exit(number)


def count_threads() -> int:
    """Threads of this process, those of libraries included."""
    return len(list(Path("/proc/self/task").iterdir()))


def exit_code(status: int) -> int:
    """What a shell makes of a wait status: 128 and the number of the signal that ended it."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def die_with(parent: int, number: int = signal.SIGTERM) -> None:
    """Have this process signalled when its parent ends, however that ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)
