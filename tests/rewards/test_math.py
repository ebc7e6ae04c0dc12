"""MATH: what is mathematically the gold and what is not, where it is looked for.

The pairs of answers and golds are in math_cases.txt. math-verify 0.9 by itself judges many of
them otherwise: it passes more than 40 that are marked ≠, such as 0.3333333333 for 1/3 and 5 m for
5 cm.
"""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.math_cases import CASES, verdict_on

from common.rewards.math_answer import read_gold
from common.rewards.rule import GoldError


@pytest.mark.parametrize(("answer", "gold", "is_same"), CASES)
def test_answer_is_the_gold_or_not(answer: str, gold: str, is_same: bool) -> None:
    verdict = verdict_on(f"So it is \\boxed{{{answer}}}.", gold)
    assert verdict.reward == is_same
    assert verdict.verdict in ("correct", "wrong", "no_answer")


def test_there_are_many_cases_of_both_kinds() -> None:
    assert sum(is_same for *_, is_same in CASES) > 250
    assert sum(not is_same for *_, is_same in CASES) > 150


@pytest.mark.parametrize("gold", sorted({gold for _, gold, _ in CASES}))
def test_every_gold_is_its_own_answer(gold: str) -> None:
    assert verdict_on(rf"\boxed{{{gold}}}", gold).reward == 1
    assert verdict_on(f"The answer is ${gold}$.", rf"\boxed{{{gold}}}").reward == 1


# completion, gold, reward
PLACES = [
    # the last complete box
    (r"\boxed{5} \boxed{6}", "6", 1),
    (r"\boxed{5} \boxed{6}", "5", 0),
    (r"\boxed{5} \boxed{6", "5", 1),
    (r"\boxed{\boxed{5}}", "5", 1),
    (r"\boxed{}", "0", 0),
    (r"\boxed{ }", "5", 0),
    (r"\boxed{$\frac{1}{2}$}", "0.5", 1),
    (r"\[ \boxed{x = 5} \]", "5", 1),
    # the single answer tag
    ("<answer>5</answer>", "5", 1),
    ("<answer>5</answer><answer>5</answer>", "5", 0),
    (r"<answer>$\frac{1}{2}$</answer>", "0.5", 1),
    (r"<answer>\boxed{5}</answer>", "5", 1),
    (r"<answer>5</answer> \boxed{6}", "6", 1),
    (r"<answer>5</answer> \boxed{6}", "5", 0),
    ("<answer></answer>", "5", 0),
    ("<answer>5 or 6</answer>", "5", 0),
    ("<answer>The answer is 5</answer>", "5", 1),
    # the last formula
    ("The answer is $5$.", "5", 1),
    (r"So we get \[ x = 5 \]", "5", 1),
    (r"So \( 5 \) is it", "5", 1),
    (r"$$ \frac{1}{2} $$", "0.5", 1),
    ("First $3$, then $5$", "5", 1),
    ("First $3$, then $5$", "3", 0),
    ("$5$ and then $6", "5", 0),
    ("$5$ and then $6", "6", 1),
    ("We get $x=2$ or $x=3$", "3", 0),
    ("We get $x=2$ or $x=3$", "2,3", 1),
    ("It is $5.$", "5", 1),
    ("It costs $5 and $6", "5", 0),
    ("It costs $5.", "5", 1),
    # the text itself
    (r"\sqrt{8}", "2√2", 1),
    ("(1,2)", "(2,1)", 0),
    ("[0,1)", "(0,1]", 0),
    ("x=6=5", "5", 0),
    ("10^{10^{10}}", "5", 0),
    ("The answer is 5.", "5", 1),
    ("The answer is even.", "even", 1),
    ("**Answer: 5**", "5", 1),
    ("#### 5", "5", 1),
    ("Final answer: x = 5.", "5", 1),
    ("The result is -5.", "-5", 1),
    ("The result is 1,234.", "1234", 1),
    ("The result is 5%.", "0.05", 1),
    ("There are 5 apples.", "5", 1),
    ("It is 14 or 15", "14", 0),
    ("It is 14 or 15", "15", 0),
    ("x = 2 or x = 3", "2,3", 1),
    ("So the probability is 2/3.", r"\frac{2}{3}", 1),
    (r"so x = \frac{1}{2} is the result", "1/2", 1),
    (r"so x = \frac{1}{2} is the result", "2", 0),
    ("There are 5 million apples.", "5", 0),
    ("There are 5 million apples.", r"5\text{ million}", 1),
    ("The answer is 5 squared.", "5", 0),
    ("The answer is 5 percent.", "0.05", 1),
    ("The answer is 5 percent.", "5", 0),
    ("The answer is not 5.", "5", 0),
    ("The answer is negative 5.", "5", 0),
    ("The answer is about 5.", "5", 0),
    ("The answer is at most 5.", "5", 0),
    ("The answer is less than 5.", "5", 0),
    ("It is not 4 but 5.", "5", 1),
    ("The answer is equal to 5.", "5", 1),
    ("The answer is 5 over the reals.", "5", 1),
    ("The answer is 5, about which we are sure.", "5", 1),
    ("The answer is 5...", "5", 0),
    (r"So $x \approx 5$.", "5", 0),
    (r"It is $6 \mathrm{~m}$.", "6", 1),
    ("I don't know", "5", 0),
    # the answer part
    (r"<think>\boxed{7}</think> don't know", "7", 0),
    (r"<think>\boxed{6}</think>\boxed{5}", "5", 1),
    ("<think>5", "5", 0),
    ("", "5", 0),
]


@pytest.mark.parametrize(("text", "gold", "reward"), PLACES)
def test_where_the_answer_is_looked_for(text: str, gold: str, reward: int) -> None:
    assert verdict_on(text, gold).reward == reward


@pytest.mark.parametrize(
    ("text", "outcome", "extracted"),
    [
        (r"so \boxed{ 6 }", "wrong", "6"),
        (r"so \boxed{5}", "correct", "5"),
        (r"\boxed{}", "no_answer", None),
        ("", "no_answer", None),
        ("<think>5", "no_answer", None),
        (r"\boxed{\frac{1}{}}", "wrong", r"\frac{1}{}"),
        ("it is unknown", "wrong", "it is unknown"),
    ],
)
def test_outcome_says_what_was_compared(text: str, outcome: str, extracted: str | None) -> None:
    verdict = verdict_on(text, "5")
    assert (verdict.verdict, verdict.extracted) == (outcome, extracted)


UNREADABLE = ["", " ", "$$", r"\boxed{}", r"\frac{1", r"\frac{1}", "1 +", "(1, 2", "1/0", "?"]
UNREADABLE += [r"\frac{0}{0}", r"\hello", r"\sum_{", "x2"]
UNREADABLE += [r"x \equiv 3 \pmod 7", "1 2", "5!!", "=", "x =", "1" * 9000, "{" * 500 + "}" * 500]


@pytest.mark.parametrize("gold", UNREADABLE)
def test_unreadable_gold_is_an_error(gold: str) -> None:
    with pytest.raises(GoldError):
        read_gold(gold)
    with pytest.raises(GoldError):
        verdict_on(r"\boxed{5}", gold)


@pytest.mark.parametrize(
    ("answer", "gold", "reward"),
    [
        (r"\sum_{k=1}^n k^2", r"\sum_{k=1}^{n} k^2", 1),
        (r"\frac{n(n+1)(2n+1)}{6}", r"$\sum_{k=1}^n k^2$", 1),
        (r"\frac{n(n+1)(2n+1)}{5}", r"\sum_{k=1}^n k^2", 0),
        (r"\frac13", r"\int_0^1 x^2 dx", 1),
        (r"\frac12", r"\int_0^1 x^2 dx", 0),
        (r"\frac12 = \frac13", r"\int_0^1 x^2 dx", 0),
        ("1", r"\lim_{x \to 0} \frac{\sin x}{x}", 1),
        ("6", r"\gcd(12, 18)", 1),
        ("12", r"\gcd(12, 18)", 0),
        (r"\max(b, a)", r"\max(a, b)", 1),
        (r"\min(a, b)", r"\max(a, b)", 0),
        ("__import__('os').getpid()", r"\gcd(12, 18)", 0),
        ("1" * 5000, r"\gcd(12, 18)", 0),
    ],
)
def test_sums_integrals_and_the_like_are_math_verifys(answer: str, gold: str, reward: int) -> None:
    assert verdict_on(rf"\boxed{{{answer}}}", gold).reward == reward


@pytest.mark.parametrize(
    "gold",
    [r"\frac{1}{2}", r"$\frac{1}{2}$", r"\boxed{\frac{1}{2}}", r"Thus $\boxed{0.5}$.", r"\(1/2\)"],
)
def test_gold_may_be_marked_as_mathematics(gold: str) -> None:
    assert verdict_on(r"\boxed{\frac12}", gold).reward == 1


FINITE = st.decimals(allow_nan=False, allow_infinity=False, places=6)
RATIONALS = st.fractions(max_denominator=10**9)


@given(RATIONALS, RATIONALS)
def test_fractions_are_equal_exactly_when_they_are(one: Fraction, other: Fraction) -> None:
    ways = rf"\frac{{{one.numerator}}}{{{one.denominator}}}", f"{one.numerator}/{one.denominator}"
    for way in ways:
        assert verdict_on(rf"\boxed{{{way}}}", str(other)).reward == (one == other)
        assert verdict_on(rf"\boxed{{{way}}}", str(one)).reward == 1


SMALL = st.integers(-9, 9)


@settings(max_examples=40)
@given(SMALL, SMALL, SMALL, st.integers(-2, 2))
def test_polynomials_are_equal_exactly_when_they_are(a: int, b: int, c: int, more: int) -> None:
    factored = f"({a}x+({b}))(x-({c}))"
    expanded = f"{a}x^2 + ({b - a * c})x + ({-b * c + more})"
    assert verdict_on(rf"\boxed{{{factored}}}", expanded).reward == (more == 0)


@settings(max_examples=40)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(0, 3))
def test_sums_of_roots_are_told_apart(radicands: list[int], more: int) -> None:
    """An independent check to 15 digits, which small roots that differ do in the first ten."""
    forward = "+".join(rf"\sqrt{{{n}}}" for n in radicands)
    backward = "+".join(rf"\sqrt{{{4 * n}}}/2" for n in reversed(radicands)) + f"+{more}"
    assert verdict_on(rf"\boxed{{{forward}}}", backward).reward == (more == 0)
