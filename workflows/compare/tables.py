"""Metrics of variants side by side: one row per optimizer step, or one row per variant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import polars as pl

from common.accuracy import paired_difference
from common.console import warn
from common.errors import UserError
from common.reporting.evaluation_tables import greedy_correct
from common.runs.columns import polars_frame
from common.runs.layout import Run
from common.runs.manifest import has_manifest, read_manifest
from common.runs.policies import open_policy
from common.runs.schemas import TRAIN
from common.runs.shards import read_output
from workflows.compare.policies import compare_updates

METRICS = (
    *("policy_loss", "grad_norm", "kl", "approx_kl", "entropy"),
    *("clip_fraction_low", "clip_fraction_high", "ratio_max", "sampler_weight_mean"),
)
"""Metrics that are reduced to one number per variant, in the order of the table."""

Row = dict[str, Any]


def step_table(children: Mapping[str, Run], iteration: int) -> pl.DataFrame:
    """Return one row per variant and optimizer step: `variant` and the columns of `schemas.TRAIN`.

    `kl` is null where the objective has no reference to measure against.
    """
    frames = [polars_frame(TRAIN.empty_table()).select(pl.lit("").alias("variant"), pl.all())]
    for name, child in children.items():
        steps = polars_frame(read_output(child.train(iteration)).select(TRAIN.names))
        if not read_manifest(child.train(iteration)).recipe["objective"]["kl_coef"]:
            steps = steps.with_columns(kl=pl.lit(None, pl.Float64))
        frames.append(steps.select(pl.lit(name).alias("variant"), pl.all()))
    return pl.concat(frames)


def metrics_table(steps: pl.DataFrame) -> pl.DataFrame:
    """Return one row per variant: its steps, its seconds of training, and its metrics.

    A metric is the mean over the steps that were not skipped; `ratio_max` is the largest of them.
    """

    def over_steps(name: str) -> pl.Expr:
        taken = pl.col(name).filter(~pl.col("skipped"))
        return taken.max() if name == "ratio_max" else taken.mean()

    return steps.group_by("variant", maintain_order=True).agg(
        pl.len().alias("steps"),
        pl.col("step_seconds").sum().alias("seconds"),
        *map(over_steps, METRICS),
    )


def policies_table(children: Mapping[str, Run], iteration: int, baseline: str) -> pl.DataFrame:
    """Return one row per variant: its update of the policy, compared with the baseline's.

    Nothing is compared where the baseline has no policy or tensors do not match.
    """
    rows = []
    for name, child in children.items():
        first = children.get(baseline, child)
        row: Row = {"variant": name}
        try:
            before, ours = open_policy(first, iteration - 1), open_policy(first, iteration)
            row |= asdict(compare_updates(before, ours, open_policy(child, iteration)))
        except UserError as error:
            warn(str(error))
        if baseline not in children:
            row |= {"cosine": None, "relative_difference": None}
        rows.append(row)
    names = ("norm", "cosine", "relative_difference")
    schema = {"variant": pl.String, **dict.fromkeys(names, pl.Float64)}
    return pl.DataFrame(rows, schema=schema).rename({"norm": "update_norm"})


def accuracy_table(children: Mapping[str, Run], iteration: int, baseline: str) -> pl.DataFrame:
    """Return one row per variant: greedy held-out accuracy, and its difference to the baseline's.

    Both come with intervals. The difference is paired by question; means are over the tasks.
    """
    rows: list[Row] = []
    evaluated = {n: c for n, c in children.items() if has_manifest(c.evaluation(iteration))}
    for name, child in evaluated.items():
        facts = read_manifest(child.evaluation(iteration)).facts["mean_over_tasks"]
        row: Row = {"variant": name}
        row |= {key: facts[key] for key in ("questions", "greedy", "greedy_low", "greedy_high")}
        if baseline in evaluated and name != baseline:
            found = _paired(evaluated[baseline], child, iteration)
            row |= {
                "minus_baseline": found["difference"],
                "minus_baseline_low": found["low"],
                "minus_baseline_high": found["high"],
            }
        rows.append(row)
    return pl.DataFrame(rows, infer_schema_length=None)


def greedy_accuracy(run: Run, policy: int) -> float | None:
    """Return a policy's greedy held-out accuracy, the mean over tasks; None if not evaluated."""
    if not has_manifest(run.evaluation(policy)):
        return None
    accuracy = read_manifest(run.evaluation(policy)).facts["mean_over_tasks"]["greedy"]
    return None if accuracy is None else float(accuracy)


def _paired(before: Run, after: Run, policy: int) -> dict[str, float]:
    both = greedy_correct(before, policy).join(
        greedy_correct(after, policy), on=["prompt_id", "task"], suffix="_after", how="inner"
    )
    return paired_difference(
        {
            str(task): (group["correct"].to_numpy(), group["correct_after"].to_numpy())
            for (task,), group in both.group_by(["task"], maintain_order=True)
        }
    )
