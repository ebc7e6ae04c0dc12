"""Aggregations of token losses, each as one weight for all tokens of a completion.

With l the loss and m the mask of a token, the loss of an optimizer batch is Σ weight · m · l where

    token_mean     weight = 1 / tokens                                   DAPO, arXiv 2503.14476
    sequence_mean  weight = 1 / (completions · tokens of the completion) GRPO, arXiv 2402.03300
    constant       weight = 1 / (completions · max_completion_tokens)    Dr. GRPO, arXiv 2503.20783

`tokens` and `completions` count the whole optimizer batch over all dp ranks. So a microbatch adds
its own tokens' terms and nothing else, and neither value nor gradient depends on how rows are cut
into microbatches, packs or ranks. (DAPO's formula normalises each group by itself; we normalise
over the batch, as TRL and verl do.)

Weights that make up for a sampler whose logprobs differ from the trainer's.

Another engine, type or cache draws tokens from a distribution that is not quite the old policy's.
With d = old − sampler of a token and sums over its completion, w is

    token      exp(d)            truncate to at most a cap: TIS (Yao et al., 2025)
    sequence   exp(Σ d)
    geometric  exp(Σ d / Σ 1)

and a correction turns it into the weight of the policy term:

    none      1
    truncate  min(w, sampler_high)
    mask      w within [sampler_low, sampler_high], bounds included; 0 outside

Plain numpy in float64, without gradient. A weight is not a number where a logprob is not.

Which tokens the policy term is kept on: those that the old policy was least sure of.

Of all tokens in the loss of an optimizer batch, over all dp ranks, the share `top_entropy_quantile`
with the highest entropy (arXiv 2506.01939). The entropy is the stored one, of the policy
that sampled, so the selection needs no second forward and is the same in every division of the
work. KL, entropy bonus and all denominators keep every token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.config import Aggregation, ObjectiveConfig, SamplerCorrection, SamplerLevel


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


Floats = NDArray[np.float64]
Lengths = NDArray[np.int64]

# exp of more overflows float64; no cap is as large.
_LARGEST_LOG_WEIGHT = 700.0


def sampler_weights(
    config: ObjectiveConfig,
    old_logprobs: NDArray[np.floating],
    sampler_logprobs: NDArray[np.floating],
    lengths: Sequence[int] | Lengths,
) -> Floats:
    """[N] the weight of each token's policy term.

    Args:
        old_logprobs: [N] by the trainer, the completions one after another.
        sampler_logprobs: [N] as drawn.
        lengths: [C] tokens of each completion, N in all.
    """
    counts = np.asarray(lengths, dtype=np.int64)
    assert counts.sum() == len(old_logprobs) == len(sampler_logprobs)
    with np.errstate(invalid="ignore"):  # inf − inf: not a number, as promised
        d = old_logprobs.astype(np.float64) - sampler_logprobs.astype(np.float64)
        log_weight = _LEVELS[config.sampler_level](d, counts)
        weight = np.exp(np.minimum(log_weight, _LARGEST_LOG_WEIGHT))
    return _CORRECTIONS[config.sampler_correction](weight, config)


def _of_token(d: Floats, lengths: Lengths) -> Floats:
    return d


def _of_sequence(d: Floats, lengths: Lengths) -> Floats:
    return np.repeat(_sums(d, lengths), lengths)


def _of_geometric_mean(d: Floats, lengths: Lengths) -> Floats:
    return np.repeat(_sums(d, lengths) / np.maximum(lengths, 1), lengths)


def _sums(d: Floats, lengths: Lengths) -> Floats:
    """[C] over the tokens of each completion."""
    completion = np.repeat(np.arange(len(lengths)), lengths)
    return np.bincount(completion, d, len(lengths)).astype(np.float64)


def _none(weight: Floats, config: ObjectiveConfig) -> Floats:
    return np.ones_like(weight)


def _truncate(weight: Floats, config: ObjectiveConfig) -> Floats:
    return np.minimum(weight, config.sampler_high)


def _mask(weight: Floats, config: ObjectiveConfig) -> Floats:
    outside = (weight < config.sampler_low) | (weight > config.sampler_high)
    return np.where(outside, 0.0, weight)


_LEVELS: dict[SamplerLevel, Callable[[Floats, Lengths], Floats]] = {
    "token": _of_token,
    "sequence": _of_sequence,
    "geometric": _of_geometric_mean,
}

_CORRECTIONS: dict[SamplerCorrection, Callable[[Floats, ObjectiveConfig], Floats]] = {
    "none": _none,
    "truncate": _truncate,
    "mask": _mask,
}


def entropy_threshold(entropy: NDArray[np.floating], top_quantile: float) -> float:
    """The entropy from which on a token is kept: the quantile 1 − `top_quantile`, interpolated.

    Args:
        entropy: of all tokens in the loss of the optimizer batch, nats.
        top_quantile: the share to keep; 1 keeps every token.

    Returns:
        −inf where everything is kept; not a number if an entropy is.
    """
    if top_quantile == 1 or not len(entropy):
        return -np.inf
    return float(np.quantile(entropy.astype(np.float64), 1 - top_quantile))


def in_policy_term(
    entropy: NDArray[np.floating], threshold: float | NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Which tokens are kept: all but those below the threshold (of all, or one per token)."""
    return ~(entropy.astype(np.float64) < threshold)
