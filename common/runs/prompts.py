"""The prompts of a run, as `prepare` wrote them."""

from __future__ import annotations

import pyarrow as pa

from common.errors import UserError
from common.runs.layout import Run
from common.runs.manifest import read_manifest
from common.runs.shards import read_shard


def read_split(run: Run, split: str) -> pa.Table:
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
