"""Multiplication of two whole numbers; difficulty is the number of digits of each factor."""

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
    """Digits of the two factors."""

    first_digits: int = Field(default=2, ge=1, le=12)
    """Digits of one factor."""

    second_digits: int = Field(default=1, ge=1, le=12)
    """Digits of the other factor. Either factor may stand first in the question."""


def generate(count: int, *, split: Split, seed: int, **difficulty: Any) -> list[Question]:
    """Draw `count` distinct questions; 7 × 34 and 34 × 7 are always in the same split.

    Raises `UserError` for an unknown difficulty or for more questions than exist.
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
    """All numbers of so many digits; 0 and 1 are left out, as factors they ask nothing."""
    return range(max(2, 10 ** (digits - 1)), 10**digits)
