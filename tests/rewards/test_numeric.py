"""NUMERIC: quantities within a tolerance, however they are written."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.measured import QUICK, best_seconds

from common.config import RewardsConfig
from common.config.rewards import NumericTolerance
from common.rewards import numeric
from common.rewards.registry import judge
from common.rewards.rule import GoldError

AVOGADRO = "6.022e23"


def reward(text: str, gold: str) -> float | None:
    return judge(text, {"answer": gold, "verify_type": "NUMERIC"}).reward


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("It is 14.", "14"),
        ("**42**.", "42"),
        ("so g = 9.8 m/s^2.", "9.81 ± 0.05"),
        ("The area is 14 cm^2", "14"),
        ("The area is 14 cm²", "14"),
        (r"\boxed{9.8\ \text{m/s}^2}", "9.81 ± 1%"),
        (r"\boxed{g \approx 9.8 \mathrm{m\,s^{-2}}}", "9.81"),
        (r"$N_A = 6.02 \times 10^{23}$", AVOGADRO),
        ("6.02 × 10²³ molecules", AVOGADRO),
        ("6.02*10^23", AVOGADRO),
        ("6.02e23", AVOGADRO),
        (r"-1.6 \cdot 10^{-19}", "-1.602e-19"),
        ("about 10^{23}", "1e23"),
        ("14 million", "14000000"),
        ("7 dozen", "84"),
        ("3/4", "0.75"),
        (r"$\frac{3}{4}$", "0.75"),
        ("0.75", r"\frac{3}{4}"),
        ("50%", "50"),
        ("$1,234.50", "1234.5"),
        (r"11,\! 111", "11111"),
        ("−5", "-5"),
        ("between 3-5", "5"),
        ("9.8 ± 0.1", "9.8"),
        ("<think>5</think>14", "14"),
        ("<answer>x = 14 kg</answer> or 15", "14"),
        (r"5, so \boxed{14}, see page 3", "14"),
    ],
)
def test_a_right_quantity_in_any_notation(text: str, gold: str) -> None:
    assert reward(text, gold) == 1


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("14 million", "14"),
        ("5^2", "5"),
        ("5²", "5"),
        ("10^14", "14"),
        ("3/4", "4"),
        (r"\frac{1}{14}", "14"),
        (r"\sqrt{2}", "2"),
        (r"2\pi", "2"),
        ("5!", "5"),
        ("3 1/2", "0.5"),
        ("3½", "3"),
        ("x2", "2"),
        ("H2O", "2"),
        ("1/0", "1"),
        ("3/4/2024", "0.75"),
        ("3/4/2024", "24"),
        ("3/4/2024", "2024"),
        ("2**3", "3"),
        ("5^(12)", "12"),
        ("x^(12)", "12"),
        ("x^{12}", "12"),
        (r"\boxed{10 or 14}", "14"),
        (r"\boxed{14 or more}", "14"),
        (r"\boxed{14, 15}", "14"),
        (r"\boxed{14^2}", "14"),
        (r"\boxed{14 squared}", "14"),
        (r"\boxed{> 5}", "5"),
        (r"\boxed{x \le 5}", "5"),
        (r"\boxed{2\times 4 = 8}", "8"),
        (r"\boxed{" + "1" * 600 + "}", "1"),
        ("<answer>14</answer><answer>15</answer>", "14"),
        ("1e99999", "1"),
        ("10^99999", "1"),
        ("<think>14", "14"),
        ("", "14"),
    ],
)
def test_another_number_is_wrong(text: str, gold: str) -> None:
    assert reward(text, gold) == 0


@pytest.mark.parametrize(
    ("gold", "nearest", "beyond"),
    [
        ("9.81 ± 0.05", ("9.76", "9.86"), ("9.7599999999", "9.8600000001")),
        ("9.81 +/- 0.05", ("9.76", "9.86"), ("9.75", "9.87")),
        ("200 ± 1%", ("198", "202"), ("197.99", "202.01")),
        ("-200 ± 1%", ("-198", "-202"), ("-197.99", "-202.01", "200")),
        ("200", ("198", "202"), ("197.99", "202.01")),
        ("0.3 ± 0", ("0.3", "3e-1"), ("0.30000000000000004",)),
        ("0", ("0", "-0.0"), ("1e-300",)),
    ],
)
def test_both_ends_of_the_tolerance_are_right(
    gold: str, nearest: tuple[str, ...], beyond: tuple[str, ...]
) -> None:
    """Floats get this wrong: 9.86 - 9.81 is 0.05 and a bit."""
    assert [reward(text, gold) for text in nearest] == [1] * len(nearest)
    assert [reward(text, gold) for text in beyond] == [0] * len(beyond)


def test_the_recipes_tolerance_holds_where_the_row_has_none() -> None:
    tolerance = NumericTolerance(relative=0.0, absolute=0.5)
    rule = numeric.open_rule(RewardsConfig(numeric=tolerance))
    row = {"answer": "100", "verify_type": "NUMERIC"}
    assert [rule(text, row).reward for text in ("100.5", "99.5", "100.51")] == [1, 1, 0]
    assert rule("100.5", row | {"answer": "100 ± 0.1"}).reward == 0


@pytest.mark.parametrize(
    ("gold", "why"),
    [
        ("about nine", "is no number"),
        ("", "is no number"),
        ("9 or 10", "is no number"),
        ("9.81 ±", "has after ± no number"),
        ("9.81 ± x", "has after ± no number"),
        ("9.81 ± -1", "has after ± no number"),
        ("9.81 ± 1 ± 2", "has after ± no number"),
        ("1e20000", "is no number"),
    ],
)
def test_golds_that_cannot_be_read(gold: str, why: str) -> None:
    with pytest.raises(GoldError, match=why):
        numeric.read_gold(gold)


@given(st.fractions(-(10**9), 10**9, max_denominator=10**6), st.integers(0, 12))
def test_a_decimal_is_within_its_own_rounding(value: Fraction, digits: int) -> None:
    shown = f"{float(value):.{digits}f}"
    gold = f"{value.numerator}/{value.denominator} ± {0.5 / 10**digits + 1e-6:f}"
    assert reward(f"It is {shown}.", gold) == 1


PIECES = ["1", "10", "^", "{", "}", "×", " ", "/", "±", "√", "e", ",", ".", "-", "million ", "\\"]


@pytest.mark.parametrize(
    "text", [piece * 50_000 for piece in PIECES] + ["10^{" * 30_000, "1/" * 50_000, "1 " * 50_000]
)
def test_long_texts_take_a_fraction_of_a_second(text: str) -> None:
    assert best_seconds(lambda: reward(text, "5")) < QUICK


@given(st.lists(st.sampled_from([*PIECES, r"\boxed{", r"\times", r"\frac{", "5"]), max_size=40))
def test_no_text_breaks_the_rule(pieces: list[str]) -> None:
    assert reward("".join(pieces), "5") in (0, 1)
