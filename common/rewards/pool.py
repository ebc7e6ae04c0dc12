"""Processes that judge by one rule, and are killed when they take too long.

A text can make a rule compute for ever or take all memory, and nothing within a process can stop it
reliably. So such rules run in processes of their own, one completion at a time, each watched with a
clock; a killed one is replaced. `worker.py` is what runs in them; it is a module of its own because
it starts faster without asyncio.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process, create_subprocess_exec
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from common import functions
from common.compat import close_pipes
from common.config import RewardsConfig
from common.console import clean
from common.errors import UserError
from common.rewards.registry import fault, get_rule
from common.rewards.rule import Row, Verdict
from common.rewards.sandbox.bubblewrap import sandboxed_worker
from common.runs.layout import REPOSITORY

OPENING_SECONDS = 180.0
"""Longest time in which a rule gets ready: it may import much, or load a model from a slow disk."""
GOLD_SECONDS = 30.0
"""Longest time in which a gold answer is read, whatever the rule allows for a completion."""
LONGEST_LINE = 1 << 28
LONGEST_SAID = 1000
"""How many characters of a line on a worker's standard error are shown."""
KILL_SECONDS = 5.0
MOST_FAILED_STARTS = 10


@dataclass(frozen=True)
class JudgeRequest:
    """One completion that one rule is to judge."""

    rule: str
    text: str
    """Assistant prefix and completion."""
    row: Row


class WorkerDiedError(Exception):
    """The process ended without an answer."""


class Pool:
    """Worker processes for one rule, started when there is work and kept until `close`."""

    def __init__(self, rule: str, rewards: RewardsConfig, count: int) -> None:
        found = get_rule(rule, rewards)
        self._rule = rule
        self._seconds = found.seconds(rewards)
        self._sandboxed = found.place == "sandbox"
        self._opening = {
            "rule": rule,
            "rewards": rewards.model_dump(mode="json"),
            "beside": [] if self._sandboxed else functions.folders_beside(),
        }
        self._count = count
        self._idle: list[Process] = []
        self.needs: list[str] = []
        """Columns that the rule must be given, known once it is open."""
        self._telling: set[asyncio.Task[None]] = set()

    async def judge(
        self, jobs: Sequence[JudgeRequest], on_verdict: Callable[[int], None]
    ) -> list[Verdict]:
        """Return verdicts on `jobs`, in their order.

        A job that takes longer than its rule may is a `timeout` with reward 0. A job whose process
        died is given to another process, and is an `infra_error` when that one dies too.

        Args:
            jobs: what to judge.
            on_verdict: called with the index of each job as soon as it has its verdict.

        Raises:
            UserError: the rule cannot be opened, or a gold answer cannot be read under it.
        """
        verdicts: list[Verdict] = [fault(self._rule, "was not asked")] * len(jobs)

        async def judge_one(index: int) -> None:
            request = {"text": jobs[index].text, "row": dict(jobs[index].row)}
            try:
                answer = await self._ask(request, self._seconds)
                if isinstance(answer, dict):
                    raise UserError(answer["error"])
                verdicts[index] = Verdict(*answer)
            except TimeoutError:
                reason = f"{self._rule}: no answer within {self._seconds:g} s"
                verdicts[index] = Verdict(0.0, "timeout", None, reason)
            except WorkerDiedError as died:
                verdicts[index] = fault(self._rule, str(died))
            on_verdict(index)

        await self._each(len(jobs), judge_one)
        return verdicts

    async def read_golds(self, golds: Sequence[str]) -> list[str | None]:
        """Return why each of `golds` cannot be read, None if it can."""
        found: list[str | None] = [None] * len(golds)

        async def read_one(index: int) -> None:
            try:
                found[index] = (await self._ask({"gold": golds[index]}, GOLD_SECONDS)).get("error")
            except TimeoutError:
                found[index] = f"takes longer than {GOLD_SECONDS:g} s to read"
            except WorkerDiedError as died:
                found[index] = f"cannot be read: {died}"

        await self._each(len(golds), read_one)
        return found

    async def open(self) -> None:
        """Start one worker, to find out now whether the rule can be opened.

        Raises:
            UserError: it cannot.
        """
        if not self._idle:
            self._idle.append(await self._start())

    async def close(self) -> None:
        """End all workers."""
        for worker in self._idle:
            await _kill(worker)
        self._idle.clear()

    async def _each(self, count: int, do: Callable[[int], Any]) -> None:
        """Call `do(0)` to `do(count - 1)`, as many at once as there are workers."""
        indices = iter(range(count))

        async def some() -> None:
            for index in indices:
                await do(index)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._count, count)):
                    group.create_task(some())
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None

    async def _ask(self, request: dict[str, Any], seconds: float) -> Any:
        """Return a worker's answer; a second worker is asked when the first dies.

        Raises:
            TimeoutError: it took longer than `seconds`, and was killed.
            WorkerDiedError: both died.
        """
        line = json.dumps(request).encode() + b"\n"
        for attempt in (1, 2):
            worker = self._idle.pop() if self._idle else await self._start()
            try:
                answer = await _exchange(worker, line, seconds)
            except WorkerDiedError:
                if attempt == 2:
                    raise
            except BaseException:
                await _kill(worker)
                raise
            else:
                self._idle.append(worker)
                return answer
        raise AssertionError

    async def _start(self) -> Process:
        """Return a worker that has opened the rule."""
        for _ in range(MOST_FAILED_STARTS):
            worker = await self._spawn()
            line = json.dumps(self._opening).encode() + b"\n"
            try:
                answer = await _exchange(worker, line, OPENING_SECONDS)
            except WorkerDiedError as died:
                said = str(died)
                continue
            except TimeoutError:
                await _kill(worker)
                said = f"it was not ready after {OPENING_SECONDS:g} s"
                break
            except BaseException:
                await _kill(worker)
                raise
            if "error" in answer:
                await _kill(worker)
                raise UserError(answer["error"])
            self.needs = answer["needs"]
            return worker
        raise UserError(f"{self._rule}: the process that judges by it cannot be started: {said}")

    async def _spawn(self) -> Process:
        command = [sys.executable, "-m", "common.rewards.worker"]
        pipes: Any = {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE, "limit": LONGEST_LINE}
        pipes["start_new_session"] = True  # to be killed with all that it started
        if self._sandboxed:
            with sandboxed_worker(command) as (inside, descriptors):
                worker = await create_subprocess_exec(*inside, **pipes, pass_fds=descriptors)
        else:
            worker = await create_subprocess_exec(*command, **pipes, env=worker_environment())
        telling = asyncio.create_task(_tell(worker))
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)
        return worker


def worker_environment() -> dict[str, str]:
    """Return our environment, with one thread per process and the project on the path.

    There are as many processes as cores. No bytecode is written: Python compares only the size of a
    source and the second of its last change, so a rule edited twice within one second could run in
    its old version.
    """
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


async def _exchange(worker: Process, line: bytes, seconds: float) -> Any:
    """Send a line and return the line that answers it.

    Raises:
        TimeoutError: no answer came within `seconds`.
        WorkerDiedError: the process ended instead.
    """
    assert worker.stdin and worker.stdout
    try:
        async with asyncio.timeout(None if math.isinf(seconds) else seconds):
            worker.stdin.write(line)
            await worker.stdin.drain()
            answer = await worker.stdout.readline()
    except (ConnectionError, asyncio.LimitOverrunError, ValueError):
        answer = b""
    if not answer.endswith(b"\n"):
        with suppress(TimeoutError):
            await asyncio.wait_for(worker.wait(), 1)
        await _kill(worker)
        raise WorkerDiedError(f"its process ended with {worker.returncode}")
    return json.loads(answer)


async def _tell(worker: Process) -> None:
    """Print a worker's standard error, cleaned and cut, since it may be a model's text."""
    assert worker.stderr
    with suppress(ValueError, ConnectionError):
        async for line in worker.stderr:
            print(clean(line.decode(errors="replace").rstrip())[:LONGEST_SAID], file=sys.stderr)


async def _kill(worker: Process) -> None:
    with suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    with suppress(TimeoutError):
        # A process that it left behind may hold its pipes open.
        await asyncio.wait_for(worker.wait(), KILL_SECONDS)
    # What is left of its pipes would complain of a closed loop when it is collected.
    close_pipes(worker)
