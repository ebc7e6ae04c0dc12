"""The sampler gap in words and tables: how large it is, where it sits, and what that hints at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from common.console import python
from common.errors import UserError
from common.objective.sampler_gap import (
    OFTEN,
    WORST,
    GapBins,
    GapToken,
    SamplerGap,
    positions,
    sampler_gap,
)
from common.reporting.terminal import Table, first_rows
from common.runs.columns import without_rejected
from common.runs.layout import Output, Run
from common.runs.manifest import has_manifest, read_manifest
from common.runs.schemas import KEY
from common.runs.shards import read_partial, read_shards

Text = Callable[[int], str]
"""A function from a token id to its text."""

MUCH, LITTLE = 10.0, 2.0
"""Factors between mean gaps: what stands out, and what counts as the same."""

FEW = 5
"""If half of the gap is that of so many token ids or fewer, they are worth a hint."""

ROUNDING, LARGE = 1e-4, 0.1
"""Mean gaps in nats. Float32 alone can cause the first. The second is more than bfloat16 does to a
token that the policy is unsure of, so where a larger one is found means something."""


def describe(gap: SamplerGap, text: Text) -> str:
    """Return where the gap is found, for a message: worst tokens, positions, token ids, hints."""
    tokens = [
        f"  {t.rollout_id} token {t.position} {text(t.token_id)!r}: "
        f"trainer {t.old_logprob:.4f}, sampler {t.sampler_logprob:.4f}, gap {t.gap:.2g}"
        for t in gap.worst[:WORST]
    ]
    by_position = ", ".join(
        f"{positions(number)}: {mean:.2g}"
        for number, mean in zip(gap.by_position.bins.tolist(), gap.by_position.mean, strict=True)
    )
    often = gap.by_token.worst("mean", WORST, least_tokens=OFTEN)
    by_token = ", ".join(
        f"{text(token_id)!r} {mean:.2g} ({count} times)"
        for token_id, mean, count in zip(often.bins.tolist(), often.mean, often.tokens, strict=True)
    )
    lines = ["The worst tokens:", *tokens, f"Mean gap by position: {by_position}"]
    if by_token:
        lines.append(f"Largest mean gaps of tokens that come {OFTEN} times or more: {by_token}")
    return "\n".join([*lines, *hints(gap, text)])


def hints(gap: SamplerGap, text: Text) -> list[str]:
    """Return what may cause a gap that is found in such places, one sentence per hint."""
    if not gap.mean > ROUNDING:
        return []
    if outliers := _hint_of_outliers(gap):
        return [outliers]
    return [hint for hint in (_hint_of_positions(gap), _hint_of_tokens(gap, text)) if hint]


def position_table(gap: SamplerGap) -> pl.DataFrame:
    """Return one row per range of positions: tokens, mean and largest gap."""
    return _frame(gap.by_position, positions=map(positions, gap.by_position.bins.tolist()))


def gap_tables(
    gap: SamplerGap, text: Text, *, limit: int | None, quoted: bool = False
) -> list[Table]:
    """Return what `stages.show gap` prints.

    Args:
        gap: what was measured.
        text: gives a token's text.
        limit: rows of each table; None for all.
        quoted: whether texts are written as Python would, for a terminal.
    """

    def shown(token_id: int) -> str:
        return repr(text(token_id)) if quoted else text(token_id)

    overall = {"tokens": gap.tokens, "mean": gap.mean, "max": gap.max}
    often = f"tokens that occur {OFTEN} times or more, by mean gap"
    by_mean = _token_ids(gap.by_token.worst("mean", None, least_tokens=OFTEN), shown)
    by_max = _token_ids(gap.by_token.worst("max", None), shown)
    worst = Table("worst", "the worst tokens", _worst_tokens(gap.worst[:limit], shown))
    return [
        Table("overall", "sampler gap in nats", pl.DataFrame([overall])),
        Table("positions", "by position in the completion", position_table(gap)),
        first_rows(Table("token_ids_by_mean", often, by_mean), limit),
        first_rows(Table("token_ids_by_max", "tokens by largest gap", by_max), limit),
        first_rows(worst, limit, gap.tokens),
    ]


def gap_of_iteration(run: Run, iteration: int, *, worst: int | None) -> SamplerGap:
    """Return the gap between the shards of rollout and logprobs, over the kept completions.

    Shards of a logprobs stage that stopped at its bound are read too: they are what one wants to
    look at.

    Args:
        run: the run.
        iteration: which of its iterations.
        worst: how many of the largest gaps to name; None for all.

    Raises:
        UserError: one of the two is missing, they are not of the same rollout, or the sampler's
            logprobs were taken for the trainer's.
    """
    columns = [KEY, "completion_ids", "sampler_logprobs", "kept"]
    rollout = run.rollout(iteration)
    logprobs = _logprobs_shards(run.logprobs(iteration), rollout)
    sampled = map(without_rejected, read_shards(rollout, columns))
    return sampler_gap(zip(sampled, logprobs, strict=True), worst=worst)


def show_command(rollout: Output) -> str:
    """Return the command that prints the tables of an iteration."""
    return f"{python()} -m stages.show gap --run {rollout.run.name} --iteration {rollout.iteration}"


def _logprobs_shards(logprobs: Output, rollout: Output) -> Iterator[pa.Table]:
    complete = has_manifest(logprobs)
    if complete and read_manifest(logprobs).facts.get("old_logprobs_from") == "sampler":
        raise UserError(
            f'{logprobs.path}: made with logprobs.old_logprobs_from = "sampler", so there is '
            "nothing to compare the sampler with; approx_kl of the iteration's first optimizer "
            'step tells how far the trainer is from it, as does old_logprobs_from = "policy": '
            f"{logprobs.command}"
        )
    stopped = None if complete else read_partial(logprobs)
    inputs, shards = stopped or (read_manifest(logprobs).inputs, read_shards(logprobs))
    if inputs.get(rollout.name) != read_manifest(rollout).content_hash:
        raise UserError(
            f"{logprobs.path} was made from another rollout than {rollout.path}; make it again: "
            f"{logprobs.command}"
        )
    return shards


def _hint_of_outliers(gap: SamplerGap) -> str:
    """Return a hint if the worst tokens have half of the gap; others would reflect only them."""
    total = gap.mean * gap.tokens
    half = np.flatnonzero(np.cumsum([token.gap for token in gap.worst[:WORST]]) >= total / 2)
    if not len(half) or gap.tokens < OFTEN * WORST:
        return ""
    return f"Half of it is that of {half[0] + 1} of the {gap.tokens} tokens, the worst above"


def _hint_of_positions(gap: SamplerGap) -> str:
    found = gap.by_position.take(np.flatnonzero(gap.by_position.tokens >= OFTEN))
    if len(found.bins) < 3 or np.isnan(found.mean).any():
        return ""
    first, last = float(found.mean[0]), float(found.mean[-1])
    later = float(np.average(found.mean[1:], weights=found.tokens[1:]))
    if found.bins[0] == 0 and first > max(LARGE, MUCH * later):
        return (
            f"It sits at the first token ({first:.2g}, later {later:.2g}), as when the sampler saw "
            "another end of the prompt than the trainer: another template, prefix or token there"
        )
    if last > MUCH / 2 * first and (np.diff(found.mean) > -0.2 * found.mean[:-1]).all():
        return (
            f"It grows with the position ({first:.2g} to {last:.2g}), as where errors add up in "
            "the sampler's cache (a smaller number type, other position ids), or where the policy "
            "is less sure of later tokens"
        )
    if found.mean.max() < LITTLE * found.mean.min():
        return (
            "It is about the same at every position, as with other weights, another temperature "
            "or a smaller number type"
        )
    return ""


def _hint_of_tokens(gap: SamplerGap, text: Text) -> str:
    """Return a hint if half of the gap is that of a few token ids which also occur rarely."""
    total = gap.by_token.mean * gap.by_token.tokens
    order = np.argsort(-total, kind="stable")
    half = int(np.searchsorted(np.cumsum(total[order]), total.sum() / 2)) + 1
    few = gap.by_token.take(order[:half])
    share = few.tokens.sum() / max(gap.tokens, 1)
    if half > FEW or share > 0.1 or few.tokens.min() < OFTEN or not few.mean.min() > LARGE:
        return ""
    names = ", ".join(repr(text(token_id)) for token_id in few.bins.tolist())
    return (
        f"Half of it is that of {names}, {share:.1%} of the tokens, as when some rows of the head "
        "differ, or what the sampler adds to some tokens' logits"
    )


def _token_ids(bins: GapBins, text: Text) -> pl.DataFrame:
    return _frame(bins, token_id=bins.bins, text=map(text, bins.bins.tolist()))


def _frame(bins: GapBins, **names: Iterable[Any]) -> pl.DataFrame:
    """Return a row for each bin: the columns that name it, then its figures."""
    figures = {"tokens": bins.tokens, "mean": bins.mean, "max": bins.max}
    return pl.DataFrame({name: list(values) for name, values in names.items()} | figures)


def _worst_tokens(tokens: list[GapToken], text: Text) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {
                "rollout_id": token.rollout_id,
                "position": token.position,
                "text": text(token.token_id),
                "trainer": token.old_logprob,
                "sampler": token.sampler_logprob,
                "gap": token.gap,
            }
            for token in tokens
        ],
        infer_schema_length=None,
    )
