"""Groups into optimizer batches: orders, counts, what is dropped, how replicas share."""

from __future__ import annotations

import numpy as np
import pytest

from common.config import ObjectiveConfig
from common.errors import NoLearningSignalError
from common.training.minibatches import balance_by_tokens, permutation, plan_minibatches
from common.training.samples import TrainingSample, group_samples


def sample(
    group: int, tokens: int = 3, advantage: float = 1.0, truncated: bool = False
) -> TrainingSample:
    values = np.zeros(tokens, np.float32)
    return TrainingSample(
        rollout_id=f"{group}-{tokens}",
        group=group,
        prompt_ids=[1, 2],
        completion_ids=[3] * tokens,
        old_logprobs=values,
        ref_logprobs=None,
        entropy=values,
        sampler_logprobs=values,
        advantage=advantage,
        reward=advantage,
        truncated=truncated,
    )


def test_every_epoch_has_every_group_once_in_an_order_of_its_own() -> None:
    groups = group_samples([sample(g) for g in range(7) for _ in range(2)])
    how = {"epochs": 3, "prompts_per_step": 3, "seed": 1}
    batches = plan_minibatches(groups, ObjectiveConfig(), iteration=1, **how)
    assert [b.step for b in batches] == list(range(9))
    assert [len(b.groups) for b in batches] == [3, 3, 1] * 3
    orders = []
    for epoch in range(3):
        order = [g.samples[0].group for b in batches if b.epoch == epoch for g in b.groups]
        assert sorted(order) == list(range(7))
        orders.append(order)
    assert orders[0] != orders[1] != orders[2]
    again = plan_minibatches(groups, ObjectiveConfig(), iteration=1, **how)
    assert [b.groups for b in again] == [b.groups for b in batches]


def test_permutations_are_the_same_everywhere() -> None:
    """Fixed numbers: a change would replay interrupted iterations in another order."""
    assert permutation(8, "0/1/0") == [6, 2, 3, 7, 4, 1, 0, 5]


def test_groups_without_variance_are_dropped_but_counted() -> None:
    groups = group_samples([sample(0, 4, 0.0), sample(0, 2, 0.0), sample(1, 3), sample(1, 1)])
    (batch,) = plan_minibatches(
        groups, ObjectiveConfig(), epochs=1, prompts_per_step=None, seed=0, iteration=1
    )
    assert [group.samples[0].group for group in batch.computed] == [1]
    assert batch.completion_tokens == 10
    assert batch.facts()["completions"] == 4
    assert batch.facts()["zero_variance_groups"] == 1
    (kept,) = plan_minibatches(
        groups, ObjectiveConfig(kl_coef=0.1), epochs=1, prompts_per_step=None, seed=0, iteration=1
    )
    assert len(kept.computed) == 2


def test_completions_without_gradient_are_left_out_of_their_group() -> None:
    """Those outside the loss always, those with advantage 0 where nothing else speaks of them."""
    members = [sample(0, 4, 0.0), sample(0, 2), sample(0, 5, truncated=True), sample(0, 3, -1.0)]
    groups = group_samples([*members, sample(1, 6, truncated=True), sample(1, 7, 0.0)])
    how = {"epochs": 1, "prompts_per_step": None, "seed": 0, "iteration": 1}

    def lengths(**settings) -> list[list[int]]:
        (batch,) = plan_minibatches(groups, ObjectiveConfig(**settings), **how)
        assert batch.facts()["completions"] == 6
        tokens = 16 if settings.get("mask_truncated") else 27
        assert batch.completion_tokens == tokens
        computed = sorted(batch.computed, key=lambda group: group.samples[0].group)
        return [[len(s.completion_ids) for s in group.samples] for group in computed]

    assert lengths() == [[2, 5, 3], [6]]
    assert lengths(mask_truncated=True) == [[2, 3]]
    assert lengths(mask_truncated=True, entropy_coef=0.1) == [[4, 2, 3], [7]]
    assert lengths(kl_coef=0.1) == [[4, 2, 5, 3], [6, 7]]


def test_a_step_of_which_nothing_is_in_the_loss_is_left_out() -> None:
    groups = group_samples([sample(0, truncated=True), sample(0, 2, -1.0, truncated=True)])
    masked = ObjectiveConfig(mask_truncated=True, kl_coef=0.1)
    (batch,) = plan_minibatches(
        groups, masked, epochs=1, prompts_per_step=None, seed=0, iteration=1
    )
    assert not batch.has_gradient


def test_an_iteration_without_signal_can_be_passed_over() -> None:
    """With `keep` nothing is computed, not even the KL that would otherwise have a gradient."""
    groups = group_samples([sample(g, 3, 0.0) for g in range(3) for _ in range(2)])
    how = {"epochs": 1, "prompts_per_step": None, "seed": 0, "iteration": 1}
    with_kl = ObjectiveConfig(kl_coef=0.1)
    with pytest.raises(NoLearningSignalError, match="no learning signal"):
        plan_minibatches(groups, with_kl, **how)
    (batch,) = plan_minibatches(groups, with_kl, on_no_signal="keep", **how)
    assert batch.computed == ()
    assert batch.facts()["zero_variance_groups"] == 3


def test_replicas_get_like_numbers_of_tokens() -> None:
    groups = group_samples([sample(g, tokens) for g, tokens in enumerate([50, 20, 20, 10, 9, 1])])
    shares = balance_by_tokens(groups, 2)
    tokens = [sum(g.tokens for g in share) for share in shares]
    assert abs(tokens[0] - tokens[1]) <= 10
    assert sorted(g.samples[0].group for share in shares for g in share) == list(range(6))
    assert balance_by_tokens(groups[:1], 3)[1:] == [[], []]
