"""Which outputs are missing, stale or fresh, by content and never by time, and what is to be made.

An output is stale when the content hash of one of its inputs is no longer the one that its manifest
records. A changed recipe does not make it stale: it holds for what is still to be made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from common.config import Recipe
from common.console import python
from common.errors import UserError
from common.runs.layout import Output, Run
from common.runs.manifest import Manifest, has_manifest, publish, read_manifest, verify_files
from common.runs.policies import reference_of
from common.runs.stages import BY_NAME, STAGES, Stage, StageName

State = Literal["missing", "partial", "stale", "fresh"]


@dataclass(frozen=True)
class Status:
    """State of one output and, unless it is fresh, the reason."""

    state: State
    reason: str = ""


@dataclass(frozen=True)
class PlannedStage:
    """One stage that is to be run."""

    stage: Stage
    number: int
    """Number of the iteration, or of the policy that is evaluated."""
    reason: str

    def __str__(self) -> str:
        return f"{self.stage.name}-{self.number}" if self.stage.has_number else self.stage.name


def recover(run: Run, output: Output) -> None:
    """Finish the renames that a kill interrupted after the manifest was written.

    A stage's output and its companions are committed as one: once the manifest of the stage's own
    output is written, all of them count as complete.
    """
    if (output.partial / "manifest.json").is_file():
        for name in reversed(list(BY_NAME[output.stage].companions)):
            publish(run.companion(name, output.iteration))
    publish(output)


def inputs_of(run: Run, stage: StageName, number: int, recipe: Recipe) -> list[str]:
    """Return the names of a stage's inputs under a recipe, as manifests list them."""
    found: list[str] = []
    for source in BY_NAME[stage].inputs:
        at = number - source.back
        if not source.when(recipe) or (at < 1 and source.output not in _FROM_THE_START):
            continue
        output = _input(run, source.output, at, recipe)
        found.append(f"{output.name}:{source.part}" if source.part else output.name)
    return list(dict.fromkeys(found))


_FROM_THE_START = ("prepare", "policies")
"""Outputs that exist before the first iteration."""


def _input(run: Run, name: str, number: int, recipe: Recipe) -> Output:
    if name == "reference":
        reference = reference_of(run, number, recipe)
        assert reference is not None, "a stage asks for it only where the objective has a KL"
        return reference
    for stage in STAGES:
        if stage.name == name:
            return run.of(stage.name, number)
    return run.companion(name, number)


def input_hash(run: Run, name: str) -> str:
    """Return the state of an input now, as a string to compare with what a manifest recorded.

    Args:
        name: an output, for its content hash; or `output:what`, for the hash of that part of it
            (`prompts:train`) or for that fact of its manifest.

    Raises:
        UserError: the output does not exist; the message has the command that makes it.
    """
    output_name, _, what = name.partition(":")
    manifest = read_manifest(run.output(output_name))
    if not what:
        return manifest.content_hash
    return manifest.parts.get(what) or str(manifest.facts.get(what))


def input_hashes(run: Run, names: list[str]) -> dict[str, str]:
    """Return the `input_hash` of each name, for a manifest."""
    return {name: input_hash(run, name) for name in names}


def status_of(run: Run, output: Output) -> Status:
    """Return the state of an output, compared with its inputs as they are now.

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
    return _companions_are_whole(run, manifest)


def require_fresh(run: Run, output: Output) -> None:
    """Check that an output, and everything that it was made from, is complete and fresh.

    Raises:
        UserError: one is not; the message names the first to make again, with the command.
    """
    order = list(BY_NAME)
    needed = sorted(_made_from(run, output), key=lambda o: (o.iteration, order.index(o.stage)))
    for found in needed:
        status = status_of(run, found)
        if status.state != "fresh":
            command = found.command if status.state == "stale" else found.make_command
            raise UserError(
                f"{found.path} is {status.state} ({status.reason}); make it first: {command}"
            )


def _made_from(run: Run, output: Output) -> list[Output]:
    """Return an output and everything that it was made from, directly or through others."""
    found = {output.name: output}
    waiting = [output]
    while waiting:
        current = waiting.pop()
        names = read_manifest(current).inputs if has_manifest(current) else ()
        for name in (name.partition(":")[0] for name in names):
            if name not in found:
                found[name] = run.output(name)
                waiting.append(found[name])
    return list(found.values())


def _companions_are_whole(run: Run, manifest: Manifest) -> Status:
    """Return fresh if policy, reference and trainer state are those committed with the output."""
    companions = BY_NAME[manifest.stage].companions
    for name, recorded in manifest.facts.items():
        if name.partition("/")[0] not in companions:
            continue
        other = run.output(name)
        if not has_manifest(other):
            return Status("stale", f"{name} is missing")
        companion = read_manifest(other)
        if companion.content_hash != recorded:
            return Status("stale", f"{name} is not the one it was made with")
        verify_files(other, companion)
    return Status("fresh")


def plan(
    run: Run, recipe: Recipe, *, to: int, remake_from: int | None = None, prepare: bool = False
) -> list[PlannedStage]:
    """Return the stages to run, in order, so that the run is complete up to iteration `to`.

    Args:
        remake_from: make every stage of this iteration and of later ones again.
        prepare: run `prepare` even if it is fresh (it writes a changed recipe into the run).

    Raises:
        UserError: a file is damaged, something that is needed was pruned, or `remake_from` is
            beyond `to`.
    """
    if remake_from is not None and remake_from > to:
        raise UserError(f"FROM={remake_from} is beyond N={to}: nothing would be made again")
    planner = _Planner(run, remake_from)
    for number in range(to + 1):
        for stage in STAGES:
            begins = 1 if stage.per == "iteration" else 0
            ends = 0 if stage.per == "run" else to
            if begins <= number <= ends and stage.planned(recipe, number):
                planner.visit(stage, number, forced=prepare and stage.per == "run")
    _refuse_pruned(run, planner.steps, remake_from, recipe)
    return planner.steps


class _Planner:
    def __init__(self, run: Run, remake_from: int | None) -> None:
        self.steps: list[PlannedStage] = []
        self._run = run
        self._remake_from = remake_from
        self._remade: set[str] = set()

    def visit(self, stage: Stage, number: int, *, forced: bool = False) -> None:
        if stage.per == "policy" and self._gone(number):
            return
        output = self._run.of(stage.name, number)
        reason = self._reason(output)
        if reason:
            made = (self._run.companion(name, number) for name in stage.companions)
            self._remade |= {output.name, *(companion.name for companion in made)}
        if reason or forced:
            self.steps.append(PlannedStage(stage, number, reason or "the recipe was given"))

    def _gone(self, policy: int) -> bool:
        """Return whether a policy was pruned and is not made again, so cannot be evaluated."""
        output = self._run.policy(policy)
        remade = output.name in self._remade
        return not remade and has_manifest(output) and read_manifest(output).pruned

    def _reason(self, output: Output) -> str:
        if (
            self._remake_from is not None
            and BY_NAME[output.stage].has_number
            and output.iteration >= self._remake_from
        ):
            return f"asked for from iteration {self._remake_from}"
        if has_manifest(output):
            for name in read_manifest(output).inputs:
                if name.partition(":")[0] in self._remade:
                    return f"{name} is made again"
        return status_of(self._run, output).reason


def _refuse_pruned(
    run: Run, steps: list[PlannedStage], remake_from: int | None, recipe: Recipe
) -> None:
    """Raise `UserError` if the plan needs weights or trainer state that were pruned."""
    first = min((s.number for s in steps if s.stage.per == "iteration"), default=0)
    if not first:
        return
    pruned = [output for output in needed(run, first, recipe) if is_pruned(output)]
    if not pruned:
        return
    later = range(first + 1, run.last_policy() + 2) if remake_from == first else ()
    possible = next((n for n in later if not _pruned_before(run, n, recipe)), 1)
    message = (
        f"{pruned[0].path}: its files were pruned (run.keep_policies, run.keep_trainer), so "
        f"iteration {first} cannot be made again; the oldest possible is FROM={possible}"
    )
    if pruned[0] == run.trainer(first - 1):
        message += (
            f", or begin AdamW anew by hand: {python()} -m stages.train --run {run.name} "
            f"--iteration {first} --fresh-optimizer"
        )
    raise UserError(message)


def needed(run: Run, iteration: int, recipe: Recipe) -> list[Output]:
    """Return the models and the trainer state that `iteration` starts from."""
    reference = reference_of(run, iteration, recipe)
    starts = [run.policy(iteration - 1), run.trainer(iteration - 1)]
    return starts if reference is None else [*starts, reference]


def is_pruned(output: Output) -> bool:
    """Return whether an output's files were deleted to save disk space."""
    return has_manifest(output) and read_manifest(output).pruned


def _pruned_before(run: Run, iteration: int, recipe: Recipe) -> bool:
    """Return whether something that `iteration` starts from is pruned or missing."""
    return any(not has_manifest(o) or is_pruned(o) for o in needed(run, iteration, recipe))
