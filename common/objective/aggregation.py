"""Aggregations of token losses, each as one weight for all tokens of a completion.

With l the loss and m the mask of a token, the loss of an optimizer batch is Σ weight · m · l where

    token_mean     weight = 1 / tokens                                   DAPO, arXiv 2503.14476
    sequence_mean  weight = 1 / (completions · tokens of the completion) GRPO, arXiv 2402.03300
    constant       weight = 1 / (completions · max_completion_tokens)    Dr. GRPO, arXiv 2503.20783

`tokens` and `completions` count the whole optimizer batch over all dp ranks. So a microbatch adds
its own tokens' terms and nothing else, and neither value nor gradient depends on how rows are cut
into microbatches, packs or ranks. (DAPO's formula normalises each group by itself; we normalise
over the batch, as TRL and verl do.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.config import Aggregation


@dataclass(frozen=True)
class BatchSize:
    """What is counted over the whole optimizer batch."""

    tokens: int
    completions: int
    max_completion_tokens: int


def tokens_in_loss(
    lengths: Sequence[int], truncated: Sequence[bool], *, mask_truncated: bool
) -> Tensor:
    """[C] int64 tokens that each completion brings to the loss.

    Args:
        lengths: completion tokens, the stop token included.
        truncated: whether the completion hit the length limit.
        mask_truncated: leave those out; they stay completions and count in `completions`.
    """
    counts = torch.tensor(list(lengths), dtype=torch.int64)
    if mask_truncated:
        counts[torch.tensor(list(truncated), dtype=torch.bool)] = 0
    return counts


def token_weights(
    aggregation: Aggregation,
    counts: Tensor,
    *,
    tokens: int,
    completions: int,
    max_completion_tokens: int,
) -> Tensor:
    """[C] float64 weight of each token in the loss, for each completion.

    Args:
        counts: [C] tokens in the loss, of any part of the optimizer batch.
        tokens: Σ counts over the whole optimizer batch; 0 gives no weight to anything.
        completions: of the whole optimizer batch, the fully masked and the dropped included.
        max_completion_tokens: the rollout's limit, used by `constant` alone.
    """
    kept = (counts > 0).double()
    batch = BatchSize(max(tokens, 1), completions, max_completion_tokens)
    return kept / _DIVISORS[aggregation](counts.clamp(min=1), batch)


def _token_mean(counts: Tensor, batch: BatchSize) -> Tensor | int:
    return batch.tokens


def _sequence_mean(counts: Tensor, batch: BatchSize) -> Tensor | int:
    return batch.completions * counts


def _constant(counts: Tensor, batch: BatchSize) -> Tensor | int:
    return batch.completions * batch.max_completion_tokens


_DIVISORS: dict[Aggregation, Callable[[Tensor, BatchSize], Tensor | int]] = {
    "token_mean": _token_mean,
    "sequence_mean": _sequence_mean,
    "constant": _constant,
}
"""What divides the loss of each token of completions with [C] `counts` tokens in the loss."""
