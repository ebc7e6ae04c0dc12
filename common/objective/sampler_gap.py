"""How far sampler and trainer disagree about the logprobs of the same tokens.

The objective takes the trainer's old_logprobs as those of the distribution that sampled. Where
another engine, type or cache gave the sampler other numbers, the ratio is biased from the start;
so the gap |old_logprobs − sampler_logprobs| is measured for every token (nats): over all, by
position in the completion, by token id, and the worst tokens by name.

A gap that is no number counts as the largest and makes every mean it is in no number, so that it
is above every bound.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from common.config import LogprobsConfig
from common.runs.columns import check_lengths, flat_values, list_lengths
from common.runs.schemas import KEY

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

WORST = 5
"""How many tokens a message names."""

OFTEN = 10
"""Token ids that occur less often have no mean to speak of."""


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
class GapBins:
    """Gaps by bin, arrays over the bins that occur, ascending."""

    bins: Integers
    """A token id; or a range of positions, see `positions`."""
    tokens: Integers
    mean: Floats
    max: Floats

    def worst(
        self, by: Literal["mean", "max"], count: int | None, *, least_tokens: int = 1
    ) -> GapBins:
        """The bins with the largest means or maxima (None: all), of those with so many tokens."""
        eligible = np.flatnonzero(self.tokens >= least_tokens)
        return self.take(eligible[_descending(getattr(self, by)[eligible])[:count]])

    def take(self, chosen: Integers) -> GapBins:
        """Bins by index."""
        return GapBins(self.bins[chosen], self.tokens[chosen], self.mean[chosen], self.max[chosen])


@dataclass(frozen=True)
class SamplerGap:
    """Over all completion tokens of an iteration."""

    mean: float
    max: float
    tokens: int
    by_position: GapBins
    by_token: GapBins
    worst: list[GapToken]
    """The largest gaps, descending."""


def sampler_gap(
    shards: Iterable[tuple[pa.Table, pa.Table]], *, worst: int | None = WORST
) -> SamplerGap:
    """Compare pairs of rollout and logprobs shards with the same rows.

    Args:
        worst: how many of the largest gaps to name; None for all.

    Raises:
        UserError: a completion has not one number per token on both sides.
    """
    by_position, by_token, largest = _Sums(), _Sums(), list[GapToken]()
    for rollout, logprobs in shards:
        old, sampler = _both_sides(rollout, logprobs)
        gaps = np.abs(old - sampler)
        lengths = list_lengths(rollout, "completion_ids")
        ids = flat_values(rollout, "completion_ids")
        starts = np.cumsum(lengths) - lengths
        positions = np.arange(len(gaps)) - np.repeat(starts, lengths)
        by_position.add(position_bins(positions), gaps)
        by_token.add(ids, gaps)
        rows = np.repeat(np.arange(len(lengths)), lengths)
        largest += [
            GapToken(
                rollout_id=rollout[KEY][int(rows[index])].as_py(),
                position=int(positions[index]),
                token_id=int(ids[index]),
                old_logprob=float(old[index]),
                sampler_logprob=float(sampler[index]),
            )
            for index in _descending(gaps)[:worst]
        ]
        gaps_so_far = np.array([token.gap for token in largest])
        largest = [largest[index] for index in _descending(gaps_so_far)[:worst]]
    tokens = int(by_position.tokens.sum())
    return SamplerGap(
        mean=float(by_position.total.sum()) / max(tokens, 1),
        max=float(by_position.max.max(initial=0.0)),
        tokens=tokens,
        by_position=by_position.bins(),
        by_token=by_token.bins(),
        worst=largest,
    )


def exceeded(
    gap: SamplerGap, bounds: LogprobsConfig, kind: Literal["warn", "stop"]
) -> dict[str, str]:
    """The recipe's bounds of a kind that the gap is above: by key, how far in words.

    A gap that is no number is above each.
    """
    found: dict[str, str] = {}
    for what in ("mean", "max"):
        value, limit = getattr(gap, what), getattr(bounds, f"{kind}_gap_{what}")
        if limit is not None and not value <= limit:
            key = f"logprobs.{kind}_gap_{what}"
            found[key] = f"{what} {value:.4g} nats, above {key} = {limit:g}"
    return found


def position_bins(positions: Integers) -> Integers:
    """The bin of each position: 0, 1, 2-3, 4-7, …: as many as the number has binary digits."""
    return np.frexp(positions.astype(np.float64))[1].astype(np.int64)


def positions(number: int) -> str:
    """The positions of a bin, as `4-7`."""
    if number < 2:
        return str(number)
    return f"{2 ** (number - 1)}-{2**number - 1}"


class _Sums:
    """Count, sum and maximum of gaps by bin, over shards; the arrays grow with the bins."""

    def __init__(self) -> None:
        self.tokens = np.zeros(0, np.int64)
        self.total = np.zeros(0)
        self.max = np.zeros(0)

    def add(self, bins: NDArray[np.integer], gaps: Floats) -> None:
        size = max(len(self.tokens), int(bins.max(initial=-1)) + 1)
        for name in ("tokens", "total", "max"):
            former = getattr(self, name)
            setattr(self, name, np.pad(former, (0, size - len(former))))
        self.tokens += np.bincount(bins, minlength=size)
        self.total += np.bincount(bins, gaps, size)
        with np.errstate(invalid="ignore"):  # what is no number stays none
            np.maximum.at(self.max, bins, gaps)

    def bins(self) -> GapBins:
        occur = np.flatnonzero(self.tokens)
        tokens = self.tokens[occur]
        return GapBins(occur, tokens, self.total[occur] / tokens, self.max[occur])


def _both_sides(rollout: pa.Table, logprobs: pa.Table) -> tuple[Floats, Floats]:
    """All tokens' (old, sampler) logprobs of a shard."""
    check_lengths(logprobs, "old_logprobs", rollout)
    check_lengths(rollout, "sampler_logprobs", rollout)
    old = flat_values(logprobs, "old_logprobs").astype(np.float64)
    return old, flat_values(rollout, "sampler_logprobs").astype(np.float64)


def _descending(gaps: Floats) -> Integers:
    """Indices of gaps from the largest, equal ones in order; what is no number comes first."""
    return np.argsort(-np.where(np.isnan(gaps), np.inf, gaps), kind="stable")
