"""An iteration's completions as optimizer batches, and each replica's part of them as packs.

What normalises the loss is counted, and tokens are ranked by entropy, over the whole optimizer
batch: before anything is dropped, balanced over replicas or packed. All of it is pure, on the CPU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from common.config import ObjectiveConfig
from common.errors import NoLearningSignalError, UserError
from common.modeling.packing import (
    Completion,
    PackBatch,
    pack,
    scatter_to_packs,
    spread_to_packs,
)
from common.objective.loss import TokenBatch, zero_advantage_rows_matter
from common.objective.weights import (
    entropy_threshold,
    in_policy_term,
    sampler_weights,
    token_weights,
    tokens_in_loss,
)
from common.training.samples import Group, TrainingSample


@dataclass(frozen=True)
class Minibatch:
    """The groups of one optimizer step and the counts that normalise its loss."""

    epoch: int
    step: int
    """Within the iteration, from 0."""
    groups: tuple[Group, ...]
    computed: tuple[Group, ...]
    """The completions that can have a gradient, see `_with_gradient`; no group is empty."""
    counts: Tensor
    """[completions] int64 tokens in the loss of every completion of `groups`, in order."""
    entropy_threshold: float
    """Least entropy of a token in the policy term; −inf for all of them."""

    @property
    def has_gradient(self) -> bool:
        """Whether any token has one; if none has, the step is left out."""
        return bool(self.computed)

    @property
    def samples(self) -> list[TrainingSample]:
        return [sample for group in self.groups for sample in group.samples]

    @property
    def completion_tokens(self) -> int:
        """The global normaliser: tokens in the loss over all replicas, dropped groups counted."""
        return int(self.counts.sum())

    def facts(self) -> dict[str, float]:
        """The metrics that do not depend on the policy."""
        samples = self.samples
        rewards = [s.reward for s in samples if s.reward is not None]
        return {
            "completion_tokens": self.completion_tokens,
            "completions": len(samples),
            "zero_variance_groups": sum(not group.has_variance for group in self.groups),
            "reward_mean": fmean(rewards) if rewards else 0.0,
            "reward_std": stdev(rewards) if len(rewards) > 1 else 0.0,
            "truncated_fraction": fmean(s.truncated for s in samples) if samples else 0.0,
        }


def plan_minibatches(
    groups: Sequence[Group],
    objective: ObjectiveConfig,
    *,
    epochs: int,
    prompts_per_step: int | None,
    seed: int,
    iteration: int,
    on_no_signal: Literal["stop", "keep"] = "stop",
) -> list[Minibatch]:
    """Every optimizer step of an iteration, in order.

    Each epoch is a permutation of the groups, a function of seed, iteration and epoch alone. An
    iteration without groups has one empty minibatch an epoch, whose step is skipped.

    Args:
        on_no_signal: with `keep`, an iteration whose groups all have equal rewards has nothing to
            compute, not even its KL: Adam would turn the smallest gradient into full steps.

    Raises:
        NoLearningSignalError: no group has different rewards, and `on_no_signal` is `stop`.
        UserError: a stored entropy is not finite, and tokens are to be ranked by it.
    """
    signal = any(group.has_variance for group in groups)
    if not signal and on_no_signal == "stop":
        raise _no_signal(groups, iteration)
    size = prompts_per_step or max(len(groups), 1)
    batches: list[Minibatch] = []
    for epoch in range(epochs):
        order = permutation(len(groups), f"{seed}/{iteration}/{epoch}")
        for start in range(0, max(len(groups), 1), size):
            chosen = tuple(groups[index] for index in order[start : start + size])
            computed = _with_gradient(chosen, objective) if signal else ()
            batches.append(_minibatch(chosen, computed, objective, epoch, len(batches)))
    return batches


def permutation(count: int, key: str) -> list[int]:
    """A permutation that is the same on every machine and version: indices sorted by hash."""

    def place(index: int) -> bytes:
        return hashlib.sha256(f"{key}/{index}".encode()).digest()

    return sorted(range(count), key=place)


def balance_by_tokens(groups: Sequence[Group], replicas: int) -> list[list[Group]]:
    """Groups for each dp rank, the longest first and each to the rank with the fewest tokens."""
    shares: list[list[Group]] = [[] for _ in range(replicas)]
    tokens = [0] * replicas
    for group in sorted(groups, key=lambda g: -g.tokens):
        poorest = tokens.index(min(tokens))
        shares[poorest].append(group)
        tokens[poorest] += group.tokens
    return shares


def _no_signal(groups: Sequence[Group], iteration: int) -> NoLearningSignalError:
    rewards = {sample.reward for group in groups for sample in group.samples}
    shown = ", ".join(map(str, sorted(r for r in rewards if r is not None)[:3])) or "none"
    equal = f"in each of the {len(groups)} groups all rewards are equal (rewards: {shown})"
    return NoLearningSignalError(
        f"iteration {iteration}: {equal if groups else 'no group was kept'}, so no completion is "
        "better than another: no learning signal, the policy stays as it is. Try easier or harder "
        "prompts, a larger rollout.group_size, or a reward with degrees; "
        'train.on_no_signal = "keep" carries the policy over and goes on'
    )


def _with_gradient(groups: tuple[Group, ...], objective: ObjectiveConfig) -> tuple[Group, ...]:
    """The completions that the loss has a gradient for, in their groups.

    Left out are those that are not in the loss, and with advantage 0 those that KL and entropy say
    nothing of either. No term reaches from one completion to another but by what is counted over
    the whole batch, so the gradient is the same without them.
    """
    every_advantage = zero_advantage_rows_matter(objective)
    found = []
    for group in groups:
        counts = completion_counts(group.samples, objective).tolist()
        members = zip(group.samples, counts, strict=True)
        kept = tuple(s for s, count in members if count and (s.advantage or every_advantage))
        found += [Group(kept)] if kept else []
    return tuple(found)


def _minibatch(
    groups: tuple[Group, ...],
    computed: tuple[Group, ...],
    objective: ObjectiveConfig,
    epoch: int,
    step: int,
) -> Minibatch:
    samples = [sample for group in groups for sample in group.samples]
    counts = completion_counts(samples, objective)
    return Minibatch(
        epoch,
        step,
        groups,
        computed,
        counts,
        _entropy_threshold(samples, counts, objective),
    )


def _entropy_threshold(
    samples: Sequence[TrainingSample], counts: Tensor, objective: ObjectiveConfig
) -> float:
    if objective.top_entropy_quantile == 1:
        return -np.inf
    ranked = [np.zeros(0)]
    for sample, count in zip(samples, counts.tolist(), strict=True):
        if not count:
            continue
        assert sample.entropy is not None, "read_samples has looked for it"
        if not np.isfinite(sample.entropy).all():
            raise UserError(
                f"entropy of {sample.rollout_id} in logprobs is not finite, but "
                f"objective.top_entropy_quantile = {objective.top_entropy_quantile} ranks tokens "
                "by it; make logprobs again"
            )
        ranked.append(sample.entropy)
    return entropy_threshold(np.concatenate(ranked), objective.top_entropy_quantile)


def completion_counts(samples: Sequence[TrainingSample], objective: ObjectiveConfig) -> Tensor:
    """[samples] int64 tokens of each completion in the loss."""
    return tokens_in_loss(
        [len(s.completion_ids) for s in samples],
        [s.truncated for s in samples],
        mask_truncated=objective.mask_truncated,
    )


@dataclass(frozen=True)
class ReplicaBatch:
    """What one replica computes of a minibatch."""

    samples: tuple[TrainingSample, ...]
    packs: PackBatch
    tokens: TokenBatch

    def rollout_ids(self, packs: Tensor) -> list[str]:
        """Ids of the completions in the given packs (bool [P, T] of targets, or indices of P)."""
        rows = self.packs.row[packs.cpu()].unique()
        return [self.samples[row].rollout_id for row in rows.tolist() if row >= 0]


def make_replica_batch(
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
) -> ReplicaBatch:
    """The packs of one replica and what the loss needs to know of each target.

    Args:
        packing: how many packs there must be, from `Pipeline.packing`.
        dtype: of the loss, float32 or wider.
    """
    mine = balance_by_tokens(minibatch.computed, replicas)[replica]
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
    return ReplicaBatch(samples, packs, tokens)


def _token_batch(
    samples: Sequence[TrainingSample],
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
        sampler_gap=by_token([np.abs(s.old_logprobs - s.sampler_logprobs) for s in samples]),
    )


def completions_in_pack(packs: PackBatch) -> Tensor:
    """[P, T] int64 number of the target's completion within its pack, from 0; in range on padding.

    The targets of a completion stand together, so a new one begins where `row` changes.
    """
    begins = packs.target_mask.clone()
    begins[:, 1:] &= packs.row[:, 1:] != packs.row[:, :-1]
    return (begins.cumsum(1) - 1).clamp(min=0)


def _in_policy_term(sample: TrainingSample, threshold: float) -> np.ndarray:
    if sample.entropy is None:
        return np.ones(len(sample.completion_ids), dtype=bool)
    return in_policy_term(sample.entropy, threshold)


def _sampler_weights(
    samples: Sequence[TrainingSample], objective: ObjectiveConfig
) -> list[np.ndarray]:
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
