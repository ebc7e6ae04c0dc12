"""The objective: logprobs and entropies of a microbatch to its part of the global loss.

The loss of an optimizer batch is, over the tokens in the mask,

    Σ weight · (keep · w · policy term(r, A) + kl_coef · KL(logp, ref) [· r_token])
      − entropy_coef · mean entropy

    r       ratio of new to old policy, of the token or its completion
    A       advantage of the completion
    term    clip or cispo
    w       correction of the sampler's logprobs, not of the KL
    keep    1 on the tokens of highest entropy, or on all
    KL      k1, k2 or k3
    weight  of the completion's tokens

Weights are global, so the parts of microbatches and ranks add up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from common.config import KlKind, ObjectiveConfig, PolicyTerm, RatioLevel


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
    """|old − sampler|, for the metrics."""

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


# exp of a little more is infinite in float32, and the zero gradient of a clipped token would turn
# into 0 · inf = nan. A ratio of exp(80) is beyond every clip; where nothing clips it (A < 0 without
# dual_clip) the token loses its gradient, which no optimizer could have used.
_LARGEST_LOG_RATIO = 80.0


def token_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """r = exp(logp − old) of each token, with gradient to `logprobs`."""
    return _exp(logprobs - old_logprobs)


def policy_ratio(
    level: RatioLevel, logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, completion: Tensor
) -> Tensor:
    """[B, T] the ratio of each token's `level`, with gradient to `logprobs`.

    Args:
        logprobs: [B, T] of the policy in training.
        old_logprobs: [B, T] of the policy that sampled.
        mask: [B, T] bool, tokens in the loss; only they are in a completion's sums.
        completion: [B, T] int64 in 0 .. T − 1, which completion of its row a token belongs to.
    """
    return _exp(_LOG_RATIOS[level](logprobs - old_logprobs, mask, completion))


def _of_token(log_ratio: Tensor, mask: Tensor, completion: Tensor) -> Tensor:
    return log_ratio


def _of_sequence(log_ratio: Tensor, mask: Tensor, completion: Tensor) -> Tensor:
    tokens = _sum_over_completion(mask.to(log_ratio.dtype), mask, completion)
    return _of_sequence_sum(log_ratio, mask, completion) / tokens.clamp(min=1)


def _of_sequence_sum(log_ratio: Tensor, mask: Tensor, completion: Tensor) -> Tensor:
    return _sum_over_completion(log_ratio, mask, completion)


_LOG_RATIOS: dict[RatioLevel, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "token": _of_token,
    "sequence": _of_sequence,
    "sequence_sum": _of_sequence_sum,
}


def _sum_over_completion(values: Tensor, mask: Tensor, completion: Tensor) -> Tensor:
    """[B, T] for each token, the sum of `values` over the masked tokens of its completion.

    A row has no more completions than tokens, so T places hold their sums and no size need be
    asked of the device.
    """
    inside = torch.where(mask, values, 0.0)
    return torch.zeros_like(inside).scatter_add(1, completion, inside).gather(1, completion)


def _exp(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(max=_LARGEST_LOG_RATIO).exp()


def policy_term(
    ratio: Tensor, logprobs: Tensor, advantages: Tensor, config: ObjectiveConfig
) -> Tensor:
    """[B, T] the loss of each token, with gradient to `ratio` or `logprobs`.

    Args:
        ratio: [B, T] of the level in use.
        logprobs: [B, T] of the policy in training.
        advantages: [B, T] of the token's completion.
    """
    return POLICY_TERMS[config.policy_term](ratio, logprobs, advantages, config)


def clipped_tokens(
    ratio: Tensor, advantages: Tensor, config: ObjectiveConfig
) -> tuple[Tensor, Tensor]:
    """[B, T] bool twice: tokens that the term holds back from below, and from above.

    `clip`: r < 1 − clip_low with A < 0; r > 1 + clip_high with A > 0, and with `dual_clip` also
    r > dual_clip with A < 0: the cases without gradient. `cispo`: none, and r > cispo_cap.
    """
    return _CLIPPED[config.policy_term](ratio, advantages, config)


def clip_term(
    ratio: Tensor, logprobs: Tensor, advantages: Tensor, config: ObjectiveConfig
) -> Tensor:
    """PPO's clipped term.

    With `dual_clip` r is also at most that in the unclipped branch, which bounds the loss of a
    token with negative advantage (arXiv 1912.09729).
    """
    clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    unclipped = ratio if config.dual_clip is None else ratio.clamp(max=config.dual_clip)
    return -torch.min(unclipped * advantages, clipped * advantages)


def cispo_term(
    ratio: Tensor, logprobs: Tensor, advantages: Tensor, config: ObjectiveConfig
) -> Tensor:
    """The policy gradient's own term, each token weighted by its capped ratio."""
    return -ratio.detach().clamp(max=config.cispo_cap) * advantages * logprobs


def _clipped_by_clip(
    ratio: Tensor, advantages: Tensor, config: ObjectiveConfig
) -> tuple[Tensor, Tensor]:
    low = (ratio < 1 - config.clip_low) & (advantages < 0)
    high = (ratio > 1 + config.clip_high) & (advantages > 0)
    if config.dual_clip is not None:
        high |= (ratio > config.dual_clip) & (advantages < 0)
    return low, high


def _clipped_by_cispo(
    ratio: Tensor, advantages: Tensor, config: ObjectiveConfig
) -> tuple[Tensor, Tensor]:
    high = ratio > config.cispo_cap
    return torch.zeros_like(high), high


POLICY_TERMS: dict[PolicyTerm, Callable[[Tensor, Tensor, Tensor, ObjectiveConfig], Tensor]] = {
    "clip": clip_term,
    "cispo": cispo_term,
}

_CLIPPED: dict[PolicyTerm, Callable[[Tensor, Tensor, ObjectiveConfig], tuple[Tensor, Tensor]]] = {
    "clip": _clipped_by_clip,
    "cispo": _clipped_by_cispo,
}


def kl_term(kind: KlKind, logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """The estimate for each token, in the shape of `logprobs`, with gradient to it."""
    return KL_KINDS[kind](ref_logprobs - logprobs)


def _k1(d: Tensor) -> Tensor:
    return -d


def _k2(d: Tensor) -> Tensor:
    return d.square() / 2


def _k3(d: Tensor) -> Tensor:
    # In float32, exp(d) − 1 of a small d is rounding noise, expm1 is not.
    return torch.expm1(d) - d


KL_KINDS: dict[KlKind, Callable[[Tensor], Tensor]] = {"k1": _k1, "k2": _k2, "k3": _k3}


MAXIMA = frozenset({"ratio_max", "sampler_gap_max"})
"""Sums that combine by maximum; all others add."""

MEANS = (
    "kl",
    "entropy",
    "clip_fraction_low",
    "clip_fraction_high",
    "ratio_mean",
    "approx_kl",
    "sampler_gap_mean",
    "sampler_weight_mean",
)
"""Sums over tokens that become means."""


def masked_sums(
    mask: Tensor, totals: Mapping[str, Tensor], token_values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Detached float64 scalars of one microbatch.

    Args:
        mask: [B, T] bool, tokens in the loss.
        totals: scalars that are this microbatch's part already.
        token_values: [B, T] values to be summed over the mask; a name in `MAXIMA`: the maximum.
    """
    sums = {"tokens": mask.sum(dtype=torch.float64)}
    sums |= {name: value.detach().double() for name, value in totals.items()}
    for name, values in token_values.items():
        inside = values.detach().double().where(mask, 0.0)
        sums[name] = _largest(inside) if name in MAXIMA else inside.sum()
    return sums


def merge_sums(total: dict[str, Tensor] | None, part: dict[str, Tensor]) -> dict[str, Tensor]:
    """Combine the sums of two parts of an optimizer batch; None is the empty part."""
    if total is None:
        return dict(part)
    return {
        name: torch.maximum(total[name], value) if name in MAXIMA else total[name] + value
        for name, value in part.items()
    }


def metrics(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """The loss's metrics of a whole optimizer batch; every mean over no token is 0.

    Token means over the loss's mask: `kl` of the estimator (unweighted), `entropy`,
    `clip_fraction_low`, `clip_fraction_high`, `ratio_mean` (of the ratio level in use), `approx_kl`
    (mean of r − 1 − log r of the token's ratio), `sampler_gap_mean` (|old − sampler|) and
    `sampler_weight_mean`. `loss` and `policy_loss` are aggregated as the recipe says. Tokens of
    completions that were left out of the compute, having no gradient, are in no mean.
    """
    tokens = max(float(sums["tokens"]), 1.0)
    totals = {name: float(sums[name]) for name in ("loss", "policy_loss", *sorted(MAXIMA))}
    return totals | {name: float(sums[name]) / tokens for name in MEANS}


def _largest(values: Tensor) -> Tensor:
    """The maximum of values that are never negative; 0 of none."""
    return torch.cat((values.flatten(), values.new_zeros(1))).amax()
