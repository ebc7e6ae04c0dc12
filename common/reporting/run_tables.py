"""A run as polars tables: its iterations, groups and completions, its state and its size."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import polars as pl

from common.config import Recipe
from common.errors import UserError
from common.runs.columns import polars_frame
from common.runs.freshness import status_of
from common.runs.layout import Output, Run, run_names
from common.runs.manifest import read_manifest
from common.runs.metrics import training_steps
from common.runs.recipe import made_otherwise, recipe_in_force
from common.runs.shards import read_output
from common.runs.stages import SIDE_STAGES, STAGES

STEP_COLUMNS = (
    "loss",
    "kl",
    "entropy",
    "clip_fraction_low",
    "clip_fraction_high",
    "grad_norm",
    "learning_rate",
)


_SUMMARY = ("iteration", "reward_mean", "evaluated", "greedy", "changed", "model", "data")


def run_table(run: Run) -> pl.DataFrame:
    """Return one row per iteration of a run.

    Losses, ratios and gradients are means over the optimizer steps that were taken; rewards are
    means over all steps. Groups without variance, lengths and truncation are of the first pass over
    the completions.

    Raises:
        UserError: no iteration is complete.
    """
    steps = polars_frame(training_steps(run))
    if steps.is_empty():
        raise UserError(f"{run.root}: no iteration is complete yet; make one: {run.make(1)}")
    first_pass = pl.col("epoch") == 0
    tokens = pl.col("completion_tokens").filter(first_pass).sum()
    return steps.group_by("iteration", maintain_order=True).agg(
        pl.len().alias("steps"),
        pl.col("reward_mean").mean(),
        pl.col("zero_variance_groups").filter(first_pass).sum(),
        (tokens / pl.col("completions").filter(first_pass).sum()).alias("tokens"),
        pl.col("truncated_fraction").filter(first_pass).mean(),
        *(pl.col(name).filter(~pl.col("skipped")).mean() for name in STEP_COLUMNS),
    )


def runs_table(folder: Path) -> pl.DataFrame:
    """Return one row per run in `folder`, the one that was changed last first.

    `iteration` is the last complete one, and null for a run that is not prepared; so are figures
    that no stage has made.

    Raises:
        UserError: there is no run.
    """
    rows = [_summary(Run.named(name, folder)) for name in run_names(folder)]
    if not rows:
        raise UserError(f"{folder}: no run yet; make the first with: make iteration N=20")
    frame = pl.DataFrame(rows, infer_schema_length=None)
    return frame.sort("changed", descending=True, nulls_last=True, maintain_order=True)


def groups_table(run: Run, iteration: int) -> pl.DataFrame:
    """Return one row per group of an iteration: the question, rewards, verdicts, lengths.

    It has a column `kept` if dynamic sampling left groups out of the batch.
    """
    completions = scored_completions(run, iteration)
    rejected = not completions["kept"].all()
    return completions.group_by("group_id", maintain_order=True).agg(
        pl.col("task").first(),
        pl.col("question").first(),
        pl.col("answer").first(),
        pl.col("reward").mean().alias("reward_mean"),
        pl.col("reward").std().alias("reward_std"),
        (pl.col("verdict") == "correct").sum().alias("correct"),
        pl.len().alias("samples"),
        pl.col("completion_ids").list.len().mean().alias("tokens"),
        (pl.col("finish_reason") == "length").sum().alias("truncated"),
        *([pl.col("kept").all()] if rejected else []),
    )


def scored_completions(run: Run, iteration: int) -> pl.DataFrame:
    """Return rollout and score of an iteration, side by side.

    Raises:
        UserError: the iteration is not scored.
    """
    rollout = polars_frame(read_output(run.rollout(iteration)))
    read_manifest(run.score(iteration))
    score = polars_frame(read_output(run.score(iteration)))
    return rollout.join(score, on="rollout_id", how="inner", maintain_order="left")


def status_table(run: Run) -> pl.DataFrame:
    """Return one row per iteration: the state of each stage, and why it is stale."""
    last = max(run.iterations(), default=0)
    rows = [_states(run, number) for number in range(last + 1)]
    return pl.DataFrame(rows, infer_schema_length=None).fill_null("")


def recipe_changes(run: Run, recipe: Recipe) -> pl.DataFrame:
    """Return one row per recipe key and finished stage that was made with another value."""
    rows = [
        {"iteration": found.iteration, "stage": found.stage, "key": key}
        | {"made with": str(then), "now": str(now)}
        for found, key, then, now in made_otherwise(run, recipe)
    ]
    return pl.DataFrame(rows, infer_schema_length=None)


def disk_table(run: Run) -> pl.DataFrame:
    """Return bytes on disk by part of the run; a file linked several times counts once."""
    sizes: dict[str, int] = {}
    seen: set[tuple[int, int]] = set()
    for path in sorted(run.root.rglob("*")):
        stat = path.stat()
        if path.is_file() and (stat.st_dev, stat.st_ino) not in seen:
            seen.add((stat.st_dev, stat.st_ino))
            part = path.relative_to(run.root).parts
            kind = part[2] if part[0] == "iterations" and len(part) > 3 else part[0]
            sizes[kind] = sizes.get(kind, 0) + stat.st_size
    frame = pl.DataFrame({"part": list(sizes), "bytes": list(sizes.values())})
    return frame.sort("bytes", descending=True)


def _summary(run: Run) -> dict[str, object]:
    """Return one row of `runs_table`; what cannot be read is null."""
    row: dict[str, object] = {"run": run.name, **dict.fromkeys(_SUMMARY)}
    last, evaluations = run.last_policy(), run.evaluations()
    with suppress(UserError):
        recipe = recipe_in_force(run)
        row |= {"model": Path(recipe.model.path).name, "data": ", ".join(recipe.data)}
    with suppress(UserError):
        if last >= 0:
            row["iteration"] = last
            row["changed"] = read_manifest(run.policy(last)).recorded.get("finished")
        if last > 0:
            row["reward_mean"] = read_manifest(run.score(last)).facts.get("reward_mean")
    with suppress(UserError):
        if evaluations:
            mean = read_manifest(run.evaluation(evaluations[-1])).facts["mean_over_tasks"]
            row |= {"evaluated": evaluations[-1], "greedy": mean["greedy"]}
    return row


def _state(run: Run, output: Output) -> str:
    try:
        status = status_of(run, output)
    except UserError as error:
        return f"damaged: {str(error).splitlines()[0]}"
    return status.state if status.state != "stale" else f"stale: {status.reason}"


def _states(run: Run, iteration: int) -> dict[str, object]:
    row: dict[str, object] = {"iteration": iteration}
    for stage in STAGES:
        exists = {"run": iteration == 0, "iteration": iteration > 0, "policy": True}[stage.per]
        state = _optional_state if stage.name in SIDE_STAGES else _state
        row[stage.name] = state(run, run.of(stage.name, iteration)) if exists else ""
    return row


def _optional_state(run: Run, output: Output) -> str:
    """Return the state of an output that `make iteration` may leave out; empty if never begun."""
    begun = output.path.exists() or output.partial.exists()
    return _state(run, output) if begun else ""
