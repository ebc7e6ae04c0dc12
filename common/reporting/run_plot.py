"""A run as a picture: accuracy and length over the iterations, beside those of the base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from common.accuracy import GREEDY
from common.console import clean
from common.errors import UserError
from common.reporting.plotting import HUES, INK, SURFACE, finish, legend_below, panels
from common.runs.columns import polars_frame
from common.runs.layout import Run
from common.runs.manifest import has_manifest, read_manifest
from common.runs.shards import read_output

SAMPLED_HUE, GREEDY_HUE = HUES[0], HUES[1]


def drawn_table(run: Run) -> pl.DataFrame:
    """Return one row per scored iteration: `policy accuracy reward tokens` of what was sampled.

    `policy` is the one that sampled: that of iteration 1 is the base, 0. `accuracy` is null where
    no answer could be judged. `tokens` is the mean length of a completion.

    Raises:
        UserError: no iteration is scored.
    """
    rows = []
    for number in run.iterations():
        if not has_manifest(run.score(number)):
            continue
        sampled, scored = (
            read_manifest(output).facts for output in (run.rollout(number), run.score(number))
        )
        rows.append(
            {
                "policy": number - 1,
                "accuracy": scored.get("accuracy"),
                "reward": scored["reward_mean"],
                "tokens": sampled["completion_tokens"] / sampled["completions"],
            }
        )
    if not rows:
        raise UserError(f"{run.root}: no iteration is scored yet; make iteration N=1")
    return pl.DataFrame(rows, infer_schema_length=None)


def held_out_table(run: Run) -> pl.DataFrame:
    """Return one row per evaluated policy, as means over the tasks; no row if there is none.

    The columns are `policy`, `greedy` with its interval `low` and `high`, `sampled` (pass@1) and
    `tokens`, the mean length of the sampled answers. The last two are null without samples.
    """
    rows = []
    for number in run.evaluations():
        facts = read_manifest(run.evaluation(number)).facts
        mean, tasks = facts["mean_over_tasks"], pl.DataFrame(list(facts["tasks"].values()))
        rows.append(
            {
                "policy": number,
                "greedy": mean["greedy"],
                "low": mean["greedy_low"],
                "high": mean["greedy_high"],
                "sampled": tasks["pass@1"].mean() if "pass@1" in tasks.columns else None,
                "tokens": _sampled_length(run, number),
            }
        )
    figures = dict.fromkeys(("greedy", "low", "high", "sampled", "tokens"), pl.Float64)
    return pl.DataFrame(rows, schema={"policy": pl.Int64, **figures})


def _sampled_length(run: Run, policy: int) -> float | None:
    """Return the mean length of an evaluation's sampled completions, as the mean over the tasks."""
    columns = ["task", "sample_index", "completion_ids"]
    answers = polars_frame(read_output(run.evaluation(policy), columns))
    sampled = answers.filter(pl.col("sample_index") != GREEDY)
    by_task = sampled.group_by("task").agg(pl.col("completion_ids").list.len().mean())
    mean = by_task["completion_ids"].mean()
    return mean if isinstance(mean, float) else None


def draw(run: Run, path: Path) -> None:
    """Draw accuracy and length by iteration into an SVG file, with lines where the base model is.

    Where no answer could be judged, the mean reward takes the place of accuracy.

    Raises:
        UserError: no iteration is scored.
    """
    drawn, held_out = drawn_table(run), held_out_table(run)
    judged = drawn["accuracy"].null_count() < drawn.height
    title = f"{clean(run.name)}: {drawn.height} iterations of GRPO"
    with panels(path, 1, 2, title=title) as (figure, (right, length)):
        y = "accuracy" if judged else "reward"
        right.plot(
            drawn["policy"], drawn[y], color=SAMPLED_HUE, label="training questions, sampled"
        )
        _held_out(right, held_out, "sampled", SAMPLED_HUE, "held-out questions, sampled")
        _held_out(right, held_out, "greedy", GREEDY_HUE, "held-out questions, greedy")
        length.plot(drawn["policy"], drawn["tokens"], color=SAMPLED_HUE)
        _held_out(length, held_out, "tokens", SAMPLED_HUE, "")
        finish(right, "right answers" if judged else "mean reward", "iterations trained")
        finish(length, "length of an answer, in tokens", "iterations trained")
        if judged:
            right.set_ylim(-0.03, 1.03)
        length.set_ylim(bottom=0)
        legend_below(figure, [right], columns=4)


def _held_out(panel: Any, held_out: pl.DataFrame, y: str, hue: str, label: str) -> None:
    """Draw the evaluated policies, and a dashed line where the base is, if it was evaluated."""
    found = held_out.drop_nulls(y)
    if found.is_empty():
        return
    x, values = found["policy"].to_list(), found[y].to_list()
    base = found.filter(policy=0)[y].to_list()
    for value in base:
        panel.axhline(value, color=hue, linestyle=(0, (4, 3)), linewidth=1, zorder=1)
        name = "base model" if not label else f"base model, {label.rpartition(' ')[2]}"
        panel.annotate(
            f"{name}: {value:.2f}" if value <= 1 else f"{name}: {value:.1f}",
            (1, value),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            color=INK,
            fontsize=8,
        )
    marks = {"color": hue, "marker": "o", "markersize": 5.5, "linestyle": "none"}
    panel.plot(
        x, values, label=label or None, **marks, markerfacecolor=SURFACE, markeredgewidth=1.6
    )
    if y == "greedy":
        bars = [found["greedy"] - found["low"], found["high"] - found["greedy"]]
        panel.errorbar(x, values, bars, color=hue, linestyle="none", linewidth=1.2, zorder=1)
