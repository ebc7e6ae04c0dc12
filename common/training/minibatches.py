"""An iteration's completions as optimizer batches, and each replica's part of them as packs.

The counts that normalise the loss and the ranking of tokens by entropy are over the whole optimizer
batch, before completions are dropped, balanced over replicas or packed. All functions here are pure
and run on the CPU.
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
    """Number of the step within the iteration, from 0."""
    groups: tuple[Group, ...]
    computed: tuple[Group, ...]
    """The completions that can have a gradient (see `_with_gradient`); no group is empty."""
    counts: Tensor
    """[completions] int64: tokens in the loss of every completion of `groups`, in order."""
    entropy_threshold: float
    """The policy term is on tokens of at least this entropy; −inf if it is on all."""

    @property
    def has_gradient(self) -> bool:
        """Whether any token can have a gradient; if none can, the step is left out."""
        return bool(self.computed)

    @property
    def samples(self) -> list[TrainingSample]:
        return [sample for group in self.groups for sample in group.samples]

    @property
    def completion_tokens(self) -> int:
        """Return the global normaliser: tokens in the loss, of all replicas and dropped groups."""
        return int(self.counts.sum())

    def facts(self) -> dict[str, float]:
        """Return the metrics that do not depend on the policy."""
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
    """Return the minibatch of every optimizer step of an iteration, in order.

    Each epoch permutes the groups by seed, iteration and epoch alone. An iteration without groups
    has one empty minibatch per epoch, whose step is skipped.

    Args:
        groups: all kept groups of the iteration.
        objective: decides which completions have a gradient.
        epochs: how often each group is trained on.
        prompts_per_step: groups per minibatch; None for all.
        seed: the run's seed.
        iteration: the number of the iteration.
        on_no_signal: with `keep`, an iteration whose groups all have equal rewards computes
            nothing, not even the KL, since Adam would turn the smallest gradient into full steps.

    Raises:
        NoLearningSignalError: in no group the rewards differ, and `on_no_signal` is `stop`.
        UserError: a stored entropy is not finite, but tokens are ranked by it.
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
    """Return indices sorted by hash: a permutation that no machine or version changes."""

    def place(index: int) -> bytes:
        return hashlib.sha256(f"{key}/{index}".encode()).digest()

    return sorted(range(count), key=place)


def balance_by_tokens(groups: Sequence[Group], replicas: int) -> list[list[Group]]:
    """Return groups for each dp rank: the longest first, each to the rank with fewest tokens."""
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
        "better than another: no learning signal, the policy stays as it is. Easier or harder "
        "prompts help, larger groups, or a reward with degrees"
    )


def _with_gradient(groups: tuple[Group, ...], objective: ObjectiveConfig) -> tuple[Group, ...]:
    """Return the completions that can have a gradient, in their groups.

    Completions that are not in the loss are left out, and so are those with advantage 0 if the
    objective has neither KL nor entropy. The terms of one completion depend on others only through
    counts over the whole batch, so the gradient is the same without them.
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
    """Return how many tokens each completion has in the loss, [samples] int64."""
    return tokens_in_loss(
        [len(s.completion_ids) for s in samples],
        [s.truncated for s in samples],
        mask_truncated=objective.mask_truncated,
    )


@dataclass(frozen=True)
class ReplicaBatch:
    """The part of a minibatch that one replica computes."""

    samples: tuple[TrainingSample, ...]
    packs: PackBatch
    tokens: TokenBatch

    def rollout_ids(self, packs: Tensor) -> list[str]:
        """Return the ids of completions.

        Args:
            packs: indices of packs, or bool [P, T] that selects targets.
        """
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
    """Make the packs of one replica, with what the loss needs to know of each target.

    Args:
        minibatch: the whole optimizer batch.
        objective: the recipe's objective.
        replica: which replica, its dp rank.
        replicas: how many replicas there are.
        tokens_per_pack: as for `pack`.
        share_prompts: as for `pack`.
        packing: how many packs there must be, from `Pipeline.packing`.
        max_completion_tokens: the rollout's limit, for aggregations that normalise by it.
        dtype: dtype of the loss, float32 or wider.
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
    """Return the samples' numbers in the layout of the packs' targets.

    Args:
        samples: the C completions in the packs.
        packs: where their tokens are.
        minibatch: the whole optimizer batch, for its counts and its entropy threshold.
        objective: the recipe's objective.
        counts: [C] tokens of each completion in the loss.
        weights: [C] weight of each of these tokens.
        dtype: dtype of the result.
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
    """Return the number of each target's completion within its pack, from 0: [P, T] int64.

    On padding it is any number in range. The targets of a completion are adjacent, so a new
    completion begins where `row` changes.
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
    """Return one array per completion, with the sampler correction of each token."""
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
