"""Weights that make up for a sampler whose logprobs differ from the trainer's.

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
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from common.config import ObjectiveConfig, SamplerCorrection, SamplerLevel

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
