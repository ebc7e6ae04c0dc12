"""The ratio of new to old policy: of each token, or of the completion that it belongs to.

With d = logp − old of a token and sums over the completion's tokens in the loss:

    token         exp(d)            PPO, arXiv 1707.06347
    sequence      exp(Σ d / Σ 1)    GSPO, arXiv 2507.18071
    sequence_sum  exp(Σ d)          the whole completion as one action: RLOO, arXiv 2402.14740

A completion never crosses a pack, so its sums stay within a row of the batch. All tokens of a
completion have its ratio, and its gradient goes through all of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from common.config import RatioLevel

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
