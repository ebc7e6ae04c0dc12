"""A model's numbers for the tokens of a rollout shard, as columns of a logprobs shard."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from torch import Tensor

from common.modeling.packing import Completion, PackBatch, gather_to_rows
from common.runs.list_columns import list_column, list_lengths
from common.runs.schemas import KEY, LOGPROBS_OF_TOKENS


@dataclass(frozen=True)
class Numbers:
    """float32 numbers for a shard's completion tokens, its completions one after another."""

    logprobs: np.ndarray
    entropy: np.ndarray

    @classmethod
    def none(cls) -> Numbers:
        """Of a shard without completion tokens."""
        return cls(np.zeros(0, np.float32), np.zeros(0, np.float32))

    @classmethod
    def of(cls, outputs: Tensor, packs: PackBatch, shard: pa.Table) -> Numbers:
        """Take a forward's outputs [P, T, 2], logprob and entropy, back to the shard's order."""
        lengths = list_lengths(shard, "completion_ids").tolist()
        flat = []
        for values in outputs.float().cpu().unbind(-1):
            rows = gather_to_rows(values, packs, lengths)
            flat.append(np.concatenate([row.numpy() for row in rows]))
        return cls(*flat)


def shard_completions(shard: pa.Table) -> list[Completion]:
    """The completions of a rollout shard, in order, to be packed."""
    columns = (shard[c].to_pylist() for c in ("prompt_ids", "completion_ids", "group_id"))
    return [Completion(*row) for row in zip(*columns, strict=True)]


def logprobs_table(shard: pa.Table, old: Numbers, reference: Numbers | None) -> pa.Table:
    """The logprobs shard that belongs to a rollout shard; null `ref_logprobs` without reference."""
    lengths = list_lengths(shard, "completion_ids")

    def per_token(values: np.ndarray) -> pa.Array:
        return list_column(pa.array(values, pa.float32()), lengths)

    no_reference = pa.nulls(len(shard), LOGPROBS_OF_TOKENS)
    return pa.table(
        {
            KEY: shard[KEY],
            "old_logprobs": per_token(old.logprobs),
            "ref_logprobs": no_reference if reference is None else per_token(reference.logprobs),
            "entropy": per_token(old.entropy),
        }
    )
