"""Outputs that are folders of arbitrary files: policies, references and trainer states.

This module commits and opens them, finds the reference of an iteration, and prunes old ones to save
disk space.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from common.config import Recipe
from common.errors import UserError
from common.runs.hashing import model_hashes, sha256_of_file
from common.runs.layout import Output, Run
from common.runs.manifest import (
    FileRecord,
    Manifest,
    check_sha256,
    has_manifest,
    publish,
    read_manifest,
    recorded_now,
    write_manifest,
)


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
    """Write a manifest of all files in `output.partial` and give the folder its final name.

    Args:
        content_hash: hash of what the files say; `hashing.model_hashes` gives it for a policy.
        publish_output: False leaves the rename to a caller who commits several outputs as one.
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
    """Commit a Hugging Face directory as `commit_folder` does, with the hash of its model."""
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
    """Return the directory of a policy after verifying every file of it by sha256.

    Raises:
        UserError: it is missing, pruned, or a file is not what its manifest says.
    """
    return open_folder(run.policy(number))


def open_folder(output: Output) -> Path:
    """Return the directory of a policy or trainer state after verifying every file by sha256.

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


def reference_of(run: Run, iteration: int, recipe: Recipe) -> Output | None:
    """Return the model that iteration N's KL pulls towards; None when `objective.kl_coef` is 0.

    `fixed` is policy 0. `refresh` is policy floor((N - 1) / K) * K, K being `refresh_every`. `ema`
    is the average that training N - 1 wrote with its policy, or policy 0 where it wrote none, as
    before iteration 1.
    """
    if not recipe.objective.kl_coef:
        return None
    if recipe.reference.update == "refresh":
        every = recipe.reference.refresh_every
        return run.policy((iteration - 1) // every * every)
    if recipe.reference.update == "ema" and iteration > 1:
        train, average = run.train(iteration - 1), run.reference(iteration - 1)
        # An average may be left over from a former training, which was repeated without one; then
        # the manifest does not list it.
        if has_manifest(train) and average.name in read_manifest(train).facts:
            return average
    return run.policy(0)


def prune(
    run: Run,
    *,
    newest: int,
    keep_policies: int | Literal["all"],
    keep_trainer: int | Literal["all"],
    in_use: Collection[str] = (),
) -> None:
    """Delete weights and trainer states up to `newest`, but keep the newest ones and policy 0.

    Moving averages go with their policies. The manifest is marked `pruned` before the first file is
    deleted, so a kill in between leaves no manifest that lists a missing file as present. Its
    hashes stay, so that finished iterations remain fresh.

    Args:
        newest: later policies and states belong to a training that is being repeated, and stay.
        keep_policies: how many of the newest policies keep their weights.
        keep_trainer: how many of the newest trainer states are kept.
        in_use: names of outputs that stay in any case, such as the next iteration's reference.
    """
    old: list[Output] = []
    for number in range(1, newest + 1):
        if keep_policies != "all" and number <= newest - keep_policies:
            old += [run.policy(number), run.reference(number)]
        if keep_trainer != "all" and number <= newest - keep_trainer:
            old.append(run.trainer(number))
    for output in old:
        if output.name not in in_use:
            _prune(output)


def _prune(output: Output) -> None:
    if not has_manifest(output):
        return
    manifest = read_manifest(output)
    if not manifest.pruned:
        write_manifest(output.path, manifest.model_copy(update={"pruned": True}))
    for record in manifest.files:
        (output.path / record.name).unlink(missing_ok=True)
