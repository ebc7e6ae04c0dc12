"""The parts of the objective one by one: ratios, policy terms, KL estimators, weights, remarks."""

from __future__ import annotations

import math
import re
from typing import get_args

import numpy as np
import pytest
import torch

from common.config import ObjectiveConfig, PolicyTermName
from common.config.objective import UNWEIGHTED_K1, config_warnings
from common.config.presets import PRESETS
from common.objective.loss import (
    POLICY_TERMS,
    cispo_term,
    clip_term,
    clipped_tokens,
    kl_term,
    policy_ratio,
    token_ratio,
)
from common.objective.weights import (
    entropy_threshold,
    in_policy_term,
    token_weights,
    tokens_in_loss,
)


def number(value: float, **how) -> torch.Tensor:
    return torch.tensor([[value]], dtype=torch.float64, **how)


@pytest.mark.parametrize(
    ("r", "A", "loss", "slope"),
    [
        (1.5, 2.0, -2.4, 0.0),  # good and already likelier: clipped at 1.2
        (0.5, 2.0, -1.0, -2.0),  # good but less likely: pulled back
        (0.5, -2.0, 1.6, 0.0),  # bad and already less likely: clipped at 0.8
        (1.5, -2.0, 3.0, 2.0),  # bad but likelier: pushed down
        (4.0, -2.0, 6.0, 0.0),  # beyond dual_clip = 3: bounded
        (1.1, 2.0, -2.2, -2.0),  # inside
    ],
)
def test_clip_by_cases(r, A, loss, slope):
    ratio = number(r, requires_grad=True)
    value = clip_term(ratio, number(-1.0), number(A), ObjectiveConfig(dual_clip=3.0))
    assert value.item() == pytest.approx(loss)
    assert float(torch.autograd.grad(value, ratio)[0]) == pytest.approx(slope)


@pytest.mark.parametrize(
    ("r", "A", "weight"),
    [
        (7.0, 2.0, 5.0),  # capped, and still in the gradient
        (7.0, -2.0, 5.0),
        (0.1, 2.0, 0.1),  # no bound from below
        (4.9, -2.0, 4.9),
    ],
)
def test_cispo_by_cases(r, A, weight):
    """The gradient goes through logp alone; clip gives 0 to the first of these and 2 the second."""
    logprobs = number(-0.7, requires_grad=True)
    ratio = token_ratio(logprobs, logprobs.detach() - math.log(r))
    value = cispo_term(ratio, logprobs, number(A), ObjectiveConfig(policy_term="cispo"))
    assert value.item() == pytest.approx(weight * A * 0.7)
    assert float(torch.autograd.grad(value, logprobs)[0]) == pytest.approx(-weight * A)


@pytest.mark.parametrize(
    ("config", "low", "high"),
    [
        (ObjectiveConfig(), {(0.5, -1)}, {(1.5, 1), (7, 1)}),
        (ObjectiveConfig(clip_low=0.6, clip_high=2), set(), {(7, 1)}),
        (ObjectiveConfig(dual_clip=3), {(0.5, -1)}, {(1.5, 1), (7, 1), (7, -1)}),
        (ObjectiveConfig(policy_term="cispo"), set(), {(7, 1), (7, -1), (7, 0)}),
        (ObjectiveConfig(policy_term="mine:term"), set(), set()),
    ],
)
def test_what_counts_as_clipped(config, low, high):
    cases = [(r, A) for r in (0.5, 1.0, 1.5, 7) for A in (1, 0, -1)]
    ratio, advantages = torch.tensor(cases, dtype=torch.float64).T
    found = clipped_tokens(ratio, advantages, config)
    for tokens, expected in zip(found, (low, high), strict=True):
        assert {case for case, yes in zip(cases, tokens, strict=True) if yes} == expected


def test_a_recipe_may_name_the_terms_that_there_are():
    assert tuple(POLICY_TERMS) == get_args(PolicyTermName)


@pytest.mark.parametrize("dual_clip", [None, 3.0])
def test_clipped_are_the_tokens_without_gradient(dual_clip):
    """Of all that have an advantage."""
    config = ObjectiveConfig(dual_clip=dual_clip)
    ratio = torch.linspace(0.05, 5, 100, dtype=torch.float64).repeat(2).requires_grad_()
    advantages = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat_interleave(100)
    loss = clip_term(ratio, torch.zeros_like(ratio), advantages, config).sum()
    (gradient,) = torch.autograd.grad(loss, ratio)
    low, high = clipped_tokens(ratio, advantages, config)
    assert torch.equal(low | high, gradient == 0)
    assert low.any() and high.any()


def test_bounds_are_not_clipped():
    config = ObjectiveConfig(clip_low=0.25, clip_high=0.5)
    ratio = torch.tensor([0.75, 1.5])
    for sign in (1.0, -1.0):
        assert not any(t.any() for t in clipped_tokens(ratio, torch.full((2,), sign), config))


@pytest.mark.parametrize("level", ["token", "sequence", "sequence_sum"])
def test_an_enormous_ratio_of_a_clipped_token_has_gradient_zero_and_not_nan(level):
    """In float32: a hundred tokens of log-ratio 199 each, whose sum is far beyond any exp."""
    logprobs = torch.full((1, 100), -1.0, requires_grad=True)
    mask = torch.ones((1, 100), dtype=torch.bool)
    ratio = policy_ratio(level, logprobs, torch.full((1, 100), -200.0), mask, mask.long() * 0)
    loss = clip_term(ratio, logprobs, torch.ones(1, 100), ObjectiveConfig())
    assert loss.flatten().tolist() == pytest.approx([-1.2] * 100)
    assert not torch.autograd.grad(loss.sum(), logprobs)[0].any()


def test_ratios_of_completions_that_share_a_row():
    """Two completions of 2 and 3 tokens, one token masked, padding that names the first one."""
    d = torch.tensor([[0.1, 0.3, -0.2, 0.5, 9.0, 7.0]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, True, True, False, False]])
    completion = torch.tensor([[0, 0, 1, 1, 1, 0]])
    old = torch.zeros_like(d)
    log_of = {
        level: policy_ratio(level, d, old, mask, completion).log()[mask].tolist()
        for level in ("token", "sequence", "sequence_sum")
    }
    assert log_of["token"] == pytest.approx([0.1, 0.3, -0.2, 0.5])
    assert log_of["sequence"] == pytest.approx([0.2, 0.2, 0.15, 0.15])
    assert log_of["sequence_sum"] == pytest.approx([0.4, 0.4, 0.3, 0.3])
    ratio = policy_ratio("sequence", d, old, mask, completion)
    (gradient,) = torch.autograd.grad(ratio[0, 0], d)
    assert gradient.tolist()[0] == pytest.approx([math.exp(0.2) / 2] * 2 + [0.0] * 4)


def exact_gradient_in_expectation(kind: str, weighted: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """E over all tokens, on-policy, of the estimator's gradient, and the logits' reference."""
    torch.manual_seed(3)
    logits = torch.randn(7, dtype=torch.float64, requires_grad=True)
    ref = torch.log_softmax(torch.randn(7, dtype=torch.float64), -1)
    logprobs = torch.log_softmax(logits, -1)
    p = logprobs.detach().exp()
    term = kl_term(kind, logprobs, ref)
    if weighted:
        term = term * token_ratio(logprobs, logprobs.detach())
    (found,) = torch.autograd.grad((p * term).sum(), logits, retain_graph=True)
    kl = {
        "reverse": (logprobs.exp() * (logprobs - ref)).sum(),
        "forward": (ref.exp() * (ref - logprobs)).sum(),
        "none": 0.0 * logprobs.sum(),
    }
    return found, {n: torch.autograd.grad(v, logits, retain_graph=True)[0] for n, v in kl.items()}


@pytest.mark.parametrize(
    ("kind", "weighted", "gradient_of"),
    [
        ("k1", False, "none"),
        ("k2", False, "reverse"),
        ("k3", False, "forward"),
        ("k1", True, "reverse"),
        ("k3", True, "reverse"),
    ],
)
def test_what_each_kl_estimator_pulls_towards(kind, weighted, gradient_of):
    """What the README says of the gradients, by exact expectation over a vocabulary of 7."""
    found, expected = exact_gradient_in_expectation(kind, weighted)
    torch.testing.assert_close(found, expected[gradient_of], rtol=0, atol=1e-12)
    assert expected["reverse"].abs().max() > 0.01
    assert (expected["reverse"] - expected["forward"]).abs().max() > 0.01


def test_k3_of_a_small_difference_is_no_rounding_noise():
    """exp(d) − d − 1 of 1e-4 in float32 would be 0 or 1e-7; it is 5e-9."""
    assert float(kl_term("k3", torch.zeros(1), torch.tensor([1e-4]))) == pytest.approx(
        5e-9, rel=0.1
    )


def test_masked_completions_stay_in_the_sequence_mean():
    """One of two completions truncated: half the weight of the other is not doubled."""
    counts = tokens_in_loss([4, 12], [False, True], mask_truncated=True)
    weights = token_weights(
        "sequence_mean", counts, tokens=4, completions=2, max_completion_tokens=12
    )
    assert counts.tolist() == [4, 0]
    assert weights.tolist() == [1 / 8, 0.0]


def test_the_top_fifth_of_tokens_and_those_tied_with_the_last_of_them():
    entropy = np.array([0.1, 0.9, 0.5, 0.3, 0.7, 0.2, 0.8, 0.4, 0.6, 0.0, 1.0], np.float32)
    kept = in_policy_term(entropy, entropy_threshold(entropy, 0.2))
    assert sorted(entropy[kept].tolist()) == pytest.approx([0.8, 0.9, 1.0])
    same = np.full(7, 0.25, np.float32)
    assert in_policy_term(same, entropy_threshold(same, 0.2)).all()
    assert entropy_threshold(entropy, 1.0) == entropy_threshold(entropy[:0], 0.2) == -np.inf
    assert in_policy_term(np.array([np.nan]), -np.inf).all()


@pytest.mark.parametrize("name", PRESETS)
def test_no_paper_s_own_settings_are_remarked_on(name):
    assert config_warnings(ObjectiveConfig(**PRESETS[name]["objective"])) == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kl_kind": "k1", "kl_coef": 0.1}, [UNWEIGHTED_K1]),
        ({"kl_kind": "k1"}, []),
        ({"kl_kind": "k1", "kl_coef": 0.1, "kl_importance_weight": True}, []),
        ({"ratio_level": "sequence"}, ["'sequence' gives all tokens.*'token_mean'"]),
        (
            {"ratio_level": "sequence_sum", "aggregation": "constant"},
            ["'sequence_sum'.*'constant'"],
        ),
        ({"aggregation": "constant"}, []),
    ],
)
def test_remarks(settings, said):
    found = config_warnings(ObjectiveConfig(**settings))
    assert len(found) == len(said)
    for sentence, pattern in zip(found, said, strict=True):
        assert sentence == pattern or re.search(pattern, sentence)
