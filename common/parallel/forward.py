"""A model's numbers for the tokens of rollout shards, the model cut over the mesh."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import pyarrow as pa
import torch

from common.command import chosen_shards
from common.errors import UserError
from common.mesh.mesh import Mesh
from common.modeling.columns import Numbers, shard_completions
from common.modeling.packing import pack
from common.parallel.pipeline import Pipeline
from common.reporting.progress import say, track
from common.runs.folders import open_folder
from common.runs.layout import Output
from common.runs.shards import OutputWriter


def make_missing_shards(
    writer: OutputWriter,
    mesh: Mesh,
    compute: Callable[[list[str]], Iterator[tuple[str, pa.Table]]],
    *,
    shards: str,
) -> bool:
    """Make the shards that are missing of those asked for, replica r of D every D-th of them.

    Args:
        compute: names of shards to their tables, on the last rank of a pipeline; nothing on the
            others, which must all call it.
        shards: as `--shards` names them.

    Returns:
        Whether this rank is to complete the output: it is the first one and no shard is missing.
    """
    chosen = [writer.names[index] for index in chosen_shards(shards, len(writer.names))]
    if mesh.is_main:
        writer.open()
    pending = mesh.from_main(writer.pending)
    if kept := len(writer.names) - len(pending):
        say(f"{writer.output.name}: {kept} of {len(writer.names)} shards were complete already")
    wanted = [name for name in chosen if name in pending]
    if wanted:
        for name, table in compute(wanted[mesh.dp_rank :: mesh.dp_degree]):
            writer.write(name, table)
    mesh.barrier()
    if not mesh.is_main:
        return False
    if missing := len(writer.pending()):
        say(f"{writer.output.name}: {missing} of {len(writer.names)} shards are still missing")
    return not missing


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
        shards: of the rollout, by name: those of this replica.
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
        try:
            packs = pack(completions, tokens_per_pack=tokens_per_pack, min_packs=mesh.pp_degree)
        except UserError as error:
            raise UserError(f"{source.path / name}: {error}") from None
        outputs = pipeline.run_forward(packs)
        if outputs is not None:
            yield name, Numbers.of(outputs, packs, shard)
