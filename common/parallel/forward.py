"""A model's numbers for the tokens of rollout shards, the model cut over the mesh."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pyarrow as pa
import torch

from common.errors import UserError
from common.mesh.mesh import Mesh
from common.modeling.columns import Numbers, shard_completions
from common.modeling.packing import pack
from common.parallel.pipeline import Pipeline
from common.reporting.progress import track
from common.runs.folders import open_folder
from common.runs.layout import Output


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
) -> Iterator[tuple[str, Numbers]]:
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
    folder = open_folder(model) if mesh.is_main else model.path
    mesh.barrier()
    pipeline = Pipeline(folder, mesh, dtype=dtype, temperature=temperature)
    for name, shard in track(shards.items(), label, len(shards)):
        mesh.at(f"{label}, {name}")
        completions = shard_completions(shard)
        if not any(completion.completion_ids for completion in completions):
            if mesh.is_last:
                yield name, Numbers.none()
            continue
        try:
            packs = pack(completions, tokens_per_pack=tokens_per_pack, min_packs=mesh.pp_degree)
        except UserError as error:
            raise UserError(f"{source.path / name}: {error}") from None
        outputs = pipeline.run_forward(packs)
        if outputs is not None:
            yield name, Numbers.of(outputs, packs, shard)
