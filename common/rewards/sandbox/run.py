"""Runs programs that a model wrote, and lets none of them out.

A program gets a read-only standard library, 64 MiB of its own files, threads, and nothing else: no
network, no other processes, no /proc, no file of the host. What it may use is bounded (`Limits`),
and when a function here returns, nothing of it is left. Below it is the host's kernel: a program
that exploits a fault of the kernel gets out.
"""

from __future__ import annotations

import ctypes
import json
import marshal
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from common.rewards.sandbox.bubblewrap import Limits, sandboxed
from common.rewards.sandbox.child import READY

START_SECONDS = 20.0
"""Longest wait for the sandbox to stand, on a busy machine; the program's time begins after it."""

_CHUNK = 1 << 16

_PR_SET_CHILD_SUBREAPER = 36

Status = Literal["ok", "failed", "timeout", "output"]
"""How a program ended. `failed`: it raised, was killed or left with a code other than 0; `output`:
it wrote too much."""

Clock = Literal["wall time", "CPU time"]

Call = tuple[str, Sequence[Any], Mapping[str, Any]]
"""(function, arguments, keywords), made of exact built-in types."""


class SandboxError(RuntimeError):
    """The sandbox did not start, or was ended from outside, which is not the program's fault."""


@dataclass(frozen=True)
class Finished:
    """How a program ended, and what it wrote."""

    status: Status
    output: bytes
    """Its standard output; if calls were made, a line for each result."""
    cpu_seconds: float
    """CPU time, with what the start of the sandbox took."""
    ended_by: Clock | None = None
    """The time limit that it met, if it met one."""


def run_program(program: str, stdin: str, limits: Limits) -> Finished:
    """Run `program` as a script that reads `stdin`.

    Raises:
        SandboxError: the sandbox failed, which is not the program's fault.
        MissingToolError: bubblewrap is not installed.
    """
    return _run({"program": program, "stdin": stdin, "calls": []}, limits, lambda output: False)


def run_calls(
    program: str,
    calls: Sequence[Call],
    limits: Limits,
    enough: Callable[[bytearray], bool] = lambda output: False,
) -> Finished:
    """Import `program` and make `calls`, one after the other.

    Each call adds a line to the output, its result as child.py encodes it.

    Args:
        program: source of a Python module.
        calls: what to call.
        limits: what the program may use.
        enough: asked about the output so far after each line; when it says yes, the program is
            ended, with status `ok`.

    Raises:
        SandboxError, MissingToolError: as `run_program` does.
    """
    plain = [(function, list(values), dict(named)) for function, values, named in calls]
    return _run({"program": program, "stdin": None, "calls": plain}, limits, enough)


def _run(
    request: Mapping[str, Any], limits: Limits, enough: Callable[[bytearray], bool]
) -> Finished:
    content = marshal.dumps(dict(request))
    box = _Box(limits)
    try:
        box.await_start()
        ended = box.converse(len(content).to_bytes(8, "little") + content, enough)
    finally:
        code, cpu_seconds = box.end()
    if code < 0 and ended is None:
        raise SandboxError(f"the sandbox was ended from outside by signal {-code}")
    status: Status = ended or ("failed" if code else "ok")
    clock: Clock | None = "wall time" if ended == "timeout" else None
    if ended is None and _used_up(code, cpu_seconds, limits):
        status, clock = "timeout", "CPU time"
    return Finished(status, bytes(box.output), cpu_seconds, clock)


def _used_up(code: int, cpu_seconds: float, limits: Limits) -> bool:
    """Return whether the CPU time was used up: by SIGXCPU, or SIGKILL if it ignored that."""
    # The kernel samples the time it limits and measures the time it reports.
    killed = code == 128 + signal.SIGKILL and cpu_seconds > 0.9 * limits.cpu_seconds
    return code == 128 + signal.SIGXCPU or killed


class _Box:
    """A running sandbox: bubblewrap outside, its init as process 1 inside, the program below it."""

    def __init__(self, limits: Limits) -> None:
        _adopt_orphans(True)
        self.limits = limits
        self.output = bytearray()
        self._number = 0  # of process 1 inside
        self._init: int | None = None  # pidfd of it
        self._info, info = os.pipe()
        try:
            with sandboxed(limits, info=info) as (argv, descriptors):
                self._process = subprocess.Popen(
                    argv,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    bufsize=0,
                    pass_fds=descriptors,
                    env={},
                    start_new_session=True,  # Ctrl-C is ours to handle
                )
        except BaseException:
            os.close(self._info)
            raise
        finally:
            os.close(info)
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._streams = (self._process.stdin, self._process.stdout, self._process.stderr)
        self._stdin, self._stdout, self._stderr = (stream.fileno() for stream in self._streams)

    def await_start(self) -> None:
        """Wait until the sandbox is ready; all output after that is the program's.

        Only then the request is sent, and without one the child exits. So if we die before
        bubblewrap has bound its life to ours, no program runs on without us.

        Raises:
            SandboxError: it did not start; the message says why.
        """
        deadline = time.monotonic() + START_SECONDS
        said = b""
        while said != READY:
            left = deadline - time.monotonic()
            part = left > 0 and _wait(left, self._stdout) and os.read(self._stdout, len(READY))
            if not part:
                raise SandboxError(f"the sandbox did not start: {self._complaint()}")
            said += part

        # It is alive, since it waits for us: no other process can have its number.
        self._number = self._read_number()
        self._init = os.pidfd_open(self._number)

    def _read_number(self) -> int:
        """Return the process id of process 1 as seen from here; 0 if it was never started."""
        os.set_blocking(self._info, False)
        try:
            return int(json.loads(os.read(self._info, _CHUNK))["child-pid"])
        except (BlockingIOError, ValueError):
            return 0

    def _complaint(self) -> str:
        """Return the last line that bubblewrap or the child wrote."""
        os.set_blocking(self._stderr, False)
        try:
            lines = os.read(self._stderr, _CHUNK).decode(errors="replace").split("\n")
        except BlockingIOError:
            lines = []
        return next((line for line in reversed(lines) if line.strip()), "it says nothing")

    def converse(
        self, request: bytes, enough: Callable[[bytearray], bool]
    ) -> Literal["ok", "timeout", "output"] | None:
        """Send the request and read the output; return why the program must end, None if it has."""
        deadline = time.monotonic() + self.limits.seconds
        rest = memoryview(request)
        os.set_blocking(self._stdin, False)
        while (left := deadline - time.monotonic()) > 0:
            ready = _wait(left, self._stdout, self._stdin if rest else None)
            if self._stdin in ready:
                rest = self._send(rest)
            if self._stdout in ready:
                part = os.read(self._stdout, _CHUNK)
                self.output += part
                if not part:
                    return None
                if len(self.output) > self.limits.output_bytes:
                    return "output"
                if b"\n" in part and enough(self.output):
                    return "ok"
        return "timeout"

    def _send(self, rest: memoryview) -> memoryview:
        """Write what fits now, and return what is left."""
        try:
            return rest[os.write(self._stdin, rest[:_CHUNK]) :]
        except BrokenPipeError:
            return rest[:0]

    def end(self) -> tuple[int, float]:
        """Kill what still runs, wait until nothing is left, and return (exit code, CPU seconds).

        Process 1 inside is killed; the kernel lets it be reaped only when all others in its
        namespace are gone. Bubblewrap sometimes exits before it has reaped it; then we do.
        """
        with suppress(ProcessLookupError):
            if self._init is None:
                os.kill(self._process.pid, signal.SIGKILL)
            else:
                signal.pidfd_send_signal(self._init, signal.SIGKILL)
        _, status, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        cpu_seconds = usage.ru_utime + usage.ru_stime
        if number := self._number or self._read_number():
            cpu_seconds += self._reap(number)
        for stream in self._streams:
            stream.close()
        for descriptor in (self._info, self._init):
            if descriptor is not None:
                os.close(descriptor)
        _adopt_orphans(False)
        return self._process.returncode, cpu_seconds

    def _reap(self, number: int) -> float:
        """Wait for process 1 if it is ours now; return its CPU seconds, 0 if it was not ours."""
        try:
            _, _, usage = os.wait4(number, 0)
        except ChildProcessError:
            if self._init is not None:
                _wait(START_SECONDS, self._init)
            return 0.0
        return usage.ru_utime + usage.ru_stime


def _wait(seconds: float, readable: int, writable: int | None = None) -> list[int]:
    """Return which of the descriptors are ready, or at their end, within `seconds`."""
    poll = select.poll()
    poll.register(readable, select.POLLIN)
    if writable is not None:
        poll.register(writable, select.POLLOUT)
    return [descriptor for descriptor, _ in poll.poll(seconds * 1000)]


def _adopt_orphans(wanted: bool) -> None:
    """Become the parent of orphaned descendants, or stop being it.

    So we see their end and leave no zombies: in a container often nobody else reaps them.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)
