"""Where TRL 1.16 is not what a paper says, or not what we do: both sides, each by its formula.

Every test writes out what TRL computes and compares TRL's own code with that, then ours with the
plain implementation of the paper, and sees that the two differ.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from support.objective_rows import (
    MAX_COMPLETION_TOKENS,
    Rows,
    forward,
    our_loss,
    some_rows,
    token_batch,
)
from support.plain_objective import PlainRow, plain_loss, plain_threshold, plain_token_losses
from support.trl_trainer import assert_same, grpo_loss_of_trl, settings_of

from common.config import ObjectiveConfig
from common.objective.loss import grpo_loss, metrics

trl = pytest.importorskip("trl", reason="the test extra is not installed")

MICROBATCHES = 3


def theirs_and_ours(rows: Rows, config: ObjectiveConfig, microbatches: int = 1, **other):
    """TRL's loss and ours, which is seen to be the paper's."""
    mask = token_batch(rows, config).mask
    theirs, _ = grpo_loss_of_trl(rows, mask, microbatches, **settings_of(config) | other)
    ours = our_loss(rows, config, microbatches)
    paper = plain_loss(rows.plain(), config, MAX_COMPLETION_TOKENS)
    assert_same(ours, our_loss(rows, config), rows)
    assert abs(ours.item() - paper.item()) < 1e-10
    assert abs(ours.item() - theirs.item()) > 1e-4
    return theirs, ours


def in_microbatches(rows: Rows) -> list[list[PlainRow]]:
    plain = rows.plain()
    size = len(plain) // MICROBATCHES
    return [plain[a:b] for a, b in pairwise(range(0, len(plain) + 1, size))]


def token_mean(rows: list[PlainRow], config: ObjectiveConfig, threshold: float = -torch.inf):
    losses = [loss for row in rows for loss in plain_token_losses(row, config, threshold)]
    return sum(losses) / len(losses)


def test_bnpo_is_a_mean_of_means():
    """So a token of a microbatch of short completions weighs more than one of long ones."""
    rows, config = some_rows(2), ObjectiveConfig()
    theirs, _ = theirs_and_ours(rows, config, MICROBATCHES, loss_type="bnpo")
    expected = sum(token_mean(part, config) for part in in_microbatches(rows)) / MICROBATCHES
    assert_same(theirs, expected, rows)


def test_its_entropy_bonus_is_a_mean_of_means_as_well():
    rows, config = some_rows(2), ObjectiveConfig(entropy_coef=0.1)
    theirs, _ = theirs_and_ours(rows, config, MICROBATCHES)
    without = plain_loss(rows.plain(), ObjectiveConfig(), MAX_COMPLETION_TOKENS)
    bonus = sum(mean_entropy(part) for part in in_microbatches(rows)) / MICROBATCHES
    assert_same(theirs, without - 0.1 * bonus, rows)


def mean_entropy(rows: list[PlainRow], threshold: float = -torch.inf):
    """Of the tokens whose stored entropy is at least so much."""
    values = [
        -(row.log_p[t].exp() * row.log_p[t]).sum()
        for row in rows
        for t, stored in enumerate(row.entropy)
        if stored >= threshold
    ]
    return sum(values) / len(values)


def float64(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def rows_at_their_first_step() -> Rows:
    """The stored entropy is the policy's own, so that TRL, which has no other, ranks alike."""
    rows = some_rows(2)
    log_p = torch.log_softmax(rows.logits, -1)
    rows.entropy = -(log_p.exp() * log_p).sum(-1).detach()
    return rows


def test_its_entropy_quantile_is_of_each_microbatch():
    rows, config = rows_at_their_first_step(), ObjectiveConfig(top_entropy_quantile=0.3)
    theirs, _ = theirs_and_ours(rows, config, MICROBATCHES)
    tokens, expected = sum(rows.lengths), 0.0
    for part in in_microbatches(rows):
        threshold = plain_threshold([h for row in part for h in row.entropy], config)
        count = sum(len(row.targets) for row in part)
        expected = expected + token_mean(part, config, threshold) * count / tokens
    assert_same(theirs, expected, rows)


def test_its_entropy_bonus_is_of_the_top_tokens_alone():
    """Ours is of all: the bonus is to keep up the entropy of those that have little."""
    rows = rows_at_their_first_step()
    policy = ObjectiveConfig(top_entropy_quantile=0.3)
    config = ObjectiveConfig(top_entropy_quantile=0.3, entropy_coef=0.1)
    theirs, _ = theirs_and_ours(rows, config)
    plain = rows.plain()
    threshold = plain_threshold([h for row in plain for h in row.entropy], config)
    expected = plain_loss(plain, policy, MAX_COMPLETION_TOKENS)
    assert_same(theirs, expected - 0.1 * mean_entropy(plain, threshold), rows)


def test_its_kl_takes_the_ratio_of_the_sequence_under_sequence_level():
    """A KL of single tokens is unbiased with the ratio of the token (arXiv 2512.02556)."""
    rows = some_rows(2)
    gspo = {"ratio_level": "sequence", "aggregation": "sequence_mean"}
    config = ObjectiveConfig(**gspo, kl_coef=0.5, kl_importance_weight=True)
    theirs, _ = theirs_and_ours(rows, config)
    expected = plain_loss(rows.plain(), ObjectiveConfig(**gspo), MAX_COMPLETION_TOKENS)
    for row in rows.plain():
        logp = row.log_p[range(len(row.targets)), row.targets]
        d = float64(row.ref) - logp
        r = (logp - float64(row.old)).mean().exp()
        expected = expected + 0.5 * (r * (d.exp() - d - 1)).mean() / len(rows.lengths)
    assert_same(theirs, expected, rows)


def test_its_truncation_may_also_raise_small_weights():
    """With `clip_min`; a weight truncated from above alone is TIS's."""
    rows = some_rows(2)
    config = ObjectiveConfig(sampler_correction="truncate", sampler_high=1.5)
    theirs, _ = theirs_and_ours(rows, config, vllm_importance_sampling_clip_min=0.9)
    losses = [
        loss * min(max(w, 0.9), 1.5)
        for row in rows.plain()
        for loss, w in zip(
            plain_token_losses(row, ObjectiveConfig(), -torch.inf),
            (float64(row.old) - float64(row.sampler)).exp().tolist(),
            strict=True,
        )
    ]
    assert_same(theirs, sum(losses) / len(losses), rows)


def test_what_cispo_calls_clipped():
    """TRL counts capped tokens of positive advantage; the cap holds back those of negative too."""
    rows, config = some_rows(2), ObjectiveConfig(policy_term="cispo", cispo_cap=1.2)
    batch = token_batch(rows, config)
    _, recorded = grpo_loss_of_trl(rows, batch.mask, **settings_of(config))
    found = metrics(grpo_loss(*forward(rows), batch, config)[1])["clip_fraction_high"]
    capped = [
        ((row.log_p[t, target] - row.old[t]).exp().item() > 1.2, row.advantage > 0)
        for row in rows.plain()
        for t, target in enumerate(row.targets)
    ]
    assert found == pytest.approx(sum(c for c, _ in capped) / len(capped))
    assert recorded["cispo_clip_ratio"] == pytest.approx(
        [sum(c and good for c, good in capped) / len(capped)]
    )
    assert found > recorded["cispo_clip_ratio"][0]


def test_its_defaults_that_are_not_ours():
    from trl import GRPOConfig

    of_trl = {name: field.default for name, field in GRPOConfig.__dataclass_fields__.items()}
    ours = ObjectiveConfig()
    assert (of_trl["use_bias_correction_kl"], ours.kl_importance_weight) == (True, False)
    assert of_trl["vllm_importance_sampling_mode"] == "sequence_mask"
    assert (of_trl["vllm_importance_sampling_clip_max"], ours.sampler_high) == (3.0, 2.0)
    assert (of_trl["vllm_importance_sampling_clip_min"], ours.sampler_low) == (None, 0.5)
    assert ours.sampler_correction == "none"
