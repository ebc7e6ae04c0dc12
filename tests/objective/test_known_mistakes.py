"""The mistakes about logprobs, masks and the loss of the project this one began from.

Each test states the mistake and would fail on code that makes it. Those about layers, embeddings
and rewards are with the parts they concern.
"""

from __future__ import annotations

import copy

import pytest
import torch
from support.tiny_models import VOCABULARY, packed_outputs, random_completions, tiny_model

from common.config import ObjectiveConfig
from common.modeling.packing import (
    Completion,
    PackBatch,
    gather_to_rows,
    pack,
    scatter_to_packs,
    spread_to_packs,
)
from common.objective.loss import TokenBatch, grpo_loss
from common.objective.weights import token_weights
from common.training.minibatches import completions_in_pack

STOP, PAD = 1, 2


@pytest.fixture(scope="module")
def model():
    return tiny_model("qwen2", dtype=torch.float64)


def logprobs_of(model, rows: list[Completion], **options) -> list[torch.Tensor]:
    batch = pack(rows, tokens_per_pack=200, **options)
    with torch.no_grad():
        packed, _ = packed_outputs(copy.deepcopy(model), batch)
    return gather_to_rows(packed, batch, [len(row.completion_ids) for row in rows])


def test_logprobs_are_no_raw_logits(model):
    """Over every possible next token of one prompt, probabilities sum to 1."""
    prompt = [5, 9, 17]
    rows = [Completion(prompt, [token], 0) for token in range(VOCABULARY)]
    total = torch.cat(logprobs_of(model, rows)).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-12)


def test_a_logprob_is_of_the_sampled_token_given_what_stands_before_it(model):
    """No gather or no one-token shift: the chain rule over all pairs of tokens would not hold."""
    prompt, first = [5, 9, 17], 40
    rows = [Completion(prompt, [first, token], 0) for token in range(VOCABULARY)]
    found = logprobs_of(model, rows)
    assert all(row.shape == (2,) for row in found)
    assert sum(row[1].exp().item() for row in found) == pytest.approx(1, abs=1e-12)
    (alone,) = logprobs_of(model, [Completion(prompt, [first], 0)])
    assert all(row[0].item() == pytest.approx(alone.item(), abs=1e-12) for row in found)


def test_ids_are_never_guessed_from_text_or_padding(model):
    """A padding id inside a completion is a token like any other, and so is the stop token."""
    tokens = [30, PAD, PAD, 31, STOP]
    row = Completion([5, PAD, 9], tokens, 0)
    (found,) = logprobs_of(model, [row])
    with torch.no_grad():
        logits = model(torch.tensor([[*row.prompt_ids, *tokens]])).logits[0, 2:-1]
    expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(tokens)[:, None]).squeeze(1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert found.shape == (5,)


def loss_of(rows, logprobs, batch: PackBatch, select: slice = slice(None)):
    """A token mean without clipping on given logprobs [P, T], advantages of both signs."""
    counts = torch.tensor([len(row.completion_ids) for row in rows])
    advantages = torch.tensor([1.5, -0.5, 0.7] * len(rows), dtype=torch.float64)[: len(rows)]
    tokens = int(counts.sum())
    weights = token_weights(
        "token_mean", counts, tokens=tokens, completions=len(rows), max_completion_tokens=16
    )
    shape = torch.zeros(batch.row.shape, dtype=torch.float64)
    old = [torch.full((len(row.completion_ids),), -1.0, dtype=torch.float64) for row in rows]
    token_batch = TokenBatch(
        mask=batch.target_mask,
        completion=completions_in_pack(batch),
        old_logprobs=scatter_to_packs(old, batch, 0.0),
        ref_logprobs=None,
        advantages=spread_to_packs(advantages, batch, 0.0),
        weights=spread_to_packs(weights, batch, 0.0),
        token_mean_weights=shape + 1 / tokens,
        sampler_weights=shape + 1,
        in_policy_term=shape == 0,
        sampler_gap=shape,
    )
    chosen = token_batch.select(select)
    entropy = torch.zeros_like(chosen.old_logprobs)
    return grpo_loss(
        logprobs[select], entropy, chosen, ObjectiveConfig(clip_low=0.9, clip_high=5.0)
    )[0]


def test_padding_is_not_in_the_loss_and_the_stop_token_is():
    """More padding changes nothing; each completion token, the last included, has a gradient."""
    rows = random_completions(2, groups=2, group_size=3)
    values = [torch.rand(len(row.completion_ids), dtype=torch.float64) - 1.5 for row in rows]
    losses = []
    for bucket in (1, 64):
        batch = pack(rows, tokens_per_pack=30, bucket=bucket, min_packs=bucket // 8)
        logprobs = scatter_to_packs(values, batch, -7.0).requires_grad_()
        loss = loss_of(rows, logprobs, batch)
        losses.append(loss.item())
        (gradient,) = torch.autograd.grad(loss, logprobs)
        assert not gradient[~batch.target_mask].any()
        assert gradient[batch.target_mask].all()
    assert losses[0] == pytest.approx(losses[1], abs=1e-14)


def test_the_loss_is_of_tokens_and_does_not_know_the_vocabulary():
    """Its value is the mean over tokens computed by hand."""
    rows = [Completion([3], [4, STOP], 0), Completion([3], [5], 0)]
    batch = pack(rows, tokens_per_pack=20)
    values = [torch.tensor(row, dtype=torch.float64) for row in ([-1.1, -0.9], [-1.0])]
    loss = loss_of(rows, scatter_to_packs(values, batch, 0.0), batch)
    ratios = torch.tensor([-0.1, 0.1], dtype=torch.float64).exp()
    assert loss.item() == pytest.approx(((-1.5 * ratios).sum().item() + 0.5) / 3, abs=1e-12)


@pytest.mark.parametrize("microbatches", [1, 2, 3, 5])
def test_no_completion_is_lost_when_microbatches_do_not_divide_them(microbatches):
    """Seven completions over any number of microbatches: the same loss, every row with gradient."""
    rows = random_completions(4, groups=7, group_size=1)
    values = [torch.rand(len(row.completion_ids), dtype=torch.float64) - 1.5 for row in rows]
    whole = pack(rows, tokens_per_pack=None)
    expected = loss_of(rows, scatter_to_packs(values, whole, 0.0), whole).item()
    batch = pack(rows, tokens_per_pack=None, multiple_of=microbatches)
    size = batch.num_packs // microbatches
    logprobs = scatter_to_packs(values, batch, 0.0).requires_grad_()
    total = 0.0
    for index in range(microbatches):
        # Each graph is freed by its own backward: nothing has to be retained.
        loss = loss_of(rows, logprobs, batch, slice(index * size, (index + 1) * size))
        loss.backward()
        total += loss.item()
    assert total == pytest.approx(expected, abs=1e-12)
    assert logprobs.grad[batch.target_mask].all()
