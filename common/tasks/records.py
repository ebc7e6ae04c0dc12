"""Rows of a data set as they were read, and the faults found in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from common.errors import UserError

UnreadableGolds = Callable[[Sequence[tuple[str, str]]], list[str | None]]
"""A function that takes (verify type, gold answer) of each row and returns for each what is wrong
with the gold, or None if it can be read."""

MOST_SHOWN = 10


@dataclass(frozen=True)
class Record:
    """One row and its place, such as `train.jsonl:17`."""

    values: dict[str, Any]
    where: str


@dataclass
class Faults:
    """All faults of the input, reported at once so that they need not be fixed one by one."""

    lines: list[str] = field(default_factory=list)

    def add(self, where: str, what: str) -> None:
        self.lines.append(f"{where}: {what}")

    def raise_any(self) -> None:
        """Raise `UserError` if there are faults, with the first ones and the number of others."""
        if not self.lines:
            return
        others = len(self.lines) - MOST_SHOWN
        more = [f"... and {others} more faults of the data"] if others > 0 else []
        raise UserError("\n".join(self.lines[:MOST_SHOWN] + more))
