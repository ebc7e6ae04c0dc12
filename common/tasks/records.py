"""Rows of a data set as they were read, their values as text, and the faults found in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
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


def as_text(value: Any) -> str:
    r"""Return a value as text: text and numbers, and bytes that are UTF-8.

    Raises:
        UserError: it is something else, or has half a character: JSON allows a "\ud800". The
            message begins with "holds" or "is", for a column's name before it.
    """
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"is not UTF-8 at byte {error.start}; write it as UTF-8") from None
    if not isinstance(value, str):
        if is_number(value):
            return str(value)
        raise UserError(f"holds {shown(value)}, not text; write it as text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"has half a character (a lone surrogate) at {error.start}; leave it out"
        ) from None
    return value


def shown(value: Any) -> str:
    """Return a value for a message, in 80 characters at most."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def listed(names: Iterable[str]) -> str:
    """Return names for a message, the first twenty and the number of others."""
    names = list(names)
    more = f" and {len(names) - 20} others" if len(names) > 20 else ""
    return ", ".join(map(repr, names[:20])) + more


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number; true and false are none."""
    if isinstance(value, Decimal):
        return value.is_finite()
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def with_nested(records: Sequence[Record], names: Iterable[str]) -> Sequence[Record]:
    """Return records in which a name such as `a.b` is a column, if the objects in `a` have a `b`.

    A column of that very name comes first. The items of a list have numbers: `a.0.b`.
    """
    for name in names:
        if "." in name and not any(name in record.values for record in records):
            values = [_inside(record.values, name.split(".")) for record in records]
            if any(value is not None for value in values):
                records = [
                    Record(record.values | {name: value}, record.where)
                    for record, value in zip(records, values, strict=True)
                ]
    return records


def _inside(value: Any, path: Sequence[str]) -> Any:
    for part in path:
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


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
