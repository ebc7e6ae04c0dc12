"""Logprobs and entropies of a rollout's tokens by a model cut over the mesh, as shard columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from common.console import track
from common.errors import UserError
from common.modeling.packing import Completion, PackBatch, gather_to_rows, pack
from common.parallel.mesh import Mesh
from common.parallel.pipeline import Pipeline
from common.parallel.shards import open_verified
from common.runs.columns import check_lengths, flat_values, list_column, list_lengths
from common.runs.layout import Output
from common.runs.schemas import KEY, LOGPROBS_OF_TOKENS


def forward_shards(
    model: Output,
    shards: Mapping[str, pa.Table],
    mesh: Mesh,
    *,
    source: Output,
    temperature: float,
    dtype: torch.dtype,
    tokens_per_pack: int,
    label: str,
) -> Iterator[tuple[str, TokenStats]]:
    """The numbers of each shard, on the last rank of a pipeline; nothing on the others.

    The model lives as long as the iteration over it.

    Args:
        model: a policy or a reference; its files are verified before they are loaded.
        shards: of the rollout, by name: those of this replica. One without completion tokens
            costs no forward.
        source: the rollout, to be named where a row cannot be packed.
        temperature: of the distribution whose logprobs are computed.
        label: what the model is here, for messages.

    Raises:
        UserError: the model is missing, pruned or damaged, or a row does not fit it.
    """
    mesh.at(f"loading {model.name} ({label})")
    pipeline = Pipeline(open_verified(model, mesh), mesh, dtype=dtype, temperature=temperature)
    for name, shard in track(shards.items(), label, len(shards)):
        mesh.at(f"{label}, {name}")
        completions = shard_completions(shard)
        if not any(completion.completion_ids for completion in completions):
            if mesh.is_last:
                yield name, TokenStats.none()
            continue
        try:
            packs = pack(completions, tokens_per_pack=tokens_per_pack, min_packs=mesh.pp_degree)
        except UserError as error:
            raise UserError(f"{source.path / name}: {error}") from None
        outputs = pipeline.run_forward(packs)
        if outputs is not None:
            yield name, TokenStats.of(outputs, packs, shard)


@dataclass(frozen=True)
class TokenStats:
    """float32 numbers for a shard's completion tokens, its completions one after another."""

    logprobs: np.ndarray
    entropy: np.ndarray | None
    """None where it is not known: a sampler notes no entropy."""

    @classmethod
    def none(cls) -> TokenStats:
        """Of a shard without completion tokens."""
        return cls(np.zeros(0, np.float32), np.zeros(0, np.float32))

    @classmethod
    def of_sampler(cls, shard: pa.Table) -> TokenStats:
        """What was noted of a rollout shard's tokens while sampling, for the full vocabulary.

        Raises:
            UserError: not one number per token.
        """
        check_lengths(shard, "sampler_logprobs", shard)
        return cls(flat_values(shard, "sampler_logprobs"), None)

    @classmethod
    def of(cls, outputs: Tensor, packs: PackBatch, shard: pa.Table) -> TokenStats:
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


def logprobs_table(shard: pa.Table, old: TokenStats, reference: TokenStats | None) -> pa.Table:
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
