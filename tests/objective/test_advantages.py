"""Advantages against the formulas written out with `statistics`, and what must always hold."""

import math
import statistics
import subprocess
import sys
from collections import defaultdict
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config import AdvantageKind
from common.errors import UserError
from common.objective.advantages import KINDS as BY_KIND
from common.objective.advantages import compute_advantages, groups_with_variance

KINDS = get_args(AdvantageKind)

REWARDS = st.one_of(
    st.none(), st.sampled_from([0.0, 1.0, 0.1, 0.7]), st.floats(-10, 10).map(lambda x: round(x, 3))
)


@st.composite
def iterations(draw: st.DrawFn) -> tuple[list[int], list[float | None]]:
    """Rows of one to five groups of two to six completions, groups mixed together."""
    sizes = draw(st.lists(st.integers(2, 6), min_size=1, max_size=5))
    groups = [group * 7 for group, size in enumerate(sizes) for _ in range(size)]
    order = draw(st.permutations(range(len(groups))))
    rewards = draw(st.lists(REWARDS, min_size=len(groups), max_size=len(groups)))
    return [groups[i] for i in order], rewards


def by_the_book(groups: list[int], rewards: list[float | None], kind: str) -> list[float]:
    members = defaultdict(list)
    for group, reward in zip(groups, rewards, strict=True):
        if reward is not None:
            members[group].append(reward)
    everyone = [reward for reward in rewards if reward is not None]
    advantages = []
    for group, reward in zip(groups, rewards, strict=True):
        same = members[group]
        if reward is None or max(same) - min(same) <= 1e-9 * max(1, max(map(abs, same))):
            advantages.append(0.0)
            continue
        centred = reward - statistics.fmean(same)
        if kind == "group":
            centred /= statistics.stdev(same) + 1e-4
        elif kind == "batch":
            centred /= statistics.stdev(everyone) + 1e-4
        elif kind == "leave_one_out":
            others = list(same)
            others.remove(reward)
            centred = reward - statistics.fmean(others)
        advantages.append(centred)
    return advantages


@pytest.mark.parametrize("kind", KINDS)
@given(rows=iterations())
def test_formulas(kind: AdvantageKind, rows: tuple[list[int], list[float | None]]) -> None:
    groups, rewards = rows
    got = compute_advantages(groups, rewards, kind)
    assert got.advantage.dtype == np.float64
    np.testing.assert_allclose(
        got.advantage, by_the_book(groups, rewards, kind), rtol=1e-9, atol=1e-11
    )


@given(rows=iterations())
def test_group_statistics(rows: tuple[list[int], list[float | None]]) -> None:
    groups, rewards = rows
    got = compute_advantages(groups, rewards, "group")
    for row, group in enumerate(groups):
        same = [r for g, r in zip(groups, rewards, strict=True) if g == group and r is not None]
        mean = statistics.fmean(same) if same else np.nan
        std = statistics.stdev(same) if len(same) > 1 else np.nan
        np.testing.assert_allclose(got.group_mean[row], mean, atol=1e-12)
        np.testing.assert_allclose(got.group_std[row], std, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@given(rows=iterations())
def test_a_group_sums_to_nothing(
    kind: AdvantageKind, rows: tuple[list[int], list[float | None]]
) -> None:
    """So whatever is added to all rewards of a prompt (its difficulty) teaches nothing."""
    groups, rewards = rows
    advantage = compute_advantages(groups, rewards, kind).advantage
    scale = 1 + np.abs(advantage).max()
    for group in set(groups):
        assert abs(advantage[np.array(groups) == group].sum()) <= 1e-10 * scale


@pytest.mark.parametrize("kind", KINDS)
@given(rows=iterations())
def test_a_null_reward_is_as_if_the_row_were_not_there(
    kind: AdvantageKind, rows: tuple[list[int], list[float | None]]
) -> None:
    groups, rewards = rows
    with_null = compute_advantages([groups[0], *groups], [None, *rewards], kind)
    assert with_null.advantage[0] == 0
    without = compute_advantages(groups, rewards, kind)
    np.testing.assert_array_equal(with_null.advantage[1:], without.advantage)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 0.7, -0.3, 1e6 + 0.1, 1e-300])
@pytest.mark.parametrize("size", [2, 3, 7, 16])
def test_equal_rewards_give_exactly_zero(kind: AdvantageKind, reward: float, size: int) -> None:
    """The mean of 0.1 three times is not 0.1 and its std not 0: a ratio of rounding errors."""
    groups = [0] * size + [1, 1]
    got = compute_advantages(groups, [reward] * size + [0.0, 1.0], kind)
    assert (got.advantage[:size] == 0).all()
    assert (got.group_std[:size] == 0).all()
    assert (got.advantage[size:] != 0).all()
    assert (got.groups, got.zero_variance_groups) == (2, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_variance_is_not_only_between_0_and_1(kind: AdvantageKind) -> None:
    """The seed dropped every group whose sum was neither 0 nor its size, and kept constant ones."""
    got = compute_advantages([0, 0, 1, 1, 2, 2], [0.5, 0.5, 0.2, 0.8, 0.0, 2.0], kind)
    assert (got.advantage[:2] == 0).all()
    assert (got.advantage[2:] != 0).all()
    assert got.zero_variance_groups == 1


@pytest.mark.parametrize(
    ("rewards", "constant"),
    [
        ([1.0, 1.0 + 0.9e-9], True),
        ([1.0, 1.0 + 1.1e-9], False),
        ([0.0, 0.9e-9], True),
        ([0.0, 1.1e-9], False),
        ([1e6, 1e6 + 0.9e-3], True),
        ([1e6, 1e6 + 1.1e-3], False),
        ([-1e6, -1e6 - 0.9e-3], True),
    ],
)
def test_same_reward_is_relative_to_the_largest(rewards: list[float], constant: bool) -> None:
    got = compute_advantages([0, 0], rewards, "none")
    assert (got.zero_variance_groups == 1) == constant
    assert (got.advantage == 0).all() == constant


PARTS = st.lists(
    st.tuples(
        st.sampled_from([0.1, 0.2, 0.3, 0.7, 1 / 3, 1.1, 3.0, 1e5]),
        st.sampled_from([0.0, 1.0, 0.1, 0.2, 0.7, -0.3, 1 / 7, -1.0]),
    ),
    min_size=2,
    max_size=7,
)
"""Weights and rewards of several rules, none of them dyadic."""


def summed_anyhow(terms: list[float], order: list[int]) -> list[float]:
    """Sums of the same terms that differ by rounding: in two orders, by halves, rounded once."""
    middle = len(terms) // 2
    return [
        sum(terms),
        sum(terms[i] for i in order),
        sum(terms[:middle]) + sum(terms[middle:]),
        math.fsum(terms),
    ]


@pytest.mark.parametrize("kind", KINDS)
@given(parts=PARTS, data=st.data())
def test_the_dust_of_weighted_sums_is_no_variance(
    kind: AdvantageKind, parts: list[tuple[float, float]], data: st.DataObject
) -> None:
    """Completions that earn the same get exactly 0, however their parts were added up; another
    group of the batch keeps its advantages, which the dust does not change."""
    terms = [weight * reward for weight, reward in parts]
    sums = summed_anyhow(terms, data.draw(st.permutations(range(len(terms)))))
    got = compute_advantages([0] * 4 + [1, 1], [*sums, 0.0, 1.0], kind)
    assert (got.advantage[:4] == 0).all()
    assert (got.group_std[:4] == 0).all()
    clean = compute_advantages([0] * 4 + [1, 1], [sums[3]] * 4 + [0.0, 1.0], kind)
    np.testing.assert_allclose(got.advantage[4:], clean.advantage[4:], rtol=1e-9)
    assert got.zero_variance_groups == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_tenth_and_two_are_three(kind: AdvantageKind) -> None:
    rewards = [0.1 + 0.2, 0.3, 0.2 + 0.1, 0.7 * 0.3 + 0.7 * 0.1 + 0.02]
    assert len(set(rewards)) > 1, "these are different floats"
    assert (compute_advantages([0] * 4, rewards, kind).advantage == 0).all()
    assert not groups_with_variance([0] * 4, rewards, 1).any()


@given(rows=iterations())
def test_variance_is_what_gives_advantages(rows: tuple[list[int], list[float | None]]) -> None:
    """Dynamic sampling accepts by the test that advantages are taken by."""
    groups, rewards = rows
    numbers = {group: number for number, group in enumerate(sorted(set(groups)))}
    varied = groups_with_variance([numbers[group] for group in groups], rewards, len(numbers))
    got = compute_advantages(groups, rewards, "none")
    for group, number in numbers.items():
        assert varied[number] == bool((got.advantage[np.array(groups) == group] != 0).any())
    assert got.zero_variance_groups == (~varied).sum()


# Groups that dynamic sampling rejected


@pytest.mark.parametrize("kind", KINDS)
@given(rows=iterations(), rejected=iterations())
def test_rejected_groups_are_in_no_statistic_of_the_batch(
    kind: AdvantageKind,
    rows: tuple[list[int], list[float | None]],
    rejected: tuple[list[int], list[float | None]],
) -> None:
    (groups, rewards), (others, their_rewards) = rows, rejected
    alone = compute_advantages(groups, rewards, kind)
    both = compute_advantages(
        [*groups, *(group + 1000 for group in others)],
        [*rewards, *their_rewards],
        kind,
        [True] * len(groups) + [False] * len(others),
    )
    np.testing.assert_array_equal(both.advantage[: len(groups)], alone.advantage)
    assert np.isfinite(both.advantage).all()
    assert (both.groups, both.zero_variance_groups) == (alone.groups, alone.zero_variance_groups)
    theirs = compute_advantages(others, their_rewards, "none")
    assert both.rejected_groups == theirs.groups
    assert both.rejected_zero_variance_groups == theirs.zero_variance_groups


@pytest.mark.parametrize("kind", KINDS)
def test_with_nothing_kept_there_is_no_batch(kind: AdvantageKind) -> None:
    got = compute_advantages([0, 0], [0.0, 1.0], kind, [False, False])
    assert np.isfinite(got.advantage).all()
    assert (got.groups, got.zero_variance_groups, got.rejected_groups) == (0, 0, 1)
    assert kind != "batch" or (got.advantage == 0).all()


def test_every_kind_of_the_recipe_is_there() -> None:
    assert set(BY_KIND) == set(KINDS)


def test_worked_example() -> None:
    """Rewards 1 0 0 1 have mean 1/2 and std sqrt(1/3)."""
    rewards = [1.0, 0.0, 0.0, 1.0]
    std = (1 / 3) ** 0.5
    expected = {"group": 0.5 / (std + 1e-4), "batch": 0.5 / (std + 1e-4), "none": 0.5}
    expected["leave_one_out"] = 1 - 1 / 3
    assert set(KINDS) == set(expected)
    for kind in KINDS:
        got = compute_advantages([3] * 4, rewards, kind).advantage
        np.testing.assert_allclose(got, np.array([1, -1, -1, 1]) * expected[kind], rtol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_groups_without_two_rewards(kind: AdvantageKind) -> None:
    rewards = [None, None, None, 0.4, 0.0, 1.0]
    got = compute_advantages([0, 0, 1, 1, 2, 2], rewards, kind)
    assert (got.advantage[:4] == 0).all()
    assert np.isnan(got.group_mean[:2]).all()
    assert (got.group_mean[2:4] == 0.4).all()
    assert np.isnan(got.group_std[:4]).all()
    assert np.isfinite(got.advantage).all()


def test_one_completion_is_no_group() -> None:
    with pytest.raises(UserError, match=r"1 group\(s\) have a single completion \(first: row 2\)"):
        compute_advantages([0, 0, 1], [0.0, 1.0, 1.0], "group")


def test_infinite_reward_is_refused() -> None:
    with pytest.raises(UserError, match="row 1 is infinite"):
        compute_advantages([0, 0], [0.0, float("inf")], "group")


def test_no_rows() -> None:
    assert compute_advantages([], [], "batch").advantage.shape == (0,)


def test_loads_no_torch() -> None:
    program = "import sys, common.objective.advantages, common.rewards.registry; "
    program += "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
