"""The objective: logprobs and entropies of a microbatch to its part of the global loss.

For a token with ratio r = exp(logp − old), advantage A and the weight of its completion
(`aggregation.py`), the loss of an optimizer batch is

    Σ weight · (policy term(r, A) + kl_coef · KL(logp, ref) [· r])  −  entropy_coef · mean entropy

over the tokens in the mask. Weights are global, so the parts of microbatches and ranks add up.
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
from common.objective.policy_term import clip_term, clipped_tokens, token_ratio


@dataclass(frozen=True)
class TokenBatch:
    """What the loss needs besides the forward's outputs: tensors [B, T], floats unless said.

    Values outside the mask are finite but never used.
    """

    mask: Tensor
    """bool: tokens in the loss, so neither padding nor tokens of masked completions."""
    old_logprobs: Tensor
    ref_logprobs: Tensor | None
    """None when kl_coef is 0."""
    advantages: Tensor
    """That of the token's completion."""
    weights: Tensor
    """`aggregation.token_weights` of the token's completion."""
    token_mean_weights: Tensor
    """1 / tokens of the whole optimizer batch, for the entropy, which is always a token mean."""
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
    mask = batch.mask
    # Outside the mask the forward's numbers may be anything, and 0 · inf would be nan: put
    # harmless ones there before any exp, which also makes their gradient exactly 0.
    logprobs = torch.where(mask, logprobs, batch.old_logprobs)
    entropy = torch.where(mask, entropy, 0.0)
    ratio = token_ratio(logprobs, batch.old_logprobs)
    policy = clip_term(ratio, batch.advantages, config)
    policy_loss = _weighted_sum(policy, batch.weights, mask)
    loss = policy_loss
    kl = torch.zeros_like(policy)
    if config.kl_coef:
        assert batch.ref_logprobs is not None
        kl = kl_term(config.kl_kind, logprobs, batch.ref_logprobs)
        in_loss = kl * ratio if config.kl_importance_weight else kl
        loss = loss + config.kl_coef * _weighted_sum(in_loss, batch.weights, mask)
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
            "ratio": ratio,
            "ratio_max": ratio,
            "approx_kl": _approx_kl(logprobs, batch.old_logprobs),
            "sampler_gap": batch.sampler_gap,
            "sampler_gap_max": batch.sampler_gap,
        },
    )
    return loss, sums


def zero_advantage_rows_matter(config: ObjectiveConfig) -> bool:
    """Whether a completion with advantage 0 has a gradient, through KL or entropy.

    If not, groups without variance may be dropped before any compute; `tokens` and `completions`
    of the aggregation count them all the same, so that dropping changes no gradient.
    """
    return config.kl_coef != 0 or config.entropy_coef != 0


def _weighted_sum(values: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values * weights, 0.0).sum()


def _approx_kl(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """r − 1 − log r, by expm1: at r near 1 the plain difference is rounding noise."""
    log_ratio = (logprobs - old_logprobs).detach()
    return torch.expm1(log_ratio) - log_ratio
