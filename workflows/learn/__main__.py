"""learn: a recipe trained with several seeds, and what was learned, as tables and one picture.

Reads   a recipe
Writes  data/runs/NAME-SEED by the recipe's name; --svg a picture, --output a folder with the
        tables that are printed and what is drawn, as Parquet

It shows accuracy on held-out questions before and after, how much of the gain is another choice
among the ways to answer and how much is accuracy within them, and how all of it moved from
iteration to iteration. Every run is an ordinary one, brought to its iteration as `make iteration`
does: if killed, it goes on when the command is called again.

    python -m workflows.learn --svg learn.svg
    python -m workflows.learn --recipe workflows/recipes/sums-smollm2.toml --seeds 0
    python -m workflows.learn --run demo                   # a run that is there; trains nothing
    python -m workflows.learn --read data/results/learn    # what is tracked of such runs
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from common.command import Debug, Json, Quiet, launch, refuse_besides
from common.config.recipe_file import load_recipe
from common.console import set_quiet
from common.errors import UserError
from common.reporting.evaluation_tables import first_and_last
from common.reporting.plotting import check_file
from common.reporting.terminal import print_tables
from common.runs.layout import DEFAULT_RECIPE, Run, no_such_run
from workflows.learn import tables
from workflows.learn.plot import draw
from workflows.results import OutputFolder, ReadFolder, check_folder, read_results, write_results
from workflows.trials import Jobs, RecipeOption, Seeds, bring_to, trials

RECIPE = DEFAULT_RECIPE.with_name("learn.toml")

Iterations = Annotated[
    int | None, typer.Option("--iterations", min=1, help="The recipe's total_iterations if not.")
]
Runs = Annotated[
    list[str] | None, typer.Option("--run", help="Train nothing: look at this run; repeatable.")
]
Svg = Annotated[Path | None, typer.Option("--svg", help="Draw the curves into this file.")]
SHOWING = ("svg", "quiet", "as_json", "debug")
"""Options that only decide what is shown."""


def main(
    context: typer.Context,
    recipe: RecipeOption = RECIPE,
    seeds: Seeds = "0,1,2",
    iterations: Iterations = None,
    jobs: Jobs = 1,
    run: Runs = None,
    read: ReadFolder = None,
    svg: Svg = None,
    output: OutputFolder = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a recipe with several seeds and show what was learned.

    That is accuracy before and after, where the gain comes from, and the curves between.
    """
    set_quiet(quiet or as_json)
    check_file("--svg", svg, ".svg")
    check_folder("--output", output)
    with_curves = output is not None or svg is not None
    stops: list[str] = []
    if read is not None:
        refuse_besides(context, "--read", "read", *SHOWING)
        results = read_results(read, tables.COLUMNS)
    elif run:
        refuse_besides(context, "--run", "run", "output", *SHOWING)
        results = tables.results([opened(name) for name in dict.fromkeys(run)], with_curves)
    else:
        made, stops = trained(recipe, seeds, iterations, jobs, quiet or as_json)
        results = tables.results(made, with_curves)
    if output is not None:
        write_results(output, results)
    if svg is not None:
        draw(results["curves"], results["evaluations"], svg)
    if as_json or not quiet:
        print_tables(tables.printed(results, as_json=as_json), as_json=as_json)
    if stops:
        raise UserError("\n".join(stops))


def trained(
    recipe: Path, seeds: str, iterations: int | None, jobs: int, quiet: bool
) -> tuple[list[Run], list[str]]:
    """Bring a run of each seed to its last iteration.

    Returns:
        The runs that got there, and for each other one what stopped it.

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
    return [trial.run for trial in made], stops


def opened(name: str) -> Run:
    """Return the run of that name.

    Raises:
        UserError: there is none, or fewer than two of its policies are evaluated.
    """
    run = Run.named(name)
    if run.last_policy() < 0:
        raise no_such_run(run)
    first_and_last(run)  # raises before any table is made
    return run


if __name__ == "__main__":
    launch(main)
