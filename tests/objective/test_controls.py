"""Advantages with numpy's std and dealt out at random: what an ablation compares with."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from subprocess import CompletedProcess

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.scored_runs import scores, start_scored_run

from common.objective.advantages import compute_advantages

Stage = Callable[..., CompletedProcess[str]]

GROUPS = st.lists(
    st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=2, max_size=6), min_size=1, max_size=5
)


@given(rewards=GROUPS)
def test_ddof_0_divides_by_the_std_of_a_population(rewards: list[list[float]]) -> None:
    groups = [number for number, group in enumerate(rewards) for _ in group]
    flat = [reward for group in rewards for reward in group]
    got = compute_advantages(groups, flat, "group", ddof=0)
    expected = [
        (reward - statistics.fmean(group)) / (statistics.pstdev(group) + 1e-4)
        for group in rewards
        for reward in group
    ]
    np.testing.assert_allclose(got.advantage, expected, rtol=1e-9, atol=1e-11)


@given(rewards=GROUPS, seed=st.integers(0, 1000))
def test_shuffling_deals_a_groups_advantages_out_anew(
    rewards: list[list[float]], seed: int
) -> None:
    groups = np.array([number for number, group in enumerate(rewards) for _ in group])
    order = np.random.default_rng(seed).permutation(len(groups))
    groups, flat = groups[order], np.concatenate(rewards)[order]
    plain = compute_advantages(groups, flat, "group")
    dealt = compute_advantages(groups, flat, "group", shuffle_seed=seed)
    for group in np.unique(groups):
        mine = groups == group
        assert sorted(dealt.advantage[mine]) == sorted(plain.advantage[mine])
    again = compute_advantages(groups, flat, "group", shuffle_seed=seed)
    assert (again.advantage == dealt.advantage).all()


def test_shuffled_advantages_do_not_know_the_rewards() -> None:
    """Over many groups, right and wrong completions get the same on average."""
    groups, rewards = np.repeat(np.arange(4000), 4), np.tile([1.0, 0.0, 0.0, 0.0], 4000)
    dealt = compute_advantages(groups, rewards, "none", shuffle_seed=0).advantage
    assert abs(dealt[rewards == 1].mean()) < 0.02  # its standard error is 0.007
    assert len(set(dealt[rewards == 1])) == 2


@pytest.mark.usefixtures("runs")
def test_the_stage_deals_by_the_recipe_and_leaves_rewards_alone(stage: Stage) -> None:
    run = start_scored_run()
    score = ("score", "--run", "a", "--iteration", "1", "--overwrite", "--set")
    stage(*score, "advantages.shuffle=false")
    plain = scores(run)
    stage(*score, "advantages.shuffle=true")
    dealt = scores(run)
    others = [name for name in plain.columns if name != "advantage"]
    assert dealt.select(others).equals(plain.select(others))
    by_group = [
        frame.with_columns(pl.col("rollout_id").str.slice(5, 5).alias("group"))
        .group_by("group", maintain_order=True)
        .agg(pl.col("advantage").sort())
        for frame in (plain, dealt)
    ]
    assert by_group[0].equals(by_group[1])
    assert dealt["advantage"].to_list() != plain["advantage"].to_list()
    stage(*score, "run.seed=1")
    assert scores(run)["advantage"].to_list() != dealt["advantage"].to_list()
