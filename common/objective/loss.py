"""The loss of one microbatch: logprobs and entropies in, its part of the loss and metrics out.

A microbatch is B packs of T tokens. Over the tokens in the mask of a whole optimizer batch, the
loss is

    Σ weight · (w · keep · term(r, A) + kl_coef · KL) − entropy_coef · Σ H / tokens

    r       probability under the policy in training / under the one that sampled: `policy_ratio`
    A       advantage of the token's completion
    term    policy term: `clip_term`, `cispo_term`, or the recipe's own function
    KL      estimated distance to the reference policy, at this token: `kl_term`
    H       entropy of the policy in training, at this token
    weight  1 / tokens, or by completion, or a constant: `weights.token_weights`
    w       correction of the sampler's logprobs, 1 by default: `weights.sampler_weights`
    keep    whether the policy term is on this token: `weights.in_policy_term`

The last three are found beforehand and count the whole optimizer batch. So each microbatch adds its
own tokens' terms, and neither value nor gradient depends on how tokens are cut into microbatches,
packs or ranks. Everything here is a pure function of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from common.config import KlKind, ObjectiveConfig, RatioLevel

PolicyTerm = Callable[[Tensor, Tensor, Tensor, ObjectiveConfig], Tensor]
"""(ratio, logprobs, advantages, config) → loss of each token; all tensors are [B, T].

`ratio` is of the recipe's level and has a gradient to `logprobs`, as these have to the policy. What
a recipe's own function has to keep to is in `README.md` beside this file.
"""


@dataclass(frozen=True)
class TokenBatch:
    """What is known of a microbatch's tokens before the forward: tensors [B, T].

    They are floats of the loss's dtype, float32 or wider, unless said otherwise. Outside the mask
    they are finite and never used.
    """

    mask: Tensor
    """bool: tokens in the loss. Padding is not, nor are tokens of masked completions."""
    completion: Tensor
    """int64: which completion of its pack a token belongs to, from 0; on padding any of them."""
    old_logprobs: Tensor
    """Under the policy that sampled."""
    ref_logprobs: Tensor | None
    """Under the reference policy; None when kl_coef is 0."""
    advantages: Tensor
    """That of the token's completion."""
    weights: Tensor
    """`weights.token_weights` of the token's completion."""
    token_mean_weights: Tensor
    """1 / tokens of the optimizer batch, for the entropy, which is always a mean over tokens."""
    sampler_weights: Tensor
    """`weights.sampler_weights`; 1 without correction."""
    in_policy_term: Tensor
    """bool: `weights.in_policy_term`."""
    sampler_gap: Tensor
    """|old − sampler| of the logprobs, for the metrics."""

    def select(self, packs: slice | Tensor) -> TokenBatch:
        """The given packs of the batch."""
        return self._map(lambda tensor: tensor[packs])

    def to(self, device: torch.device | str) -> TokenBatch:
        """The batch on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def _map(self, function: Callable[[Tensor], Tensor]) -> TokenBatch:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        mapped: dict[str, Any] = {n: None if v is None else function(v) for n, v in values.items()}
        return TokenBatch(**mapped)


def grpo_loss(
    logprobs: Tensor,
    entropy: Tensor,
    batch: TokenBatch,
    config: ObjectiveConfig,
    own_term: PolicyTerm | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """This microbatch's part of the loss, and sums that `metrics` makes means of.

    Args:
        logprobs: [B, T] of the tokens under the policy in training, with gradient.
        entropy: [B, T] of its distributions, nats; with gradient if `entropy_coef` is not 0.
        own_term: the function that `config.policy_term` names, where that is no built-in one.

    Returns:
        A scalar, 0 with zero gradient if no token is in the mask; and detached float64 scalars.
    """
    mask, old = batch.mask, batch.old_logprobs
    # Outside the mask the forward's numbers may be anything, and 0 · inf would be nan: put
    # harmless ones there before any exp, which also makes their gradient exactly 0.
    logprobs = torch.where(mask, logprobs, old)
    entropy = torch.where(mask, entropy, 0.0)
    # 1. The policy term, summed with the aggregation's weights over the tokens that it is on.
    assert (own_term is None) != config.has_own_term
    term = own_term or POLICY_TERMS[config.policy_term]
    ratio = policy_ratio(config.ratio_level, logprobs, old, mask, batch.completion)  # [B, T]
    policy = term(ratio, logprobs, batch.advantages, config) * batch.sampler_weights  # [B, T]
    policy_loss = _weighted_sum(policy, batch.weights, mask & batch.in_policy_term)  # scalar
    loss = policy_loss
    # 2. The KL to the reference, summed with the same weights over all tokens.
    kl = torch.zeros_like(policy)  # [B, T]
    if config.kl_coef:
        assert batch.ref_logprobs is not None
        kl = kl_term(config.kl_kind, logprobs, batch.ref_logprobs)
        weighted = kl * token_ratio(logprobs, old) if config.kl_importance_weight else kl
        loss = loss + config.kl_coef * _weighted_sum(weighted, batch.weights, mask)
    # 3. The entropy bonus, a mean over tokens.
    if config.entropy_coef:
        mean_entropy = _weighted_sum(entropy, batch.token_mean_weights, mask)
        loss = loss - config.entropy_coef * mean_entropy
    # 4. What the metrics are made of, [B, T] each.
    low, high = clipped_tokens(ratio, batch.advantages, config)
    log_ratio = (logprobs - old).detach()
    by_token = {
        "kl": kl,
        "entropy": entropy,
        "clip_fraction_low": low,
        "clip_fraction_high": high,
        "ratio_mean": ratio,
        "ratio_max": ratio,
        # r − 1 − log r of the token, by expm1: for r near 1, exp(…) − 1 is rounding.
        "approx_kl": torch.expm1(log_ratio) - log_ratio,
        "sampler_gap_mean": batch.sampler_gap,
        "sampler_gap_max": batch.sampler_gap,
        "sampler_weight_mean": batch.sampler_weights,
    }
    return loss, _sums(mask, {"loss": loss, "policy_loss": policy_loss}, by_token)


def zero_advantage_rows_matter(config: ObjectiveConfig) -> bool:
    """Whether a completion with advantage 0 has a gradient, through KL or entropy.

    If not, it is left out before any compute. The weights count it all the same, so that this
    changes no gradient.
    """
    return config.kl_coef != 0 or config.entropy_coef != 0


def _weighted_sum(values: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values * weights, 0.0).sum()


# exp of a little more is infinite in float32, and the zero gradient of a clipped token would turn
# into 0 · inf = nan. A ratio of exp(80) is beyond every clip; where nothing clips it (A < 0 without
# dual_clip) the token loses its gradient, which no optimizer could have used.
_LARGEST_LOG_RATIO = 80.0


def token_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """[B, T] r = exp(logp − old) of each token, with gradient to `logprobs`."""
    return (logprobs - old_logprobs).clamp(max=_LARGEST_LOG_RATIO).exp()


def policy_ratio(
    level: RatioLevel, logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, completion: Tensor
) -> Tensor:
    """[B, T] the ratio of each token's level, with gradient to `logprobs`.

    `token` is the token's own. The others are one number for all tokens of a completion:
    `sequence` the geometric mean of its tokens' (GSPO, arXiv 2507.18071, eq. 7), `sequence_sum`
    their product (RLOO, arXiv 2402.14740).

    Args:
        logprobs: [B, T] under the policy in training.
        old_logprobs: [B, T] under the policy that sampled.
        mask: [B, T] bool; only tokens in the loss are in a completion's sums.
        completion: [B, T] int64 in 0 .. T − 1, which completion of its pack a token belongs to.
    """
    if level == "token":
        return token_ratio(logprobs, old_logprobs)
    log_ratio = _sum_over_completion(logprobs - old_logprobs, mask, completion)
    if level == "sequence":
        tokens = _sum_over_completion(mask.to(log_ratio.dtype), mask, completion)
        log_ratio = log_ratio / tokens.clamp(min=1)
    return log_ratio.clamp(max=_LARGEST_LOG_RATIO).exp()


def _sum_over_completion(values: Tensor, mask: Tensor, completion: Tensor) -> Tensor:
    """[B, T] for each token, the sum of `values` over the masked tokens of its completion.

    A pack has no more completions than tokens, so T places hold their sums and no size need be
    asked of the device.
    """
    inside = torch.where(mask, values, 0.0)
    return torch.zeros_like(inside).scatter_add(1, completion, inside).gather(1, completion)


def clip_term(
    ratio: Tensor, logprobs: Tensor, advantages: Tensor, config: ObjectiveConfig
) -> Tensor:
    """[B, T] −min(r·A, clamp(r, 1 − clip_low, 1 + clip_high)·A): PPO (arXiv 1707.06347, eq. 7).

    Bounds that differ are DAPO's (arXiv 2503.14476). With `dual_clip` r is also at most that in the
    unclipped branch, which bounds the loss of a token with negative advantage (arXiv 1912.09729).
    """
    clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    unclipped = ratio if config.dual_clip is None else ratio.clamp(max=config.dual_clip)
    return -torch.min(unclipped * advantages, clipped * advantages)


def cispo_term(
    ratio: Tensor, logprobs: Tensor, advantages: Tensor, config: ObjectiveConfig
) -> Tensor:
    """[B, T] −min(r, cispo_cap)·A·logp, no gradient through the min: CISPO (arXiv 2506.13585).

    The policy gradient's own term with a capped weight, so that no token is without gradient.
    """
    return -ratio.detach().clamp(max=config.cispo_cap) * advantages * logprobs


POLICY_TERMS: Mapping[str, PolicyTerm] = {"clip": clip_term, "cispo": cispo_term}
"""The built-in terms, by their names in a recipe."""


def clipped_tokens(
    ratio: Tensor, advantages: Tensor, config: ObjectiveConfig
) -> tuple[Tensor, Tensor]:
    """[B, T] bool twice: tokens that the term holds back from below, and from above.

    `clip`: r < 1 − clip_low with A < 0; r > 1 + clip_high with A > 0, and with `dual_clip` also
    r > dual_clip with A < 0: the cases without gradient. `cispo`: none, and r > cispo_cap. Of the
    recipe's own term nothing is known: none.
    """
    none = torch.zeros_like(ratio, dtype=torch.bool)
    if config.has_own_term:
        return none, none
    if config.policy_term == "cispo":
        return none, ratio > config.cispo_cap
    low = (ratio < 1 - config.clip_low) & (advantages < 0)
    high = (ratio > 1 + config.clip_high) & (advantages > 0)
    if config.dual_clip is not None:
        high |= (ratio > config.dual_clip) & (advantages < 0)
    return low, high


def kl_term(kind: KlKind, logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """The KL estimate of each token, in the shape of `logprobs` and with gradient to it.

    With d = ref − logp: `k1` −d, `k2` d²/2, `k3` exp(d) − d − 1 (Schulman 2020, "Approximating KL
    divergence"; k3 is the GRPO paper's, arXiv 2402.03300, eq. 4).
    """
    d = ref_logprobs - logprobs
    if kind == "k1":
        return -d
    if kind == "k2":
        return d.square() / 2
    # In float32, exp(d) − 1 of a small d is rounding noise, expm1 is not.
    return torch.expm1(d) - d


MAXIMA = frozenset({"ratio_max", "sampler_gap_max"})
"""Sums that combine by maximum; all others add."""

TOTALS = ("loss", "policy_loss", *sorted(MAXIMA))
"""What is no mean over tokens."""


def _sums(
    mask: Tensor, totals: Mapping[str, Tensor], by_token: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Detached float64 scalars: `totals` as they are, [B, T] values summed over the mask."""
    sums = {"tokens": mask.sum(dtype=torch.float64)}
    sums |= {name: value.detach().double() for name, value in totals.items()}
    for name, values in by_token.items():
        inside = values.detach().double().where(mask, 0.0)
        if name in MAXIMA:  # no value is negative, and of no values it is 0
            sums[name] = torch.cat((inside.flatten(), inside.new_zeros(1))).amax()
        else:
            sums[name] = inside.sum()
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

    Means over the tokens in the mask: `kl` of the estimator (unweighted), `entropy`,
    `clip_fraction_low`, `clip_fraction_high`, `ratio_mean` (of the ratio level in use), `approx_kl`
    (r − 1 − log r of the token's ratio), `sampler_gap_mean` (|old − sampler|) and
    `sampler_weight_mean`. `loss` and `policy_loss` are aggregated as the recipe says. Tokens of
    completions that were left out of the compute, having no gradient, are in no mean.
    """
    tokens = max(float(sums["tokens"]), 1.0)
    return {
        name: float(value) / (1.0 if name in TOTALS else tokens)
        for name, value in sums.items()
        if name != "tokens"
    }
