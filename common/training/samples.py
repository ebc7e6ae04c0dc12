"""The samples that an iteration trains on: its rollout, score and logprobs, joined by key."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from common.config import Recipe
from common.errors import UserError
from common.modeling.load import precision, require_precision
from common.runs.columns import join
from common.runs.layout import Output, Run
from common.runs.manifest import read_manifest
from common.runs.schemas import KEY
from common.runs.shards import read_output

_OF_ROLLOUT = [
    KEY,
    "group_id",
    "prompt_ids",
    "completion_ids",
    "sampler_logprobs",
    "finish_reason",
    "kept",
]
_OF_LOGPROBS = [KEY, "old_logprobs", "ref_logprobs", "entropy"]


@dataclass(frozen=True)
class TrainingSample:
    """One completion with all that training needs; arrays hold one float32 per token."""

    rollout_id: str
    group: int
    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    old_logprobs: np.ndarray
    ref_logprobs: np.ndarray | None
    entropy: np.ndarray | None
    """Entropy of the policy that sampled, as the trainer computes it; None if old_logprobs are
    the sampler's."""
    sampler_logprobs: np.ndarray
    """Logprobs under the distribution that was sampled from, as the sampler gave them."""
    advantage: float
    reward: float | None
    truncated: bool


@dataclass(frozen=True)
class Group:
    """The completions of one prompt."""

    samples: tuple[TrainingSample, ...]

    @property
    def has_variance(self) -> bool:
        """Whether the rewards differ. If so, some advantage is not 0; else all are exactly 0."""
        return any(sample.advantage != 0 for sample in self.samples)

    @property
    def tokens(self) -> int:
        """Return how many tokens there are to compute if the completions share the prompt."""
        return len(self.samples[0].prompt_ids) + sum(len(s.completion_ids) for s in self.samples)


@dataclass(frozen=True)
class IterationRows:
    """What training reads of an iteration."""

    samples: list[TrainingSample]
    """The completions of kept groups, in the order of the rollout."""
    temperature: float
    max_completion_tokens: int


def check_old_logprobs(run: Run, iteration: int, recipe: Recipe, device: torch.device) -> None:
    """Check that `old_logprobs` taken from the sampler fit the recipe in force.

    Raises:
        UserError: the sampler computed in another precision than the trainer does here, or the
            recipe has a sampler correction, which would have nothing to correct.
    """
    logprobs = run.logprobs(iteration)
    if read_manifest(logprobs).facts.get("old_logprobs_from") != "sampler":
        return
    require_precision(run.rollout(iteration), precision(recipe.model.dtype, device))
    if recipe.objective.sampler_correction != "none":
        raise UserError(
            f'{logprobs.path}: made with logprobs.old_logprobs_from = "sampler", so that '
            f"objective.sampler_correction = {recipe.objective.sampler_correction!r} has nothing "
            f'to correct; set it to "none", or make them again: {logprobs.command}'
        )


def read_samples(
    run: Run, iteration: int, *, with_reference: bool, with_entropy: bool
) -> IterationRows:
    """Read every kept completion with its advantage and logprobs; check keys and lengths.

    Args:
        run: the run.
        iteration: which of its iterations.
        with_reference: whether `ref_logprobs` are needed.
        with_entropy: whether `entropy` is needed; if not, it may be null.

    Raises:
        UserError: rollout, score and logprobs do not have the same rows, or a column with a value
            per token is null or of another length than the completion.
    """
    rollout, score, logprobs = run.rollout(iteration), run.score(iteration), run.logprobs(iteration)
    table = read_output(rollout, _OF_ROLLOUT)
    table = _joined(table, rollout, score, [KEY, "reward", "advantage"])
    table = _joined(table, rollout, logprobs, _OF_LOGPROBS)
    by_token = {"sampler_logprobs": rollout}
    by_token |= dict.fromkeys(("old_logprobs", "entropy"), logprobs)
    if with_reference:
        by_token["ref_logprobs"] = logprobs
    nullable = () if with_entropy else ("entropy",)
    samples = [_sample(row, by_token, nullable) for row in _rows(table) if row["kept"]]
    sampling = read_manifest(rollout).recipe["rollout"]
    return IterationRows(samples, sampling["temperature"], sampling["max_completion_tokens"])


def _joined(table: pa.Table, left: Output, right: Output, columns: list[str]) -> pa.Table:
    return join(table, read_output(right, columns), key=KEY, names=(left.name, right.name))


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    """Return rows with lists as arrays, since a Python object per token would cost minutes."""
    columns: dict[str, list[Any]] = {}
    for field in table.schema:
        column = table.column(field.name)
        if pa.types.is_list(field.type):
            columns[field.name] = [
                None if cell is None else np.asarray(cell)
                for chunk in column.chunks
                for cell in _cells(chunk)
            ]
        else:
            columns[field.name] = column.to_pylist()
    names = list(columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _cells(lists: pa.ListArray) -> list[np.ndarray | None]:
    offsets = lists.offsets.to_numpy()
    values = lists.values.to_numpy(zero_copy_only=False)
    valid = lists.is_valid().to_numpy(zero_copy_only=False)
    return [
        values[begin:end] if there else None
        for begin, end, there in zip(offsets[:-1], offsets[1:], valid, strict=True)
    ]


_WANTED_BY = {
    "ref_logprobs": "objective.kl_coef is not 0",
    "entropy": "objective.top_entropy_quantile is not 1",
}


def _sample(
    row: dict[str, Any], by_token: dict[str, Output], nullable: Collection[str]
) -> TrainingSample:
    """Return a row as a sample, once its columns with a value per token are checked.

    Args:
        row: rollout, score and logprobs of one completion.
        by_token: the columns to check, and the output that each is from.
        nullable: those of them that may be null.

    Raises:
        UserError: a value is null or its length is not that of the completion.
    """
    tokens = len(row["completion_ids"])
    for name, output in by_token.items():
        values = row[name]
        if values is None and name in nullable:
            continue
        if values is None:
            wanted = f", but {_WANTED_BY[name]}" if name in _WANTED_BY else ""
            raise UserError(
                f"{output.path}: {name} of {row[KEY]} is null{wanted}; "
                f"make it with the recipe in force: {output.command}"
            )
        if len(values) != tokens:
            raise UserError(
                f"{output.path}: {name} of {row[KEY]} has {len(values)} values for {tokens} "
                f"completion tokens; make it again: {output.command}"
            )
    return TrainingSample(
        rollout_id=row[KEY],
        group=row["group_id"],
        prompt_ids=row["prompt_ids"].tolist(),
        completion_ids=row["completion_ids"].tolist(),
        old_logprobs=row["old_logprobs"],
        ref_logprobs=row["ref_logprobs"] if "ref_logprobs" in by_token else None,
        entropy=row["entropy"],
        sampler_logprobs=row["sampler_logprobs"],
        advantage=row["advantage"],
        reward=row["reward"],
        truncated=row["finish_reason"] == "length",
    )


def group_samples(samples: Sequence[TrainingSample]) -> list[Group]:
    """Return the groups of the samples, in the order in which they first appear."""
    by_group: dict[int, list[TrainingSample]] = {}
    for sample in samples:
        by_group.setdefault(sample.group, []).append(sample)
    return [Group(tuple(members)) for members in by_group.values()]
