"""Bounding the disk: old policies and trainer states lose their files, never their manifests."""

from __future__ import annotations

from typing import Literal

from common.runs.layout import Output, Run
from common.runs.manifest import has_manifest, read_manifest, write_manifest


def prune(
    run: Run, *, keep_policies: int | Literal["all"], keep_trainer: int | Literal["all"]
) -> None:
    """Delete weights and trainer states older than the newest so many; policy 0 stays always.

    The manifest says `pruned` before the first file goes, so a kill in between loses nothing
    that was promised; its hashes stay, so that finished iterations remain fresh.
    """
    last = run.last_policy()
    for number in range(1, last + 1):
        if keep_policies != "all" and number <= last - keep_policies:
            _prune(run.policy(number))
        if keep_trainer != "all" and number <= last - keep_trainer:
            _prune(run.trainer(number))


def _prune(output: Output) -> None:
    if not has_manifest(output):
        return
    manifest = read_manifest(output)
    if not manifest.pruned:
        write_manifest(output.path, manifest.model_copy(update={"pruned": True}))
    for record in manifest.files:
        (output.path / record.name).unlink(missing_ok=True)
