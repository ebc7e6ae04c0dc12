"""Metrics of variants by optimizer step, as small multiples in an SVG file."""

from __future__ import annotations

import io
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import polars as pl

from common.errors import MissingToolError
from common.runs.manifest import write_atomically

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
"""Metrics that are drawn, with their titles; null where there is nothing to draw."""

_COLUMNS = 4
# Okabe and Ito's colours, told apart by colour-blind readers, with a dash and a marker besides.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", "-.", ":")
_MARKERS = "osD^vPX"


def require_matplotlib() -> None:
    """Raise `MissingToolError` where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise MissingToolError("--svg needs matplotlib: make extras")


def draw(steps: pl.DataFrame, path: Path, *, title: str) -> None:
    """Draw every metric of `PANELS`, a line a variant, into an SVG file.

    The same table gives the same bytes. Text is drawn as outlines, so nothing of it is markup.

    Args:
        steps: `variant`, `skipped` and metrics, one row a variant and optimizer step.
    """
    from matplotlib import rc_context, style
    from matplotlib.figure import Figure

    rows = math.ceil(len(PANELS) / _COLUMNS)
    with (
        style.context("default"),
        rc_context({"svg.hashsalt": "staged-grpo", "svg.fonttype": "path", "font.size": 9}),
    ):
        figure = Figure(figsize=(3.1 * _COLUMNS, 2.4 * rows + 0.6), layout="constrained")
        panels = figure.subplots(rows, _COLUMNS, squeeze=False).flatten()
        for panel, (metric, name) in zip(panels, PANELS.items(), strict=True):
            _draw_panel(panel, steps, metric, name)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=8, frameon=False)
        figure.suptitle(title)
        figure.draw_without_rendering()  # labels of ticks have their width from the second time on
        sink = io.BytesIO()
        figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None})
    write_atomically(path, sink.getvalue())


def _draw_panel(panel: Any, steps: pl.DataFrame, metric: str, name: str) -> None:
    """One metric over the optimizer steps; steps that were left out are gaps."""
    from matplotlib.ticker import MaxNLocator

    shown = steps.with_columns(pl.when(~pl.col("skipped")).then(pl.col(metric)).alias("shown"))
    groups = shown.group_by(["variant"], maintain_order=True)
    most = max(rows.height for _, rows in groups)
    for index, ((variant,), rows) in enumerate(groups):
        values = rows["shown"].cast(pl.Float64).fill_null(math.nan).to_list()
        panel.plot(
            range(1, len(values) + 1),
            values,
            label=str(variant),
            color=_COLOURS[index % len(_COLOURS)],
            linestyle=_DASHES[index % len(_DASHES)],
            marker=_MARKERS[index % len(_MARKERS)],
            markersize=3,
            linewidth=1.4,
        )
    panel.set_title(name, fontsize=9)
    panel.set_xlabel("optimizer step", fontsize=8)
    # Fixed limits: of a single step matplotlib would make ticks between whole numbers.
    panel.set_xlim(0.5, most + 0.5)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    panel.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4), useOffset=False)
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
