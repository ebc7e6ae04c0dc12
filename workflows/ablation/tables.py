"""Results of an ablation, as polars tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import mean, stdev

import polars as pl

from common.reporting.evaluation_tables import evaluation_facts
from common.reporting.opening_tables import rollouts
from common.reporting.terminal import Table
from common.runs.columns import polars_frame
from common.runs.metrics import training_steps
from workflows.trials import Trial

T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Student's t at 0.975 for 1, 2, … degrees of freedom; for more, the last is on the safe side."""

TRIAL = ["variant", "seed"]
REFERENCE = " reference"
"""Ending of the names of columns that hold what a figure is compared with."""

COLUMNS = {
    "steps": [*TRIAL, "iteration", "drawn_accuracy", "entropy", "skipped"],
    "accuracy": [*TRIAL, "policy", "task", "greedy"],
}
"""The tables that `results` returns, with columns that tell each from the others."""


def results(made: list[Trial], iterations: int) -> dict[str, pl.DataFrame]:
    """Return metrics of all optimizer steps, and accuracies of the first and the last policy."""
    return {
        "steps": pl.concat(_steps(trial, iterations) for trial in made),
        "accuracy": pl.concat((_accuracy(trial, iterations) for trial in made), how="diagonal"),
    }


def printed(found: dict[str, pl.DataFrame]) -> list[Table]:
    """Return the tables that the command prints, made from those of `results`."""
    steps, accuracy = found["steps"], found["accuracy"]
    seeds, last = steps["seed"].n_unique(), accuracy["policy"].max()
    count = f"{last!s} iterations, {seeds} {'seed' if seeds == 1 else 'seeds'}"
    title = f"{count}; differences to {steps['variant'][0]}"
    gain = f"held-out questions: policy {last!s} minus policy 0"
    return [
        Table("comparison", title, comparison(steps, accuracy)),
        Table("gains", gain, gains(accuracy)),
    ]


def comparison(steps: pl.DataFrame, accuracy: pl.DataFrame) -> pl.DataFrame:
    """Return one row per variant: means over the seeds, and differences to the first variant.

    `greedy` is the accuracy of the last policy on held-out questions, as a mean over the tasks.
    `drawn` is the accuracy of all completions drawn in all iterations, so it is higher the sooner a
    variant learns. `entropy` is the mean over the last five iterations, of completions that weigh
    in the loss (without a KL or entropy term, those without advantage do not).

    Differences are taken seed by seed; their 95 % interval is Student's, over the seeds. Seeds that
    the first variant lacks are left out.
    """
    by_iteration = steps.group_by(*TRIAL, "iteration", maintain_order=True).agg(
        pl.col("drawn_accuracy").first(),
        pl.col("entropy").filter(~pl.col("skipped")).mean(),
    )
    whole = by_iteration.group_by(TRIAL, maintain_order=True).agg(
        pl.col("drawn_accuracy").mean().alias("drawn"), pl.col("entropy").tail(5).mean()
    )
    last = _mean_over_tasks(accuracy, accuracy["policy"].max())
    figures = last.select(*TRIAL, "greedy").join(whole, on=TRIAL, maintain_order="left")
    first = figures["variant"][0]
    of_first = figures.filter(pl.col("variant") == first).drop("variant")
    paired = figures.join(of_first, on="seed", suffix=REFERENCE, maintain_order="left")
    rows = []
    for name, own in _by_variant(paired.drop_nulls(f"greedy{REFERENCE}")):
        row: dict[str, object] = {"variant": name, "seeds": own.height}
        for metric in ("greedy", "drawn"):
            row[metric] = own[metric].mean()
            difference = _change(own, metric, "diff")
            row |= dict.fromkeys(difference) if name == first else difference
        rows.append(row | {"entropy": own["entropy"].mean()})
    return pl.DataFrame(rows).fill_nan(None)


def gains(accuracy: pl.DataFrame) -> pl.DataFrame:
    """Return one row per variant: accuracy of policy 0 and of the last, and the gain between.

    `greedy` and `sampled` (`pass@1`) are measured on held-out questions, as means over the tasks.
    The gain is the mean over the seeds, with an interval as in `comparison`.
    """
    before, after = (_mean_over_tasks(accuracy, n) for n in (0, accuracy["policy"].max()))
    paired = after.join(before, on=TRIAL, suffix=REFERENCE, how="inner", maintain_order="left")
    rows = []
    for name, own in _by_variant(paired):
        row: dict[str, object] = {"variant": name, "seeds": own.height}
        for metric in ("greedy", "sampled"):
            row[f"{metric} before"] = own[f"{metric}{REFERENCE}"].mean()
            row[metric] = own[metric].mean()
            row |= _change(own, metric, "gain")
        rows.append(row)
    return pl.DataFrame(rows).fill_nan(None)


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean and its 95 % interval by Student's t; bounds of a single value are NaN."""
    middle, count = mean(values), len(values)
    if count < 2:
        return middle, math.nan, math.nan
    t = T_975[min(count - 1, len(T_975)) - 1]
    half = t * stdev(values) / math.sqrt(count)
    return middle, middle - half, middle + half


def _steps(trial: Trial, iterations: int) -> pl.DataFrame:
    """Return `variant`, `seed` and the metrics of every optimizer step (schema `TRAIN`).

    `drawn_accuracy` is added, the accuracy of all completions that the iteration drew:
    `reward_mean` leaves out groups that dynamic sampling rejected, and includes whatever else a
    preset rewards.
    """
    steps = polars_frame(training_steps(trial.run)).filter(pl.col("iteration") <= iterations)
    drawn = rollouts(trial.run).group_by("iteration").agg(pl.col("correct").mean())
    drawn = drawn.rename({"correct": "drawn_accuracy"})
    return _named(trial, steps.join(drawn, on="iteration", how="left", maintain_order="left"))


def _accuracy(trial: Trial, iterations: int) -> pl.DataFrame:
    """Return `variant`, `seed` and the figures of policies 0 and `iterations`, task by task."""
    facts = evaluation_facts(trial.run).filter(pl.col("policy").is_in([0, iterations]))
    return _named(trial, facts)


def _named(trial: Trial, frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select(
        pl.lit(trial.variant.name).alias("variant"), pl.lit(trial.seed).alias("seed"), pl.all()
    )


def _mean_over_tasks(accuracy: pl.DataFrame, policy: object) -> pl.DataFrame:
    """Return means over the tasks for one policy of each trial: `greedy` and `sampled`.

    `sampled` is null where nothing was sampled.
    """
    sampled = pl.col("pass@1").mean() if "pass@1" in accuracy.columns else pl.lit(None, pl.Float64)
    figures = pl.col("greedy").mean(), sampled.alias("sampled")
    return accuracy.filter(policy=policy).group_by(TRIAL, maintain_order=True).agg(figures)


def _by_variant(paired: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    for (name,), own in paired.group_by(["variant"], maintain_order=True):
        yield str(name), own


def _change(paired: pl.DataFrame, metric: str, name: str) -> dict[str, float | None]:
    """Return `metric` minus its reference, taken seed by seed, as a mean with its interval."""
    names = (f"{metric} {name}", f"{metric} low", f"{metric} high")
    changes = (paired[metric] - paired[f"{metric}{REFERENCE}"]).drop_nulls().to_list()
    return dict(zip(names, interval(changes) if changes else (None,) * 3, strict=True))
