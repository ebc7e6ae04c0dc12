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
    keep    whether this token has a policy term: `weights.in_policy_term`

The last three are computed before the forward and refer to the whole optimizer batch. So each
microbatch adds the terms of its own tokens, and neither value nor gradient depends on how tokens
are divided into microbatches, packs or ranks. Everything here is a pure function of tensors.
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

`ratio` is taken at the recipe's ratio level. Gradients flow from it to `logprobs` and on to the
policy. `README.md` beside this file states the rules for a recipe's own function.
"""


@dataclass(frozen=True)
class TokenBatch:
    """A microbatch's token data that are known before the forward: tensors [B, T].

    They have the loss's dtype, float32 or wider, unless stated otherwise. Outside the mask they are
    finite and have no effect.
    """

    mask: Tensor
    """bool, True for tokens in the loss; False for padding and tokens of masked completions."""
    completion: Tensor
    """int64 index of the token's completion in its pack, from 0; any valid index on padding."""
    old_logprobs: Tensor
    """Logprobs under the policy that sampled."""
    ref_logprobs: Tensor | None
    """Logprobs under the reference policy; None when kl_coef is 0."""
    advantages: Tensor
    """Advantage of the token's completion."""
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
        """Return the given packs of the batch."""
        return self._map(lambda tensor: tensor[packs])

    def to(self, device: torch.device | str) -> TokenBatch:
        """Return the batch on another device."""
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
    """Compute this microbatch's part of the loss, and sums that `metrics` turns into means.

    Args:
        logprobs: [B, T] of the tokens under the policy in training, with gradient.
        entropy: [B, T] of its distributions, nats; with gradient if `entropy_coef` is not 0.
        own_term: the function that `config.policy_term` names, unless it names a built-in term.

    Returns:
        A scalar, 0 with zero gradient if no token is in the mask; and detached float64 scalars.
    """
    mask, old = batch.mask, batch.old_logprobs
    # Outside the mask the forward's numbers may be anything, and 0 · inf would be nan. Harmless
    # values are put there before any exp, which also makes the gradient there exactly 0.
    logprobs = torch.where(mask, logprobs, old)
    entropy = torch.where(mask, entropy, 0.0)
    # 1. The policy term, summed with the aggregation's weights over the tokens that have it.
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
    # 4. Values per token for the metrics, [B, T] each.
    low, high = clipped_tokens(ratio, batch.advantages, config)
    log_ratio = (logprobs - old).detach()
    by_token = {
        "kl": kl,
        "entropy": entropy,
        "clip_fraction_low": low,
        "clip_fraction_high": high,
        "ratio_mean": ratio,
        "ratio_max": ratio,
        # r − 1 − log r of the token, by expm1: for r near 1, exp(…) − 1 is rounding noise.
        "approx_kl": torch.expm1(log_ratio) - log_ratio,
        "sampler_gap_mean": batch.sampler_gap,
        "sampler_gap_max": batch.sampler_gap,
        "sampler_weight_mean": batch.sampler_weights,
    }
    return loss, _sums(mask, {"loss": loss, "policy_loss": policy_loss}, by_token)


def zero_advantage_rows_matter(config: ObjectiveConfig) -> bool:
    """Whether a completion with advantage 0 has a gradient, through KL or entropy.

    If not, it is left out of the forward. The weights still count it, so that leaving it out
    changes no gradient.
    """
    return config.kl_coef != 0 or config.entropy_coef != 0


def _weighted_sum(values: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values * weights, 0.0).sum()


# exp of slightly more is infinite in float32, and the zero gradient of a clipped token would become
# 0 · inf = nan. A ratio of exp(80) is beyond every clip. Where nothing clips it (A < 0 without
# dual_clip), the token loses its gradient, which no optimizer could have used.
_LARGEST_LOG_RATIO = 80.0


def token_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """Return r = exp(logp − old) of each token, [B, T], with gradient to `logprobs`."""
    return (logprobs - old_logprobs).clamp(max=_LARGEST_LOG_RATIO).exp()


def policy_ratio(
    level: RatioLevel, logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, completion: Tensor
) -> Tensor:
    """Return each token's ratio at the given level, [B, T], with gradient to `logprobs`.

    At level `token` each token has its own ratio. At the other levels all tokens of a completion
    share one: at `sequence` the geometric mean of the tokens' ratios (GSPO, arXiv 2507.18071,
    eq. 7), at `sequence_sum` their product (RLOO, arXiv 2402.14740).

    Args:
        logprobs: [B, T] under the policy in training.
        old_logprobs: [B, T] under the policy that sampled.
        mask: [B, T] bool; only tokens in the loss enter the sums of a completion.
        completion: [B, T] int64 in 0 .. T − 1, index of the token's completion in its pack.
    """
    if level == "token":
        return token_ratio(logprobs, old_logprobs)
    log_ratio = _sum_over_completion(logprobs - old_logprobs, mask, completion)
    if level == "sequence":
        tokens = _sum_over_completion(mask.to(log_ratio.dtype), mask, completion)
        log_ratio = log_ratio / tokens.clamp(min=1)
    return log_ratio.clamp(max=_LARGEST_LOG_RATIO).exp()


def _sum_over_completion(values: Tensor, mask: Tensor, completion: Tensor) -> Tensor:
    """Give each token the sum of `values` over its completion's tokens in the mask, [B, T].

    A pack has no more completions than tokens, so T slots hold all sums and no size has to be read
    from the device.
    """
    inside = torch.where(mask, values, 0.0)
    return torch.zeros_like(inside).scatter_add(1, completion, inside).gather(1, completion)


def clip_term(
    ratio: Tensor, logprobs: Tensor, advantages: Tensor, config: ObjectiveConfig
) -> Tensor:
    """Return PPO's loss of each token, [B, T] (arXiv 1707.06347, eq. 7).

    It is −min(r·A, clamp(r, 1 − clip_low, 1 + clip_high)·A). Different bounds below and above come
    from DAPO (arXiv 2503.14476). `dual_clip` also caps r in the unclipped branch, which bounds the
    loss of a token with negative advantage (arXiv 1912.09729).
    """
    clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    unclipped = ratio if config.dual_clip is None else ratio.clamp(max=config.dual_clip)
    return -torch.min(unclipped * advantages, clipped * advantages)


def cispo_term(
    ratio: Tensor, logprobs: Tensor, advantages: Tensor, config: ObjectiveConfig
) -> Tensor:
    """Return CISPO's loss of each token, [B, T] (arXiv 2506.13585).

    It is −min(r, cispo_cap)·A·logp with no gradient through the min: the plain policy gradient with
    a capped weight, so that no token loses its gradient.
    """
    return -ratio.detach().clamp(max=config.cispo_cap) * advantages * logprobs


POLICY_TERMS: Mapping[str, PolicyTerm] = {"clip": clip_term, "cispo": cispo_term}
"""The built-in terms, by their names in a recipe."""


def clipped_tokens(
    ratio: Tensor, advantages: Tensor, config: ObjectiveConfig
) -> tuple[Tensor, Tensor]:
    """Return the tokens that the policy term limits from below and from above, [B, T] bool each.

    For `clip` these are the tokens without gradient: below, those with r < 1 − clip_low and A < 0;
    above, those with r > 1 + clip_high and A > 0, and with `dual_clip` also those with
    r > dual_clip and A < 0. `cispo` limits none from below, and from above those with
    r > cispo_cap. Nothing is known of a recipe's own term, so both are False everywhere.
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
    """Return the KL estimate of each token, in the shape of `logprobs` and with gradient to it.

    With d = ref − logp, `k1` is −d, `k2` is d²/2 and `k3` is exp(d) − d − 1 (Schulman 2020,
    "Approximating KL divergence"). The GRPO paper uses k3 (arXiv 2402.03300, eq. 4).
    """
    d = ref_logprobs - logprobs
    if kind == "k1":
        return -d
    if kind == "k2":
        return d.square() / 2
    # In float32, exp(d) − 1 is rounding noise for a small d; expm1(d) is not.
    return torch.expm1(d) - d


MAXIMA = frozenset({"ratio_max", "sampler_gap_max"})
"""The sums that are merged by their maximum; all others are added."""

TOTALS = ("loss", "policy_loss", *sorted(MAXIMA))
"""The metrics that are not means over tokens."""


def _sums(
    mask: Tensor, totals: Mapping[str, Tensor], by_token: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return detached float64 scalars: `totals` unchanged, [B, T] values reduced over the mask."""
    sums = {"tokens": mask.sum(dtype=torch.float64)}
    sums |= {name: value.detach().double() for name, value in totals.items()}
    for name, values in by_token.items():
        inside = values.detach().double().where(mask, 0.0)
        if name in MAXIMA:  # no value is negative; without values the maximum is 0
            sums[name] = torch.cat((inside.flatten(), inside.new_zeros(1))).amax()
        else:
            sums[name] = inside.sum()
    return sums


def merge_sums(total: dict[str, Tensor] | None, part: dict[str, Tensor]) -> dict[str, Tensor]:
    """Merge the sums of two parts of an optimizer batch; None stands for an empty part."""
    if total is None:
        return dict(part)
    return {
        name: torch.maximum(total[name], value) if name in MAXIMA else total[name] + value
        for name, value in part.items()
    }


def metrics(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """Turn the sums of a whole optimizer batch into metrics; a mean over no tokens is 0.

    Means over the tokens in the mask are `kl` of the estimator (unweighted), `entropy`,
    `clip_fraction_low`, `clip_fraction_high`, `ratio_mean` (of the ratio level in use), `approx_kl`
    (r − 1 − log r of the token's ratio), `sampler_gap_mean` (|old − sampler|) and
    `sampler_weight_mean`. `loss` and `policy_loss` are aggregated as the recipe says. Completions
    that were left out of the forward because they have no gradient are in no mean.
    """
    tokens = max(float(sums["tokens"]), 1.0)
    return {
        name: float(value) / (1.0 if name in TOTALS else tokens)
        for name, value in sums.items()
        if name != "tokens"
    }
