"""Bounding the disk: old models and trainer states lose their files, never their manifests."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from common.runs.layout import Output, Run
from common.runs.manifest import has_manifest, read_manifest, write_manifest


def prune(
    run: Run,
    *,
    newest: int,
    keep_policies: int | Literal["all"],
    keep_trainer: int | Literal["all"],
    in_use: Collection[str] = (),
) -> None:
    """Delete weights and trainer states but the last so many up to `newest`; policy 0 stays.

    Moving averages go with their policies. What `in_use` names stays: the reference to come.

    Those beyond `newest` are of a training that is being made again and are left alone.

    The manifest says `pruned` before the first file goes, so a kill in between loses nothing
    that was promised; its hashes stay, so that finished iterations remain fresh.
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
