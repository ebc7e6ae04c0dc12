"""What is to be made: which stages are missing, stale or fresh, by content and never by time.

An output is stale when the content hash of one of its inputs is no longer what its manifest
recorded. A changed recipe is not staleness: it holds for what is still to be made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from common.config import Recipe
from common.errors import UserError
from common.runs.layout import ITERATION_STAGES, Output, Run, Stage
from common.runs.manifest import Manifest, has_manifest, read_manifest, verify_files
from common.runs.shards import publish

State = Literal["missing", "partial", "stale", "fresh"]


@dataclass(frozen=True)
class Status:
    """State of one output and, unless it is fresh, why."""

    state: State
    reason: str = ""


@dataclass(frozen=True)
class Step:
    """One stage that is to be run."""

    stage: Stage
    iteration: int
    reason: str

    @property
    def target(self) -> str:
        """Its name as a make target: `rollout-3`."""
        return self.stage if self.stage == "prepare" else f"{self.stage}-{self.iteration}"


def recover(run: Run, output: Output) -> None:
    """Finish renames that a kill interrupted after the manifest was written.

    Training commits three outputs as one; the manifest of its metrics decides for all of them.
    """
    if output.stage != "train":
        publish(output)
        return
    train = run.train(output.iteration)
    if (train.partial / "manifest.json").is_file():
        publish(run.trainer(output.iteration))
        publish(run.policy(output.iteration))
    publish(train)


def input_hash(run: Run, name: str) -> str:
    """What `name` is now: an output's content hash, or with `output:fact` a fact of its manifest.

    Raises:
        UserError: the output does not exist; the message has the command that makes it.
    """
    output_name, _, fact = name.partition(":")
    manifest = read_manifest(run.output(output_name))
    return str(manifest.facts[fact]) if fact else manifest.content_hash


def input_hashes(run: Run, names: list[str]) -> dict[str, str]:
    """`input_hash` of several, for a manifest."""
    return {name: input_hash(run, name) for name in names}


def status_of(run: Run, output: Output) -> Status:
    """State of an output against its inputs as they are now.

    Raises:
        UserError: its files are not what its manifest says (edited or damaged).
    """
    if not has_manifest(output):
        if output.partial.exists():
            return Status("partial", "begun, not complete")
        return Status("missing", "not made yet")
    manifest = read_manifest(output)
    verify_files(output, manifest)
    for name, recorded in manifest.inputs.items():
        try:
            now = input_hash(run, name)
        except UserError:
            return Status("stale", f"{name} is missing")
        if now != recorded:
            return Status("stale", f"{name} changed")
    if output.stage == "train":
        return _training_is_whole(run, output, manifest)
    return Status("fresh")


def require_fresh(run: Run, output: Output) -> None:
    """Raise `UserError`, with the command to run first, unless an output is complete and fresh."""
    status = status_of(run, output)
    if status.state != "fresh":
        raise UserError(
            f"{output.path} is {status.state} ({status.reason}); make it first: {output.command}"
        )


def _training_is_whole(run: Run, output: Output, manifest: Manifest) -> Status:
    """Fresh only if policy and trainer state are those that this training wrote."""
    made = [run.policy(output.iteration), run.trainer(output.iteration)]
    for other in made:
        if not has_manifest(other):
            return Status("stale", f"{other.name} is missing")
        if read_manifest(other).content_hash != manifest.facts[other.name]:
            return Status("stale", f"{other.name} is not the one this training wrote")
        verify_files(other, read_manifest(other))
    return Status("fresh")


def plan(
    run: Run, recipe: Recipe, *, to: int, remake_from: int | None = None, prepare: bool = False
) -> list[Step]:
    """The stages to run, in order, so that the run is complete up to iteration `to`.

    Args:
        remake_from: make every stage of this iteration and later ones again.
        prepare: run `prepare` though it is fresh (it writes a changed recipe into the run).

    Raises:
        UserError: a file is damaged, or a policy that is needed was pruned.
    """
    planner = _Planner(run, remake_from)
    planner.visit("prepare", 0, forced=prepare)
    planner.evaluate(recipe, 0)
    for iteration in range(1, to + 1):
        for stage in ITERATION_STAGES:
            planner.visit(stage, iteration)
        planner.evaluate(recipe, iteration)
    _refuse_pruned(run, planner.steps)
    return planner.steps


class _Planner:
    def __init__(self, run: Run, remake_from: int | None) -> None:
        self.steps: list[Step] = []
        self._run = run
        self._remake_from = remake_from
        self._remade: set[str] = set()

    def visit(self, stage: Stage, iteration: int, *, forced: bool = False) -> None:
        output = self._run.stage_output(stage, iteration)
        reason = self._reason(output)
        if reason:
            self._remade.add(output.name)
            if stage == "prepare":
                self._remade.add(self._run.policy(0).name)
            if stage == "train":
                self._remade.add(self._run.policy(iteration).name)
                self._remade.add(self._run.trainer(iteration).name)
        if reason or forced:
            self.steps.append(Step(stage, iteration, reason or "the recipe was given"))

    def evaluate(self, recipe: Recipe, policy: int) -> None:
        every = recipe.evaluate.every
        if every and policy % every == 0:
            self.visit("evaluate", policy)

    def _reason(self, output: Output) -> str:
        if (
            self._remake_from is not None
            and output.stage != "prepare"
            and output.iteration >= self._remake_from
        ):
            return f"asked for from iteration {self._remake_from}"
        if has_manifest(output):
            for name in read_manifest(output).inputs:
                if name.partition(":")[0] in self._remade:
                    return f"{name} is made again"
        return status_of(self._run, output).reason


def _refuse_pruned(run: Run, steps: list[Step]) -> None:
    """Refuse a plan that begins at a policy whose weights were pruned."""
    numbers = [step.iteration for step in steps if step.stage in ITERATION_STAGES]
    if not numbers:
        return
    start = run.policy(min(numbers) - 1)
    if not has_manifest(start) or not read_manifest(start).pruned:
        return
    kept = [
        number
        for number in range(run.last_policy() + 1)
        if not read_manifest(run.policy(number)).pruned
    ]
    later = [number for number in kept if number >= min(numbers)]
    raise UserError(
        f"{start.path}: its weights were pruned (run.keep_policies), so iteration "
        f"{min(numbers)} cannot be made again; the oldest possible is "
        f"FROM={(later or kept)[0] + 1}, or FROM=1 for all of it"
    )
