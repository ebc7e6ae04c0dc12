"""However a batch is cut into replicas, packs and microbatches: loss, gradient and metrics stay.

The cut is the code's own (`plan_minibatches`, `make_replica_batch`), only the model is missing: the
"forward" is a table of logits for every token. What comes out is compared with the plain
implementation, which knows nothing of batches.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.objective_rows import (
    MAX_COMPLETION_TOKENS,
    TERMS,
    all_configs,
    forward,
    loss_of,
    some_configs,
    some_rows,
    token_batch,
)
from support.plain_objective import PlainRow, plain_loss

from common.config import ObjectiveConfig
from common.errors import NoLearningSignalError, UserError
from common.modeling.packing import Completion, pack, scatter_to_packs
from common.objective.loss import merge_sums, metrics, zero_advantage_rows_matter
from common.training.minibatches import (
    Minibatch,
    completions_in_pack,
    make_replica_batch,
    plan_minibatches,
)
from common.training.samples import TrainingSample, group_samples

VOCABULARY = 5
CONFIGS = [config for term in TERMS for config in some_configs(term, 12)]


def some_samples(seed: int, lengths: list[int]) -> tuple[list[TrainingSample], list[torch.Tensor]]:
    """Completions of these lengths in groups of two, and the logits [tokens, V] of each."""
    random = np.random.default_rng(seed)
    samples, logits = [], []
    for index, length in enumerate(lengths):
        values = torch.from_numpy(random.normal(0, 2, (length, VOCABULARY)))
        targets = random.integers(0, VOCABULARY, length)
        logprobs = torch.log_softmax(values, -1)[range(length), targets].numpy()
        old = (logprobs + random.normal(0, 0.5, length)).astype(np.float32)
        sampler = (old + random.normal(0, 0.3, length)).astype(np.float32)
        group = index // 2
        samples.append(
            TrainingSample(
                rollout_id=f"r{index}",
                group=group,
                prompt_ids=[1, 2, 3][: group % 3 + 1],
                completion_ids=targets.tolist(),
                old_logprobs=old,
                ref_logprobs=(logprobs + random.normal(0, 0.7, length)).astype(np.float32),
                entropy=random.random(length, np.float32),
                sampler_logprobs=sampler,
                advantage=0.0 if group == 1 else float(random.normal()),
                reward=0.0,
                truncated=length == MAX_COMPLETION_TOKENS,
            )
        )
        logits.append(values.requires_grad_())
    return samples, logits


def plain_rows(samples: list[TrainingSample], logits: list[torch.Tensor]) -> list[PlainRow]:
    return [
        PlainRow(
            torch.log_softmax(values, -1),
            list(s.completion_ids),
            *(
                array.astype(np.float64).tolist()
                for array in (s.old_logprobs, s.ref_logprobs, s.sampler_logprobs, s.entropy)
            ),
            advantage=s.advantage,
            truncated=s.truncated,
        )
        for s, values in zip(samples, logits, strict=True)
    ]


def the_minibatch(samples: list[TrainingSample], config: ObjectiveConfig) -> Minibatch:
    (minibatch,) = plan_minibatches(
        group_samples(samples),
        config,
        epochs=1,
        prompts_per_step=None,
        seed=0,
        iteration=1,
        on_no_signal="keep",
    )
    return minibatch


def divided_loss(samples, logits, config, *, replicas, microbatches, **packing):
    """Loss and sums over all shares and microbatches of the batch."""
    by_id = {s.rollout_id: values for s, values in zip(samples, logits, strict=True)}
    loss, sums = torch.zeros((), dtype=torch.float64), None
    minibatch = the_minibatch(samples, config)
    for replica in range(replicas):
        share = make_replica_batch(
            minibatch,
            config,
            replica=replica,
            replicas=replicas,
            packing={"min_packs": microbatches, "multiple_of": microbatches},
            max_completion_tokens=MAX_COMPLETION_TOKENS,
            dtype=torch.float64,
            **packing,
        )
        log_p = [torch.log_softmax(by_id[s.rollout_id], -1) for s in share.samples]
        rows = [
            row[range(len(s.completion_ids)), list(s.completion_ids)]
            for row, s in zip(log_p, share.samples, strict=True)
        ]
        outputs = [
            scatter_to_packs(values, share.packs, 0.0).double()
            for values in (rows, [-(row.exp() * row).sum(-1) for row in log_p])
        ]
        for part in torch.arange(share.packs.num_packs).chunk(microbatches):
            value, of_part = loss_of(*(o[part] for o in outputs), share.tokens.select(part), config)
            loss, sums = loss + value, merge_sums(sums, of_part)
    return loss, metrics(sums)


@given(
    config=st.sampled_from(CONFIGS),
    lengths=st.lists(st.integers(1, MAX_COMPLETION_TOKENS), min_size=6, max_size=12),
    replicas=st.integers(1, 3),
    microbatches=st.integers(1, 4),
    tokens_per_pack=st.sampled_from([None, 1, 20, 60]),
    share_prompts=st.booleans(),
)
@settings(max_examples=200)
def test_no_division_of_a_batch_changes_it(
    config, lengths, replicas, microbatches, tokens_per_pack, share_prompts
):
    samples, logits = some_samples(len(lengths), lengths)
    # A batch without any signal is not computed at all, which is another test.
    samples[0] = TrainingSample(**(vars(samples[0]) | {"advantage": 1.0}))
    how = {"tokens_per_pack": tokens_per_pack, "share_prompts": share_prompts}
    loss, found = divided_loss(
        samples, logits, config, replicas=replicas, microbatches=microbatches, **how
    )
    expected = plain_loss(plain_rows(samples, logits), config, MAX_COMPLETION_TOKENS)
    assert abs(loss.item() - expected.item()) < 1e-10
    # The whole in one microbatch of one replica, for the metrics that the plain one has not.
    _, whole = divided_loss(samples, logits, config, replicas=1, microbatches=1, **how)
    assert found == pytest.approx(whole, abs=1e-10)
    if not (loss.requires_grad and expected.requires_grad):
        return
    gradients = (
        torch.autograd.grad(value, logits, allow_unused=True, materialize_grads=True)
        for value in (loss, expected)
    )
    for ours, plain in zip(*gradients, strict=True):
        assert (ours - plain).abs().max() < 1e-10


def test_a_wrong_normaliser_would_be_seen():
    """The invariance test has teeth: per-microbatch token means differ from the global one."""
    rows = some_rows()
    config = ObjectiveConfig()
    local = 0.0
    for half in (slice(0, 3), slice(3, 6)):
        part = type(rows)(**{name: value[half] for name, value in vars(rows).items()})
        loss, _ = loss_of(*forward(part), token_batch(part, config), config)
        local += loss.item() / 2
    whole = loss_of(*forward(rows), token_batch(rows, config), config)[0].item()
    assert abs(local - whole) > 1e-3


@pytest.mark.parametrize("name", ["over_batch", "by_position"])
def test_a_term_that_is_not_elementwise_would_be_seen(name):
    """That a recipe's own has to be is why training refuses these two."""
    samples, logits = some_samples(3, [3, 6, 1, 4, 8, 2])
    config = ObjectiveConfig(policy_term=f"support.own_terms:{name}")
    (whole, _), (parts, _) = (
        divided_loss(
            samples,
            logits,
            config,
            replicas=replicas,
            microbatches=replicas,
            tokens_per_pack=tokens,
            share_prompts=True,
        )
        for replicas, tokens in ((1, None), (2, 12))
    )
    assert abs(whole.item() - parts.item()) > 1e-3


@pytest.mark.parametrize(
    "config",
    [c for term in TERMS for c in all_configs(term) if not zero_advantage_rows_matter(c)][::23],
    ids=lambda c: str(c.model_dump(exclude_defaults=True)),
)
def test_rows_without_advantage_may_be_dropped(config):
    """They have no gradient if KL and entropy have no weight; counts and threshold keep them."""
    rows = some_rows()
    rows.advantages[[1, 4]] = 0.0
    batch, outputs = token_batch(rows, config), forward(rows)
    kept = torch.tensor([0, 2, 3, 5])
    whole = loss_of(*outputs, batch, config)[0]
    part = loss_of(*(o[kept] for o in outputs), batch.select(kept), config)[0]
    torch.testing.assert_close(part, whole, rtol=0, atol=1e-15)
    (of_whole,) = torch.autograd.grad(whole, rows.logits, retain_graph=True)
    (of_part,) = torch.autograd.grad(part, rows.logits)
    torch.testing.assert_close(of_part, of_whole, rtol=0, atol=0)


def test_completions_of_a_pack_are_numbered_as_they_stand():
    rows = [Completion([1], [5] * length, group) for group, length in enumerate((3, 1, 4, 2))]
    packs = pack(rows, tokens_per_pack=8, bucket=4, min_packs=4)
    number = completions_in_pack(packs)
    assert number.min() == 0
    assert int(number.max()) < packs.row.shape[1]
    for index in range(packs.num_packs):  # two of them are empty
        mask = packs.target_mask[index]
        pairs = set(zip(packs.row[index][mask].tolist(), number[index][mask].tolist(), strict=True))
        assert sorted(n for _, n in pairs) == list(range(len({row for row, _ in pairs})))
    assert int(number.max()) == 2


def test_an_iteration_without_groups_has_a_step_that_does_nothing():
    config = ObjectiveConfig(top_entropy_quantile=0.2, sampler_correction="mask", kl_coef=0.1)
    minibatch = the_minibatch([], config)
    assert minibatch.facts()["completions"] == minibatch.completion_tokens == 0
    assert not minibatch.has_gradient
    loss, found = divided_loss(
        [], [], config, replicas=2, microbatches=2, tokens_per_pack=9, share_prompts=True
    )
    assert loss.item() == 0
    assert set(found.values()) == {0.0}
    with pytest.raises(NoLearningSignalError, match="no group was kept"):
        plan_minibatches([], config, epochs=1, prompts_per_step=4, seed=0, iteration=1)


def test_entropies_that_are_no_numbers_cannot_rank_tokens():
    samples, _ = some_samples(0, [2, 3])
    samples[1].entropy[1] = np.nan
    with pytest.raises(UserError, match=r"entropy of r1 .*top_entropy_quantile = 0\.2.*logprobs"):
        the_minibatch(samples, ObjectiveConfig(top_entropy_quantile=0.2))
    the_minibatch(samples, ObjectiveConfig())
