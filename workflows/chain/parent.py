"""The parent of a chain: imports what stages need, and forks one for each request."""

from __future__ import annotations

import gc
import importlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from workflows.chain.child import HELD, as_process, become, count_threads, die_with, exit_code
from workflows.chain.client import ADDRESS, replace_by

PRELOADED = (
    "torch.distributed.pipelining",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.processing_utils",
    "transformers.tokenization_utils_tokenizers",
    "pydantic.main",
    "pydantic.types",
    "rich.progress",
    "tomlkit",
    "typer",
)
"""What stages import, without polars and pyarrow: they load quickly, and start threads."""

SECONDS_TO_STOP = 5.0


def run_with_parent(command: list[str]) -> NoReturn:
    """Run a command as our child, and be the parent of the stages that its clients ask for."""
    if not can_serve():
        replace_by(command[0], command)
    die_with(os.getppid())
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent, us = Parent(ours), os.getpid()
    pid = os.fork()
    if pid == 0:
        die_with(us)
        signal.signal(signal.SIGINT, parent.at_interrupt)
        theirs.set_inheritable(True)
        os.environ[ADDRESS] = str(theirs.fileno())
        as_process(replace_by, command[0], command)
    theirs.close()
    parent.serve(until=pid)
    _, status = os.waitpid(pid, 0)
    os._exit(exit_code(status))


def start_parent() -> socket.socket | None:
    """A parent for this process to `ask`, which ends with it; None where there can be none."""
    if not can_serve():
        return None
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "workflows.chain", "--serve", str(theirs.fileno())]
    with theirs:
        # Without `env` it would be that of the C library, which has what readline has set.
        subprocess.Popen(command, env=os.environ, pass_fds=[theirs.fileno()])
    return ours


def serve(number: int) -> NoReturn:
    """Be the parent of the stages that are asked for over an inherited socket."""
    requests = socket.socket(fileno=number)
    requests.set_inheritable(False)
    Parent(requests).serve()
    os._exit(0)


def can_serve() -> bool:
    """Whether processes may be forked here: on macOS, system libraries start threads."""
    if sys.platform != "linux":
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True


class Stage:
    """A forked process and the client that waits for it."""

    def __init__(self, pid: int, client: socket.socket) -> None:
        self.pid = pid
        self.client = client
        self.ended = os.pidfd_open(pid)
        self.kill_at = float("inf")

    @property
    def is_stopping(self) -> bool:
        return self.kill_at != float("inf")

    def stop(self, *, interrupt: bool) -> None:
        """Have it end: interrupted as by Ctrl-C, killed if it takes too long."""
        if self.is_stopping:
            return
        self.kill_at = time.monotonic() + SECONDS_TO_STOP
        if interrupt:
            os.kill(self.pid, signal.SIGINT)


class Parent:
    """Forks a stage for each request that comes."""

    def __init__(self, requests: socket.socket) -> None:
        self.requests = requests
        self.stages: list[Stage] = []
        self.environment = dict(os.environ)
        self.imported = self.importing = self.interrupted = False
        self.at_interrupt = signal.getsignal(signal.SIGINT)
        if self.at_interrupt != signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._interrupt)

    def serve(self, until: int | None = None) -> None:
        """Until process `until` ends or nobody is left to ask; then no stage is left running."""
        ended = os.pidfd_open(until) if until else -1
        while self._turn(self.requests.fileno(), ended):
            pass
        for stage in self.stages:
            stage.stop(interrupt=not self.interrupted)
        while self.stages:
            self._turn()

    def _turn(self, requests: int = -1, ended: int = -1) -> bool:
        """Wait for what happens next and see to it; False when it is the end."""
        happening = select.poll()
        for fd in {requests, ended, *(stage.ended for stage in self.stages)} - {-1}:
            happening.register(fd, select.POLLIN)
        for stage in self.stages:
            if not stage.is_stopping:
                happening.register(stage.client, select.POLLRDHUP)
        stopping = any(stage.is_stopping for stage in self.stages)
        found = dict(happening.poll(100 if stopping else None))
        for stage in list(self.stages):
            if stage.ended in found:
                self._tell_end(stage)
            elif stage.client.fileno() in found:
                stage.stop(interrupt=not self.interrupted)
            elif time.monotonic() > stage.kill_at:
                os.kill(stage.pid, signal.SIGKILL)
        return ended not in found and (requests not in found or self._take())

    def _take(self) -> bool:
        """Fork the stage that is asked for; False when nobody is left to ask."""
        _, fds, _, _ = socket.recv_fds(self.requests, 16, 4)
        if not fds:
            return False
        client, streams = socket.socket(fileno=fds[0]), fds[1:]
        if not self.imported:
            self._import()
        forkable, us = why_not_fork() is None, os.getpid()
        # A signal between the fork and the child's own handlers would be lost to it.
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
        if (pid := os.fork()) == 0:
            die_with(us)
            # Held by a stage, they would hide from a client that the parent has ended.
            for held in (self.requests, *(stage.client for stage in self.stages)):
                held.close()
            signal.signal(signal.SIGINT, self.at_interrupt)
            as_process(become, client, streams, self.environment if forkable else None)
        self.stages.append(Stage(pid, client))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
        if self.interrupted:
            self.stages[-1].stop(interrupt=True)
        for stream in streams:
            os.close(stream)
        return True

    def _tell_end(self, stage: Stage) -> None:
        _, status = os.waitpid(stage.pid, 0)
        os.close(stage.ended)
        self.stages.remove(stage)
        with stage.client, suppress(OSError):
            stage.client.send(str(exit_code(status)).encode())

    def _import(self) -> None:
        self.imported = self.importing = True
        with suppress(KeyboardInterrupt):
            preload()
        self.importing = False
        if reason := why_not_fork():
            print(f"chain: {reason}, so every stage imports by itself", file=sys.stderr)

    def _interrupt(self, *_: object) -> None:
        """Ctrl-C reaches make and the stages as well: they end, and no other stage begins."""
        self.interrupted = True
        if self.importing:
            raise KeyboardInterrupt


def preload() -> None:
    """Import what stages need, so that it starts no thread."""
    importlib.import_module("common.process").wait_briefly(os.environ)
    for name in ("common.process", "common"):
        del sys.modules[name]  # a stage imports the project's modules itself, as they are then
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # or numpy starts threads when it is loaded
    for name in PRELOADED:
        with suppress(Exception):  # a stage that needs it will say what is wrong
            importlib.import_module(name)
    gc.freeze()


def why_not_fork() -> str | None:
    """What a child of this process would suffer from, if anything."""
    if (threads := count_threads()) != 1:
        return f"{threads} threads are running after the imports"
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if str(fd.readlink()).startswith(("/dev/nvidia", "/dev/kfd")):
                return "the imports have opened the GPU"
    return None
