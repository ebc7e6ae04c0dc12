"""The picture of a run: what it is made of, and what it shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from common.errors import UserError
from common.reporting.plotting import panels
from common.reporting.run_plot import GREEDY_HUE, SAMPLED_HUE, _held_out, draw, drawn_table
from common.reporting.run_tables import scored_completions
from common.runs.layout import Run
from stages import show


def test_what_was_drawn_is_that_of_the_completions(
    finished: Path, at: Callable[[Path], Run]
) -> None:
    run = at(finished)
    rows = drawn_table(run).to_dicts()
    assert [row["policy"] for row in rows] == [0, 1]
    for row in rows:
        completions = scored_completions(run, row["policy"] + 1)
        assert row["accuracy"] == pytest.approx((completions["verdict"] == "correct").mean())
        assert row["reward"] == pytest.approx(completions["reward"].mean())
        assert row["tokens"] == pytest.approx(completions["completion_ids"].list.len().mean())


HELD_OUT = pl.DataFrame(
    {
        "policy": [0, 10],
        "greedy": [0.137, 0.995],
        "low": [0.11, 0.988],
        "high": [0.17, 1.0],
        "sampled": [0.398, None],
        "tokens": [18.12, 22.0],
    }
)


def test_the_base_is_a_line_and_evaluations_are_points(tmp_path: Path) -> None:
    with panels(tmp_path / "a.svg", 1, 2, title="") as (_, (right, length)):
        _held_out(right, HELD_OUT, "sampled", SAMPLED_HUE, "held-out questions, sampled")
        _held_out(right, HELD_OUT, "greedy", GREEDY_HUE, "held-out questions, greedy")
        _held_out(length, HELD_OUT, "tokens", SAMPLED_HUE, "")
        texts = [text.get_text() for text in (*right.texts, *length.texts)]
        flat = [line for line in right.lines if line.get_linestyle() == "--"]
        levels = {line.get_ydata()[0]: line.get_color() for line in flat}
        points = [list(line.get_xdata()) for line in right.lines if line.get_marker() == "o"]
        assert not right.get_legend_handles_labels()[1][2:]
    assert texts == [
        "base model, sampled: 0.40",
        "base model, greedy: 0.14",
        "base model: 18.1",
    ]
    assert levels == {0.398: SAMPLED_HUE, 0.137: GREEDY_HUE}
    assert points == [[0], [0, 10]]


def test_without_evaluations_there_are_no_points(tmp_path: Path) -> None:
    with panels(tmp_path / "a.svg", 1, 1, title="") as (_, (panel,)):
        _held_out(panel, HELD_OUT.clear(), "greedy", GREEDY_HUE, "greedy")
        assert not panel.lines and not panel.texts


def test_the_command_draws_it(
    finished: Path, at: Callable[[Path], Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = at(finished)
    picture = tmp_path / "run.svg"
    show.run("a", svg=picture)
    assert "reward" in capsys.readouterr().out
    text = picture.read_text()
    assert text.count('id="axes_') == 2 and SAMPLED_HUE in text
    draw(run, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == text
    with pytest.raises(UserError, match=r"name a \.svg file"):
        show.run("a", svg=tmp_path / "run.png")
