"""Sets of reals that are written by a condition, or by the points that they lack."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

from common.rewards.latex.shape import Items, Relation, Shape, Value
from common.rewards.latex.tokens import is_letter


def condition_of(tokens: list[str]) -> list[str] | None:
    r"""The condition on x of `\{x \mid x > 2\}` or `\{x \in \mathbb{R} : x > 2\}`."""
    if tokens[0] != r"\{" or tokens[-1] != r"\}" or not is_letter(tokens[1]):
        return None
    rest = tokens[2:-1]
    if rest[:2] == [r"\in", r"\mathbbR"]:
        rest = rest[2:]
    if rest[:1] not in ([r"\mid"], [":"], ["|"]) or tokens[1] not in rest:
        return None
    return rest[1:]


def is_inequality(shape: Shape) -> bool:
    """Whether the shape is an inequality, or several."""
    parts = shape.items if isinstance(shape, Items) else (shape,)
    return all(isinstance(part, Relation) and "=" not in part.operators for part in parts)


def gaps(points: Shape) -> Items | None:
    """The intervals between points of a set; None if they are not all different numbers."""
    if not isinstance(points, Items) or points.brackets != "{}":
        return None
    by_value: dict[Fraction, Shape] = {
        item.exact: item
        for item in points.items
        if isinstance(item, Value) and item.exact is not None
    }
    if len(by_value) < len(points.items):
        return None
    ends: list[Shape] = [
        Value(("-", r"\infty"), None),
        *(by_value[value] for value in sorted(by_value)),
        Value((r"\infty",), None),
    ]
    return Items("∪", tuple(Items("()", pair) for pair in pairwise(ends)))
