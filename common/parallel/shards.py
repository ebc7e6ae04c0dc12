"""Shards divided over the mesh: each rank or replica makes its own, rank 0 completes the output."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from common.console import say
from common.parallel.mesh import Mesh
from common.runs.layout import Output
from common.runs.policies import open_folder

if TYPE_CHECKING:
    from common.runs.shards import OutputWriter


def open_verified(output: Output, mesh: Mesh) -> Path:
    """Return the directory of a policy, reference or trainer state; rank 0 verifies every file.

    Every rank must call this.

    Raises:
        UserError: it is missing, pruned, or a file is not what its manifest says.
    """
    folder = open_folder(output) if mesh.is_main else output.path
    mesh.barrier()
    return folder


def make_shards(
    writer: OutputWriter,
    mesh: Mesh,
    make: Callable[[list[str]], Iterable[tuple[str, pa.Table]]],
    *,
    chosen: range,
    by_replica: bool = False,
) -> bool:
    """Make the missing shards: part p of P makes every P-th of them, from the p-th on.

    Neither the set of shards nor their content depends on the number of parts.

    Args:
        make: yields the name and table of each named shard. Either every rank calls it or none; a
            rank that only helps to compute the tables yields nothing.
        chosen: indices of the requested shards.
        by_replica: whether a part is a replica (dp) of several ranks instead of a single rank.

    Returns:
        Whether this rank must complete the output: it is rank 0 and no shard is missing.
    """
    name = writer.output.name
    if mesh.is_main:
        writer.open()
    pending: list[str] = mesh.broadcast_from_rank0(writer.pending)
    missing = [writer.names[index] for index in chosen if writer.names[index] in pending]
    if kept := len(chosen) - len(missing):
        say(f"{name}: {kept} of {len(chosen)} shards were complete already")
    parts = (mesh.dp_rank, mesh.dp_degree) if by_replica else (mesh.rank, mesh.world_size)
    if missing:
        for shard, table in make(missing[parts[0] :: parts[1]]):
            writer.write(shard, table)
    mesh.at(f"waiting for the other ranks' shards of {name}")
    mesh.barrier()
    if not mesh.is_main:
        return False
    if left := writer.pending():
        say(f"{name}: {len(left)} of {len(writer.names)} shards are still missing")
    return not left
