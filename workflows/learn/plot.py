"""Curves of the runs of one recipe: the mean as a line, a band from the least to the largest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from common.reporting.opening_tables import RIGHT, SELDOM
from workflows.plotting import finish, legend_below, look, panels

TOO_MANY_FOR_MARKERS = 25
"""Number of points from which a line is drawn without markers."""


def draw(curves: pl.DataFrame, evaluations: pl.DataFrame, path: Path) -> None:
    """Draw six panels into an SVG file: accuracy, length, ways to answer and entropy.

    Args:
        curves: the table of this name that `tables.results` returns.
        evaluations: likewise.
    """
    runs = curves["run"].unique(maintain_order=True).to_list()
    title = runs[0] if len(runs) == 1 else f"{', '.join(runs)}: mean, least and largest"
    ways = [name.removesuffix(RIGHT) for name in curves.columns if name.endswith(RIGHT)]
    with panels(path, 2, 3, title=title) as (
        figure,
        (greedy, sampled, length, share, right, entropy),
    ):
        for index, ((task,), rows) in enumerate(evaluations.group_by("task", maintain_order=True)):
            _line(greedy, rows, "policy", "greedy", str(task), index)
        _line(sampled, curves, "iteration", "correct", "", 0)
        _line(length, curves, "iteration", "tokens", "", 0)
        for index, way in enumerate(ways):
            _line(share, curves, "iteration", way, way, index)
            often = curves.filter(pl.col(way) >= SELDOM)
            _line(right, often, "iteration", way + RIGHT, way, index)
        _line(entropy, curves, "iteration", "entropy", "", 0)
        finish(greedy, "held-out questions right, greedy", "policy")
        finish(sampled, "training questions right, sampled", "iteration")
        finish(length, "tokens of a completion", "iteration")
        finish(share, "completions that begin so", "iteration")
        finish(right, "of these right", "iteration")
        finish(entropy, "entropy (nats)", "iteration")
        right.legend(frameon=False, fontsize=8)
        legend_below(figure, greedy)
        for panel in (greedy, sampled, share, right):
            panel.set_ylim(-0.03, 1.03)


def _line(panel: Any, rows: pl.DataFrame, x: str, y: str, label: str, index: int) -> None:
    """Draw the mean of `y` over the runs, and a band from the least to the largest."""
    by_x = (
        rows.drop_nulls(y)
        .group_by(x)
        .agg(
            pl.col(y).mean().alias("mean"),
            pl.col(y).min().alias("low"),
            pl.col(y).max().alias("high"),
        )
        .sort(x)
    )
    style = look(index) | ({} if by_x.height < TOO_MANY_FOR_MARKERS else {"marker": ""})
    panel.plot(by_x[x].to_list(), by_x["mean"].to_list(), label=label, **style)
    panel.fill_between(
        by_x[x].to_list(),
        by_x["low"].to_list(),
        by_x["high"].to_list(),
        color=style["color"],
        alpha=0.2,
        linewidth=0,
    )
