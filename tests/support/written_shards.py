"""Small outputs of a few shards, written as stages write them."""

from __future__ import annotations

import pyarrow as pa

from common.runs.layout import Output, shard_name
from common.runs.shards import OutputWriter

SCHEMA = pa.schema(
    [
        pa.field("rollout_id", pa.string(), nullable=False),
        pa.field("values", pa.list_(pa.float32()), nullable=False),
    ]
)


def table(shard: int, rows: int = 3) -> pa.Table:
    return pa.table(
        {
            "rollout_id": [f"{shard}-{row}" for row in range(rows)],
            "values": [[float(shard), float(row)] for row in range(rows)],
        },
        schema=SCHEMA,
    )


def writer_for(output: Output, **changes: object) -> OutputWriter:
    arguments = {
        "inputs": {"prompts": "abc"},
        "recipe": {"rollout": {"group_size": 2}},
        "seed": 0,
        "names": [shard_name(i) for i in range(3)],
        "schema": SCHEMA,
    }
    return OutputWriter(output, **(arguments | changes))  # type: ignore[arg-type]


def make(output: Output, **changes: object) -> None:
    writer = writer_for(output, **changes).open()
    for index, name in enumerate(writer.names):
        if name in writer.pending():
            writer.write(name, table(index))
    writer.commit({"fact": 1})
