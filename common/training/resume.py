"""Resuming: from the iteration before, and within an iteration from its last checkpoint.

Checkpoints are made every `train.checkpoint_every_steps` optimizer steps. They are in the partial
output of `train`, which begins anew if inputs or recipe change, and are deleted when the iteration
is committed.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from common.console import warn
from common.errors import UserError
from common.parallel.pipeline import Pipeline
from common.parallel.shards import open_verified
from common.runs.hashing import sha256_of_file
from common.runs.layout import Run
from common.runs.manifest import read_manifest, sync_directory
from common.runs.metrics import StepRow
from common.training.checkpoint import load_trainer, read_state, save_trainer
from common.training.optimizer import Optimizer

_MAKING = "checkpoint.making"


def continue_training(run: Run, before: int, pipeline: Pipeline, optimizer: Optimizer) -> None:
    """Load the masters and the optimizer as they were after iteration `before`.

    If `before` is 0, training starts from the policy's own weights with a new optimizer. It does so
    too, with a warning, if the trainer state does not belong to the policy that is there. It is
    called on every rank.
    """
    mesh, policy = pipeline.mesh, run.policy(before)
    loaded = with_masters = False
    if before > 0:
        state = run.trainer(before)
        folder = open_verified(state, mesh)
        if read_manifest(state).facts[policy.name] == read_manifest(policy).content_hash:
            with_masters = read_state(folder)["masters"]
            loaded = load_trainer(folder, optimizer, as_policy=True)
        if not loaded and mesh.is_main:
            warn(
                f"{policy.path} is not the policy that {state.path} was saved with: training "
                "starts from the policy, with a new optimizer"
            )
    if optimizer.weights.separate and not (loaded and with_masters):
        optimizer.weights.fill(pipeline.wide_parameters())


def save_progress(folder: Path, optimizer: Optimizer, rows: list[StepRow]) -> None:
    """Save a checkpoint in `folder`, then delete the one before.

    It is called on every rank.

    Args:
        folder: the partial output of `train`.
        optimizer: the optimizer and its masters.
        rows: a row of metrics per step taken so far.
    """
    mesh = optimizer.weights.mesh
    making, final = folder / _MAKING, folder / f"checkpoint-{len(rows):05d}"
    if mesh.is_main:
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir()
    save_trainer(making, optimizer, with_masters=True, facts={"rows": rows}, checksums=True)
    if mesh.is_main:
        before = _committed(folder)
        making.rename(final)
        sync_directory(folder)
        for old in before:
            shutil.rmtree(old)
    mesh.barrier()


def resume_progress(folder: Path, optimizer: Optimizer) -> list[StepRow]:
    """Load the last checkpoint in `folder`, and return the rows of the steps before it.

    Without one, or if it is damaged and so deleted, there are no rows and the iteration begins at
    its first step. It is called on every rank.
    """
    mesh = optimizer.weights.mesh
    path = mesh.broadcast_from_rank0(lambda: _newest_sound(folder))
    if path is None:
        return []
    load_trainer(path, optimizer, as_policy=False)
    return read_state(path)["rows"]


def clear_progress(folder: Path) -> None:
    """Delete all checkpoints; called on rank 0."""
    for path in (*_committed(folder), folder / _MAKING):
        shutil.rmtree(path, ignore_errors=True)


def _committed(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("checkpoint-*") if p.is_dir())


def _newest_sound(folder: Path) -> Path | None:
    committed = _committed(folder)
    if not committed:
        return None
    newest = committed[-1]
    try:
        for name, recorded in read_state(newest)["sha256"].items():
            if sha256_of_file(newest / name) != recorded:
                raise UserError(f"{newest / name} is not what was written")
    except (OSError, ValueError, KeyError) as error:
        warn(f"{newest}: damaged ({error}); the iteration begins again")
        shutil.rmtree(newest)
        return None
    return newest
