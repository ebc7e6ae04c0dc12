"""What a gain is made of: choosing other openings, accuracy within them, and how sure it is."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.reporting import opening_tables
from common.reporting.opening_tables import bootstrap_intervals, seldom_together, ways_of


def parts(before: pl.DataFrame, after: pl.DataFrame) -> tuple[float, float]:
    """`choice` and `within` of completions that weigh the same."""
    ways = ways_of(*(frame.with_columns(weight=1.0) for frame in (before, after)))
    return ways["choice"].sum(), ways["within"].sum()


@st.composite
def judged(draw: st.DrawFn) -> pl.DataFrame:
    """Completions with up to six opening_tables."""
    size = draw(st.integers(1, 30))
    several = {"min_size": size, "max_size": size}
    return pl.DataFrame(
        {
            "opening": draw(st.lists(st.sampled_from("ABCDEF"), **several)),
            "correct": draw(st.lists(st.booleans(), **several)),
        }
    )


@given(before=judged(), after=judged())
def test_choice_and_accuracy_within_make_up_the_difference(
    before: pl.DataFrame, after: pl.DataFrame
) -> None:
    choice, within = parts(before, after)
    assert choice + within == pytest.approx(
        float(after["correct"].mean() or 0) - float(before["correct"].mean() or 0)  # type: ignore[arg-type]
    )
    unchanged = parts(before, before)
    assert unchanged == pytest.approx((0, 0), abs=1e-12)


def test_only_another_choice_is_all_choice() -> None:
    """A way that is always right and one that never is: a policy that changes over to the first."""
    frame = {"opening": ["good", "bad"] * 2, "correct": [True, False] * 2}
    before = pl.DataFrame(frame)
    after = pl.DataFrame({"opening": ["good"] * 4, "correct": [True] * 4})
    assert parts(before, after) == pytest.approx((0.5, 0))


def test_intervals_are_those_of_questions_drawn_again() -> None:
    """Parity with rows repeated as often as their question was drawn."""
    generator = np.random.default_rng(5)
    names = [f"q{number}" for number in range(7)]
    before, after = (
        pl.DataFrame(
            {
                "prompt_id": names * 3,
                "opening": generator.choice(["a", "b", "c"], 21, p=shares),
                "correct": generator.random(21) < right,
            }
        )
        for shares, right in (([0.8, 0.15, 0.05], 0.3), ([0.1, 0.9, 0.0], 0.8))
    )
    drawn = np.random.default_rng(0).multinomial(7, np.full(7, 1 / 7), size=60)
    found = []
    for counts in drawn:
        times = dict(zip(names, counts.tolist(), strict=True))
        again = [
            frame.select(
                pl.all().repeat_by(pl.col("prompt_id").replace_strict(times)).explode()
            ).drop_nulls("opening")
            for frame in (before, after)
        ]
        found.append(parts(*again))
    low, high = np.quantile(np.array(found), [0.025, 0.975], axis=0)
    weighed = (frame.with_columns(weight=1 / 3) for frame in (before, after))
    intervals = bootstrap_intervals(*weighed, resamples=60)
    assert intervals["choice"] == pytest.approx((low[0], high[0]))
    assert intervals["within"] == pytest.approx((low[1], high[1]))


def test_seldom_openings_are_taken_together() -> None:
    """Accuracy is weighed by share: 0.015 × 1 + 0.005 × 0 are right of 0.02."""
    ways = pl.DataFrame(
        {
            "opening": ["often", "rare", "rarer"],
            "share": [0.98, 0.015, 0.005],
            "share_after": [1.0, 0.0, 0.0],
            "right": [0.5, 1.0, 0.0],
            "right_after": [0.5, None, None],
            "choice": [0.01, -0.015, 0.0],
            "within": [0.0, 0.0, 0.0],
        }
    )
    often, others = seldom_together(ways).to_dicts()
    assert often == ways.row(0, named=True)
    assert (others["opening"], others["share"]) == (opening_tables.OTHERS, pytest.approx(0.02))
    assert (others["right"], others["right_after"]) == (pytest.approx(0.75), None)
    assert others["choice"] == pytest.approx(-0.015)


def test_no_word_is_the_name_of_the_others() -> None:
    drawn = pl.DataFrame({"opening": [*"abcde", "(others)", "(all"], "correct": True})
    drawn = drawn.with_columns(iteration=1)
    drawn = pl.concat([drawn, drawn.filter(pl.col("opening").is_in(["(others)", "(all"]))])
    table = opening_tables.by_iteration(drawn, opening_tables.most_common(drawn))
    assert sum(share for name, share in table.row(0, named=True).items() if name[-1] == "'") == 1


@pytest.mark.parametrize(
    ("text", "opening"),
    [
        (" Carefully: 4*7=28", "Carefully:"),
        ("<think>\nLet us", "Let"),
        ("", opening_tables.NONE),
        ("   ", opening_tables.NONE),
        ("</think><answer>4</answer>", "4"),
        ("a" * 99, "a" * 24),
    ],
)
def test_openings_are_first_words(text: str, opening: str) -> None:
    frame = pl.DataFrame({"text": [text]})
    assert frame.select(opening_tables.first_word("text")).item() == opening
