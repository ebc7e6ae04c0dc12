"""What a reward rule is, and where it may run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from common.config import RewardsConfig
from common.rewards.verdict import Row, Verdict

Place = Literal["here", "worker", "jail"]
"""Where a rule judges: `here` in the process that asks, for scanners linear in the text; `worker`
in a process of its own that can be killed; `jail` in such a process inside the sandbox, for
libraries that evaluate what they are given."""

Judge = Callable[[str, Row], Verdict]
"""(assistant prefix + completion, row) → verdict."""

Reward = Callable[[str, Row], float | None]
"""(assistant prefix + completion, row) → reward, None to say nothing about this row."""


@dataclass(frozen=True)
class Verifier:
    """A verify type: compares a completion with the row's gold answer."""

    open: Callable[[RewardsConfig], Judge]
    """Makes the rule ready, once a process: loads what it needs, takes its settings."""
    read_gold: Callable[[str], Any]
    """Reads a gold answer; raises `GoldError` if the type cannot."""
    place: Place = "here"
    gold_place: Place = "here"
    """Where `read_gold` runs."""
    seconds: Callable[[RewardsConfig], float] = lambda rewards: math.inf
    """Longest time for one completion, of rules that do not run here."""
    require: Callable[[RewardsConfig], None] = lambda rewards: None
    """Raises `MissingToolError` if what the rule needs is not there."""
    packages: tuple[str, ...] = ()
    """Distributions whose versions may change a verdict."""
    max_memory: int | None = None
    """Bytes of address space that the rule's process may take."""


@dataclass(frozen=True)
class Extra:
    """A reward besides the answer's, with a weight in the recipe."""

    open: Callable[[RewardsConfig], Reward]
    place: Place = "here"
    seconds: Callable[[RewardsConfig], float] = lambda rewards: math.inf
    needs: tuple[str, ...] = ()
    """Columns that a row must have besides the completion's text."""


def always(judge: Judge) -> Callable[[RewardsConfig], Judge]:
    """`open` of a rule that has no settings."""
    return lambda rewards: judge
