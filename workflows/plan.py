"""Which stages make has to run: prints them as targets, in order, on one line.

Reads a run and its recipe, writes nothing.

    python -m workflows.plan --run demo --to 3
"""

from __future__ import annotations

from typing import Annotated

import typer

from common.command import Overrides, RecipePath, RunName, launch
from common.runs.freshness import plan
from common.runs.layout import Run
from common.runs.recipe import recipe_in_force


def main(
    run: RunName,
    to: Annotated[int, typer.Option("--to", min=0, help="Iteration that is to be complete.")],
    remake_from: Annotated[
        int | None, typer.Option("--from", min=1, help="Make this iteration and later ones again.")
    ] = None,
    recipe: RecipePath = None,
    overrides: Overrides = None,
) -> None:
    """Print the make targets that bring a run to an iteration."""
    place = Run.named(run)
    in_force = recipe_in_force(place, recipe, overrides)
    given = recipe is not None or bool(overrides)
    steps = plan(place, in_force, to=to, remake_from=remake_from, prepare=given)
    print(*(str(step) for step in steps))


if __name__ == "__main__":
    launch(main)
