"""Other processes that are measured: run once for a result, or kept waiting for their turns.

A partner is started once, so that its start-up is not in its figures, and does its work when it is
told to. It is told through a Unix socket and not through its standard input, which torchrun's
processes would share. While another contender works, it sleeps.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from common.errors import UserError
from common.process import wait_briefly
from common.runs.layout import REPOSITORY
from workflows.chain import launch
from workflows.chain.launch import Command

ADDRESS = "STAGED_GRPO_BENCH_SOCKET"
START_SECONDS = 600.0
_GO, _END = b"go\n", b"end\n"


def environment(threads: int, device: torch.device) -> dict[str, str]:
    """Return this process's variables with `threads` set, and GPUs hidden unless one is used."""
    chosen = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    if device.type != "cuda":
        chosen["CUDA_VISIBLE_DEVICES"] = ""
    found = dict(os.environ) | chosen
    wait_briefly(found)
    return found


def run_command(
    command: Command,
    threads: int,
    device: torch.device,
    extra: Mapping[str, str] | None = None,
) -> str:
    """Run a command from its start, imports and all, and return its output.

    Raises:
        UserError: it failed; the message has the end of its output.
    """
    with tempfile.NamedTemporaryFile(prefix="bench-", suffix=".log") as log:
        variables = environment(threads, device) | dict(extra or {})
        code = launch.run(command, fork=False, environment=variables, log=Path(log.name))
        said = log.read().decode(errors="replace")
    if code:
        raise _failed(command, code, said)
    return said


def result_of(command: Command, threads: int, device: torch.device) -> Any:
    """Run a command and return the JSON that it prints as its last line."""
    return json.loads(run_command(command, threads, device).splitlines()[-1])


class Partner:
    """A process that repeats one piece of work; as a context manager, it ends with the block."""

    def __init__(
        self,
        command: Command,
        threads: int,
        device: torch.device,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        """Start a command and wait until it is ready.

        Raises:
            UserError: it ended before that.
        """
        self._command = command
        self._folder = tempfile.TemporaryDirectory(prefix="bench-")
        self._said = (Path(self._folder.name) / "said").open("w+", errors="replace")
        address = str(Path(self._folder.name) / "socket")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(address)
        listener.listen(1)
        self._process = subprocess.Popen(
            command.words,
            cwd=REPOSITORY,
            env=environment(threads, device) | dict(extra or {}) | {ADDRESS: address},
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=self._said,
            start_new_session=True,
        )
        try:
            self._channel = self._accept(listener).makefile("rwb", buffering=0)
            self.ready: dict[str, Any] = self._answer()
            """What the process said of itself when it was ready."""
        except BaseException:
            self._kill()
            raise
        finally:
            listener.close()

    def work(self) -> dict[str, Any]:
        """Have the process do its work once and return what it reports, including `seconds`.

        Raises:
            UserError: it ended instead.
        """
        self._channel.write(_GO)
        return self._answer()

    def seconds(self) -> float:
        """Have the process do its work once and return the seconds that it measured itself."""
        return float(self.work()["seconds"])

    def __enter__(self) -> Partner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            try:
                self._channel.write(_END)
                self._process.wait(timeout=30)
            except (OSError, subprocess.TimeoutExpired):
                pass
        self._kill()

    def _accept(self, listener: socket.socket) -> socket.socket:
        listener.settimeout(1.0)
        for _ in range(int(START_SECONDS)):
            try:
                return listener.accept()[0]
            except TimeoutError:
                if self._process.poll() is not None:
                    break
        raise self._gone()

    def _answer(self) -> dict[str, Any]:
        line = self._channel.readline()
        if not line:
            raise self._gone()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _gone(self) -> UserError:
        self._said.flush()
        self._said.seek(0)
        return _failed(self._command, self._process.poll(), self._said.read())

    def _kill(self) -> None:
        """Kill the process and what it started, and remove its files."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, 9)
            self._process.wait()
        self._said.close()
        self._folder.cleanup()


def serve(ready: Mapping[str, Any], work: Callable[[], Mapping[str, Any]]) -> None:
    """Be the other side of a `Partner`: say that this process is ready, then work when told to."""
    channel = connect(ready)
    while channel.wait():
        channel.tell(work())


class Channel:
    """The partner's end of its socket, for work that cannot be handed over as a function."""

    def __init__(self, address: str) -> None:
        connected = socket.socket(socket.AF_UNIX)
        connected.connect(address)
        self._file = connected.makefile("rwb", buffering=0)

    def wait(self) -> bool:
        """Wait to be told, and return whether to work once more."""
        return bool(self._file.readline() == _GO)

    def tell(self, answer: Mapping[str, Any]) -> None:
        """Send an answer as one line of JSON."""
        self._file.write(json.dumps(dict(answer)).encode() + b"\n")


def connect(ready: Mapping[str, Any]) -> Channel:
    """Tell the process that started this one that it is ready, and return the channel to it."""
    channel = Channel(os.environ[ADDRESS])
    channel.tell(ready)
    return channel


def _failed(command: Command, code: int | None, said: str) -> UserError:
    end = "\n".join(said.strip().splitlines()[-15:])
    return UserError(f"bench: `{command}` ended with {code}:\n{end}")
