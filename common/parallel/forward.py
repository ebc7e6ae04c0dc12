"""Logprobs and entropies of a rollout's tokens by a model split over the mesh, as shard columns."""

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
    """Yield the statistics of each shard on the last rank of a pipeline, nothing on other ranks.

    The model stays loaded until the iterator is exhausted.

    Args:
        model: a policy or a reference; its files are verified before they are loaded.
        shards: this replica's shards of the rollout, by name. A shard without completion tokens
            costs no forward.
        source: the rollout, which an error names if a row cannot be packed.
        temperature: temperature of the distribution whose logprobs are computed.
        label: the model's role, for messages.

    Raises:
        UserError: the model is missing, pruned or damaged, or a row does not fit it.
    """
    mesh.at(f"loading {model.name} ({label})")
    pipeline = Pipeline(open_verified(model, mesh), mesh, dtype=dtype, temperature=temperature)
    for name, shard in track(shards.items(), label, len(shards), "shards"):
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
    """float32 values of a shard's completion tokens, its completions concatenated."""

    logprobs: np.ndarray
    entropy: np.ndarray | None
    """None if it is unknown: a sampler records no entropy."""

    @classmethod
    def none(cls) -> TokenStats:
        """Return the statistics of a shard without completion tokens."""
        return cls(np.zeros(0, np.float32), np.zeros(0, np.float32))

    @classmethod
    def of_sampler(cls, shard: pa.Table) -> TokenStats:
        """Return the logprobs that the sampler recorded in a shard, for the full vocabulary.

        Raises:
            UserError: the shard does not have one logprob per token.
        """
        check_lengths(shard, "sampler_logprobs", shard)
        return cls(flat_values(shard, "sampler_logprobs"), None)

    @classmethod
    def of(cls, outputs: Tensor, packs: PackBatch, shard: pa.Table) -> TokenStats:
        """Put a forward's outputs [P, T, 2], logprob and entropy, back into the shard's order."""
        lengths = list_lengths(shard, "completion_ids").tolist()
        flat = []
        for values in outputs.float().cpu().unbind(-1):
            rows = gather_to_rows(values, packs, lengths)
            flat.append(np.concatenate([row.numpy() for row in rows]))
        return cls(*flat)


def shard_completions(shard: pa.Table) -> list[Completion]:
    """Return the completions of a rollout shard in order, ready to be packed."""
    columns = (shard[c].to_pylist() for c in ("prompt_ids", "completion_ids", "group_id"))
    return [Completion(*row) for row in zip(*columns, strict=True)]


def logprobs_table(shard: pa.Table, old: TokenStats, reference: TokenStats | None) -> pa.Table:
    """Make the logprobs shard for a rollout shard, with null where values are unknown."""
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
