"""Judging completions: by which rules, each where it may run, and what comes of all together."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType

from common.config import RewardsConfig
from common.errors import UserError
from common.process import usable_cores
from common.rewards.pool import Job, Pool
from common.rewards.registry import (
    check_gold,
    extras_of,
    get_rule,
    get_verifier,
    open_rule,
    unreadable,
)
from common.rewards.rule import Judge, Place, Verifier
from common.rewards.verdict import Row, Verdict


@dataclass(frozen=True)
class Judgement:
    """All that is said about one completion."""

    reward: float | None
    """Weighted sum of the parts; None when a rule failed."""
    answer: float | None
    """By the row's verify type, unweighted."""
    extras: dict[str, float | None]
    """By the recipe's extra rewards, unweighted."""
    verdict: Verdict
    """On the answer; `infra_error` or `timeout` also when that befell an extra only."""


class Judging:
    """Judges completions by the rules of a recipe.

    A context manager: rules are opened, and their processes started, once; leaving it ends them.
    """

    def __init__(self, rewards: RewardsConfig) -> None:
        self._rewards = rewards
        self._weights = weights_of(rewards)
        self._here: dict[str, Judge] = {}
        self._pools: dict[str, Pool] = {}
        self._runner = asyncio.Runner()

    def __enter__(self) -> Judging:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pool in self._pools.values():
            self._runner.run(pool.close())
        self._runner.close()

    def open(self, verify_types: Iterable[str], *, extras: bool = True) -> None:
        """Make ready what is needed to judge such rows, and so find out what is missing.

        Raises:
            UserError: a verify type is unknown, or a rule cannot be opened.
            MissingToolError: a program or package that a rule needs is not there.
        """
        types = sorted(set(verify_types))
        for name in types:
            get_verifier(name)
        names = [*types, *(self._extras() if extras else ())]
        for name in names:
            if name not in self._pools:
                self._require(name)
        for name in names:
            if name in self._here or name in self._pools:
                continue
            if self._place(name) == "here":
                self._here[name] = open_rule(name, self._rewards)
            else:
                self._runner.run(self._pool(name).open())

    def judge(
        self,
        completions: Sequence[tuple[str, Row]],
        on_judged: Callable[[], None] = lambda: None,
    ) -> list[Judgement]:
        """Judge (assistant prefix + completion, row) by the row's verify type and by all extras.

        Args:
            completions: texts and rows.
            on_judged: called whenever all has been said about a completion.

        Raises:
            UserError: a verify type is unknown, a rule cannot be opened, or a gold answer cannot be
                read.
        """
        rules = ["", *self._extras()]
        self.open({row["verify_type"] for _, row in completions})
        jobs = [
            Job(extra or row["verify_type"], text, row)
            for extra in rules
            for text, row in completions
        ]
        missing = [len(rules)] * len(completions)

        def on_verdict(job: int) -> None:
            missing[job % len(completions)] -= 1
            if not missing[job % len(completions)]:
                on_judged()

        verdicts = self._verdicts(jobs, on_verdict)
        by_rule = [verdicts[i :: len(completions)] for i in range(len(completions))]
        return [
            combine(answer, dict(zip(rules[1:], extras, strict=True)), self._weights)
            for answer, *extras in by_rule
        ]

    def answers(self, completions: Sequence[tuple[str, Row]]) -> list[Verdict]:
        """Judge by the row's verify type alone."""
        self.open({row["verify_type"] for _, row in completions}, extras=False)
        jobs = [Job(row["verify_type"], text, row) for text, row in completions]
        return self._verdicts(jobs, lambda job: None)

    def unreadable_golds(self, golds: Sequence[tuple[str, str]]) -> list[str | None]:
        """What is wrong with each (verify type, answer); None if it can be read.

        Raises:
            MissingToolError: what reads golds of a type is not there.
        """
        found: dict[tuple[str, str], str | None] = {}
        elsewhere: dict[str, list[str]] = {}
        for verify_type, answer in dict.fromkeys(golds):
            try:
                if get_verifier(verify_type).gold_place == "here":
                    check_gold(verify_type, answer)
                else:
                    elsewhere.setdefault(verify_type, []).append(answer)
                found[verify_type, answer] = None
            except UserError as error:
                found[verify_type, answer] = str(error)
        for verify_type, answers in elsewhere.items():
            self._require(verify_type)
            reasons = self._runner.run(self._pool(verify_type).read_golds(answers))
            for answer, reason in zip(answers, reasons, strict=True):
                if reason is not None:
                    found[verify_type, answer] = unreadable(verify_type, answer, reason)
        return [found[gold] for gold in golds]

    def _verdicts(self, jobs: Sequence[Job], on_verdict: Callable[[int], None]) -> list[Verdict]:
        """Verdicts on jobs whose rules are open, rule by rule; `on_verdict` gets a job's index."""
        verdicts: dict[int, Verdict] = {}
        by_rule: dict[str, list[int]] = {}
        for index, job in enumerate(jobs):
            by_rule.setdefault(job.rule, []).append(index)
        for name, mine in by_rule.items():
            if name in self._here:
                for index in mine:
                    verdicts[index] = self._here[name](jobs[index].text, jobs[index].row)
                    on_verdict(index)
            else:
                work = self._pools[name].judge(
                    [jobs[i] for i in mine], partial(_renumbered, mine, on_verdict)
                )
                verdicts.update(zip(mine, self._runner.run(work), strict=True))
        return [verdicts[i] for i in range(len(jobs))]

    def _pool(self, name: str) -> Pool:
        if name not in self._pools:
            workers = self._rewards.workers
            count = default_workers() if workers == "auto" else workers
            self._pools[name] = Pool(name, self._rewards, count)
        return self._pools[name]

    def _require(self, name: str) -> None:
        rule = get_rule(name, self._rewards)
        if isinstance(rule, Verifier):
            rule.require(self._rewards)

    def _place(self, name: str) -> Place:
        return get_rule(name, self._rewards).place

    def _extras(self) -> list[str]:
        return [name for name in self._weights if name != "answer"]


def _renumbered(numbers: Sequence[int], tell: Callable[[int], None], index: int) -> None:
    tell(numbers[index])


def weights_of(rewards: RewardsConfig) -> dict[str, float]:
    """Weight of `answer` and of each extra that the recipe uses."""
    return {"answer": rewards.answer.weight} | rewards.extras()


def combine(
    answer: Verdict, extras: Mapping[str, Verdict], weights: Mapping[str, float]
) -> Judgement:
    """Add up what the rules say.

    The sum is rounded once (`math.fsum`), so equal parts give equal sums whatever their order. An
    extra that abstained adds nothing; one that ran out of time adds 0; when a rule failed, or the
    sum is beyond all numbers, there is no reward.
    """
    verdicts = {"answer": answer, **extras}
    rewards = {name: verdict.reward for name, verdict in verdicts.items()}
    failed = _first(verdicts, "infra_error")
    late = _first(verdicts, "timeout")
    terms = [weights[name] * part for name, part in rewards.items() if part is not None]
    total = _sum(terms)
    if total is None and not failed:
        failed = Verdict(None, "infra_error", None, f"the weighted sum of {terms} is not finite")
    if (befallen := failed or late) and befallen is not answer:
        reward = None if failed else answer.reward
        answer = Verdict(reward, befallen.verdict, answer.extracted, befallen.reason)
    rewards.pop("answer")
    return Judgement(None if failed else total, verdicts["answer"].reward, rewards, answer)


def _sum(terms: Sequence[float]) -> float | None:
    try:
        total = math.fsum(terms)
    except (OverflowError, ValueError):
        return None
    return total if math.isfinite(total) else None


def _first(verdicts: Mapping[str, Verdict], outcome: str) -> Verdict | None:
    return next((v for v in verdicts.values() if v.verdict == outcome), None)


def needed_columns(rewards: RewardsConfig) -> dict[str, str]:
    """Columns that the recipe's extras need, and the extra that needs each."""
    extras = extras_of(rewards)
    return {column: name for name in rewards.extras() for column in extras[name].needs}


def default_workers() -> int:
    """One process for each core that is ours, shared with the other ranks of torchrun."""
    return max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
