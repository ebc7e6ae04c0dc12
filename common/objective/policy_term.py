"""The policy term of the loss by name, and which tokens each calls clipped.

With r the ratio (`ratio.py`) and A the advantage of a token:

    clip   −min(r·A, clamp(r, 1 − clip_low, 1 + clip_high)·A)   PPO, arXiv 1707.06347
    cispo  −stop_grad(min(r, cispo_cap))·A·logp                 CISPO, arXiv 2506.13585

A clipped token has no gradient under `clip`; under `cispo` every token keeps one, of bounded
weight.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from common.config import ObjectiveConfig, PolicyTerm


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
