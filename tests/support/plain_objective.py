"""The objective as the papers print it, one token at a time: what ours is compared with.

Nothing here is shared with the code under test, and nothing is fast: there are no packs, masks or
weights, but Python loops over completions and tokens, and plain floats where no gradient flows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from common.config import ObjectiveConfig


@dataclass
class PlainRow:
    """One completion; lists have one value per token."""

    log_p: Tensor
    """[tokens, V] log-softmax, with gradient."""
    targets: list[int]
    old: list[float]
    ref: list[float]
    sampler: list[float]
    entropy: list[float]
    """Entropy of the policy that sampled."""
    advantage: float
    truncated: bool = False


def plain_loss(rows: list[PlainRow], config: ObjectiveConfig, max_completion_tokens: int) -> Tensor:
    """Return the loss of the whole optimizer batch."""
    zero = torch.zeros((), dtype=torch.float64)
    in_loss = [row for row in rows if not (config.mask_truncated and row.truncated)]
    tokens = max(sum(len(row.targets) for row in in_loss), 1)
    threshold = plain_threshold([h for row in in_loss for h in row.entropy], config)
    loss, entropy = zero, zero
    for row in in_loss:
        if not row.targets:
            continue
        total = sum(plain_token_losses(row, config, threshold), zero)
        loss = loss + {
            "token_mean": lambda total: total / tokens,
            "sequence_mean": lambda total, n=len(row.targets): total / n / len(rows),
            "constant": lambda total: total / (len(rows) * max_completion_tokens),
        }[config.aggregation](total)
        entropy = entropy - (row.log_p.exp() * row.log_p).sum() / tokens
    return loss - config.entropy_coef * entropy


def plain_token_losses(row: PlainRow, config: ObjectiveConfig, threshold: float) -> list[Tensor]:
    """Return the loss of each token: its policy term plus its KL."""
    A = row.advantage
    logps = [row.log_p[t, target] for t, target in enumerate(row.targets)]
    log_ratios = [logp - old for logp, old in zip(logps, row.old, strict=True)]
    weights = plain_sampler_weights(row, config)
    losses = []
    for t, logp in enumerate(logps):
        r_token = torch.exp(log_ratios[t])
        if config.ratio_level == "token":
            r = r_token
        elif config.ratio_level == "sequence":
            r = torch.exp(sum(log_ratios) / len(log_ratios))
        else:
            r = torch.exp(sum(log_ratios))
        if config.policy_term == "cispo":
            loss = -min(r.item(), config.cispo_cap) * A * logp
        elif config.policy_term == "support.own_terms:soft_gate":
            tau = 1.0 if A > 0 else 1.05
            loss = -A * 4 / tau / (1 + torch.exp(-tau * (r - 1)))
        else:
            bounded = r if config.dual_clip is None else torch.clamp(r, max=config.dual_clip)
            clamped = torch.clamp(r, 1 - config.clip_low, 1 + config.clip_high)
            loss = -torch.minimum(bounded * A, clamped * A)
        loss = loss * weights[t] * (1 if row.entropy[t] >= threshold else 0)
        if config.kl_coef:
            d = row.ref[t] - logp
            kl = {"k1": -d, "k2": d * d / 2, "k3": torch.exp(d) - d - 1}[config.kl_kind]
            loss = loss + config.kl_coef * kl * (r_token if config.kl_importance_weight else 1)
        losses.append(loss)
    return losses


def plain_sampler_weights(row: PlainRow, config: ObjectiveConfig) -> list[float]:
    """Return the sampler weight w of each token, after the correction."""
    gaps = [old - sampler for old, sampler in zip(row.old, row.sampler, strict=True)]
    n = len(gaps)
    if config.sampler_level == "sequence":
        gaps = [math.fsum(gaps)] * n
    elif config.sampler_level == "geometric":
        gaps = [math.fsum(gaps) / n] * n
    weights = [math.exp(gap) for gap in gaps]
    low, high = config.sampler_low, config.sampler_high
    return {
        "none": [1.0] * n,
        "truncate": [min(w, high) for w in weights],
        "mask": [w if low <= w <= high else 0.0 for w in weights],
    }[config.sampler_correction]


def plain_threshold(entropies: list[float], config: ObjectiveConfig) -> float:
    """Return the quantile 1 − q of the entropies, interpolated between its two neighbours."""
    if config.top_entropy_quantile == 1 or not entropies:
        return -math.inf
    ordered = sorted(entropies)
    place = (1 - config.top_entropy_quantile) * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
