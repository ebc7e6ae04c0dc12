"""Questions, and how they are drawn from a finite space without repetition.

A generator describes its questions as one or more `Space`s: a size and a function from an index to
a question. Drawing follows a random permutation of the indices, so that no question comes twice. If
the indices run out, the number of questions in the split is known exactly.
"""

import hashlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from common.errors import UserError

Split = Literal["train", "eval"]

EVAL_SHARE = 0.35
"""Share of canonical contents that belong to the evaluation split."""


@dataclass(frozen=True)
class Question:
    """A question, with the gold answer that the rule of its `verify_type` compares with."""

    task: str
    question: str
    answer: str
    verify_type: str
    metadata: dict[str, Any]


class Difficulty(BaseModel):
    """Base class of every task's difficulty: it refuses unknown keys and is immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


@dataclass(frozen=True)
class Space:
    """A space of `size` questions; `decode(index)` returns canonical content and question."""

    size: int
    decode: Callable[[int], tuple[str, Question]]


DifficultyT = TypeVar("DifficultyT", bound=Difficulty)


def read_difficulty(model: type[DifficultyT], task: str, values: dict[str, Any]) -> DifficultyT:
    """Return a task's difficulty, validated.

    Raises:
        UserError: a key is unknown or its value is not allowed; the message names both.
    """
    try:
        return model(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "difficulty"
        known = ", ".join(model.model_fields)
        raise UserError(
            f"task {task}: {key} = {first['input']!r}: {first['msg']}. Known keys: {known}."
        ) from error


def split_of(canonical: str) -> Split:
    """Return the split of a canonical content, by a hash that no seed or platform changes."""
    digest = hashlib.sha256(canonical.encode()).digest()
    return "eval" if int.from_bytes(digest[:8], "big") / 2**64 < EVAL_SHARE else "train"


def unravel(index: int, radices: Sequence[int]) -> list[int]:
    """Return the digits of `index` in the mixed radix `radices`, the least significant first."""
    digits = []
    for radix in radices:
        index, digit = divmod(index, radix)
        digits.append(digit)
    assert index == 0, f"index lies outside a space of {math.prod(radices)}"
    return digits


def draw(spaces: Sequence[Space], count: int, split: Split, seed: int, task: str) -> list[Question]:
    """Draw `count` distinct questions of one split, each time from a space chosen uniformly.

    Spaces of very different sizes (schedules of 2 and of 4 tasks) thus come equally often, until
    the small ones are exhausted.

    Raises:
        UserError: the split has fewer than `count` questions.
    """
    if count < 0:
        raise UserError(f"task {task}: count = {count}; ask for 0 or more questions.")
    rng = random.Random(f"{task}/{split}/{seed}")
    walks = [(space, _permutation(space.size, rng)) for space in spaces]
    questions: list[Question] = []
    while len(questions) < count and walks:
        walk = rng.choice(walks)
        space, indices = walk
        for index in indices:
            canonical, question = space.decode(index)
            if split_of(canonical) == split:
                questions.append(question)
                break
        else:
            walks.remove(walk)
    if len(questions) < count:
        raise UserError(
            f"task {task}: {count} distinct questions of the {split} split were asked for, but at "
            f"this difficulty only {len(questions)} exist. Ask for fewer, or widen the difficulty."
        )
    return questions


def _permutation(size: int, rng: random.Random) -> Iterator[int]:
    """Yield 0 … size − 1 in random order, in memory that grows with the draws, not with `size`.

    This is Fisher–Yates (Durstenfeld, CACM 1964) with only the swapped entries kept, in a dict.
    """
    moved: dict[int, int] = {}
    for last in range(size - 1, -1, -1):
        pick = rng.randint(0, last)
        yield moved.get(pick, pick)
        moved[pick] = moved.pop(last, last)
