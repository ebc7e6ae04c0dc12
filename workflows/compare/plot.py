"""Variants side by side as small multiples in an SVG file: outcomes, and metrics by step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import polars as pl

from common.reporting.plotting import INK, finish, legend_below, look, panels

PANELS = {
    "entropy": "entropy of a token, in nats",
    "grad_norm": "norm of the gradient",
    "approx_kl": "KL to the old policy, in nats",
    "clip_fraction_low": "share of tokens clipped below",
    "clip_fraction_high": "share of tokens clipped above",
    "ratio_max": "largest ratio",
    "kl": "KL to the reference, in nats",
    "policy_loss": "policy loss",
}
"""Metrics that are drawn, with their titles; null values are not drawn."""


def draw(
    steps: pl.DataFrame,
    accuracy: pl.DataFrame,
    path: Path,
    *,
    title: str,
    before: float | None = None,
) -> None:
    """Draw what became of the variants, and every metric of `PANELS`, into an SVG file.

    Args:
        steps: `variant`, `skipped` and metrics, one row per variant and optimizer step.
        accuracy: `variant`, `greedy`, `greedy_low` and `greedy_high`; empty if none is evaluated.
        path: the file.
        title: stands above the panels.
        before: greedy accuracy of the policy that all variants began with, if it is known.
    """
    variants = steps["variant"].unique(maintain_order=True).to_list()
    looks = {variant: look(index) for index, variant in enumerate(variants)}
    with panels(path, 3, 3, title=title) as (figure, (outcome, *drawn)):
        if accuracy.is_empty():
            outcome.set_axis_off()
        else:
            _draw_outcomes(outcome, accuracy, looks, before)
        for panel, (metric, name) in zip(drawn, PANELS.items(), strict=True):
            _draw_panel(panel, steps, metric, name, looks)
        legend_below(figure, drawn[:1], columns=len(variants))


def _draw_outcomes(
    panel: Any, accuracy: pl.DataFrame, looks: dict[str, dict[str, Any]], before: float | None
) -> None:
    """Draw greedy accuracy as a point with its interval, a row per variant, the first on top."""
    for height, row in enumerate(reversed(accuracy.to_dicts())):
        low, high = row["greedy"] - row["greedy_low"], row["greedy_high"] - row["greedy"]
        style = looks[row["variant"]]
        panel.errorbar(
            [row["greedy"]],
            [height],
            xerr=[[low], [high]],
            color=style["color"],
            marker=style["marker"],
            markersize=5,
        )
    if before is not None:
        panel.axvline(before, color=INK, linestyle=(0, (4, 3)), linewidth=1, zorder=1)
        panel.annotate(
            f"before: {before:.3f}",
            (before, 1),
            xycoords=("data", "axes fraction"),
            xytext=(4, -9),
            textcoords="offset points",
            color=INK,
            fontsize=8,
        )
    finish(panel, "held-out accuracy, greedy", "95 % interval over the questions")
    panel.set_xlim(-0.03, 1.03)
    panel.set_xticks([0, 0.25, 0.5, 0.75, 1])
    panel.set_yticks(range(accuracy.height), reversed(accuracy["variant"].to_list()))
    panel.set_ylim(-0.6, accuracy.height - 0.2)


def _draw_panel(
    panel: Any, steps: pl.DataFrame, metric: str, name: str, looks: dict[str, dict[str, Any]]
) -> None:
    """Draw one metric over the optimizer steps; skipped steps are gaps."""
    shown = steps.with_columns(pl.when(~pl.col("skipped")).then(pl.col(metric)).alias("shown"))
    groups = shown.group_by(["variant"], maintain_order=True)
    most = max(rows.height for _, rows in groups)
    for (variant,), rows in groups:
        values = rows["shown"].cast(pl.Float64).fill_null(math.nan).to_list()
        style = looks[str(variant)]
        panel.plot(range(1, len(values) + 1), values, label=str(variant), **style)
    # Fixed limits: for a single step matplotlib would put ticks between whole numbers.
    panel.set_xlim(0.5, most + 0.5)
    panel.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4), useOffset=False)
    finish(panel, name, "optimizer step")
