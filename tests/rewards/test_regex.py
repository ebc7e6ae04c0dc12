"""REGEX: the whole answer matches, and no pattern and no text takes long."""

from __future__ import annotations

import pytest
from support.measured import QUICK, best_seconds

from common.config import RewardsConfig
from common.errors import MissingToolError
from common.rewards import regex
from common.rewards.registry import judge
from common.rewards.rule import GoldError, Verdict
from common.rewards.scorer import Scorer


def verdict(text: str, pattern: str) -> Verdict:
    return judge(text, {"answer": pattern, "verify_type": "REGEX"})


@pytest.mark.parametrize(
    ("text", "pattern", "reward"),
    [
        ("2024-05-06", r"\d{4}-\d{2}-\d{2}", 1),
        (" 2024-05-06\n", r"\d{4}-\d{2}-\d{2}", 1),
        ("2024-05-06 or 2024-05-07", r"\d{4}-\d{2}-\d{2}", 0),
        ("It is Paris, I think.", r"(?s).*\bParis\b.*", 1),
        ("paris", "(?i)Paris", 1),
        ("paris", "Paris", 0),
        ("Ünï 水", r"\p{L}+ \p{Han}", 1),
        ("<think>b</think>a", "a", 1),
        ("<think>a", "a", 0),
        ("well: <answer>a</answer>", "a", 1),
        ("<answer>a</answer><answer>a</answer>", "a", 0),
        ("<answer>a", "(?s).*", 0),
        (r"so \boxed{a}", "a", 1),
        ("a\nb", "a.b", 0),
        ("a\nb", "(?s)a.b", 1),
        ("b", "a|b", 1),
        ("ab", "a|b", 0),
        ("\ud800", ".", 1),
    ],
)
def test_the_whole_answer_must_match(text: str, pattern: str, reward: float) -> None:
    assert verdict(text, pattern).reward == reward


def test_nothing_is_no_answer_even_where_nothing_would_match() -> None:
    assert verdict(" \n", ".*").verdict == "no_answer"


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("(", "missing"),
        (" ", "is empty"),
        ("(?=a)b", "invalid perl operator"),
        (r"(a)\1", "invalid escape sequence"),
        ("(a{1000}){1000}", "invalid repetition size"),
        ("[z-a]", "invalid character class range"),
    ],
)
def test_patterns_that_are_refused(pattern: str, why: str) -> None:
    with pytest.raises(GoldError, match=why):
        regex.read_gold(pattern)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"(a|b|ab)*c", "ab" * 50_000),
        (r"(a*)*b", "a" * 100_000),
        (r"(.*)(.*)(.*)(.*)x", "a" * 100_000),
        (r"(\w+\s?)+!", "word " * 20_000),
        (r"(?s).*\bParis\b.*", "Pari" * 25_000),
    ],
)
def test_patterns_on_which_python_runs_for_hours(pattern: str, text: str) -> None:
    found = verdict(text, pattern)
    assert found.verdict == "wrong"
    assert best_seconds(lambda: verdict(text, pattern)) < QUICK


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where golds are read, which would otherwise call each row unreadable."""
    monkeypatch.setattr(regex, "find_spec", lambda name: None)
    regex.read_gold.cache_clear()
    with pytest.raises(MissingToolError, match="google-re2: `make extras`"):
        regex.require(RewardsConfig())
    with Scorer(RewardsConfig()) as scorer, pytest.raises(MissingToolError, match="google-re2"):
        scorer.unreadable_golds([("REGEX", "a")])
