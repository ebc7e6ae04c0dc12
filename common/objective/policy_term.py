"""The policy term of the loss: the ratio of new to old policy, clipped."""

from __future__ import annotations

import torch
from torch import Tensor

from common.config import ObjectiveConfig

# exp of more is infinite in float32, and the zero gradient of a clipped token would turn into
# 0 · inf = nan. A ratio of exp(80) is beyond every clip, so the clamp changes no finite result.
_LARGEST_LOG_RATIO = 80.0


def token_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """r = exp(logp − old) of each token, with gradient to `logprobs`."""
    return (logprobs - old_logprobs).clamp(max=_LARGEST_LOG_RATIO).exp()


def clip_term(ratio: Tensor, advantages: Tensor, config: ObjectiveConfig) -> Tensor:
    """−min(r·A, clamp(r, 1 − clip_low, 1 + clip_high)·A), PPO's clipped term (arXiv 1707.06347).

    With `dual_clip` r is also at most that in the unclipped branch, which bounds the loss of a
    token with negative advantage (arXiv 1912.09729).
    """
    clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    unclipped = ratio if config.dual_clip is None else ratio.clamp(max=config.dual_clip)
    return -torch.min(unclipped * advantages, clipped * advantages)


def clipped_tokens(
    ratio: Tensor, advantages: Tensor, config: ObjectiveConfig
) -> tuple[Tensor, Tensor]:
    """Which tokens (bool) the term clips from below and from above."""
    low = (ratio < 1 - config.clip_low) & (advantages < 0)
    high = (ratio > 1 + config.clip_high) & (advantages > 0)
    return low, high
