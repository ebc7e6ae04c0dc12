"""Counting how often a letter occurs in a made-up word such as "taneran"."""

import math
from typing import Any

from pydantic import Field, model_validator

from common.tasks.question import (
    Difficulty,
    Question,
    Space,
    Split,
    draw,
    read_difficulty,
    unravel,
)

CONSONANTS = "nrt"
VOWELS = "ae"
LETTERS = CONSONANTS + VOWELS
"""Few letters, so that they repeat within a word and the answer is not always "1"."""

WORDINGS = (
    'How many times does the letter "{}" occur in the word "{}"?',
    'How often is there the letter "{}" in "{}"?',
)


class CountingDifficulty(Difficulty):
    """The length of the word sets the difficulty."""

    min_length: int = Field(default=5, ge=2, le=64)
    """Number of letters of the shortest word."""

    max_length: int = Field(default=8, ge=2, le=64)
    """Number of letters of the longest word; each length comes equally often."""

    @model_validator(mode="after")
    def _ordered(self) -> "CountingDifficulty":
        if self.min_length > self.max_length:
            raise ValueError(f"min_length {self.min_length} exceeds max_length {self.max_length}")
        return self


def generate(count: int, *, split: Split, seed: int, **difficulty: Any) -> list[Question]:
    """Draw `count` distinct questions; all wordings about a letter in a word are in one split.

    Raises:
        UserError: a difficulty key or value is not allowed, or there are too few questions.
    """
    settings = read_difficulty(CountingDifficulty, "counting", difficulty)
    spaces = [_space(length) for length in range(settings.min_length, settings.max_length + 1)]
    return draw(spaces, count, split, seed, "counting")


def _space(length: int) -> Space:
    alphabets = [CONSONANTS if i % 2 == 0 else VOWELS for i in range(length)]
    radices = (len(WORDINGS), len(LETTERS), *(len(alphabet) for alphabet in alphabets))

    def decode(index: int) -> tuple[str, Question]:
        wording, letter_index, *spelling = unravel(index, radices)
        letter = LETTERS[letter_index]
        word = "".join(alphabet[i] for alphabet, i in zip(alphabets, spelling, strict=True))
        question = Question(
            task="counting",
            question=WORDINGS[wording].format(letter, word),
            answer=str(word.count(letter)),
            verify_type="ANSWER_TAG",
            metadata={"letter": letter, "word": word},
        )
        return f"counting {letter} {word}", question

    return Space(math.prod(radices), decode)
