"""The objective: logprobs and entropies of a microbatch to its part of the global loss.

The loss of an optimizer batch is, over the tokens in the mask,

    Σ weight · (keep · w · policy term(r, A) + kl_coef · KL(logp, ref) [· r_token])
      − entropy_coef · mean entropy

    r       ratio of new to old policy, of the token or its completion    ratio.py
    A       advantage of the completion                                   advantages.py
    term    clip or cispo                                                 policy_term.py
    w       correction of the sampler's logprobs, not of the KL           sampler_correction.py
    keep    1 on the tokens of highest entropy, or on all                 top_entropy.py
    KL      k1, k2 or k3                                                  kl.py
    weight  of the completion's tokens                                    aggregation.py

Weights are global, so the parts of microbatches and ranks add up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from common.config import ObjectiveConfig
from common.objective.kl import kl_term
from common.objective.metrics import masked_sums
from common.objective.policy_term import clipped_tokens, policy_term
from common.objective.ratio import policy_ratio, token_ratio


@dataclass(frozen=True)
class TokenBatch:
    """What the loss needs besides the forward's outputs: tensors [B, T], floats unless said.

    Values outside the mask are finite but never used.
    """

    mask: Tensor
    """bool: tokens in the loss, so neither padding nor tokens of masked completions."""
    completion: Tensor
    """int64: which completion of its row the token belongs to, from 0; any in range on padding."""
    old_logprobs: Tensor
    ref_logprobs: Tensor | None
    """None when kl_coef is 0."""
    advantages: Tensor
    """That of the token's completion."""
    weights: Tensor
    """`aggregation.token_weights` of the token's completion."""
    token_mean_weights: Tensor
    """1 / tokens of the whole optimizer batch, for the entropy, which is always a token mean."""
    sampler_weights: Tensor
    """`sampler_correction.sampler_weights`; 1 without correction."""
    in_policy_term: Tensor
    """bool: tokens that `top_entropy` keeps in the policy term."""
    sampler_gap: Tensor
    """|old − sampler_full|, for the metrics."""

    def select(self, packs: slice | Tensor) -> TokenBatch:
        """The given packs of the batch."""
        return self._map(lambda tensor: tensor[packs])

    def to(self, device: torch.device | str) -> TokenBatch:
        return self._map(lambda tensor: tensor.to(device))

    def _map(self, function: Callable[[Tensor], Tensor]) -> TokenBatch:
        mapped: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            mapped[field.name] = None if value is None else function(value)
        return TokenBatch(**mapped)


def grpo_loss(
    logprobs: Tensor, entropy: Tensor, batch: TokenBatch, config: ObjectiveConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """This microbatch's part of the global loss, and sums for `metrics`.

    Args:
        logprobs: [B, T] of the policy in training, with gradient.
        entropy: [B, T] of its distributions, with gradient if `entropy_coef` is not 0.

    Returns:
        A scalar, 0 with zero gradient if no token is in the mask, and detached float64 scalars.
    """
    mask, old = batch.mask, batch.old_logprobs
    # Outside the mask the forward's numbers may be anything, and 0 · inf would be nan: put
    # harmless ones there before any exp, which also makes their gradient exactly 0.
    logprobs = torch.where(mask, logprobs, old)
    entropy = torch.where(mask, entropy, 0.0)
    ratio = policy_ratio(config.ratio_level, logprobs, old, mask, batch.completion)
    policy = policy_term(ratio, logprobs, batch.advantages, config) * batch.sampler_weights
    policy_loss = _weighted_sum(policy, batch.weights, mask & batch.in_policy_term)
    loss = policy_loss
    kl = torch.zeros_like(policy)
    if config.kl_coef:
        assert batch.ref_logprobs is not None
        kl = kl_term(config.kl_kind, logprobs, batch.ref_logprobs)
        weighted = kl * token_ratio(logprobs, old) if config.kl_importance_weight else kl
        loss = loss + config.kl_coef * _weighted_sum(weighted, batch.weights, mask)
    if config.entropy_coef:
        mean_entropy = _weighted_sum(entropy, batch.token_mean_weights, mask)
        loss = loss - config.entropy_coef * mean_entropy
    low, high = clipped_tokens(ratio, batch.advantages, config)
    sums = masked_sums(
        mask,
        {"loss": loss, "policy_loss": policy_loss},
        {
            "kl": kl,
            "entropy": entropy,
            "clip_fraction_low": low,
            "clip_fraction_high": high,
            "ratio_mean": ratio,
            "ratio_max": ratio,
            "approx_kl": _approx_kl(logprobs, old),
            "sampler_gap_mean": batch.sampler_gap,
            "sampler_gap_max": batch.sampler_gap,
            "sampler_weight_mean": batch.sampler_weights,
        },
    )
    return loss, sums


def zero_advantage_rows_matter(config: ObjectiveConfig) -> bool:
    """Whether a completion with advantage 0 has a gradient, through KL or entropy.

    If not, it may be left out before any compute; `tokens` and `completions` of the aggregation
    count it all the same, so that this changes no gradient.
    """
    return config.kl_coef != 0 or config.entropy_coef != 0


def _weighted_sum(values: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values * weights, 0.0).sum()


def _approx_kl(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """r − 1 − log r of the token's ratio, by expm1: at r near 1 the difference is rounding."""
    log_ratio = (logprobs - old_logprobs).detach()
    return torch.expm1(log_ratio) - log_ratio
