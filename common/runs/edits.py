"""Accepting shards that were edited by hand, as polars writes them."""

from __future__ import annotations

import time

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import UserError
from common.runs.hashing import PartHashes, sha256_of_file
from common.runs.layout import Output
from common.runs.manifest import FileRecord, read_manifest, write_atomically, write_manifest
from common.runs.shards import encode_parquet, keys_hash


def accept_edits(output: Output, schema: pa.Schema) -> list[str]:
    """Accept the edited shards of a complete output as its content, and return their names.

    Keys (the schema's first column) and their order must be untouched. Columns are cast to the
    schema (polars writes large lists and drops metadata) and written again by the project's own
    writer. The manifest is marked `edited` and gets the new content hash, so that whatever was made
    from the output becomes stale.

    Raises:
        UserError: keys were changed, a column is missing or superfluous, a value does not fit its
            column, or a file is missing or damaged.
    """
    manifest = read_manifest(output)
    for record in manifest.files:
        if not (output.path / record.name).is_file():
            raise UserError(
                f"{output.path / record.name} is missing; make it again: {output.command}"
            )
    edited = [r for r in manifest.shards if sha256_of_file(output.path / r.name) != r.sha256]
    tables = [(record, _checked(output, record, schema)) for record in edited]
    for record, table in tables:
        write_atomically(output.path / record.name, encode_parquet(table))
    hashes = PartHashes(schema)
    files: list[FileRecord] = []
    for record in manifest.files:
        path = output.path / record.name
        if record in manifest.shards:
            hashes.update(record.name, pq.read_table(path, page_checksum_verification=True))
        files.append(FileRecord.of(path, rows=record.rows, keys=record.keys))
    if edited:
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        changes = {
            "files": files,
            "content_hash": hashes.whole(),
            "parts": hashes.parts(),
            "edited": True,
            "recorded": manifest.recorded | {"edits_accepted": when},
        }
        write_manifest(output.path, manifest.model_copy(update=changes))
    return [record.name for record in edited]


def _checked(output: Output, record: FileRecord, schema: pa.Schema) -> pa.Table:
    """Return an edited shard cast to the schema; raise `UserError` if its keys have changed."""
    path = output.path / record.name
    try:
        # A damaged shard of ours no longer matches its page checksums. An edited one was written
        # by another program, which adds none.
        table = pq.read_table(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path}: damaged, not edited ({error}); make it again: {output.command}"
        ) from None
    missing = [name for name in schema.names if name not in table.schema.names]
    superfluous = [name for name in table.schema.names if name not in schema.names]
    if missing or superfluous:
        raise UserError(
            f"{path}: columns missing: {missing}, superfluous: {superfluous}; keep the columns"
        )
    for field in schema:
        if not field.nullable and table.column(field.name).null_count:
            raise UserError(f"{path}: column {field.name} has nulls, which it may not have")
    try:
        table = table.select(schema.names).cast(schema)
    except (pa.ArrowException, ValueError) as error:
        raise UserError(f"{path}: a value does not fit its column: {error}") from None
    if keys_hash(table) != record.keys:
        raise UserError(
            f"{path}: column {schema.names[0]} was changed (rows added, removed or reordered); "
            "edit values only"
        )
    return table
