"""Outputs that are folders of any files: policies (Hugging Face directories) and trainer states."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.runs.hashing import model_hashes, sha256_of_file
from common.runs.layout import Output, Run
from common.runs.manifest import (
    FileRecord,
    Manifest,
    check_sha256,
    read_manifest,
    recorded_now,
    write_manifest,
)
from common.runs.publish import publish


def commit_folder(
    output: Output,
    *,
    inputs: dict[str, str],
    recipe: dict[str, Any],
    seed: int,
    content_hash: str,
    facts: dict[str, Any],
    started: float | None = None,
    publish_output: bool = True,
) -> Manifest:
    """Write the manifest over all files in `output.partial` and give it its final name.

    Args:
        content_hash: of what the files say; `hashing.model_hashes` for a policy.
        publish_output: leave the rename to the caller, who commits several outputs as one.
    """
    paths = sorted(p for p in output.partial.iterdir() if p.is_file() and p.name[0] != ".")
    manifest = Manifest(
        stage=output.stage,
        iteration=output.iteration,
        inputs=inputs,
        recipe=recipe,
        seed=seed,
        files=[FileRecord.of(path) for path in paths if path.name != "manifest.json"],
        rows=0,
        content_hash=content_hash,
        facts=facts,
        recorded=recorded_now(time.monotonic() if started is None else started),
    )
    write_manifest(output.partial, manifest)
    if publish_output:
        publish(output)
    return manifest


def commit_policy(
    output: Output,
    *,
    inputs: dict[str, str],
    recipe: dict[str, Any],
    seed: int,
    facts: dict[str, Any] | None = None,
    publish_output: bool = True,
) -> Manifest:
    """`commit_folder` of a Hugging Face directory, hashed by tensors, tokenizer and config."""
    hashes = model_hashes(output.partial)
    return commit_folder(
        output,
        inputs=inputs,
        recipe=recipe,
        seed=seed,
        content_hash=hashes["model"],
        facts={"hashes": hashes} | (facts or {}),
        publish_output=publish_output,
    )


def open_policy(run: Run, number: int) -> Path:
    """The directory of a policy, every file of it verified.

    Raises:
        UserError: it is missing, pruned, or a file is not what its manifest says.
    """
    return open_folder(run.policy(number))


def open_folder(output: Output) -> Path:
    """The directory of a policy or trainer state, every file of it verified by sha256.

    Raises:
        UserError: it is missing, pruned, or a file is not what its manifest says.
    """
    manifest = read_manifest(output)
    if manifest.pruned:
        raise UserError(
            f"{output.path}: its files were pruned to bound the disk; make them again with "
            f"FROM={max(1, output.iteration)}, and raise run.keep_policies / run.keep_trainer"
        )
    for record in manifest.files:
        path = output.path / record.name
        if not path.is_file():
            raise UserError(f"{path} is missing; make it again: {output.command}")
        check_sha256(output, record, sha256_of_file(path))
    return output.path
