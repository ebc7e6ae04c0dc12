"""ablation: one factor at a time around a recipe, over several seeds.

Reads   a recipe
Writes  data/runs/ablation-VARIANT-SEED, and two Parquet files: the metrics of every optimizer
        step, and beside it the held-out accuracy (`…-accuracy.parquet`)

Every run is an ordinary one, brought to its iteration by `make iteration`: killed and called again
it goes on. Policies 0 and N are evaluated.

    python -m workflows.ablation --output data/results/ablation.parquet
    python -m workflows.ablation --only default,gspo --seeds 0 --iterations 10 --jobs 2
    python -m workflows.ablation --only default --variant faster:train.learning_rate=4e-4
    python -m workflows.ablation --read data/results/ablation.parquet     # its table again
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import polars as pl
import typer

from common.command import Debug, Json, Quiet, launch
from common.errors import UserError
from common.reporting.progress import set_quiet
from common.reporting.terminal import print_table
from common.runs.layout import DEFAULT_RECIPE
from common.runs.manifest import write_atomically
from common.runs.shards import encode_parquet
from workflows.ablation import tables
from workflows.ablation.factors import FACTORS
from workflows.compare.variants import named_keys
from workflows.drawing import check_file
from workflows.trials import Jobs, RecipeOption, Seeds, Trial, bring_to, trials

Only = Annotated[str, typer.Option("--only", help=f"Of {', '.join(FACTORS)}.")]
Variants = Annotated[
    list[str] | None,
    typer.Option("--variant", help="NAME:section.key=value,… besides these; repeatable."),
]
Iterations = Annotated[int, typer.Option("--iterations", min=1, help="Of every run.")]
OutputPath = Annotated[Path | None, typer.Option("--output", help="Parquet file of the metrics.")]
ReadPath = Annotated[
    Path | None, typer.Option("--read", help="Run nothing: the table of such a file.")
]


def main(
    recipe: RecipeOption = DEFAULT_RECIPE,
    only: Only = "",
    variant: Variants = None,
    seeds: Seeds = "0,1,2",
    iterations: Iterations = 40,
    jobs: Jobs = 1,
    output: OutputPath = None,
    read: ReadPath = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train variants of a recipe with several seeds and compare them with the first."""
    set_quiet(quiet or as_json)
    stops: list[str] = []
    if read is not None:
        if output is not None:
            raise UserError("--read runs nothing and writes nothing: leave --output out")
        steps, accuracy = (read_table(path) for path in (read, accuracy_file(read)))
    else:
        check_file("--output", output, ".parquet")
        variants = variants_of(only, variant or [], iterations)
        chosen = trials("ablation", recipe, variants, seeds)
        made, stops = bring_to(chosen, iterations, jobs=jobs, quiet=quiet or as_json)
        steps, accuracy = collect(in_order(made, list(variants), stops), iterations)
        if output is not None:
            write_atomically(output, encode_parquet(steps.to_arrow()))
            write_atomically(accuracy_file(output), encode_parquet(accuracy.to_arrow()))
    table = tables.comparison(steps, accuracy)
    if as_json:
        print(json.dumps(table.to_dicts()))
    elif not quiet:
        print_table(table, title=tables.title(steps))
    if stops:
        raise UserError("\n".join(stops))


def in_order(made: list[Trial], variants: list[str], stops: list[str]) -> list[Trial]:
    """Variant by variant, the one first with which the others are compared.

    Raises:
        UserError: there is no run of that one.
    """
    if all(trial.variant.name != variants[0] for trial in made):
        missing = f"there is no run of {variants[0]!r}, with which the others would be compared"
        raise UserError("\n".join([*stops, missing]))
    return sorted(made, key=lambda trial: variants.index(trial.variant.name))


def collect(chosen: list[Trial], iterations: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Metrics of all optimizer steps, and accuracies of the first and the last policy."""
    return (
        pl.concat(tables.steps_of(trial, iterations) for trial in chosen),
        pl.concat((tables.accuracy_of(trial, iterations) for trial in chosen), how="diagonal"),
    )


def variants_of(only: str, own: list[str], iterations: int) -> dict[str, Sequence[str]]:
    """The factors that `--only` names, all when it is empty, and those of `--variant` behind them.

    All are evaluated at their ends, and keep what going on takes.

    Raises:
        UserError: an unknown factor, or a variant that is written otherwise or named twice.
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


def accuracy_file(metrics: Path) -> Path:
    """Where the accuracies lie that belong to a file of metrics."""
    return metrics.with_name(f"{metrics.stem}-accuracy.parquet")


def read_table(path: Path) -> pl.DataFrame:
    """A table that this command wrote.

    Raises:
        UserError: no such file, or another one.
    """
    try:
        found = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"--read {path}: {str(error).splitlines()[0]}") from None
    if not {"variant", "seed"} <= set(found.columns):
        raise UserError(f"--read {path}: not metrics that this command wrote (--output)")
    return found


if __name__ == "__main__":
    launch(main)
