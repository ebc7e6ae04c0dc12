"""How far sampler and trainer disagree about the logprobs of the same tokens.

The objective takes the trainer's old_logprobs as those of the distribution that sampled. Where
another engine, dtype or cache gave the sampler different numbers, the ratio is biased from the
start. So the gap |old_logprobs − sampler_logprobs| of every token is measured, in nats: over all
tokens, by position in the completion and by token id, with a list of the worst tokens.

A gap of NaN counts as the largest and makes every mean that includes it NaN, so that it exceeds
every bound.
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
"""Fewest occurrences that make a token id's mean meaningful."""


@dataclass(frozen=True)
class GapToken:
    """One token, with its logprobs by the trainer and by the sampler."""

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
    """Gaps by bin: arrays over the bins that occur, in ascending order."""

    bins: Integers
    """Token ids, or numbers of position ranges (see `positions`)."""
    tokens: Integers
    mean: Floats
    max: Floats

    def worst(
        self, by: Literal["mean", "max"], count: int | None, *, least_tokens: int = 1
    ) -> GapBins:
        """Return the bins with the largest means or maxima, in descending order.

        Args:
            count: how many bins to return; None for all.
            least_tokens: bins with fewer tokens are left out.
        """
        eligible = np.flatnonzero(self.tokens >= least_tokens)
        return self.take(eligible[_descending(getattr(self, by)[eligible])[:count]])

    def take(self, chosen: Integers) -> GapBins:
        """Return the bins at these indices."""
        return GapBins(self.bins[chosen], self.tokens[chosen], self.mean[chosen], self.max[chosen])


@dataclass(frozen=True)
class SamplerGap:
    """The gap between sampler and trainer over all completion tokens of an iteration, in nats."""

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
        UserError: a completion does not have one logprob per token on both sides.
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
    """Return the recipe's bounds of this kind that the gap exceeds: descriptions by key.

    A gap of NaN exceeds every bound.
    """
    found: dict[str, str] = {}
    for what in ("mean", "max"):
        value, limit = getattr(gap, what), getattr(bounds, f"{kind}_gap_{what}")
        if limit is not None and not value <= limit:
            key = f"logprobs.{kind}_gap_{what}"
            found[key] = f"{what} {value:.4g} nats, above {key} = {limit:g}"
    return found


def position_bins(positions: Integers) -> Integers:
    """Return the bin of each position (0, 1, 2-3, 4-7, …): its number of binary digits."""
    return np.frexp(positions.astype(np.float64))[1].astype(np.int64)


def positions(number: int) -> str:
    """Return the positions of a bin as text, such as `4-7`."""
    if number < 2:
        return str(number)
    return f"{2 ** (number - 1)}-{2**number - 1}"


class _Sums:
    """Count, sum and maximum of gaps by bin, accumulated over shards; arrays grow as needed."""

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
        with np.errstate(invalid="ignore"):  # NaN stays NaN
            np.maximum.at(self.max, bins, gaps)

    def bins(self) -> GapBins:
        occur = np.flatnonzero(self.tokens)
        tokens = self.tokens[occur]
        return GapBins(occur, tokens, self.total[occur] / tokens, self.max[occur])


def _both_sides(rollout: pa.Table, logprobs: pa.Table) -> tuple[Floats, Floats]:
    """Return the old and the sampler logprobs of all tokens of a shard."""
    check_lengths(logprobs, "old_logprobs", rollout)
    check_lengths(rollout, "sampler_logprobs", rollout)
    old = flat_values(logprobs, "old_logprobs").astype(np.float64)
    return old, flat_values(rollout, "sampler_logprobs").astype(np.float64)


def _descending(gaps: Floats) -> Integers:
    """Return indices that sort gaps in descending order, NaN as the largest; ties keep order."""
    return np.argsort(-np.where(np.isnan(gaps), np.inf, gaps), kind="stable")
