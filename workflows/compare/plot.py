"""Metrics of variants by optimizer step, as small multiples in an SVG file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import polars as pl

from workflows.plotting import finish, legend_below, look, panels

PANELS = {
    "policy_loss": "policy loss",
    "grad_norm": "gradient norm",
    "entropy": "entropy (nats)",
    "approx_kl": "KL to the old policy (nats)",
    "clip_fraction_low": "share of tokens clipped below",
    "clip_fraction_high": "share of tokens clipped above",
    "ratio_max": "largest ratio",
    "kl": "KL to the reference (nats)",
}
"""Metrics that are drawn, with their titles; null values are not drawn."""

_COLUMNS = 4


def draw(steps: pl.DataFrame, path: Path, *, title: str) -> None:
    """Draw every metric of `PANELS`, a line per variant, into an SVG file.

    Args:
        steps: `variant`, `skipped` and metrics, one row per variant and optimizer step.
    """
    rows = math.ceil(len(PANELS) / _COLUMNS)
    with panels(path, rows, _COLUMNS, title=title) as (figure, drawn):
        for panel, (metric, name) in zip(drawn, PANELS.items(), strict=True):
            _draw_panel(panel, steps, metric, name)
        legend_below(figure, drawn[0])


def _draw_panel(panel: Any, steps: pl.DataFrame, metric: str, name: str) -> None:
    """Draw one metric over the optimizer steps; skipped steps are gaps."""
    shown = steps.with_columns(pl.when(~pl.col("skipped")).then(pl.col(metric)).alias("shown"))
    groups = shown.group_by(["variant"], maintain_order=True)
    most = max(rows.height for _, rows in groups)
    for index, ((variant,), rows) in enumerate(groups):
        values = rows["shown"].cast(pl.Float64).fill_null(math.nan).to_list()
        panel.plot(range(1, len(values) + 1), values, label=str(variant), **look(index))
    # Fixed limits: for a single step matplotlib would put ticks between whole numbers.
    panel.set_xlim(0.5, most + 0.5)
    panel.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4), useOffset=False)
    finish(panel, name, "optimizer step")
