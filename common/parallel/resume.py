"""Commits within an iteration: after so many optimizer steps, so that a killed one goes on.

They lie in the partial output of `train`, which is begun anew when inputs or recipe change, and
go away when the iteration is committed.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from common.errors import UserError
from common.parallel.checkpoint import load_trainer, read_state, save_trainer
from common.parallel.optimizer import Optimizer
from common.parallel.training import Row
from common.reporting.progress import warn
from common.runs.hashing import sha256_of_file
from common.runs.manifest import sync_directory

_MAKING = "checkpoint.making"


def save_progress(folder: Path, optimizer: Optimizer, rows: list[Row]) -> None:
    """Commit the state after `rows` steps in `folder`; the one before goes when this one stands.

    Called on every rank.
    """
    mesh = optimizer.masters.mesh
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


def resume_progress(folder: Path, optimizer: Optimizer) -> list[Row]:
    """Continue from the last commit in `folder`; the rows of the steps it includes, or none.

    Called on every rank. A damaged commit is removed: the iteration is then replayed.
    """
    mesh = optimizer.masters.mesh
    found = _newest_sound(folder) if mesh.is_main else None
    path = mesh.gather_objects(found)[0]
    if path is None:
        return []
    load_trainer(path, optimizer, as_policy=False)
    return read_state(path)["rows"]


def clear_progress(folder: Path) -> None:
    """Remove all commits; called on rank 0."""
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
