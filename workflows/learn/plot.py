"""Curves of the runs of one recipe: the mean as a line, a band from the least to the largest."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl

from common.reporting.opening_tables import OTHERS, RIGHT, SELDOM, quoted
from common.reporting.plotting import DASHES, HUES, INK, MUTED, finish, legend_below, panels

ALL, OTHER_OPENINGS = "all training questions", "all other openings"

_TASK_HUES, _WAY_HUES = HUES[:4], HUES[4:]


def draw(curves: pl.DataFrame, evaluations: pl.DataFrame, path: Path) -> None:
    """Draw six panels into an SVG file: accuracy, length, ways to answer and entropy.

    Args:
        curves: the table of this name that `tables.results` returns.
        evaluations: likewise.
    """
    looks = looks_of(evaluations["task"].unique(maintain_order=True).to_list(), ways_of(curves))
    title = title_of(curves["run"].unique(maintain_order=True).to_list())
    with panels(path, 2, 3, title=title) as (figure, drawn):
        greedy, sampled, length, share, right, entropy = drawn
        for task, look in looks.items():
            if task in evaluations["task"]:
                rows = evaluations.filter(task=task)
                _line(greedy, rows, "policy", "greedy", task, look)
        for panel, y in ((sampled, "correct"), (length, "tokens"), (entropy, "entropy")):
            _line(panel, curves, "iteration", y, ALL, looks[ALL])
        for way in ways_of(curves):
            label = OTHER_OPENINGS if way == quoted(OTHERS) else way
            _line(share, curves, "iteration", way, label, looks[way])
            often = curves.filter(pl.col(way) >= SELDOM)
            _line(right, often, "iteration", way + RIGHT, label, looks[way])
        finish(greedy, "held-out accuracy, greedy", "policy")
        finish(sampled, "training accuracy, sampled", "iteration")
        finish(length, "length of an answer, in tokens", "iteration")
        finish(share, "how answers begin: share", "iteration")
        finish(right, "how often these are right", "iteration")
        finish(entropy, "entropy of a token, in nats", "iteration")
        for panel in (greedy, sampled, share, right):
            panel.set_ylim(-0.03, 1.03)
        for panel in (length, entropy):
            panel.set_ylim(bottom=0)
        legend_below(figure, [greedy, sampled, share])


def title_of(runs: list[str]) -> str:
    """Return what the picture is of."""
    if len(runs) == 1:
        return runs[0]
    return f"{', '.join(runs)}: the mean, and from the least to the largest"


def ways_of(curves: pl.DataFrame) -> list[str]:
    """Return the columns that are the share of an opening."""
    return [name.removesuffix(RIGHT) for name in curves.columns if name.endswith(RIGHT)]


def looks_of(tasks: Iterable[str], ways: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the colour, dash and marker of each task and each opening; none stands for two.

    Tasks whose names begin alike up to a hyphen, such as `sums` and `sums-of-3`, share a hue and
    differ by dash; so the legend lists them together. Openings have hues of their own.
    """
    families: dict[str, list[str]] = {}
    for task in tasks:
        families.setdefault(task.partition("-")[0], []).append(task)
    looks: dict[str, dict[str, Any]] = {}
    for number, family in enumerate(families.values()):
        for step, task in enumerate(family):
            looks[task] = {
                "color": _TASK_HUES[number % len(_TASK_HUES)],
                "linestyle": DASHES[(step + number // len(_TASK_HUES)) % len(DASHES)],
                "marker": "os^D"[step % 4],
            }
    looks[ALL] = {"color": INK, "linestyle": "-"}
    for number, way in enumerate(way for way in ways if way != quoted(OTHERS)):
        looks[way] = {"color": _WAY_HUES[number % len(_WAY_HUES)], "linestyle": "-"}
    looks[quoted(OTHERS)] = {"color": MUTED, "linestyle": DASHES[2]}
    return looks


def _line(panel: Any, rows: pl.DataFrame, x: str, y: str, label: str, look: dict[str, Any]) -> None:
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
    panel.plot(by_x[x].to_list(), by_x["mean"].to_list(), label=label, **look)
    panel.fill_between(
        by_x[x].to_list(),
        by_x["low"].to_list(),
        by_x["high"].to_list(),
        color=look["color"],
        alpha=0.2,
        linewidth=0,
    )
