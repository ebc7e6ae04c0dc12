"""compare: several recipes trained from the very same frozen iteration, side by side.

Each variant is a child run beside its parent (`demo.3.dapo`), which begins with the parent's
iteration N up to its rollout. Scores and logprobs are taken over where the variant would make the
same, and made again where it would not; then the real train stage trains policy N. Nothing in the
parent changes except link counts, and with them the stat that its manifests note. A child is an
ordinary run: `make iteration N=10 RUN=demo.3.dapo` goes on with it.

    python -m workflows.compare --run demo --iteration 3 --preset grpo --preset dapo
    python -m workflows.compare --run demo --iteration 3 --set train.epochs=2 \
        --variant pp1:mesh.pp_degree=1 --variant pp2:mesh.pp_degree=2 --svg compare.svg
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from common.command import Debug, Iteration, Json, Quiet, RunName, launch
from common.console import print_json, set_quiet
from common.reporting.plotting import check_file
from common.runs.child import Frozen
from common.runs.layout import Run, no_such_run
from common.runs.manifest import has_manifest
from workflows.compare.children import VariantResult, make_children, run_stages, take_over
from workflows.compare.side_by_side import SideBySide
from workflows.compare.variants import read_variants

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
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Remove the runs of these variants and make them anew.")
]
Svg = Annotated[Path | None, typer.Option("--svg", help="Plot metrics by step into this file.")]
OutputPath = Annotated[
    Path | None,
    typer.Option(
        "--output",
        help="Write the metrics into this Parquet, a row per variant and optimizer step.",
    ),
]


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
    check_file("--svg", svg, ".svg")
    check_file("--output", output, ".parquet")
    parent = Run.named(run)
    if not has_manifest(parent.prompts):
        raise no_such_run(parent)
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
    outcomes = [VariantResult(v, child) for v, child in zip(variants, children, strict=True)]
    for index, outcome in enumerate(outcomes):
        take_over(frozen, outcome, [parent, *children[:index]])
        run_stages(outcome, iteration, evaluate=evaluate, quiet=quiet or as_json)
    side_by_side = SideBySide.of(frozen, outcomes)
    side_by_side.write(svg=svg, output=output)
    if as_json:
        print_json(side_by_side.as_json())
    elif not quiet:
        side_by_side.print()
    if failed := [outcome.exit_code for outcome in outcomes if outcome.exit_code]:
        raise typer.Exit(failed[0])


if __name__ == "__main__":
    launch(main)
