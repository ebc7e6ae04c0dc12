"""An iteration's completions as optimizer batches: which groups, in which order, on which replica.

Pure: rows in, packs and token batches out. What normalises the loss is counted here, over the
whole optimizer batch, before anything is dropped, dealt or packed.
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
from common.errors import NoLearningSignalError
from common.modeling.packing import (
    Completion,
    PackBatch,
    pack,
    scatter_to_packs,
    spread_to_packs,
)
from common.objective.aggregation import token_weights, tokens_in_loss
from common.objective.objective import TokenBatch, zero_advantage_rows_matter


@dataclass(frozen=True)
class Sample:
    """One completion with all that training needs; the arrays have one float32 a token."""

    rollout_id: str
    group: int
    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    old_logprobs: np.ndarray
    ref_logprobs: np.ndarray | None
    sampler_logprobs: np.ndarray
    """Of the full vocabulary, for the gap."""
    advantage: float
    reward: float | None
    truncated: bool


@dataclass(frozen=True)
class Group:
    """The completions of one prompt."""

    samples: tuple[Sample, ...]

    @property
    def has_variance(self) -> bool:
        """Whether the rewards differ: then, and only then, an advantage is not exactly 0."""
        return any(sample.advantage != 0 for sample in self.samples)

    @property
    def tokens(self) -> int:
        """Tokens to compute with the prompt shared."""
        return len(self.samples[0].prompt_ids) + sum(len(s.completion_ids) for s in self.samples)


@dataclass(frozen=True)
class Minibatch:
    """The groups of one optimizer step and the counts that normalise its loss."""

    epoch: int
    step: int
    """Within the iteration, from 0."""
    groups: tuple[Group, ...]
    computed: tuple[Group, ...]
    """Those that can have a gradient."""
    counts: Tensor
    """[completions] int64 tokens in the loss of every completion of `groups`, in order."""
    has_gradient: bool
    """Whether any token of `computed` is in the loss; if none is, the step is left out."""

    @property
    def samples(self) -> list[Sample]:
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
            "truncated_fraction": fmean(s.truncated for s in samples),
        }


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


def group_samples(samples: Sequence[Sample]) -> list[Group]:
    """Samples by group, in the order in which the groups first come."""
    by_group: dict[int, list[Sample]] = {}
    for sample in samples:
        by_group.setdefault(sample.group, []).append(sample)
    return [Group(tuple(members)) for members in by_group.values()]


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

    Each epoch is a permutation of the groups, a function of seed, iteration and epoch alone.

    Args:
        on_no_signal: with `keep`, an iteration whose groups all have equal rewards has nothing to
            compute, not even its KL: Adam would turn the smallest gradient into full steps.

    Raises:
        NoLearningSignalError: every group has equal rewards, and `on_no_signal` is `stop`.
    """
    signal = any(group.has_variance for group in groups)
    if not signal and on_no_signal == "stop":
        raise _no_signal(groups, iteration)
    size = prompts_per_step or len(groups)
    batches: list[Minibatch] = []
    for epoch in range(epochs):
        order = permutation(len(groups), f"{seed}/{iteration}/{epoch}")
        for start in range(0, len(groups), size):
            chosen = tuple(groups[index] for index in order[start : start + size])
            computed = _with_gradient(chosen, objective) if signal else ()
            batches.append(_minibatch(chosen, computed, objective, epoch, len(batches)))
    return batches


def permutation(count: int, key: str) -> list[int]:
    """A permutation that is the same on every machine and version: indices sorted by hash."""

    def place(index: int) -> bytes:
        return hashlib.sha256(f"{key}/{index}".encode()).digest()

    return sorted(range(count), key=place)


def deal(groups: Sequence[Group], replicas: int) -> list[list[Group]]:
    """Groups for each dp rank, the longest first and each to the rank with the fewest tokens."""
    shares: list[list[Group]] = [[] for _ in range(replicas)]
    tokens = [0] * replicas
    for group in sorted(groups, key=lambda g: -g.tokens):
        poorest = tokens.index(min(tokens))
        shares[poorest].append(group)
        tokens[poorest] += group.tokens
    return shares


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
    counts = _counts(samples, objective)
    weights = token_weights(
        objective.aggregation,
        counts,
        tokens=minibatch.completion_tokens,
        completions=len(minibatch.samples),
        max_completion_tokens=max_completion_tokens,
    )

    def by_token(rows: list[np.ndarray]) -> Tensor:
        return scatter_to_packs([torch.tensor(row, dtype=dtype) for row in rows], packs, 0.0)

    def by_row(values: Tensor) -> Tensor:
        return spread_to_packs(values.to(dtype), packs, 0.0)

    refs = [sample.ref_logprobs for sample in samples if sample.ref_logprobs is not None]
    advantages = torch.tensor([s.advantage for s in samples], dtype=dtype)
    tokens = TokenBatch(
        mask=packs.target_mask & (spread_to_packs(counts, packs, 0) > 0),
        old_logprobs=by_token([s.old_logprobs for s in samples]),
        ref_logprobs=by_token(refs) if objective.kl_coef else None,
        advantages=by_row(advantages),
        weights=by_row(weights),
        token_mean_weights=by_row((counts > 0).double() / max(minibatch.completion_tokens, 1)),
        sampler_gap=by_token([np.abs(s.old_logprobs - s.sampler_logprobs) for s in samples]),
    )
    return Share(samples, packs, tokens)


def _no_signal(groups: Sequence[Group], iteration: int) -> NoLearningSignalError:
    rewards = {sample.reward for group in groups for sample in group.samples}
    shown = ", ".join(map(str, sorted(r for r in rewards if r is not None)[:3])) or "none"
    return NoLearningSignalError(
        f"iteration {iteration}: in each of the {len(groups)} groups all rewards are equal "
        f"(rewards: {shown}), so no completion is better than another: no learning signal, "
        "the policy stays as it is. Try easier or harder prompts, a larger "
        'rollout.group_size, or a reward with degrees; train.on_no_signal = "keep" carries the '
        "policy over and goes on"
    )


def _with_gradient(groups: tuple[Group, ...], objective: ObjectiveConfig) -> tuple[Group, ...]:
    """The groups that the loss has a gradient for."""
    if zero_advantage_rows_matter(objective):
        return groups
    return tuple(group for group in groups if group.has_variance)


def _minibatch(
    groups: tuple[Group, ...],
    computed: tuple[Group, ...],
    objective: ObjectiveConfig,
    epoch: int,
    step: int,
) -> Minibatch:
    samples = [sample for group in groups for sample in group.samples]
    in_gradient = [sample for group in computed for sample in group.samples]
    return Minibatch(
        epoch,
        step,
        groups,
        computed,
        _counts(samples, objective),
        has_gradient=bool(_counts(in_gradient, objective).sum()),
    )


def _counts(samples: Sequence[Sample], objective: ObjectiveConfig) -> Tensor:
    return tokens_in_loss(
        [len(s.completion_ids) for s in samples],
        [s.truncated for s in samples],
        mask_truncated=objective.mask_truncated,
    )
