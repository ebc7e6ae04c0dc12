"""Prompts drawn by the ledger: turns, rechecks and revisits, whatever was solved."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config import RolloutConfig
from common.errors import UserError
from common.rollout.prompt_order import (
    LedgerSelection,
    most_revisits,
    revisit_order,
    select_by_ledger,
    select_prompts,
)

RATES = st.dictionaries(st.integers(0, 14), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))


def draw(
    cursor: int,
    count: int,
    total: int,
    rates: dict[int, float],
    revisits: int = 0,
    recheck: int = 4,
    unfit: frozenset[int] = frozenset(),
) -> LedgerSelection:
    return select_by_ledger(
        cursor,
        count,
        total,
        seed=3,
        fits=lambda index: index not in unfit,
        pass_rates=rates,
        again=revisit_order(rates, 3, 2),
        revisits=revisits,
        recheck_epochs=recheck,
    )


@given(
    total=st.integers(1, 15),
    rates=RATES,
    cursor=st.integers(0, 40),
    first=st.integers(1, 10),
    more=st.integers(0, 10),
    revisits=st.integers(0, 10),
    recheck=st.integers(1, 5),
    unfit=st.frozensets(st.integers(0, 14), max_size=5),
)
def test_the_order_of_the_ledger(
    total: int,
    rates: dict[int, float],
    cursor: int,
    first: int,
    more: int,
    revisits: int,
    recheck: int,
    unfit: frozenset[int],
) -> None:
    rates = {index: rate for index, rate in rates.items() if index < total}
    fitting = set(range(total)) - unfit
    revisits = min(revisits, first)
    if not fitting:
        with pytest.raises(UserError, match="none of the"):
            draw(cursor, first, total, rates, revisits, recheck, unfit)
        return
    one = draw(cursor, first, total, rates, revisits, recheck, unfit)
    both = draw(cursor, first + more, total, rates, revisits, recheck, unfit)
    assert both.prompts[:first] == one.prompts and both.repeats[:first] == one.repeats
    assert len(both.prompts) == first + more and set(both.prompts) <= fitting
    partly = {index for index in fitting if 0 < rates.get(index, 0) < 1}
    assert both.revisited == min(revisits, len(partly))
    assert set(both.prompts[: both.revisited]) <= partly
    times = [both.prompts.count(index) for index in fitting]
    assert max(times) <= 1 or min(times) >= max(times) - 1
    turns = first + more - both.revisited + both.passed_over + len(both.dropped)
    assert both.cursor_end == cursor + turns


@given(
    total=st.integers(1, 15),
    counts=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    rate=st.sampled_from([None, 0.0, 1.0]),
)
def test_without_a_difference_the_order_is_the_uniform_one(
    total: int, counts: list[int], rate: float | None
) -> None:
    """Nothing known, nothing ever solved, or all always solved: turns as they come, as long as no
    prompt would come twice in an iteration."""
    rates = {} if rate is None else dict.fromkeys(range(total), rate)
    cursor = 0
    for count in counts:
        uniform = select_prompts(cursor, count, total, seed=3, fits=lambda index: True)
        found = draw(cursor, count, total, rates)
        if len(set(uniform.prompts)) == count:
            assert (found.prompts, found.cursor_end) == (uniform.prompts, uniform.cursor_end)
        cursor = uniform.cursor_end


@given(recheck=st.integers(1, 5), solved=st.sets(st.integers(0, 11), max_size=11))
def test_solved_prompts_take_one_turn_in_so_many_epochs(recheck: int, solved: set[int]) -> None:
    """Spread over the epochs, so that no epoch is of old acquaintances only."""
    total, epochs = 12, 2 * recheck
    rates = dict.fromkeys(solved, 1.0)
    cursor, times = 0, [0] * total
    while cursor < epochs * total:
        found = draw(cursor, 1, total, rates, recheck=recheck)
        cursor = found.cursor_end
        times[found.prompts[0]] += cursor <= epochs * total
    assert times == [2 if index in solved else epochs for index in range(total)]


@given(
    total=st.integers(1, 8),
    recheck=st.integers(1, 3),
    unfit=st.frozensets(st.integers(0, 7), max_size=3),
    steps=st.lists(
        st.tuples(st.integers(1, 5), st.integers(0, 3), st.integers(0, 2**8 - 1)), max_size=40
    ),
)
def test_what_was_drawn_longer_ago_than_the_ledger_reads_has_been_drawn_since(
    total: int, recheck: int, unfit: frozenset[int], steps: list[tuple[int, int, int]]
) -> None:
    """`last_pass_rates` stops after (recheck_epochs + 1) * total turns: no prompt that fits and was
    drawn rests longer, whatever is solved at each drawing (the bits of a step's last number)."""
    if unfit >= set(range(total)):
        return
    cursor, rates = 0, dict[int, float]()
    drawn_until: dict[int, int] = {}
    for count, revisits, solved in steps:
        for end in drawn_until.values():
            assert cursor - end < (recheck + 1) * total
        found = draw(cursor, count, total, rates, min(revisits, count), recheck, unfit)
        cursor = found.cursor_end
        drawn_until |= dict.fromkeys(found.prompts, cursor)
        rates |= {index: float(solved >> index & 1) for index in found.prompts}


def test_revisits_are_drawn_by_the_variance_of_their_reward() -> None:
    """First picks follow p (1 - p); what is never or always solved is never picked; another prompt
    more or less changes no one's own number."""
    rates = {0: 0.0, 1: 1.0, 2: 0.5, 3: 0.1, 4: 0.25}
    weights = {2: 0.25, 3: 0.09, 4: 0.1875}
    firsts = [revisit_order(rates, 0, iteration)[0] for iteration in range(4000)]
    for index, weight in weights.items():
        assert firsts.count(index) / 4000 == pytest.approx(weight / sum(weights.values()), abs=0.03)
    for iteration in range(20):
        order = revisit_order(rates, 0, iteration)
        assert sorted(order) == [2, 3, 4]
        without = revisit_order({2: 0.5, 4: 0.25}, 0, iteration)
        assert without == [index for index in order if index != 3]
    assert revisit_order({0: 1.0, 1: 0.0}, 0, 1) == revisit_order({}, 0, 1) == []


@pytest.mark.parametrize(
    ("share", "prompts", "groups"),
    [(0.25, 32, 8), (0.29, 100, 29), (0.3, 5, 1), (0, 9, 0), (1, 9, 9)],
)
def test_the_share_of_revisits_is_rounded_down(share: float, prompts: int, groups: int) -> None:
    assert (
        most_revisits(RolloutConfig(ledger_revisit=share, prompts_per_iteration=prompts)) == groups
    )
