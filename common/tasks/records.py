"""Rows of a data set as they were read, their values as text, and the faults found in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
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


def as_text(value: Any) -> str | None:
    """Return a value as text, or None if it is no text or number, or text that is not UTF-8."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return None
    return str(value) if is_number(value) else None


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number; true and false are none."""
    if isinstance(value, Decimal):
        return value.is_finite()
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass
class Faults:
    """All faults of the input, reported at once so that they need not be fixed one by one."""

    lines: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    """What is no fault but was not read as it might seem, such as a CSV file with semicolons."""

    def add(self, where: str, what: str) -> None:
        self.lines.append(f"{where}: {what}")

    def raise_any(self) -> None:
        """Raise `UserError` if there are faults: the first ones, the number of others, notices."""
        if not self.lines:
            return
        others = len(self.lines) - MOST_SHOWN
        more = [f"... and {others} more faults of the data"] if others > 0 else []
        raise UserError("\n".join([*self.lines[:MOST_SHOWN], *more, *self.notices]))
