"""Shards divided over ranks: each makes its own, the first rank completes the output."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pyarrow as pa

from common.errors import UserError
from common.reporting.progress import Bar, bar, say
from common.runs.layout import Run
from common.runs.manifest import read_manifest
from common.runs.shards import OutputWriter, read_shard

if TYPE_CHECKING:
    from common.mesh.mesh import Mesh


def make_shards(
    writer: OutputWriter,
    mesh: Mesh,
    make: Callable[[int, Bar], pa.Table],
    *,
    chosen: range,
    label: str,
    total: int,
) -> bool:
    """Make the shards that are missing, rank r of W every W-th of them.

    Which shards there are and what is in them does not depend on the ranks.

    Args:
        make: shard index → its table; moves the bar by each completion.
        chosen: shards asked for.
        total: completions of a shard.

    Returns:
        Whether this rank is to complete the output: it is the first one and no shard is missing.
    """
    if mesh.is_main:
        writer.open()
    pending: list[str] = mesh.from_main(writer.pending)
    missing = [index for index in chosen if writer.names[index] in pending]
    if kept := len(chosen) - len(missing):
        say(f"{writer.output.name}: {kept} of {len(chosen)} shards were complete already")
    mine = missing[mesh.rank :: mesh.world_size]
    with bar(label, len(mine) * total) as shown:
        for index in mine:
            mesh.at(f"{label}, {writer.names[index]}")
            writer.write(writer.names[index], make(index, shown))
    mesh.at(f"waiting for the other ranks' shards of {label}")
    mesh.barrier()
    if not mesh.is_main:
        return False
    if left := writer.pending():
        say(f"{writer.output.name}: {len(left)} of {len(writer.names)} shards are still missing")
    return not left


def read_prompts(run: Run, split: str) -> pa.Table:
    """The verified prompts of a split, `train` or `eval`, in order.

    Raises:
        UserError: there are none.
    """
    records = [r for r in read_manifest(run.prompts).shards if r.name.startswith(f"{split}-")]
    tables = [read_shard(run.prompts, record) for record in records]
    if not sum(len(table) for table in tables):
        raise UserError(
            f"{run.prompts.path}: there are no {split} questions; raise {split} of a source in the "
            "recipe's [data]"
        )
    return pa.concat_tables(tables)
