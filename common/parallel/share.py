"""One replica's part of an optimizer batch: its packs, and what the loss needs of each target.

Pure: rows in, packs and a token batch out, both on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.config import ObjectiveConfig
from common.modeling.packing import (
    Completion,
    PackBatch,
    pack,
    scatter_to_packs,
    spread_to_packs,
)
from common.objective.aggregation import token_weights
from common.objective.objective import TokenBatch
from common.objective.sampler_correction import sampler_weights
from common.objective.top_entropy import in_policy_term
from common.parallel.batches import Minibatch, Sample, completion_counts, deal


@dataclass(frozen=True)
class Share:
    """What one replica computes of a minibatch."""

    samples: tuple[Sample, ...]
    packs: PackBatch
    tokens: TokenBatch

    def rollout_ids(self, packs: Tensor) -> list[str]:
        """Ids of the completions in the given packs (bool [P, T] of targets, or indices of P)."""
        rows = self.packs.row[packs.cpu()].unique()
        return [self.samples[row].rollout_id for row in rows.tolist() if row >= 0]


def make_share(
    minibatch: Minibatch,
    objective: ObjectiveConfig,
    *,
    replica: int,
    replicas: int,
    tokens_per_pack: int | None,
    share_prompts: bool,
    packing: dict[str, int],
    max_completion_tokens: int,
    dtype: torch.dtype,
) -> Share:
    """The packs of one replica and what the loss needs to know of each target.

    Args:
        packing: how many packs there must be, from `Pipeline.packing`.
        dtype: of the loss, float32 or wider.
    """
    mine = deal(minibatch.computed, replicas)[replica]
    samples = tuple(sample for group in mine for sample in group.samples)
    packs = pack(
        [Completion(s.prompt_ids, s.completion_ids, s.group) for s in samples],
        tokens_per_pack=tokens_per_pack,
        share_prompts=share_prompts,
        **packing,
    )
    counts = completion_counts(samples, objective)
    weights = token_weights(
        objective.aggregation,
        counts,
        tokens=minibatch.completion_tokens,
        completions=len(minibatch.samples),
        max_completion_tokens=max_completion_tokens,
    )
    tokens = _token_batch(samples, packs, minibatch, objective, counts, weights, dtype)
    return Share(samples, packs, tokens)


def _token_batch(
    samples: Sequence[Sample],
    packs: PackBatch,
    minibatch: Minibatch,
    objective: ObjectiveConfig,
    counts: Tensor,
    weights: Tensor,
    dtype: torch.dtype,
) -> TokenBatch:
    """The samples' numbers laid out as the targets are.

    Args:
        counts: [C] tokens in the loss.
        weights: [C] of each such token.
    """

    lengths = [len(sample.completion_ids) for sample in samples]

    def by_token(rows: Sequence[np.ndarray]) -> Tensor:
        flat = torch.tensor(np.concatenate([np.zeros(0), *rows]), dtype=dtype)
        return scatter_to_packs(flat.split(lengths), packs, 0.0)

    def by_row(values: Tensor) -> Tensor:
        return spread_to_packs(values.to(dtype), packs, 0.0)

    refs = [sample.ref_logprobs for sample in samples if sample.ref_logprobs is not None]
    kept = [_in_policy_term(sample, minibatch.entropy_threshold) for sample in samples]
    return TokenBatch(
        mask=packs.target_mask & (spread_to_packs(counts, packs, 0) > 0),
        completion=completions_in_pack(packs),
        old_logprobs=by_token([s.old_logprobs for s in samples]),
        ref_logprobs=by_token(refs) if objective.kl_coef else None,
        advantages=by_row(torch.tensor([s.advantage for s in samples], dtype=dtype)),
        weights=by_row(weights),
        token_mean_weights=by_row((counts > 0).double() / max(minibatch.completion_tokens, 1)),
        sampler_weights=by_token(_sampler_weights(samples, objective)),
        in_policy_term=by_token(kept).bool(),
        sampler_gap=by_token([np.abs(s.old_logprobs - s.sampler_full_logprobs) for s in samples]),
    )


def completions_in_pack(packs: PackBatch) -> Tensor:
    """[P, T] int64 number of the target's completion within its pack, from 0; in range on padding.

    The targets of a completion stand together, so a new one begins where `row` changes.
    """
    begins = packs.target_mask.clone()
    begins[:, 1:] &= packs.row[:, 1:] != packs.row[:, :-1]
    return (begins.cumsum(1) - 1).clamp(min=0)


def _in_policy_term(sample: Sample, threshold: float) -> np.ndarray:
    if sample.entropy is None:
        return np.ones(len(sample.completion_ids), dtype=bool)
    return in_policy_term(sample.entropy, threshold)


def _sampler_weights(samples: Sequence[Sample], objective: ObjectiveConfig) -> list[np.ndarray]:
    """One array a completion, one weight a token."""
    if not samples:
        return []
    lengths = [len(sample.completion_ids) for sample in samples]
    weights = sampler_weights(
        objective,
        np.concatenate([sample.old_logprobs for sample in samples]),
        np.concatenate([sample.sampler_logprobs for sample in samples]),
        lengths,
    )
    return np.split(weights, np.cumsum(lengths)[:-1])
