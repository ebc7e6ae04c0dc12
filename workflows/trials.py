"""Runs trained by one command, each with a recipe of its own, as `make iteration` trains them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from common.config.recipe_file import read_recipe_text
from common.console import say
from common.errors import UserError
from common.process import usable_cores
from common.runs.layout import RUN_NAME_RULE, Run
from common.runs.manifest import write_atomically
from workflows.chain import launch
from workflows.chain.launch import Command
from workflows.variants import Variant, variant_of

RecipeOption = Annotated[Path, typer.Option("--recipe", help="What is trained.")]
Seeds = Annotated[str, typer.Option("--seeds", help="Values of run.seed, a run each.")]
Jobs = Annotated[
    int,
    typer.Option(
        "--jobs", min=1, help="Runs at a time, each with its share of the cores and a chain.log."
    ),
]


@dataclass(frozen=True)
class Trial:
    """A variant of a recipe with one seed."""

    run: Run
    variant: Variant
    seed: int


def trials(
    prefix: str, recipe: Path, variants: Mapping[str, Sequence[str]], seeds: str
) -> list[Trial]:
    """Return every variant with every seed, seed by seed, so that early results can be compared.

    Args:
        prefix: beginning of the runs' names, which are `PREFIX-VARIANT-SEED`.
        recipe: file with what the runs have in common.
        variants: by name, the keys that change the recipe, as `section.key=value`. The runs of a
            variant with an empty name are called `PREFIX-SEED`.
        seeds: value of `--seeds`.

    Raises:
        UserError: `seeds` cannot be read, a variant gives no valid recipe or name of a run, or a
            run was begun with another recipe.
    """
    text = read_recipe_text(recipe)
    found = []
    for seed in _numbers(seeds):
        for name, keys in variants.items():
            run = _run_called("-".join(filter(None, (prefix, name, str(seed)))))
            variant = variant_of(name, text, [*keys, f"run.seed={seed}"], str(recipe))
            found.append(Trial(run, variant, seed))
    for trial in found:
        path = trial.run.recipe
        if path.is_file() and path.read_text(encoding="utf-8") != trial.variant.text:
            raise UserError(
                f"{path} is not the recipe that {trial.run.name} would be trained with; remove "
                f"{trial.run.root} to train it anew"
            )
    return found


def bring_to(
    chosen: Sequence[Trial], iteration: int, *, jobs: int, quiet: bool
) -> tuple[list[Trial], list[str]]:
    """Bring runs to an iteration, making only what is missing.

    Args:
        jobs: how many runs are trained at a time. If several, each has its share of the cores and
            writes its output into a `chain.log` of its own.

    Returns:
        The trials that got there, in their order, and for each other one what stopped it.

    Raises:
        UserError: no trial got there.
    """
    jobs = min(jobs, len(chosen))
    with ThreadPoolExecutor(jobs) as pool:
        try:
            bring = partial(_bring_one, iteration=iteration, jobs=jobs, quiet=quiet)
            stops = list(pool.map(bring, chosen))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    made = [trial for trial, stop in zip(chosen, stops, strict=True) if not stop]
    stops = [stop for stop in stops if stop]
    if not made:
        raise UserError("\n".join(stops))
    return made, stops


def _bring_one(trial: Trial, iteration: int, jobs: int, quiet: bool) -> str:
    run = trial.run
    if not run.recipe.is_file():
        run.root.mkdir(parents=True, exist_ok=True)
        write_atomically(run.recipe, trial.variant.text.encode())
    say(f"{run.name}: to iteration {iteration}")
    options = ["--run", run.name, "--to", str(iteration)]
    options += ["--processes", str(trial.variant.processes), *(["--quiet"] if quiet else [])]
    chain = Command("workflows.chain", ["iteration", *options])
    if jobs == 1:
        return f"{run.name} stopped; its message is above" if launch.run(chain) else ""
    threads = max(1, usable_cores() // (jobs * trial.variant.processes))
    log = run.root / "chain.log"
    if launch.run(chain, environment={"OMP_NUM_THREADS": str(threads)}, log=log):
        return f"{run.name} stopped; the end of {log} says why"
    return ""


def _run_called(name: str) -> Run:
    try:
        return Run.named(name)
    except UserError:
        raise UserError(
            f"the recipe's file (--recipe) and the variant (--variant) would call a run {name!r}, "
            f"and {RUN_NAME_RULE}; rename one of them"
        ) from None


def _numbers(seeds: str) -> list[int]:
    try:
        return list(dict.fromkeys(int(part) for part in seeds.split(",")))
    except ValueError:
        raise UserError(f"--seeds {seeds!r}: whole numbers with commas, as 0,1,2") from None
