"""What an ablation came to, as polars tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev

import polars as pl

from common.reporting.frames import polars_frame
from common.reporting.metrics import training_steps
from common.reporting.openings import rollouts
from common.reporting.tables import evaluation_facts
from workflows.trials import Trial

T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Student's t at 0.975 for 1, 2, … degrees of freedom; beyond, the last is on the safe side."""


def steps_of(trial: Trial, iterations: int) -> pl.DataFrame:
    """`variant`, `seed` and the metrics of every optimizer step (schema `TRAIN`).

    With `drawn_accuracy`, that of all completions which the iteration drew: `reward_mean` leaves
    out groups that dynamic sampling rejected, and has what a preset weighs in besides.
    """
    steps = polars_frame(training_steps(trial.run)).filter(pl.col("iteration") <= iterations)
    drawn = rollouts(trial.run).group_by("iteration").agg(pl.col("correct").mean())
    drawn = drawn.rename({"correct": "drawn_accuracy"})
    return _named(trial, steps.join(drawn, on="iteration", how="left", maintain_order="left"))


def accuracy_of(trial: Trial, iterations: int) -> pl.DataFrame:
    """`variant`, `seed` and the figures of policies 0 and `iterations`, task by task."""
    facts = evaluation_facts(trial.run).filter(pl.col("policy").is_in([0, iterations]))
    return _named(trial, facts)


def comparison(steps: pl.DataFrame, accuracy: pl.DataFrame) -> pl.DataFrame:
    """One row a variant: means over the seeds, and differences to the first variant.

    `greedy` is the accuracy of the last policy on held-out questions, the mean over tasks; `drawn`
    that of all completions drawn in all iterations, so it is the higher the sooner a variant
    learns; `entropy` the mean over the last five iterations, of completions that weigh in the loss
    (without a KL or entropy term, those without advantage do not).
    Differences are taken seed by seed; their 95 % interval is Student's, over the seeds. Seeds that
    the first variant lacks are left out.
    """
    last = accuracy.filter(pl.col("policy") == accuracy["policy"].max())
    greedy = last.group_by("variant", "seed", maintain_order=True).agg(pl.col("greedy").mean())
    by_iteration = steps.group_by("variant", "seed", "iteration", maintain_order=True).agg(
        pl.col("drawn_accuracy").first(),
        pl.col("entropy").filter(~pl.col("skipped")).mean(),
    )
    whole = by_iteration.group_by("variant", "seed", maintain_order=True).agg(
        pl.col("drawn_accuracy").mean().alias("drawn"), pl.col("entropy").tail(5).mean()
    )
    figures = greedy.join(whole, on=["variant", "seed"], maintain_order="left")
    names = figures["variant"].unique(maintain_order=True).to_list()
    return pl.DataFrame([_row(figures, name, names[0]) for name in names]).fill_nan(None)


def title(steps: pl.DataFrame) -> str:
    """What the table is of."""
    seeds, iterations = steps["seed"].n_unique(), steps["iteration"].max()
    count = f"{iterations!s} iterations, {seeds} {'seed' if seeds == 1 else 'seeds'}"
    return f"{count}; differences to {steps['variant'][0]}"


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and its 95 % interval by Student's t; NaN bounds for a single value."""
    middle, count = mean(values), len(values)
    if count < 2:
        return middle, math.nan, math.nan
    t = T_975[min(count - 1, len(T_975)) - 1]
    half = t * stdev(values) / math.sqrt(count)
    return middle, middle - half, middle + half


def _row(figures: pl.DataFrame, name: str, baseline: str) -> dict[str, object]:
    own, base = (figures.filter(pl.col("variant") == which) for which in (name, baseline))
    paired = own.join(base, on="seed", suffix="_base", maintain_order="left")
    row: dict[str, object] = {"variant": name, "seeds": paired.height}
    for metric in ("greedy", "drawn"):
        row[metric] = paired[metric].mean()
        names = (f"{metric} diff", f"{metric} low", f"{metric} high")
        if name == baseline or paired.is_empty():
            row |= dict.fromkeys(names)
            continue
        found = interval((paired[metric] - paired[f"{metric}_base"]).to_list())
        row |= dict(zip(names, found, strict=True))
    return row | {"entropy": paired["entropy"].mean()}


def _named(trial: Trial, frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select(
        pl.lit(trial.variant.name).alias("variant"), pl.lit(trial.seed).alias("seed"), pl.all()
    )
