"""Weights of tokens in the loss: aggregation, correction of the sampler, selection by entropy.

All three are computed before the forward, on the CPU in float64 and without gradient. They refer to
the whole optimizer batch: all microbatches of all data-parallel ranks. With l a token's policy
term, `loss.grpo_loss` sums weight · w · keep · l.

**weight** is the aggregation (`token_weights`), one number for all tokens of a completion:

    token_mean     1 / tokens                                   DAPO, arXiv 2503.14476, section 3.3
    sequence_mean  1 / (completions · tokens of the completion) GRPO, arXiv 2402.03300, eq. 3
    constant       1 / (completions · max_completion_tokens)    Dr. GRPO, arXiv 2503.20783

DAPO's formula divides by the tokens of each group; here, as in TRL and verl, `token_mean` divides
by the tokens of the batch.

**w** corrects for a sampler whose logprobs differ from the trainer's (`sampler_weights`): another
engine, dtype or cache draws tokens from a distribution that is not quite the old policy's. With
d = old − sampler, the ratio is exp(d) at level `token`, exp(Σ d) at `sequence`, and the geometric
mean exp(Σ d / tokens) at `geometric`. Then w is

    none      1
    truncate  min(ratio, sampler_high)                              TIS (Yao et al. 2025)
    mask      ratio if in [sampler_low, sampler_high], else 0       IcePop (2025)

**keep** is 1 for the share `top_entropy_quantile` of the tokens in the loss whose entropy is
highest, and 0 for the others (arXiv 2506.01939; `entropy_threshold`, `in_policy_term`). The entropy
is the stored one of the policy that sampled, so that no second forward is needed. KL, entropy bonus
and all counts include every token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.config import Aggregation, ObjectiveConfig

Floats = NDArray[np.float64]

# exp of slightly more overflows float64; no cap is this large.
_LARGEST_LOG_RATIO = 700.0


def tokens_in_loss(
    lengths: Sequence[int], truncated: Sequence[bool], *, mask_truncated: bool
) -> Tensor:
    """Return how many tokens each completion has in the loss, [C] int64.

    Args:
        lengths: [C] completion tokens, the stop token included.
        truncated: [C] whether the completion hit the length limit.
        mask_truncated: leave out the tokens of truncated completions, which still count as
            completions.
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
    """Return the weight of each token of a completion, [C] float64; 0 for those without tokens.

    Args:
        counts: [C] int64 tokens in the loss, for any part of the optimizer batch.
        tokens: Σ counts over the whole optimizer batch.
        completions: their number in the whole optimizer batch, including fully masked and dropped.
        max_completion_tokens: the rollout's limit, used only by `constant`.
    """
    in_loss = (counts > 0).double()
    if aggregation == "token_mean":
        return in_loss / max(tokens, 1)
    if aggregation == "sequence_mean":
        return in_loss / (completions * counts.clamp(min=1))
    return in_loss / (completions * max_completion_tokens)


def sampler_weights(
    config: ObjectiveConfig,
    old_logprobs: NDArray[np.floating],
    sampler_logprobs: NDArray[np.floating],
    lengths: Sequence[int] | NDArray[np.int64],
) -> Floats:
    """Return w of each token, [N] float64; with a correction, NaN where the log ratio is NaN.

    Args:
        old_logprobs: [N] by the trainer, completions concatenated.
        sampler_logprobs: [N] by the sampler when it drew the tokens.
        lengths: [C] tokens of each completion, N in all.
    """
    counts = np.asarray(lengths, dtype=np.int64)
    assert counts.sum() == len(old_logprobs) == len(sampler_logprobs)
    if config.sampler_correction == "none":
        return np.ones(len(old_logprobs))
    with np.errstate(invalid="ignore"):  # inf − inf is NaN, as documented
        log_ratio = old_logprobs.astype(np.float64) - sampler_logprobs.astype(np.float64)
        if config.sampler_level != "token":
            completion = np.repeat(np.arange(len(counts)), counts)
            sums = np.bincount(completion, log_ratio, len(counts)).astype(np.float64)
            if config.sampler_level == "geometric":
                sums /= np.maximum(counts, 1)
            log_ratio = np.repeat(sums, counts)
        ratio = np.exp(np.minimum(log_ratio, _LARGEST_LOG_RATIO))
    if config.sampler_correction == "truncate":
        return np.minimum(ratio, config.sampler_high)
    # Both comparisons are false where the ratio is NaN, so that it stays NaN.
    outside = (ratio < config.sampler_low) | (ratio > config.sampler_high)
    return np.where(outside, 0.0, ratio)


def entropy_threshold(entropy: NDArray[np.floating], top_quantile: float) -> float:
    """Return the lowest entropy of a kept token: the quantile 1 − `top_quantile`, interpolated.

    Args:
        entropy: [N] of all tokens in the loss of the optimizer batch, nats.
        top_quantile: the share to keep; 1 keeps every token.

    Returns:
        The threshold in nats: −inf if every token is kept, NaN if an entropy is NaN.
    """
    if top_quantile == 1 or not len(entropy):
        return -np.inf
    return float(np.quantile(entropy.astype(np.float64), 1 - top_quantile))


def in_policy_term(entropy: NDArray[np.floating], threshold: float | Floats) -> NDArray[np.bool_]:
    """Return which tokens are kept, [N] bool: those that are not below the threshold.

    Args:
        entropy: [N] in nats.
        threshold: one for all tokens, or one per token.
    """
    return ~(entropy.astype(np.float64) < threshold)
