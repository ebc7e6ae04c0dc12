"""compare: several recipes trained from the very same frozen iteration, side by side.

Each variant is a child run beside its parent (`demo.3.dapo`), which begins with the parent's
iteration N up to its rollout. Scores and logprobs are taken over where the variant would make the
same, and made again where it would not; then the real train stage trains policy N. The parent is
read only. A child is an ordinary run: `make iteration N=10 RUN=demo.3.dapo` goes on with it.

    python -m workflows.compare --run demo --iteration 3 --preset grpo --preset dapo
    python -m workflows.compare --run demo --iteration 3 --set train.epochs=2 \
        --variant pp1:mesh.pp_degree=1 --variant pp2:mesh.pp_degree=2 --svg compare.svg
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import typer

from common.command import Debug, Iteration, Json, Overwrite, Quiet, RunName, launch
from common.errors import UserError
from common.reporting.progress import say, set_quiet
from common.reporting.terminal import print_table
from common.rewards.registry import function_versions, package_versions
from common.runs.child import Frozen, adopt
from common.runs.freshness import status_of
from common.runs.layout import Run, Stage
from common.runs.manifest import has_manifest, write_atomically
from common.runs.shards import encode_parquet, read_output
from workflows import compare_tables as tables
from workflows.compare_plot import draw, require_matplotlib
from workflows.compare_variants import Variant, not_applied, read_variants

Presets = Annotated[
    list[str] | None,
    typer.Option("--preset", help="A variant with the settings of a paper; repeatable."),
]
Recipes = Annotated[
    list[Path] | None,
    typer.Option("--recipe", help="A variant from a recipe file, called by its stem; repeatable."),
]
Variants = Annotated[
    list[str] | None,
    typer.Option("--variant", help="NAME:section.key=value,… over the run's recipe; repeatable."),
]
Common = Annotated[
    list[str] | None,
    typer.Option("--set", help="section.key=value for all variants; repeatable."),
]
Evaluate = Annotated[
    bool, typer.Option("--evaluate", help="Also answer the held-out questions with each policy.")
]
Svg = Annotated[Path | None, typer.Option("--svg", help="Plot metrics by step into this file.")]
OutputPath = Annotated[
    Path | None, typer.Option("--output", help="Write a row a variant and step to this Parquet.")
]


@dataclass
class Outcome:
    """A variant and what became of it."""

    variant: Variant
    child: Run
    failed: Stage | None = None
    """The stage that ended it before its time."""
    exit_code: int = 0

    @property
    def is_trained(self) -> bool:
        return self.failed in (None, "evaluate")

    @property
    def result(self) -> str:
        return f"{self.failed}: exit code {self.exit_code}" if self.failed else "trained"


def main(
    run: RunName,
    iteration: Iteration,
    preset: Presets = None,
    recipe: Recipes = None,
    variant: Variants = None,
    common: Common = None,
    evaluate: Evaluate = False,
    overwrite: Overwrite = False,
    svg: Svg = None,
    output: OutputPath = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train several recipes from the same frozen iteration and compare them.

    The first variant is the baseline: presets, then recipes, then variants, each in order.
    """
    set_quiet(quiet or as_json)
    _check_files(svg, output)
    parent = Run.named(run)
    if not has_manifest(parent.prompts):
        raise UserError(f"{parent.root}: no such run; begin it with: make iteration RUN={run} N=1")
    frozen = Frozen(parent, iteration)
    frozen.check()
    variants = read_variants(
        frozen,
        presets=preset or [],
        recipes=recipe or [],
        variants=variant or [],
        common=common or [],
    )
    children = make_children(frozen, variants, overwrite=overwrite)
    stages: tuple[Stage, ...] = ("score", "logprobs", "train", *(("evaluate",) if evaluate else ()))
    outcomes = [Outcome(v, child) for v, child in zip(variants, children, strict=True)]
    options = ["--quiet"] if quiet or as_json else []
    for index, outcome in enumerate(outcomes):
        take_over(frozen, outcome, [parent, *children[:index]])
        train(outcome, iteration, stages, options)
    side_by_side = SideBySide.of(frozen, outcomes)
    side_by_side.write(svg=svg, output=output)
    if as_json:
        print(json.dumps(side_by_side.as_json()))
    elif not quiet:
        side_by_side.print()
    if failed := [outcome.exit_code for outcome in outcomes if outcome.exit_code]:
        raise typer.Exit(failed[0])


@dataclass(frozen=True)
class SideBySide:
    """What the variants came to: tables with a row a variant, and one with a row a step."""

    title: str
    facts: dict[str, str | int]
    results: pl.DataFrame
    steps: pl.DataFrame
    policies: pl.DataFrame
    accuracy: pl.DataFrame

    @classmethod
    def of(cls, frozen: Frozen, outcomes: list[Outcome]) -> SideBySide:
        """Read what the children have on disk."""
        run, number, baseline = frozen.run.name, frozen.iteration, outcomes[0].variant.name
        trained = {o.variant.name: o.child for o in outcomes if o.is_trained}
        columns = {
            "variant": [o.variant.name for o in outcomes],
            "result": [o.result for o in outcomes],
            "run": [o.child.name for o in outcomes],
        }
        return cls(
            title=f"{run}, iteration {number}",
            facts={"run": run, "iteration": number, "baseline": baseline},
            results=pl.DataFrame(columns),
            steps=tables.step_table(trained, number),
            policies=tables.policies_table(trained, number, baseline),
            accuracy=tables.accuracy_table(trained, number, baseline),
        )

    def write(self, *, svg: Path | None, output: Path | None) -> None:
        """The files that were asked for."""
        if output is not None:
            write_atomically(output, encode_parquet(self.steps.to_arrow()))
        if svg is not None and self.steps.height:
            draw(self.steps, svg, title=f"{self.title}: the same completions, several recipes")

    def print(self) -> None:
        """Three tables; the third where policies were evaluated."""
        metrics = tables.metrics_table(self.steps)
        whole = self.results.drop("run").join(metrics, on="variant", how="left")
        print_table(whole, title=f"{self.title}: means over the optimizer steps")
        number = int(self.facts["iteration"])
        against = f"against {self.facts['baseline']}"
        print_table(self.policies, title=f"policy {number} minus policy {number - 1}, {against}")
        if self.accuracy.height:
            print_table(self.accuracy, title=f"held-out questions, policy {number}, {against}")

    def as_json(self) -> dict[str, Any]:
        """Everything that is printed, a row a variant."""
        whole = self.results
        for table in (tables.metrics_table(self.steps), self.policies, self.accuracy):
            whole = whole.join(table, on="variant", how="left") if table.width else whole
        return self.facts | {"variants": tables.finite(whole)}


def make_children(frozen: Frozen, variants: Iterable[Variant], *, overwrite: bool) -> list[Run]:
    """A child run for each variant; those that are there already are checked, all before any work.

    Raises:
        UserError: a run of that name is there and is not this variant's child.
    """
    pairs = [(variant, frozen.child(variant.name)) for variant in variants]
    for variant, child in pairs:
        there = child.root.exists() and not overwrite
        if there and (why := frozen.difference(child, variant.recipe)):
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
                f"{variant.name}: {', '.join(keys)} made no difference to the frozen rollout; "
                f"a continued {child.name} has it from iteration {frozen.iteration + 1} on"
            )
    return [child for _, child in pairs]


def take_over(frozen: Frozen, outcome: Outcome, donors: list[Run]) -> None:
    """Scores and logprobs from the parent or from a variant before, where they are alike."""
    recipe, child, number = outcome.variant.recipe, outcome.child, frozen.iteration
    types = read_output(frozen.run.rollout(number), ["verify_type"])["verify_type"].unique()
    judged_by = package_versions(types.to_pylist()) | function_versions(recipe.rewards)
    for output, made_by in ((child.score(number), judged_by), (child.logprobs(number), None)):
        donor = adopt(child, output, recipe, donors, made_by)
        if donor is not None:
            say(f"{outcome.variant.name}: {output.name} is that of {donor.name}")


def train(outcome: Outcome, iteration: int, stages: Iterable[Stage], options: list[str]) -> None:
    """Run the stages that are missing, as one would; the first that fails ends the variant."""
    child, variant = outcome.child, outcome.variant
    for stage in stages:
        if _is_fresh(child, stage, iteration):
            continue
        # An evaluation is divided by questions: it needs no mesh.
        processes = 1 if stage in ("score", "evaluate") else variant.processes
        command = [*_launcher(processes), f"stages.{stage}", "--run", child.name]
        # Of an evaluation the table below says all.
        command += [
            "--iteration",
            str(iteration),
            *(["--quiet"] if stage == "evaluate" else options),
        ]
        say(f"{variant.name}: {' '.join(['python', *command[1:]])}")
        code = subprocess.run(command, env=_environment(processes), check=False).returncode
        if code:
            # As a shell has it: 128 and the number of the signal that ended a process.
            outcome.failed, outcome.exit_code = stage, code if code > 0 else 128 - code
            return


def _check_files(svg: Path | None, output: Path | None) -> None:
    """Refuse what could not be written at the end."""
    for option, path, suffix in (("--svg", svg, ".svg"), ("--output", output, ".parquet")):
        if path is not None and (path.suffix != suffix or not path.parent.is_dir()):
            raise UserError(f"{option} {path}: name a {suffix} file in a folder that exists")
    if svg is not None:
        require_matplotlib()


def _is_fresh(child: Run, stage: Stage, iteration: int) -> bool:
    """Whether there is nothing to do; what is damaged is left for the stage to name."""
    try:
        return status_of(child, child.stage_output(stage, iteration)).state == "fresh"
    except UserError:
        return False


def _launcher(processes: int) -> list[str]:
    if processes == 1:
        return [sys.executable, "-m"]
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    # Without the dashes torchrun takes --run for an abbreviation of its own options.
    return [sys.executable, "-m", *torchrun, "-m", "--"]


def _environment(processes: int) -> dict[str, str]:
    """One thread a rank: torchrun's own default, said by us so that it does not warn of it."""
    return ({"OMP_NUM_THREADS": "1"} if processes > 1 else {}) | dict(os.environ)


if __name__ == "__main__":
    launch(main)
