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

from collections.abc import Sequence

import torch
from torch import Tensor

from common.config import Aggregation


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
    if tokens == 0:
        return kept
    if aggregation == "token_mean":
        return kept / tokens
    if aggregation == "sequence_mean":
        return kept / (completions * counts.clamp(min=1))
    return kept / (completions * max_completion_tokens)
