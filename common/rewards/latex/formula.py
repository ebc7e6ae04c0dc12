r"""Golds beyond our own reader (sums, integrals, limits): read and compared by math-verify.

Its parser guesses where notation is doubtful (see equality.py), so it sees only answers to golds
that need it, and text reaches it as LaTeX alone: its other parser evaluates what it is given.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

_OPERATORS = re.compile(r"\\(?:sum|prod|int|lim|max|min|gcd|lcm)(?![A-Za-z])")
MAX_CHARACTERS = 1000


@dataclass(frozen=True)
class Formula:
    """What math-verify reads in a text."""

    text: str
    expressions: tuple[Any, ...]


def read_formula(text: str) -> Formula | None:
    """The formula if it holds one of those operators; None without one, or if it is not read."""
    return _parse(text) if _OPERATORS.search(text) else None


def same_formula(gold: Formula, answer: str) -> bool:
    """Whether `answer` is written like the gold, or is equal to it as math-verify says."""
    from math_verify import verify

    if _bare(answer) == _bare(gold.text):
        return True
    # It would take the last side of a chain for all of it.
    found = _parse(answer) if answer.count("=") <= gold.text.count("=") else None
    if found is None:
        return False
    return bool(verify(list(gold.expressions), list(found.expressions), timeout_seconds=None))


@lru_cache(maxsize=4096)
def _parse(text: str) -> Formula | None:
    from math_verify import LatexExtractionConfig, parse

    text = text.strip().strip("$")
    if len(text) > MAX_CHARACTERS or "$" in text:
        return None
    # It logs what it cannot read, which is text of a model.
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    found = parse(
        f"${text}$",
        extraction_config=[LatexExtractionConfig()],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,
    )
    return Formula(text, tuple(found)) if found else None


def _bare(text: str) -> str:
    return re.sub(r"[\s$]+", "", text)
