"""What rollouts and evaluations have in common: prompts to read, shards to sample by ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyarrow as pa

from common.errors import UserError
from common.mesh.mesh import Mesh
from common.mesh.shard_work import make_shards
from common.reporting.progress import Bar, bar
from common.runs.layout import Run
from common.runs.manifest import read_manifest
from common.runs.shards import OutputWriter, read_shard


def sample_shards(
    writer: OutputWriter,
    mesh: Mesh,
    make: Callable[[int, Bar], pa.Table],
    *,
    chosen: range,
    label: str,
    total: int,
) -> bool:
    """`make_shards` by ranks, with a bar that counts completions.

    Args:
        make: shard index → its table; moves the bar by each completion.
        total: completions of a shard.
    """

    def each(names: list[str]) -> Iterator[tuple[str, pa.Table]]:
        with bar(label, len(names) * total) as shown:
            for name in names:
                mesh.at(f"{label}, {name}")
                yield name, make(writer.names.index(name), shown)

    return make_shards(writer, mesh, each, chosen=chosen)


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
