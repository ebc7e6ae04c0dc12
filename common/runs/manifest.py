"""The manifest of an output: which files it consists of, and what it was made from.

It is the last file written; then the output gets its final name. The files that a manifest lists
are verified whenever they are read.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import resource
import shutil
import sys
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from common.errors import UserError
from common.runs.hashing import sha256_of_file
from common.runs.layout import Output
from common.runs.schemas import SCHEMA_VERSION
from common.runs.stages import BY_NAME


class FileRecord(BaseModel):
    """One file of an output. The stat fields only decide whether to hash it again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    bytes: int
    sha256: str
    rows: int | None = None
    keys: str | None = None
    """For a shard, the content hash of its first column, which a hand edit must not change."""
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(
        cls,
        path: Path,
        *,
        rows: int | None = None,
        keys: str | None = None,
        sha256: str | None = None,
    ) -> FileRecord:
        """Return the record of a file on disk, hashed now unless its `sha256` is known."""
        stat = _stat(path)
        sha256 = sha256 or sha256_of_file(path)
        return cls(name=path.name, sha256=sha256, rows=rows, keys=keys, **stat)

    def seen(self, path: Path) -> FileRecord:
        """Return this record with the file's stat as it is now."""
        return self.model_copy(update=_stat(path))


def _stat(path: Path) -> dict[str, int]:
    stat = path.stat()
    return {
        "bytes": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "ctime_ns": stat.st_ctime_ns,
        "inode": stat.st_ino,
    }


class Manifest(BaseModel):
    """What is in an output (files, rows, content hash) and how it came to be."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    stage: str
    iteration: int
    inputs: dict[str, str]
    """Content hash of each input by its name in the run. Under `name:what` it is instead the hash
    of that part of the input, or that fact of its manifest."""
    recipe: dict[str, Any]
    """The keys of the recipe that decided the content, with their values."""
    seed: int
    files: list[FileRecord]
    rows: int
    content_hash: str
    parts: dict[str, str] = {}
    """Content hash of each group of shards whose names begin alike, such as `train-` in prompts."""
    facts: dict[str, Any] = {}
    """Results for later stages or for people; they depend on inputs, recipe and seed alone."""
    outside: dict[str, FileRecord] = {}
    """Files outside the run that the output was made from, by absolute path. Another content makes
    nothing stale; see `common/tasks/outside.py`."""
    edited: bool = False
    """Whether files were edited by hand and accepted."""
    pruned: bool = False
    """Whether the files were deleted to save disk space; their hashes stay."""
    recorded: dict[str, Any] = {}
    """Wall time, memory, host and versions: never hashed, never compared."""

    @property
    def shards(self) -> list[FileRecord]:
        return [file for file in self.files if file.name.endswith(".parquet")]


def read_manifest(output: Output) -> Manifest:
    """Return the manifest of a complete output.

    Raises:
        UserError: there is none, it is damaged, its schema has another version, or it was written
            by another stage or for another iteration.
    """
    path = output.manifest
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content.get("schema_version")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise UserError(
                f"{path}: schema version {version}, this program reads up to {SCHEMA_VERSION}; "
                "update staged-grpo"
            )
        if isinstance(version, int) and version < SCHEMA_VERSION:
            raise UserError(
                f"{path}: schema version {version}, this program reads version {SCHEMA_VERSION}; "
                "go on with the version of staged-grpo that began the run, or begin another RUN"
            )
        manifest = Manifest.model_validate(content)
    except FileNotFoundError:
        raise UserError(f"{output.path} is missing; make it with: {output.make_command}") from None
    except (ValueError, AttributeError, ValidationError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path}: damaged manifest ({str(error).splitlines()[0]}); "
            f"make it again: {output.command}"
        ) from None
    if (manifest.stage, manifest.iteration) != (output.stage, output.iteration):
        raise UserError(
            f"{path}: written by {manifest.stage} of iteration {manifest.iteration}, not by "
            f"{output.stage} of iteration {output.iteration}; make it again: {output.command}"
        )
    return manifest


def has_manifest(output: Output) -> bool:
    return output.manifest.is_file()


def verify_files(output: Output, manifest: Manifest) -> None:
    """Check the hash of every file whose stat has changed since the manifest was written.

    Linked or copied files have the same content with another stat. The manifest then takes the new
    stat, so that they are hashed once and not every time. Pruned files are not checked.

    Raises:
        UserError: a file is missing or its content is not what the manifest says.
    """
    if manifest.pruned:
        return
    seen = []
    for record in manifest.files:
        path = output.path / record.name
        if not path.is_file():
            raise UserError(f"{path} is missing; make it again: {output.command}")
        seen.append(record.seen(path))  # taken before hashing, so that a later change is noticed
        if seen[-1] != record:
            check_sha256(output, record, sha256_of_file(path))
    if seen != manifest.files:
        with suppress(OSError, UserError):  # a run may be read where it cannot be written
            write_manifest(output.path, manifest.model_copy(update={"files": seen}))


def check_sha256(output: Output, record: FileRecord, found: str) -> None:
    """Raise `UserError`, naming the file and both hashes, unless `found` is the recorded hash."""
    if found == record.sha256:
        return
    remedies = f"  Damaged?           {output.command}"
    if record.name.endswith(".parquet") and BY_NAME[output.stage].editable:
        accept = output.command.replace("--overwrite", "--accept-edits")
        remedies = f"  Edited on purpose? {accept}\n{remedies}"
    raise UserError(
        f"{output.path / record.name} is not what its manifest says: sha256 is {found}, "
        f"recorded {record.sha256}.\n{remedies}"
    )


def write_atomically(path: Path, data: bytes) -> None:
    """Write a whole file or nothing, by a temporary file, fsync, rename and directory fsync.

    Raises:
        UserError: the disk is full.
    """
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        free = shutil.disk_usage(path.parent).free
        raise UserError(
            f"{path}: {len(data)} bytes to write, {free} free on its disk; make room"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def sync_directory(folder: Path) -> None:
    """Make the renames inside `folder` durable by fsync."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, ensure_ascii=False)
    write_atomically(folder / "manifest.json", text.encode() + b"\n")


def recorded_now(started: float, packages: Iterable[str] = ()) -> dict[str, Any]:
    """Return what to record about making an output: wall seconds, peak memory, host, versions.

    Args:
        started: `time.monotonic()` at the beginning.
        packages: distributions whose versions matter to the result.
    """
    return {
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "wall_seconds": round(time.monotonic() - started, 3),
        "peak_memory_bytes": peak_memory_bytes(),
        "host": platform.node(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("staged-grpo", *packages)},
    }


def peak_memory_bytes() -> int:
    """Return the largest amount of memory that this process has held, in bytes."""
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


PLAN = "plan.json"
"""File of a partial output that says what the output will be made of."""


def publish(output: Output) -> None:
    """Give a partial output that has its manifest the final name, in place of a former output.

    The call is safe to repeat: after a kill between the renames, the next call completes them.
    """
    if (output.partial / "manifest.json").is_file():
        for scrap in (*output.partial.glob("*.done.json"), output.partial / PLAN):
            scrap.unlink(missing_ok=True)
        if output.path.exists():
            shutil.rmtree(output.replaced, ignore_errors=True)
            output.path.rename(output.replaced)
        output.partial.rename(output.path)
        sync_directory(output.path.parent)
    if output.path.exists():
        shutil.rmtree(output.replaced, ignore_errors=True)
