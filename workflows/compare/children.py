"""The runs of compared variants, made beside their parent and trained by the ordinary stages."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass

from common.console import say, warn
from common.errors import UserError
from common.rewards.registry import function_versions, package_versions
from common.runs.child import Frozen, adopt
from common.runs.freshness import status_of
from common.runs.layout import Run
from common.runs.manifest import read_manifest
from common.runs.shards import read_output
from common.runs.stages import BY_NAME, OF_AN_ITERATION, StageName
from workflows.chain import launch
from workflows.chain.launch import Command
from workflows.compare.variants import not_applied
from workflows.variants import Variant

AFTER_ROLLOUT = OF_AN_ITERATION[1:]
"""Stages of the frozen iteration that a child runs; the last one trains."""


@dataclass
class VariantResult:
    """A variant and what became of it."""

    variant: Variant
    child: Run
    failed: StageName | None = None
    """The stage that failed, if one did."""
    exit_code: int = 0

    @property
    def is_trained(self) -> bool:
        return self.failed in (None, "evaluate")

    @property
    def result(self) -> str:
        return f"{self.failed}: exit code {self.exit_code}" if self.failed else "trained"


def make_children(frozen: Frozen, variants: Iterable[Variant], *, overwrite: bool) -> list[Run]:
    """Make a child run for each variant; check runs that exist already before any work.

    Raises:
        UserError: a run of that name exists and is not this variant's child; or, with `overwrite`,
            it was not made from this iteration at all, or has gone on to later ones.
    """
    pairs = [(variant, frozen.child(variant.name)) for variant in variants]
    for variant, child in pairs:
        if not child.root.exists():
            continue
        if overwrite:
            frozen.require_removable(child)
        elif why := frozen.difference(child, variant.recipe):
            raise UserError(
                f"{child.root} is there and is not a child of iteration {frozen.iteration} of "
                f"{frozen.run.name} with this recipe: {why}. Give the variant another name, or "
                "--overwrite: the run is removed and made again"
            )
    for variant, child in pairs:
        if overwrite and child.root.exists():
            shutil.rmtree(child.root)
        if not child.root.exists():
            frozen.make(child, variant.text)
        if keys := not_applied(frozen, variant):
            say(
                f"{variant.name}: {', '.join(keys)} cannot change a rollout that is frozen; "
                f"{child.name} has it from iteration {frozen.iteration + 1} on"
            )
    return [child for _, child in pairs]


def take_over(frozen: Frozen, outcome: VariantResult, donors: list[Run]) -> None:
    """Take over scores and logprobs from the parent or an earlier variant, where they are alike."""
    recipe, child, number = outcome.variant.recipe, outcome.child, frozen.iteration
    types = read_output(frozen.run.rollout(number), ["verify_type"])["verify_type"].unique()
    judged_by = package_versions(types.to_pylist()) | function_versions(recipe.rewards)
    for stage in AFTER_ROLLOUT[:-1]:
        output, made_by = child.of(stage.name, number), judged_by if stage.name == "score" else None
        donor = adopt(child, output, recipe, donors, made_by)
        if donor is not None:
            say(f"{outcome.variant.name}: {output.name} taken from {donor.name}")


def run_stages(outcome: VariantResult, iteration: int, *, evaluate: bool, quiet: bool) -> None:
    """Run the missing stages as one would by hand; the first that fails ends the variant."""
    child, variant = outcome.child, outcome.variant
    for stage in (*AFTER_ROLLOUT, *((BY_NAME["evaluate"],) if evaluate else ())):
        if _is_fresh(child, stage.name, iteration):
            if stage.name == "train":
                _warn_of_edited_term(outcome, iteration)
            continue
        # An evaluation is divided by questions, so it needs no mesh; compare prints its table.
        processes = variant.processes if stage.processes == "mesh" else 1
        arguments = ["--run", child.name, "--iteration", str(iteration)]
        arguments += ["--quiet"] if quiet or stage.per == "policy" else []
        command = Command(f"stages.{stage.name}", arguments, processes)
        say(f"{variant.name}: {command}")
        if code := launch.run(command):
            outcome.failed, outcome.exit_code = stage.name, code
            return


def _warn_of_edited_term(outcome: VariantResult, iteration: int) -> None:
    """Warn if a variant was trained by the recipe's own policy term as it was before an edit."""
    objective, output = outcome.variant.recipe.objective, outcome.child.train(iteration)
    if not objective.has_own_term:
        return
    from common.training.policy_term import policy_term_versions

    if read_manifest(output).recorded.get("made_by", {}) != policy_term_versions(objective):
        warn(
            f"{output.path}: trained with {objective.policy_term} as it was before its file was "
            "edited; --overwrite makes the variant again"
        )


def _is_fresh(child: Run, stage: StageName, iteration: int) -> bool:
    """Return whether there is nothing to do; what is damaged is left to the stage to report."""
    try:
        return status_of(child, child.of(stage, iteration)).state == "fresh"
    except UserError:
        return False
