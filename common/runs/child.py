"""Child runs: ordinary runs that begin with the frozen iteration of another, to be compared.

A child of iteration N has what N starts from (prompts, earlier iterations, and their models and
trainer states) and the rollout of N, but not what N makes of it. Weights are hard links, or copies
where links are impossible. All other files are copied: a program that opens a Parquet file for
writing, as polars does, would write through a link into the parent. `child_of.json` names the
parent.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.config import Recipe
from common.errors import UserError
from common.runs.freshness import input_hashes, is_pruned, needed, require_fresh, status_of
from common.runs.layout import RUN_NAME_RULE, Output, Run
from common.runs.manifest import (
    has_manifest,
    publish,
    read_manifest,
    sync_directory,
    verify_files,
    write_atomically,
)
from common.runs.recipe import differing_keys, recipe_in_force
from common.runs.stages import BY_NAME, SIDE_STAGES

_LINKED = ".safetensors"


@dataclass(frozen=True)
class Frozen:
    """An iteration of a run up to its rollout, which is what its children have in common."""

    run: Run
    iteration: int

    def check(self) -> None:
        """Raise `UserError` if the iteration's rollout is missing or stale."""
        require_fresh(self.run, self.run.rollout(self.iteration))

    def require_kept(self, recipe: Recipe) -> None:
        """Check that the models and the trainer state that the iteration starts from are kept.

        Raises:
            UserError: one was pruned; the message names the first, and the iterations that have
                all that they start from.
        """
        pruned = self._pruned(self.iteration, recipe)
        if not pruned:
            return
        rollouts = [n for n in self.run.iterations() if has_manifest(self.run.rollout(n))]
        kept = [n for n in rollouts if not self._pruned(n, recipe)]
        raise UserError(
            f"{pruned[0].path}: its files were pruned (run.keep_policies, run.keep_trainer), so "
            f"iteration {self.iteration} cannot be trained from it; iterations that can: "
            f"{', '.join(map(str, kept)) or 'none'}"
        )

    def child(self, name: str) -> Run:
        """Return the child of that name, such as `demo.3.dapo`; it need not exist yet.

        Raises:
            UserError: the child's name is not allowed for a run, or makes the run's name too long.
        """
        full = f"{self.run.name}.{self.iteration}.{name}"
        try:
            Run.named(name)
            return Run.named(full, self.run.root.parent)
        except UserError:
            raise UserError(
                f"variant {name!r}: its run would be {full!r}, and {RUN_NAME_RULE}; choose another"
            ) from None

    def outputs(self) -> list[Output]:
        """Return the complete outputs from before the iteration, and its rollout if complete."""
        rollout = self.run.rollout(self.iteration)
        found = _complete(self.run)
        return [o for o in found if o.iteration < self.iteration or o == rollout]

    def make(self, child: Run, recipe_text: str) -> None:
        """Make a child run atomically: it exists only once it is complete."""
        making = child.making
        shutil.rmtree(making.root, ignore_errors=True)
        for output in self.outputs():
            _bring(output, making.output(output.name).path)
        if self.run.judge.is_dir():  # what JUDGE was told of the rollout need not be paid again
            shutil.copytree(self.run.judge, making.judge)
        write_atomically(making.recipe, recipe_text.encode())
        if self.run.recipe_folder.is_file():
            write_atomically(making.recipe_folder, self.run.recipe_folder.read_bytes())
        write_atomically(making.child_of, json.dumps(self._mark()).encode() + b"\n")
        making.root.rename(child.root)
        sync_directory(child.root.parent)

    def difference(self, child: Run, recipe: Recipe) -> str:
        """Return why an existing run is not the child that `make` would make; empty if it is."""
        if not child.recipe.is_file():
            return "it has no recipe.toml"
        if not self.made(child):
            return f"no {child.child_of.name} in it says so"
        for output in self.outputs():
            mine = child.output(output.name)
            if output.stage in SIDE_STAGES:  # the parent may have run it after the child was made
                continue
            if not has_manifest(mine):
                return f"it has no {output.name}"
            if read_manifest(mine).content_hash != read_manifest(output).content_hash:
                return f"its {output.name} is another"
        there, wanted = recipe_in_force(child).model_dump(), recipe.model_dump()
        # Both ways: a table such as rewards.functions may have names that the other lacks.
        keys = list(dict.fromkeys(differing_keys(there, wanted) + differing_keys(wanted, there)))
        return f"its recipe.toml differs in {', '.join(keys)}" if keys else ""

    def made(self, child: Run) -> bool:
        """Return whether an existing run was made by `make`, which its name does not prove."""
        try:
            return bool(json.loads(child.child_of.read_text(encoding="utf-8")) == self._mark())
        except (OSError, ValueError):
            return False

    def require_removable(self, child: Run) -> None:
        """Check that removing a run loses nothing but this iteration of a child.

        Raises:
            UserError: the run was not made from this iteration, or it went on to later ones.
        """
        advice = "Remove the folder yourself, or give the variant another name"
        if not self.made(child):
            raise UserError(
                f"{child.root}: no {child.child_of.name} in it says that it was made from "
                f"iteration {self.iteration} of {self.run.name}, so --overwrite leaves it. {advice}"
            )
        newest = max(child.iterations(), default=0)
        if newest > self.iteration:
            raise UserError(
                f"{child.root} went on to iteration {newest}; --overwrite would remove that. "
                f"{advice}"
            )

    def _mark(self) -> dict[str, str | int]:
        return {"run": self.run.name, "iteration": self.iteration}

    def _pruned(self, iteration: int, recipe: Recipe) -> list[Output]:
        return [output for output in needed(self.run, iteration, recipe) if is_pruned(output)]


def adopt(
    child: Run,
    output: Output,
    recipe: Recipe,
    donors: Iterable[Run],
    made_by: Mapping[str, str] | None = None,
) -> Run | None:
    """Give the child an output from another run if the child's own stage would make the same.

    Args:
        output: the child's output: scores or logprobs of the frozen iteration.
        donors: runs with the same rollout, tried in this order.
        made_by: versions of whatever decides the content besides inputs and recipe.

    Returns:
        The run that it was taken from; None if no run has it, so that the stage must be run.

    Raises:
        UserError: the child already has this output with other content.
    """
    for donor in donors:
        source = donor.output(output.name)
        if not (has_manifest(source) and _would_be_alike(child, source, donor, recipe, made_by)):
            continue
        if not has_manifest(output):
            shutil.rmtree(output.partial, ignore_errors=True)
            _bring(source, output.partial)
            publish(output)
        elif read_manifest(output).content_hash != read_manifest(source).content_hash:
            raise UserError(
                f"{output.path} is another than {source.path}, which was made alike; with "
                f"--overwrite {child.name} is removed and made again"
            )
        return donor
    return None


def _would_be_alike(
    child: Run, source: Output, donor: Run, recipe: Recipe, made_by: Mapping[str, str] | None
) -> bool:
    """Return whether the child's stage would make exactly this output of another run.

    Inputs, recorded recipe keys, seed and versions must be the same. So must every key that decides
    or stops the stage in both recipes in force: the manifest may be older than some of these keys.
    """
    manifest, settings = read_manifest(source), recipe.model_dump(mode="json")
    stage = BY_NAME[source.stage]
    keys = [*stage.deciding(recipe), *stage.stops]
    ours, theirs = (r.restricted_to(keys) for r in (recipe, recipe_in_force(donor)))
    return (
        manifest.seed == recipe.run.seed
        and manifest.recorded.get("made_by", {}) == dict(made_by or {})
        and not differing_keys(manifest.recipe, settings)
        and ours.model_dump() == theirs.model_dump()
        and status_of(donor, source).state == "fresh"
        and manifest.inputs == input_hashes(child, list(manifest.inputs))
    )


def _complete(run: Run) -> list[Output]:
    """Return the complete outputs of a run; one that is being made has a dot in its name."""
    folders = (path.parent.relative_to(run.root) for path in run.root.rglob("manifest.json"))
    return [run.output(name) for name in sorted(f.as_posix() for f in folders) if "." not in name]


def _bring(source: Output, folder: Path) -> None:
    """Put a complete output into a new folder, its manifest last."""
    manifest = read_manifest(source)
    verify_files(source, manifest)
    folder.mkdir(parents=True)
    for record in () if manifest.pruned else manifest.files:
        _link_or_copy(source.path / record.name, folder / record.name)
    _link_or_copy(source.manifest, folder / source.manifest.name)


def _link_or_copy(source: Path, target: Path) -> None:
    if source.suffix == _LINKED:
        try:
            os.link(source, target)
            return
        except OSError:  # another file system, or one without hard links
            pass
    shutil.copyfile(source, target)
