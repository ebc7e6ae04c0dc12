"""What weighs a token in the loss: the aggregation, the sampler's correction, the entropy's choice.

All three are found before the forward, on the CPU in float64 and without gradient, and count the
whole optimizer batch: all microbatches of all data-parallel ranks. With l the loss of a token's
policy term, `loss.grpo_loss` sums weight · w · keep · l.

**weight** is the aggregation (`token_weights`), one number for all tokens of a completion:

    token_mean     1 / tokens                                   DAPO, arXiv 2503.14476, section 3.3
    sequence_mean  1 / (completions · tokens of the completion) GRPO, arXiv 2402.03300, eq. 3
    constant       1 / (completions · max_completion_tokens)    Dr. GRPO, arXiv 2503.20783

DAPO's formula divides by the tokens of each group; here, as in TRL and verl, by those of the batch.

**w** makes up for a sampler whose logprobs differ from the trainer's (`sampler_weights`): another
engine, dtype or cache draws tokens from a distribution that is not quite the old policy's. With
d = old − sampler, the ratio is exp(d) of the `token`, exp(Σ d) of the `sequence`, or the
`geometric` mean exp(Σ d / tokens); and w is

    none      1
    truncate  min(ratio, sampler_high)                              TIS (Yao et al. 2025)
    mask      ratio within [sampler_low, sampler_high], else 0      IcePop (2025)

**keep** is 1 on the share `top_entropy_quantile` of the tokens in the loss whose entropy is highest
(arXiv 2506.01939; `entropy_threshold`, `in_policy_term`). It is the entropy of the policy that
sampled, as stored, so that no second forward is needed. KL, entropy bonus and all counts keep every
token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.config import Aggregation, ObjectiveConfig

Floats = NDArray[np.float64]

# exp of more overflows float64; no cap is as large.
_LARGEST_LOG_RATIO = 700.0


def tokens_in_loss(
    lengths: Sequence[int], truncated: Sequence[bool], *, mask_truncated: bool
) -> Tensor:
    """[C] int64 how many tokens each completion brings to the loss.

    Args:
        lengths: [C] completion tokens, the stop token included.
        truncated: [C] whether the completion hit the length limit.
        mask_truncated: leave those out; they stay completions and count as such.
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
    """[C] float64 weight of each token of a completion; 0 for completions without tokens.

    Args:
        counts: [C] int64 tokens in the loss, of any part of the optimizer batch.
        tokens: Σ counts over the whole optimizer batch.
        completions: of the whole optimizer batch, the fully masked and the dropped included.
        max_completion_tokens: the rollout's limit, used by `constant` alone.
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
    """[N] float64 w of each token; not a number where a logprob is not.

    Args:
        old_logprobs: [N] by the trainer, the completions one after another.
        sampler_logprobs: [N] as drawn.
        lengths: [C] tokens of each completion, N in all.
    """
    counts = np.asarray(lengths, dtype=np.int64)
    assert counts.sum() == len(old_logprobs) == len(sampler_logprobs)
    if config.sampler_correction == "none":
        return np.ones(len(old_logprobs))
    with np.errstate(invalid="ignore"):  # inf − inf: not a number, as promised
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
    # Two comparisons that are false where the ratio is not a number, so that it stays none.
    outside = (ratio < config.sampler_low) | (ratio > config.sampler_high)
    return np.where(outside, 0.0, ratio)


def entropy_threshold(entropy: NDArray[np.floating], top_quantile: float) -> float:
    """The entropy from which on a token is kept: the quantile 1 − `top_quantile`, interpolated.

    Args:
        entropy: [N] of all tokens in the loss of the optimizer batch, nats.
        top_quantile: the share to keep; 1 keeps every token.

    Returns:
        −inf where everything is kept; not a number if an entropy is.
    """
    if top_quantile == 1 or not len(entropy):
        return -np.inf
    return float(np.quantile(entropy.astype(np.float64), 1 - top_quantile))


def in_policy_term(entropy: NDArray[np.floating], threshold: float | Floats) -> NDArray[np.bool_]:
    """[N] which tokens are kept: all but those below the threshold (of all, or one per token)."""
    return ~(entropy.astype(np.float64) < threshold)
