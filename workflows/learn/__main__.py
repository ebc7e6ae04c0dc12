"""learn: a recipe trained with several seeds, and what was learned, as tables and one picture.

Reads   a recipe
Writes  data/runs/NAME-SEED by the recipe's name; --svg the picture, --output what it is drawn
        from: a Parquet row a run and iteration

Accuracy on held-out questions before and after, how much of the gain is another choice among the
ways to answer and how much is accuracy within them, and how all of it moved from iteration to
iteration. Every run is an ordinary one, brought to its iteration as `make iteration` does: killed
and called again it goes on.

    python -m workflows.learn --svg learn.svg
    python -m workflows.learn --recipe workflows/recipes/sums-smollm2.toml --seeds 0
    python -m workflows.learn --run demo            # look at runs that are there; train nothing
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from common.command import Debug, Json, Quiet, launch
from common.errors import UserError
from common.recipe_file import load_recipe
from common.reporting.progress import set_quiet
from common.reporting.tables import first_and_last
from common.reporting.terminal import print_table
from common.runs.layout import DEFAULT_RECIPE, Run
from common.runs.manifest import write_atomically
from common.runs.shards import encode_parquet
from workflows.drawing import check_file
from workflows.learn import tables
from workflows.learn.plot import draw
from workflows.trials import Jobs, RecipeOption, Seeds, bring_to, trials

RECIPE = DEFAULT_RECIPE.with_name("learn.toml")

Iterations = Annotated[
    int | None, typer.Option("--iterations", min=1, help="The recipe's total_iterations if not.")
]
Runs = Annotated[
    list[str] | None, typer.Option("--run", help="Train nothing: look at this run; repeatable.")
]
Svg = Annotated[Path | None, typer.Option("--svg", help="Draw the curves into this file.")]
OutputPath = Annotated[
    Path | None, typer.Option("--output", help="Write the curves into this Parquet file.")
]


def main(
    recipe: RecipeOption = RECIPE,
    seeds: Seeds = "0,1,2",
    iterations: Iterations = None,
    jobs: Jobs = 1,
    run: Runs = None,
    svg: Svg = None,
    output: OutputPath = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Accuracy before and after, where the gain comes from, and the curves between."""
    set_quiet(quiet or as_json)
    check_file("--svg", svg, ".svg")
    check_file("--output", output, ".parquet")
    names, stops = list(dict.fromkeys(run or ())), list[str]()
    if not names:
        names, stops = trained(recipe, seeds, iterations, jobs, quiet or as_json)
    runs = [opened(name) for name in names]
    found = tables.all_tables(runs)
    if output is not None or svg is not None:
        curves = tables.curves(runs)
        if output is not None:
            write_atomically(output, encode_parquet(curves.to_arrow()))
        if svg is not None:
            draw(curves, tables.evaluations(runs), svg)
    if as_json:
        print(json.dumps({table.key: table.frame.to_dicts() for table in found}))
    elif not quiet:
        for table in found:
            print_table(table.frame, title=table.title)
    if stops:
        raise UserError("\n".join(stops))


def trained(
    recipe: Path, seeds: str, iterations: int | None, jobs: int, quiet: bool
) -> tuple[list[str], list[str]]:
    """Bring a run of each seed to its last iteration.

    Returns:
        The names of those that were, and of each other one what stopped it.

    Raises:
        UserError: the last policy would not be evaluated, or no run could be trained.
    """
    wanted = load_recipe(recipe)
    last, every = iterations or wanted.train.total_iterations, wanted.evaluate.every
    if not every:
        raise UserError(
            f"{recipe}: evaluate.every = 0, so nothing would be evaluated; set it to {last}, or to "
            "what divides it"
        )
    if last % every:
        raise UserError(
            f"{recipe}: evaluate.every = {every}, so policy {last} would not be evaluated; let "
            "--iterations be a multiple of it"
        )
    chosen = trials(recipe.stem, recipe, {"": ()}, seeds)
    made, stops = bring_to(chosen, last, jobs=jobs, quiet=quiet)
    return [trial.run.name for trial in made], stops


def opened(name: str) -> Run:
    """The run of that name.

    Raises:
        UserError: there is none, or not two of its policies are evaluated.
    """
    run = Run.named(name)
    if run.last_policy() < 0:
        raise UserError(f"{run.root}: no such run; make iteration N=10 RUN={name}")
    first_and_last(run)
    return run


if __name__ == "__main__":
    launch(main)
