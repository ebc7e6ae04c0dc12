"""Multiplication of two whole numbers; the number of digits sets the difficulty."""

import math
from typing import Any

from pydantic import Field

from common.tasks.question import (
    Difficulty,
    Question,
    Space,
    Split,
    draw,
    read_difficulty,
    unravel,
)

WORDINGS = (
    "What is {} times {}?",
    "What is {} * {}?",
    "What is the product of {} and {}?",
)


class MultiplicationDifficulty(Difficulty):
    """The digits of the two factors set the difficulty."""

    first_digits: int = Field(default=2, ge=1, le=12)
    """Number of digits of one factor."""

    second_digits: int = Field(default=1, ge=1, le=12)
    """Number of digits of the other factor. Either factor may come first in the question."""


def generate(count: int, *, split: Split, seed: int, **difficulty: Any) -> list[Question]:
    """Draw `count` distinct questions; 7 × 34 and 34 × 7 are always in the same split.

    Raises:
        UserError: a difficulty key or value is not allowed, or there are too few questions.
    """
    settings = read_difficulty(MultiplicationDifficulty, "multiplication", difficulty)
    return draw([_space(settings)], count, split, seed, "multiplication")


def _space(settings: MultiplicationDifficulty) -> Space:
    first = _numbers(settings.first_digits)
    second = _numbers(settings.second_digits)
    # With equal digit counts the pairs already come in both orders.
    orders = 1 if first == second else 2
    radices = (len(first), len(second), orders, len(WORDINGS))

    def decode(index: int) -> tuple[str, Question]:
        i, j, order, wording = unravel(index, radices)
        factors = [first[i], second[j]] if order == 0 else [second[j], first[i]]
        low, high = sorted(factors)
        question = Question(
            task="multiplication",
            question=WORDINGS[wording].format(*factors),
            answer=str(low * high),
            verify_type="ANSWER_TAG",
            metadata={"factors": factors},
        )
        return f"multiplication {low} {high}", question

    return Space(math.prod(radices), decode)


def _numbers(digits: int) -> range:
    """Return all numbers with so many digits but 0 and 1, which are trivial as factors."""
    return range(max(2, 10 ** (digits - 1)), 10**digits)
