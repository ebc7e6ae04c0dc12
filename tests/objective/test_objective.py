"""The loss equals the formulas of the papers in every combination of its parts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
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
from support.plain_objective import plain_loss

from common.config import ObjectiveConfig
from common.objective.loss import metrics, zero_advantage_rows_matter

BUSY = ObjectiveConfig(entropy_coef=0.05, aggregation="constant", mask_truncated=True, kl_coef=0.01)


@pytest.mark.parametrize("term", TERMS)
def test_value_and_gradient_are_those_of_the_plain_implementation(term):
    rows, silent = some_rows(), 0
    for config in (configs := all_configs(term)):
        expected = plain_loss(rows.plain(), config, MAX_COMPLETION_TOKENS)
        (gradient,) = torch.autograd.grad(expected, rows.logits)
        loss, _ = loss_of(*forward(rows), token_batch(rows, config), config)
        (found,) = torch.autograd.grad(loss, rows.logits)
        what = str(config.model_dump(exclude_defaults=True))
        assert abs(loss.item() - expected.item()) < 1e-10, what
        assert (found - gradient).abs().max() < 1e-10, what
        silent += not gradient.any()
    # A mask of few sequences and few tokens may leave nothing; a comparison of noughts proves
    # nothing.
    assert silent < 0.03 * len(configs)


@pytest.mark.parametrize("term", TERMS)
def test_an_empty_batch_has_loss_and_gradient_zero(term):
    rows = some_rows()
    rows.lengths = [0] * len(rows.lengths)
    for config in some_configs(term, 5):
        loss, sums = loss_of(*forward(rows), token_batch(rows, config), config)
        (gradient,) = torch.autograd.grad(loss, rows.logits)
        assert loss.item() == 0
        assert not gradient.any()
        assert set(metrics(sums).values()) == {0.0}


@pytest.mark.parametrize("garbage", [math.inf, -math.inf, math.nan, -1e4])
@pytest.mark.parametrize("term", TERMS)
def test_what_padding_holds_is_never_used(garbage, term):
    config = ObjectiveConfig(**(BUSY.model_dump() | TERMS[term]))
    rows = some_rows()
    batch = token_batch(rows, config)
    logprobs, entropy = (o.detach().requires_grad_() for o in forward(rows))
    expected, sums = loss_of(logprobs, entropy, batch, config)
    gradients = torch.autograd.grad(expected, (logprobs, entropy))
    spoiled = [o.detach().where(batch.mask, garbage).requires_grad_() for o in (logprobs, entropy)]
    loss, spoiled_sums = loss_of(*spoiled, batch, config)
    assert loss.item() == expected.item()
    assert metrics(spoiled_sums) == metrics(sums)
    for found, gradient in zip(torch.autograd.grad(loss, spoiled), gradients, strict=True):
        assert not found[~batch.mask].any()
        assert found[batch.mask].all()
        assert torch.equal(found, gradient)


@pytest.mark.parametrize("term", TERMS)
def test_on_the_sampling_policy_all_terms_have_the_policy_gradient(term):
    """At ratio 1 nothing is clipped; the gradient is that of −Σ w·A·logp over the tokens.

    A ratio of the whole completion spreads what its tokens weigh over them: evenly under
    `sequence_mean`, so `sequence` is the same there, and `sequence_sum` tokens times that.
    """
    rows = some_rows()
    config = ObjectiveConfig(**TERMS[term], aggregation="sequence_mean")
    logprobs, entropy = forward(rows)
    batch = replace(token_batch(rows, config), old_logprobs=logprobs.detach())
    loss, sums = loss_of(logprobs, entropy, batch, config)
    found = metrics(sums)
    assert (found["ratio_mean"], found["ratio_max"]) == (1.0, 1.0)
    assert found["clip_fraction_low"] == found["clip_fraction_high"] == found["approx_kl"] == 0.0
    times = batch.mask.sum(1, keepdim=True) if config.ratio_level == "sequence_sum" else 1
    plain = -(times * batch.weights * batch.advantages * batch.mask * logprobs).sum()
    (of_loss,) = torch.autograd.grad(loss, rows.logits, retain_graph=True)
    (of_plain,) = torch.autograd.grad(plain, rows.logits)
    torch.testing.assert_close(of_loss, of_plain, rtol=1e-12, atol=1e-14)


def test_metrics_are_token_means_over_the_mask():
    rows = some_rows()
    config = ObjectiveConfig(
        kl_coef=0.2,
        entropy_coef=0.1,
        aggregation="sequence_mean",
        sampler_correction="mask",
        sampler_low=0.7,
        sampler_high=1.5,
        kl_importance_weight=True,
    )
    batch = token_batch(rows, config)
    logprobs, entropy = forward(rows)
    loss, sums = loss_of(logprobs, entropy, batch, config)
    found, m = metrics(sums), batch.mask
    log_ratio = (logprobs - rows.old)[m]
    r, A = log_ratio.exp(), batch.advantages[m]
    d = (rows.ref - logprobs)[m]
    w = (rows.old - rows.sampler)[m].exp()
    expected = {
        "loss": loss,
        "kl": (d.exp() - d - 1).mean(),
        "entropy": entropy[m].mean(),
        "clip_fraction_low": ((r < 0.8) & (A < 0)).double().mean(),
        "clip_fraction_high": ((r > 1.2) & (A > 0)).double().mean(),
        "ratio_mean": r.mean(),
        "ratio_max": r.max(),
        "approx_kl": (r - 1 - log_ratio).mean(),
        "sampler_gap_mean": (rows.old - rows.sampler)[m].abs().mean(),
        "sampler_gap_max": (rows.old - rows.sampler)[m].abs().max(),
        "sampler_weight_mean": w.where((w >= 0.7) & (w <= 1.5), 0.0).mean(),
    }
    without_kl = config.model_copy(update={"kl_coef": 0.0, "entropy_coef": 0.0})
    expected["policy_loss"] = plain_loss(rows.plain(), without_kl, MAX_COMPLETION_TOKENS)
    assert expected["clip_fraction_low"] > 0
    assert expected["clip_fraction_high"] > 0
    assert 0 < expected["sampler_weight_mean"] < w.mean()
    assert found == pytest.approx(
        {name: float(torch.as_tensor(value).detach()) for name, value in expected.items()}
    )


@pytest.mark.parametrize("level", ["sequence", "sequence_sum"])
def test_ratio_metrics_are_of_the_level_and_approx_kl_of_the_token(level):
    rows = some_rows()
    config = ObjectiveConfig(ratio_level=level, aggregation="sequence_mean")
    batch = token_batch(rows, config)
    logprobs, entropy = (o.detach() for o in forward(rows))
    found = metrics(loss_of(logprobs, entropy, batch, config)[1])
    log_ratio = logprobs - rows.old
    sums = torch.tensor([float(d[:n].sum()) for d, n in zip(log_ratio, rows.lengths, strict=True)])
    lengths = torch.tensor(rows.lengths)
    r = (sums / lengths if level == "sequence" else sums).double().exp()
    tokens = log_ratio[batch.mask]
    clipped_low = lengths[(r < 0.8) & (rows.advantages < 0)].sum() / lengths.sum()
    assert found["ratio_mean"] == pytest.approx(float((r * lengths).sum() / lengths.sum()))
    assert found["ratio_max"] == pytest.approx(float(r.max()))
    assert found["clip_fraction_low"] == pytest.approx(float(clipped_low))
    assert found["approx_kl"] == pytest.approx(float((tokens.exp() - 1 - tokens).mean()))


def test_approx_kl_near_ratio_one_is_no_rounding_noise():
    """In float32, r − 1 − log r of a log-ratio of 1e-4 is 5e-9, far below the ulp of r."""
    rows = some_rows()
    config = ObjectiveConfig()
    logprobs, entropy = (o.detach().float() for o in forward(rows))
    batch = replace(token_batch(rows, config), old_logprobs=logprobs - 1e-4)
    _, sums = loss_of(logprobs, entropy, batch, config)
    assert metrics(sums)["approx_kl"] == pytest.approx(5e-9, rel=0.05)


@pytest.mark.parametrize("changed", [{"kl_coef": 0.1}, {"entropy_coef": 0.1}])
def test_rows_without_advantage_matter_to_kl_and_entropy(changed):
    config = ObjectiveConfig(**changed)
    rows = some_rows()
    rows.advantages[:] = 0.0
    loss, _ = loss_of(*forward(rows), token_batch(rows, config), config)
    assert zero_advantage_rows_matter(config)
    assert torch.autograd.grad(loss, rows.logits)[0].any()
