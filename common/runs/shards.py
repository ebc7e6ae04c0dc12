"""Writing an output shard by shard, and reading it back verified.

A shard is written whole (temporary file, fsync, rename) with a small `.done.json` beside it. The
manifest comes last and makes the output complete; then the directory gets its final name. After a
kill, the work continues from the shards that pass verification.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import UserError
from common.runs.hashing import PartHashes, sha256_of_bytes, table_content_hash
from common.runs.layout import Output, Run
from common.runs.manifest import (
    PLAN,
    FileRecord,
    Manifest,
    check_sha256,
    has_manifest,
    publish,
    read_manifest,
    recorded_now,
    write_atomically,
    write_manifest,
)
from common.runs.schemas import SCHEMA_VERSION


class OutputWriter:
    """Writer of one output in its `.partial` directory; `commit` makes the output complete."""

    def __init__(
        self,
        output: Output,
        *,
        inputs: dict[str, str],
        recipe: dict[str, Any],
        seed: int,
        names: list[str],
        schema: pa.Schema,
        made_by: Mapping[str, str] | None = None,
        extended_by: dict[str, Any] | None = None,
    ) -> None:
        """Describe the output; nothing is written before `open`.

        Args:
            inputs: content hash of each input, by name.
            recipe: the recipe's keys that decide the content.
            names: names of the output's shards, in order; `extend` may add to them.
            schema: schema of every shard.
            made_by: versions of whatever decides the content besides the inputs. A partial output
                made by other versions is begun anew; a complete one does not become stale.
            extended_by: keys that, with `made_by`, decide only what is noted and how the output is
                extended. When only these have changed, a partial output keeps its planned shards.
        """
        self.output = output
        self.names = names
        self._planned = tuple(names)
        self._schema = schema
        self._inputs = inputs
        self._recipe = recipe | (extended_by or {})
        self._seed = seed
        self._made_by = dict(made_by or {})
        self._extended_by = extended_by
        self._started = time.monotonic()

    def open(self) -> OutputWriter:
        """Continue the partial directory if it was made from the same inputs, else begin anew."""
        folder, path = self.output.partial, self.output.partial / PLAN
        extension = self._extended_by or {}
        plan = {
            "inputs": self._inputs,
            "recipe": {k: v for k, v in self._recipe.items() if k not in extension},
            "seed": self._seed,
            "names": list(self._planned),
            "columns": self._schema.names,
            "extension": {"made_by": self._made_by} | extension,
        }
        before = _read_plan(self.output) or {}
        if before != plan:
            another = plan | {"extension": before.get("extension")}
            if self._extended_by is not None and before == another:
                self._keep_planned()
            else:
                shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(plan, indent=1, sort_keys=True).encode())
        for leftover in folder.glob(".tmp-*"):
            leftover.unlink()
        return self

    def _keep_planned(self) -> None:
        """Remove everything but the planned shards from the partial directory."""
        for path in self.output.partial.iterdir():
            if path.name.removesuffix(".done.json") not in (*self._planned, PLAN):
                path.unlink()

    def extend(self, names: list[str]) -> None:
        """Add shards that were not planned, because they depend on earlier ones.

        A resumed output keeps them like any others, once it is extended by the same names.
        """
        self.names = [*self.names, *names]

    def note(self, name: str, found: Any) -> None:
        """Keep a finding about finished shards, as JSON, until the output is complete.

        A resumed stage reads it instead of finding it again, which might give another result
        (because of a time limit, say). None deletes the finding.
        """
        write_atomically(self._note(name), json.dumps(found).encode())

    def noted(self, name: str) -> Any:
        """Return what was noted under `name` while making this output, or None."""
        try:
            return json.loads(self._note(name).read_bytes())
        except (FileNotFoundError, ValueError):
            return None

    def pending(self) -> list[str]:
        """Return the names of shards that are missing or differ from their `.done.json`."""
        return [name for name in self.names if self._done(name) is None]

    def write(self, name: str, table: pa.Table) -> None:
        """Write one shard, with columns in the schema's order and cast to its types."""
        assert name in self.names, f"{name} is no shard of {self.output.name}"
        table = table.select(self._schema.names).cast(self._schema)
        data = self._encode(name, table)
        folder = self.output.partial
        write_atomically(folder / name, data)
        done = {
            "sha256": sha256_of_bytes(data),
            "bytes": len(data),
            "rows": table.num_rows,
            "keys": keys_hash(table),
        }
        write_atomically(folder / f"{name}.done.json", json.dumps(done).encode())

    def read(self, name: str) -> pa.Table:
        """Return a written shard of this unfinished output, verified."""
        record = self._done(name)
        assert record is not None, f"{name} of {self.output.name} was never written"
        return _read_verified(self.output, record, self.output.partial)

    def read_all(self, columns: list[str]) -> pa.Table:
        """Return columns of all shards; none may be pending."""
        return pa.concat_tables(self.read(name).select(columns) for name in self.names)

    def commit(
        self,
        facts: dict[str, Any] | None = None,
        recorded: dict[str, Any] | None = None,
        *,
        packages: Collection[str] = (),
        outside: Mapping[str, FileRecord] | None = None,
        publish_output: bool = True,
    ) -> Manifest:
        """Write the manifest and give the directory its final name.

        Args:
            facts: results that are a function of the inputs.
            recorded: measurements to record besides wall time and memory.
            packages: distributions whose versions matter to the result.
            outside: records of the files outside the run that it was made from.
            publish_output: False leaves the rename to a caller who commits several outputs as one.
        """
        hashes = PartHashes(self._schema)
        records = []
        for name in self.names:
            record = self._done(name)
            assert record is not None, f"{name} of {self.output.name} was never written"
            hashes.update(name, _read_verified(self.output, record, self.output.partial))
            records.append(record)
        manifest = Manifest(
            stage=self.output.stage,
            iteration=self.output.iteration,
            inputs=self._inputs,
            recipe=self._recipe,
            seed=self._seed,
            files=records,
            rows=sum(record.rows or 0 for record in records),
            content_hash=hashes.whole(),
            parts=hashes.parts(),
            facts=facts or {},
            outside=dict(outside or {}),
            recorded=recorded_now(self._started, packages)
            | ({"made_by": self._made_by} if self._made_by else {})
            | (recorded or {}),
        )
        write_manifest(self.output.partial, manifest)
        if publish_output:
            publish(self.output)
        return manifest

    def _encode(self, name: str, table: pa.Table) -> bytes:
        metadata = {
            "schema_version": str(SCHEMA_VERSION),
            "stage": self.output.stage,
            "iteration": str(self.output.iteration),
            "shard": f"{self.names.index(name)} of {len(self.names)}",
            "inputs": json.dumps(self._inputs),
            "seed": str(self._seed),
        }
        return encode_parquet(table.replace_schema_metadata(metadata))

    def _note(self, name: str) -> Path:
        return self.output.partial / f"{name}.done.json"

    def _done(self, name: str) -> FileRecord | None:
        return _finished(self.output.partial, name)


def keys_hash(table: pa.Table) -> str:
    """Return the content hash of a shard's first column, its key."""
    return table_content_hash(table.select([0]))


def encode_parquet(table: pa.Table) -> bytes:
    """Return a table as the bytes of a Parquet file with page checksums."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def read_shard(output: Output, record: FileRecord) -> pa.Table:
    """Return one verified shard of a complete output.

    Raises:
        UserError: the file is missing or is not the one that the manifest lists.
    """
    return _read_verified(output, record, output.path)


def read_named_shard(output: Output, name: str, columns: Sequence[str]) -> pa.Table:
    """Return columns of one verified shard of a complete output, by the name of its file."""
    (record,) = (record for record in read_manifest(output).shards if record.name == name)
    return read_shard(output, record).select(columns)


def read_shards(output: Output, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Yield the verified shards of a complete output, in order, with `columns` or all of them."""
    for record in read_manifest(output).shards:
        table = read_shard(output, record)
        yield table.select(columns) if columns else table


def read_output(output: Output, columns: list[str] | None = None) -> pa.Table:
    """Return all verified rows of a complete output."""
    return pa.concat_tables(read_shards(output, columns))


def read_partial(output: Output) -> tuple[dict[str, str], Iterator[pa.Table]] | None:
    """Return the inputs and the verified shards of an output that stopped before its commit.

    Return None if there is no such output, or if one of its shards is missing or damaged.
    """
    plan = _read_plan(output)
    if plan is None:
        return None
    records = [_finished(output.partial, name) for name in plan["names"]]
    shards = (_read_verified(output, r, output.partial) for r in records if r is not None)
    return None if None in records else (plan["inputs"], shards)


def _read_plan(output: Output) -> dict[str, Any] | None:
    """Return the plan of a partial output; None if there is none or it is damaged."""
    try:
        return json.loads((output.partial / PLAN).read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def _finished(folder: Path, name: str) -> FileRecord | None:
    """Return the record of a finished shard if its bytes are those that were written, else None."""
    try:
        done = json.loads((folder / f"{name}.done.json").read_bytes())
        record = FileRecord.of(folder / name, rows=done["rows"], keys=done["keys"])
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return record if record.sha256 == done["sha256"] else None


def _read_verified(output: Output, record: FileRecord, folder: Path) -> pa.Table:
    path = folder / record.name
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} is missing; make it again: {output.command}") from None
    check_sha256(output, record, sha256_of_bytes(data))
    return pq.read_table(pa.BufferReader(data), page_checksum_verification=True)


def prompts_metadata(run: Run) -> dict[str, str]:
    """Return the column `metadata` of a run's prompts by `prompt_id`; empty without prompts."""
    if not has_manifest(run.prompts):
        return {}
    rows = read_output(run.prompts, ["prompt_id", "metadata"])
    return dict(zip(rows["prompt_id"].to_pylist(), rows["metadata"].to_pylist(), strict=True))


def read_split(run: Run, split: str) -> pa.Table:
    """Return the verified prompts of a split, `train` or `eval`, in order.

    Raises:
        UserError: the split has no prompts.
    """
    records = [r for r in read_manifest(run.prompts).shards if r.name.startswith(f"{split}-")]
    tables = [read_shard(run.prompts, record) for record in records]
    if not sum(len(table) for table in tables):
        raise UserError(
            f"{run.prompts.path}: there are no {split} questions; raise {split} of a source in the "
            "recipe's [data]"
        )
    return pa.concat_tables(tables)
