"""How far sampler and trainer disagree about the logprobs of the same tokens.

The objective takes the trainer's old_logprobs as those of the distribution that sampled. Where
another engine, type or cache gave the sampler other numbers, the ratio is biased from the start;
so the gap |old_logprobs − sampler_full_logprobs| is measured for every token (nats).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.errors import UserError

WORST = 5
"""How many tokens a report names."""


@dataclass(frozen=True)
class GapToken:
    """One token and what both sides say of it."""

    rollout_id: str
    position: int
    """Index inside the completion."""
    token_id: int
    old_logprob: float
    sampler_logprob: float

    @property
    def gap(self) -> float:
        return abs(self.old_logprob - self.sampler_logprob)


@dataclass(frozen=True)
class SamplerGap:
    """Over all completion tokens of an iteration."""

    mean: float
    max: float
    tokens: int
    worst: list[GapToken]
    """The `WORST` largest gaps, those that are no number first."""

    def describe(self, decode: Callable[[int], str]) -> str:
        """The worst tokens, a line each, their text by `decode`."""
        return "\n".join(
            f"  {token.rollout_id} token {token.position} {decode(token.token_id)!r}: "
            f"trainer {token.old_logprob:.4f}, sampler {token.sampler_logprob:.4f}"
            for token in self.worst
        )

    def exceeds(self, bound: float) -> bool:
        """Whether the mean is above `bound`, or no number."""
        return not self.mean <= bound


def sampler_gap(shards: Iterable[tuple[pa.Table, pa.Table]]) -> SamplerGap:
    """Compare pairs of rollout and logprobs shards with the same rows.

    Raises:
        UserError: a completion has not one number a token on both sides.
    """
    total, tokens, worst = 0.0, 0, list[GapToken]()
    for rollout, logprobs in shards:
        old, sampler = _flat(rollout, logprobs)
        gaps = np.abs(old - sampler)
        total += float(gaps.sum())
        tokens += len(gaps)
        worst = _worst(worst + _largest(rollout, old, sampler, gaps))
    largest = worst[0].gap if worst else 0.0
    return SamplerGap(total / max(tokens, 1), largest, tokens, worst)


def list_lengths(table: pa.Table, name: str) -> np.ndarray:
    """How many values each row of a list column has, int [rows]."""
    return pc.list_value_length(table[name]).to_numpy()


def _flat(rollout: pa.Table, logprobs: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """All tokens' (old, sampler) logprobs of a shard, float64."""
    lengths = list_lengths(rollout, "completion_ids")
    columns = ((logprobs, "old_logprobs"), (rollout, "sampler_full_logprobs"))
    for table, name in columns:
        found = list_lengths(table, name)
        if not np.array_equal(found, lengths):
            row = int(np.flatnonzero(found != lengths)[0])
            raise UserError(
                f"{rollout['rollout_id'][row]}: {name} has {found[row]} numbers, "
                f"completion_ids {lengths[row]} tokens; make rollout and logprobs again"
            )
    old, sampler = (_values(table, name).astype(np.float64) for table, name in columns)
    return old, sampler


def _largest(
    rollout: pa.Table, old: np.ndarray, sampler: np.ndarray, gaps: np.ndarray
) -> list[GapToken]:
    order = np.argsort(-np.nan_to_num(gaps, nan=np.inf), kind="stable")[:WORST]
    ends = np.cumsum(list_lengths(rollout, "completion_ids"))
    ids = _values(rollout, "completion_ids")
    found = []
    for index in order.tolist():
        row = int(np.searchsorted(ends, index, side="right"))
        start = int(ends[row - 1]) if row else 0
        found.append(
            GapToken(
                rollout_id=rollout["rollout_id"][row].as_py(),
                position=index - start,
                token_id=int(ids[index]),
                old_logprob=float(old[index]),
                sampler_logprob=float(sampler[index]),
            )
        )
    return found


def _worst(tokens: list[GapToken]) -> list[GapToken]:
    def key(token: GapToken) -> float:
        return np.inf if np.isnan(token.gap) else token.gap

    return sorted(tokens, key=key, reverse=True)[:WORST]


def _values(table: pa.Table, name: str) -> np.ndarray:
    return table[name].combine_chunks().flatten().to_numpy()
