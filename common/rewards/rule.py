"""What a reward rule is, where it may run, and what it says about one completion."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from common.errors import UserError

if TYPE_CHECKING:
    from common.config import RewardsConfig

Row = Mapping[str, Any]
"""Columns of the completion's row, by name; every rule may count on `answer` and `verify_type`."""

VerdictName = Literal["correct", "wrong", "no_answer", "timeout", "infra_error"]

VERDICTS: tuple[VerdictName, ...] = ("correct", "wrong", "no_answer", "timeout", "infra_error")


@dataclass(frozen=True)
class Verdict:
    """What one rule says about one completion.

    `reward` is None when `verdict` is `infra_error`: the fault was ours and not the model's, so the
    completion stays out of its group's statistics instead of counting as wrong.
    """

    reward: float | None
    verdict: VerdictName
    extracted: str | None
    """The text that the rule compared with the gold answer."""
    reason: str = ""
    """What went wrong, for `infra_error` and `timeout`."""


NO_ANSWER = Verdict(0.0, "no_answer", None)

ABSTAINED = Verdict(None, "no_answer", None)
"""Verdict of an auxiliary reward that has nothing to say about a row; it adds nothing to the
sum."""


class GoldError(UserError):
    """A gold answer cannot be read under its verify type: a fault of the data set."""


def graded(is_correct: bool, extracted: str) -> Verdict:
    """Return the verdict with reward 1 for a correct answer, with 0 for a wrong one."""
    return Verdict(1.0, "correct", extracted) if is_correct else Verdict(0.0, "wrong", extracted)


Place = Literal["here", "worker", "sandbox", "service"]
"""Where a rule judges. `here` is the process that asks, for scanners that are linear in the text.
`worker` is a process of its own that can be killed. `sandbox` is such a process inside the sandbox,
for libraries that evaluate what they are given. `service` is another machine, which threads of this
process ask and wait for."""

Judge = Callable[[str, Row], Verdict]
"""A function from (assistant prefix + completion, row) to a verdict."""

Reward = Callable[[str, Row], float | None]
"""A function from (assistant prefix + completion, row) to a reward, None to say nothing about this
row."""


@dataclass(frozen=True)
class Verifier:
    """A verify type: a rule that compares a completion with the row's gold answer."""

    open: Callable[[RewardsConfig], Judge]
    """Makes the rule ready, once in a process: loads what it needs and takes its settings."""
    read_gold: Callable[[str], Any]
    """Reads a gold answer; raises `GoldError` if the type cannot."""
    form: str
    """What it looks for in a completion, told where hardly any completion has it."""
    place: Place = "here"
    gold_place: Place = "here"
    """Where `read_gold` runs."""
    seconds: Callable[[RewardsConfig], float] = lambda rewards: math.inf
    """Longest time for one completion, for rules that run in processes of their own."""
    threads: Callable[[RewardsConfig], int] = lambda rewards: 1
    """How many completions a service judges at the same time."""
    require: Callable[[RewardsConfig], None] = lambda rewards: None
    """Raises `MissingToolError` if something that the rule needs is missing."""
    packages: tuple[str, ...] = ()
    """Distributions whose versions may change a verdict."""
    max_memory: int | None = None
    """Bytes of address space that the rule's process may take."""


@dataclass(frozen=True)
class AuxReward:
    """An auxiliary reward: a rule of the recipe that adds to the answer's reward, with a weight."""

    open: Callable[[RewardsConfig], Reward]
    place: Place = "here"
    seconds: Callable[[RewardsConfig], float] = lambda rewards: math.inf
    needs: tuple[str, ...] = ()
    """Columns that a row must have besides the completion's text."""


def always(judge: Judge) -> Callable[[RewardsConfig], Judge]:
    """Return an `open` for a rule that has no settings."""
    return lambda rewards: judge
