"""A model's numbers for the tokens of a rollout shard, as columns of a logprobs shard."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from torch import Tensor

from common.modeling.packing import Completion, PackBatch, gather_to_rows
from common.runs.list_columns import check_lengths, flat_values, list_column, list_lengths
from common.runs.schemas import KEY, LOGPROBS_OF_TOKENS


@dataclass(frozen=True)
class Numbers:
    """float32 numbers for a shard's completion tokens, its completions one after another."""

    logprobs: np.ndarray
    entropy: np.ndarray | None
    """None where it is not known: a sampler notes no entropy."""

    @classmethod
    def none(cls) -> Numbers:
        """Of a shard without completion tokens."""
        return cls(np.zeros(0, np.float32), np.zeros(0, np.float32))

    @classmethod
    def of_sampler(cls, shard: pa.Table) -> Numbers:
        """What was noted of a rollout shard's tokens while sampling, for the full vocabulary.

        Raises:
            UserError: not one number a token.
        """
        check_lengths(shard, "sampler_full_logprobs", shard)
        return cls(flat_values(shard, "sampler_full_logprobs"), None)

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
    """The logprobs shard that belongs to a rollout shard; null where numbers are not known."""
    lengths = list_lengths(shard, "completion_ids")

    def per_token(values: np.ndarray | None) -> pa.Array:
        if values is None:
            return pa.nulls(len(shard), LOGPROBS_OF_TOKENS)
        return list_column(pa.array(values, pa.float32()), lengths)

    return pa.table(
        {
            KEY: shard[KEY],
            "old_logprobs": per_token(old.logprobs),
            "ref_logprobs": per_token(None if reference is None else reference.logprobs),
            "entropy": per_token(old.entropy),
        }
    )
