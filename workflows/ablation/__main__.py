"""ablation: one factor at a time around a recipe, over several seeds.

Reads   a recipe
Writes  data/runs/ablation-VARIANT-SEED; --output a folder with the metrics of every optimizer step
        and the held-out accuracy, as Parquet

Every run is an ordinary one, brought to its iteration as `make iteration` does: if killed, it goes
on when the command is called again. Policies 0 and N are evaluated.

    python -m workflows.ablation --output data/results/ablation
    python -m workflows.ablation --only default,gspo --seeds 0 --iterations 10 --jobs 2
    python -m workflows.ablation --only default --variant faster:train.learning_rate=4e-4
    python -m workflows.ablation --read data/results/ablation     # its tables again
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from common.command import Debug, Json, Quiet, launch, refuse_besides
from common.console import set_quiet
from common.errors import UserError
from common.reporting.terminal import print_tables
from common.runs.layout import DEFAULT_RECIPE
from workflows.ablation import tables
from workflows.ablation.factors import FACTORS
from workflows.results import OutputFolder, ReadFolder, check_folder, read_results, write_results
from workflows.trials import Jobs, RecipeOption, Seeds, Trial, bring_to, trials
from workflows.variants import named_keys

Only = Annotated[str, typer.Option("--only", help=f"Of {', '.join(FACTORS)}.")]
Variants = Annotated[
    list[str] | None,
    typer.Option("--variant", help="NAME:section.key=value,… besides these; repeatable."),
]
Iterations = Annotated[int, typer.Option("--iterations", min=1, help="Of every run.")]


def main(
    context: typer.Context,
    recipe: RecipeOption = DEFAULT_RECIPE,
    only: Only = "",
    variant: Variants = None,
    seeds: Seeds = "0,1,2",
    iterations: Iterations = 40,
    jobs: Jobs = 1,
    output: OutputFolder = None,
    read: ReadFolder = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train variants of a recipe with several seeds and compare them with the first."""
    set_quiet(quiet or as_json)
    check_folder("--output", output)
    stops: list[str] = []
    if read is not None:
        refuse_besides(context, "--read", "read", "quiet", "as_json", "debug")
        results = read_results(read, tables.COLUMNS)
    else:
        variants = variants_of(only, variant or [], iterations)
        chosen = trials("ablation", recipe, variants, seeds)
        made, stops = bring_to(chosen, iterations, jobs=jobs, quiet=quiet or as_json)
        results = tables.results(in_order(made, list(variants), stops), iterations)
        if output is not None:
            write_results(output, results)
    if as_json or not quiet:
        print_tables(tables.printed(results), as_json=as_json)
    if stops:
        raise UserError("\n".join(stops))


def in_order(made: list[Trial], variants: list[str], stops: list[str]) -> list[Trial]:
    """Sort the trials by variant, beginning with the one that the others are compared with.

    Raises:
        UserError: there is no run of that variant.
    """
    if all(trial.variant.name != variants[0] for trial in made):
        missing = f"there is no run of {variants[0]!r}, with which the others would be compared"
        raise UserError("\n".join([*stops, missing]))
    return sorted(made, key=lambda trial: variants.index(trial.variant.name))


def variants_of(only: str, own: list[str], iterations: int) -> dict[str, Sequence[str]]:
    """Return the keys of each variant: factors of `--only` (all if empty), then each `--variant`.

    Every variant is evaluated at its first and last policy, and keeps what it needs to go on.

    Raises:
        UserError: a factor is unknown, or a variant is malformed, unnamed or named twice.
    """
    wanted = [name.strip() for name in only.split(",") if name.strip()] or list(FACTORS)
    for name in wanted:
        if name not in FACTORS:
            raise UserError(f"--only {only!r}: {name!r} is none of {', '.join(FACTORS)}")
    common = ("run.keep_policies=2", "run.keep_trainer=2", f"evaluate.every={iterations}")
    chosen: dict[str, Sequence[str]] = {name: (*common, *FACTORS[name]) for name in wanted}
    for option in own:
        name, keys = named_keys(option)
        if not name or name in chosen:
            raise UserError(f"--variant {option!r}: give it a name of its own")
        chosen[name] = (*common, *keys)
    return chosen


if __name__ == "__main__":
    launch(main)
