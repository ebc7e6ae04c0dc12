"""CODE: the completion's last Python block passes the row's tests, in the sandbox.

The reward is 1 when all tests pass and 0 otherwise, or with `rewards.code.partial` the share of
tests that pass; only when all pass is the verdict `correct`. `code_tests.py` reads the tests,
`sandbox/` runs the program and `code_results.py` compares its results with the expected ones.

These modules import only the standard library and modules that do the same, since the tests run
them as another user, whose Python may have no packages.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from common.rewards.answer_part import answer_part
from common.rewards.code_results import same_output
from common.rewards.code_tests import CallTest, StdioTest, Test, read_tests
from common.rewards.rule import NO_ANSWER, Row, Verdict
from common.rewards.sandbox import run as sandbox
from common.rewards.sandbox.bubblewrap import MIB, Limits
from common.rewards.sandbox.check import self_test
from common.rewards.sandbox.run import Clock

if TYPE_CHECKING:
    from common.config import RewardsConfig
    from common.rewards.rule import Judge

LANGUAGES = ("python", "py", "python3")

# An answer tag may stand on the fence's line. `*+` tries nothing twice: lines may be long.
_OPENING = re.compile(r"[ \t]*+(?:<answer>[ \t]*+)?(`{3,}+|~{3,}+)[ \t]*+([^\s`]*+)[^`]*+")
_CLOSING = re.compile(r"[ \t]*+(`{3,}+|~{3,}+)[ \t]*+(?:</answer>.*)?")

_read_gold = functools.lru_cache(maxsize=256)(read_tests)


def read_gold(answer: str) -> tuple[Test, ...]:
    """Return the row's tests, as `code_tests.py` reads them.

    Raises:
        GoldError: there are none, or one cannot be read.
    """
    return _read_gold(answer)


def seconds(rewards: RewardsConfig) -> float:
    """Return the time limit of one completion: above the program's own, so that this ends first."""
    return rewards.code.seconds + sandbox.START_SECONDS + 10


def require(rewards: RewardsConfig) -> None:
    """Check that the sandbox holds on this machine; called once, before any work.

    Raises:
        MissingToolError: it does not.
    """
    self_test()


def open_rule(rewards: RewardsConfig) -> Judge:
    """Return the rule with the recipe's limits."""
    settings = rewards.code
    limits = Limits(
        seconds=settings.seconds,
        cpu_seconds=settings.cpu_seconds,
        memory_bytes=settings.memory_mib * MIB,
    )
    return functools.partial(judge, limits=limits, partial=settings.partial)


def judge(text: str, row: Row, *, limits: Limits, partial: bool) -> Verdict:
    """Run the program in `text` against the tests of `row`.

    Raises:
        GoldError: the tests cannot be read.
        SandboxError: the sandbox failed, which is not the program's fault.
    """
    tests = read_gold(row["answer"])
    program = last_program(answer_part(text) or "")
    if program is None:
        return NO_ANSWER
    passed, ended = run_tests(program, tests, limits, stop_early=not partial)
    if passed == len(tests):
        return Verdict(1.0, "correct", program)
    reward = passed / len(tests) if partial else 0.0
    if ended is None:
        return Verdict(reward, "wrong", program)
    most = limits.cpu_seconds if ended == "CPU time" else limits.seconds
    return Verdict(reward, "timeout", program, f"CODE: {ended} beyond {most:g} s")


def last_program(text: str) -> str | None:
    """Return the last fenced block marked as Python; if none is, the last without a language.

    The result is None if there is neither. A fence that is never closed makes no block: what it
    holds may be half a program.
    """
    said: str | None = None
    unsaid: str | None = None
    for language, content in _blocks(text):
        if language in LANGUAGES:
            said = content
        elif not language:
            unsaid = content
    program = unsaid if said is None else said
    return program if program and program.strip() else None


def _blocks(text: str) -> Iterator[tuple[str, str]]:
    """Yield (language in lower case, content) of each closed fenced block.

    A block ends with a fence of the same kind that is at least as long. Blocks within lists are
    indented; the indentation of the opening fence is taken off each line.
    """
    fence, language, indent = "", "", 0
    lines: list[str] = []
    for line in text.replace("\r\n", "\n").split("\n"):
        if not fence:
            if opening := _OPENING.fullmatch(line):
                fence, language = opening[1], opening[2].lower()
                indent = len(line) - len(line.lstrip())
                lines = []
        elif (closing := _CLOSING.fullmatch(line)) and closing[1].startswith(fence):
            yield language, "".join(f"{line}\n" for line in lines)
            fence = ""
        else:
            margin = min(indent, len(line) - len(line.lstrip()))
            lines.append(line[margin:])


def run_tests(
    program: str, tests: Sequence[Test], limits: Limits, *, stop_early: bool
) -> tuple[int, Clock | None]:
    """Return (how many tests pass, which time limit was met), all within `limits.seconds`.

    Calls share one process, which imports the program; each test of input and output has its own.
    With `stop_early` the first failure ends it.
    """
    deadline = time.monotonic() + limits.seconds
    calls = [test for test in tests if isinstance(test, CallTest)]
    passed, tried = 0, len(calls)
    ended: Clock | None = None
    if calls:
        passed, ended = _run_calls(program, calls, limits, stop_early)
    for test in tests:
        if stop_early and passed < tried:
            break
        if isinstance(test, StdioTest):
            left = deadline - time.monotonic()
            if left <= 0:
                return passed, "wall time"
            finished = sandbox.run_program(program, test.stdin, replace(limits, seconds=left))
            tried += 1
            passed += _printed(test, finished)
            ended = ended or finished.ended_by
    return passed, ended


def _run_calls(
    program: str, tests: list[CallTest], limits: Limits, stop_early: bool
) -> tuple[int, Clock | None]:
    results = _Results(tests, stop_early)
    calls = [(test.function, test.arguments, test.keywords) for test in tests]
    finished = sandbox.run_calls(program, calls, limits, results.read)
    return results.passed, finished.ended_by


def _printed(test: StdioTest, finished: sandbox.Finished) -> bool:
    right = same_output(test.stdout, finished.output, test.tolerance)
    return finished.status == "ok" and right


class _Results:
    """Results of calls, compared with the expected ones as they arrive."""

    def __init__(self, tests: list[CallTest], stop_early: bool) -> None:
        self.passed = 0
        self._tests = tests
        self._stop_early = stop_early
        self._read = 0  # results
        self._position = 0  # bytes

    def read(self, output: bytearray) -> bool:
        """Compare the lines that are new, and return whether no more are needed."""
        while self._read < len(self._tests):
            end = output.find(b"\n", self._position)
            if end < 0:
                return False
            test, line = self._tests[self._read], bytes(output[self._position : end])
            self._position = end + 1
            self._read += 1
            if any(test.comparison.is_met(expected, line) for expected in test.expected):
                self.passed += 1
            elif self._stop_early:
                return True
        return True
