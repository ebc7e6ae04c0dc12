"""What compared variants are shown by: figures of updates, tables that fit a terminal, a plot."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

from common.errors import UserError
from common.reporting import terminal
from common.reporting.plotting import INK, look
from common.runs.schemas import TRAIN
from workflows.compare import tables
from workflows.compare.plot import _draw_outcomes, _draw_panel, draw
from workflows.compare.policies import compare_updates
from workflows.compare.side_by_side import SideBySide

PRESETS = ["grpo", "dapo", "dr_grpo", "gspo", "cispo", "rloo"]


def steps_of(variants: list[str], count: int) -> pl.DataFrame:
    """Seeded metrics, the second step of every variant left out."""
    random = np.random.default_rng(7)
    rows = []
    for variant in variants:
        for step in range(count):
            row = {name: float(random.normal()) / 1e4 for name in tables.METRICS}
            rows.append(row | {"variant": variant, "step_seconds": 0.5, "skipped": step == 1})
    frame = pl.from_arrow(TRAIN.empty_table())
    assert isinstance(frame, pl.DataFrame)
    return pl.concat(
        [frame.select(pl.lit("").alias("variant"), pl.all()), pl.DataFrame(rows)], how="diagonal"
    )


def write_weights(folder: Path, weights: list[dict[str, np.ndarray]]) -> Path:
    folder.mkdir()
    for index, part in enumerate(weights):
        save_file(part, folder / f"part-{index}.safetensors")
    return folder


def test_update_figures_are_those_of_numpy(tmp_path: Path) -> None:
    """However the tensors are divided into files."""
    random = np.random.default_rng(3)
    start, base, ours = (
        {"a": random.normal(size=(5, 3)).astype(np.float32), "b": random.normal(size=7)}
        for _ in range(3)
    )
    folders = [
        write_weights(tmp_path / "start", [start]),
        write_weights(tmp_path / "base", [base]),
        write_weights(tmp_path / "ours", [{name: ours[name]} for name in ours]),
    ]
    flat = [
        np.concatenate([w[name].ravel().astype(float) for name in "ab"])
        for w in (start, base, ours)
    ]
    b, v = flat[1] - flat[0], flat[2] - flat[0]
    found = compare_updates(*folders)
    assert found.norm == pytest.approx(np.linalg.norm(v), rel=1e-12)
    assert found.cosine == pytest.approx(v @ b / np.linalg.norm(v) / np.linalg.norm(b), rel=1e-12)
    apart = np.linalg.norm(v - b) / np.linalg.norm(b)
    assert found.relative_difference == pytest.approx(apart, rel=1e-12)
    still = compare_updates(folders[0], folders[0], folders[1])
    assert still.cosine is None and still.relative_difference is None
    smaller = write_weights(tmp_path / "smaller", [{"a": start["a"]}])
    with pytest.raises(UserError, match=r"smaller: no tensors \['b'\]"):
        compare_updates(folders[0], smaller, folders[2])


def test_one_number_stands_for_a_variant() -> None:
    """Steps that were left out have no part in it."""
    steps = steps_of(["one", "two"], 3)
    (row,) = tables.metrics_table(steps).filter(variant="two").to_dicts()
    taken = steps.filter(pl.col("variant") == "two", ~pl.col("skipped"))
    assert (row["steps"], row["seconds"]) == (3, 1.5)
    assert row["ratio_max"] == taken["ratio_max"].max() != taken["ratio_max"].mean()
    assert row["entropy"] == pytest.approx(taken["entropy"].mean())
    assert list(row)[3:] == list(tables.METRICS)


def test_the_tables_fit_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six presets, one of which failed; every number is there and no name is cut."""
    trained = PRESETS[:-1]
    updates = {"update_norm": 1.2e-5, "cosine": -0.123, "relative_difference": 1.2e-4}
    side_by_side = SideBySide(
        run="demo",
        iteration=2,
        baseline="grpo",
        results=pl.DataFrame(
            [{"variant": n, "result": "trained", "run": f"demo.2.{n}"} for n in trained]
            + [{"variant": "rloo", "result": "logprobs: exit code 137", "run": "demo.2.rloo"}]
        ),
        steps=steps_of(trained, 2),
        policies=pl.DataFrame([{"variant": name} | updates for name in trained]),
        accuracy=pl.DataFrame(),
    )
    monkeypatch.setenv("COLUMNS", "80")
    side_by_side.print()
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80 and "…" not in printed
    first, second = printed.split("means over the optimizer steps")
    for name in trained:
        assert re.search(rf"^ *{name} +trained +2 +1.000 +1.2e-05 +-0.123 +1.2e-04 *$", first, re.M)
    assert re.search(r" +".join(["metric", *trained]), second)
    means = tables.metrics_table(side_by_side.steps)
    for metric in tables.METRICS:
        numbers = [terminal._cell(value) for value in means[metric]]
        assert re.search(rf"^ *{metric} +{' +'.join(numbers)} *$", second, re.M), metric


@pytest.mark.parametrize(("count", "ticks"), [(1, [1]), (4, [1, 2, 3, 4])])
def test_ticks_are_steps(count: int, ticks: list[int]) -> None:
    from matplotlib.figure import Figure

    panel = Figure().subplots()
    _draw_panel(panel, steps_of(["one"], count), "ratio_max", "largest ratio", {"one": look(0)})
    low, high = panel.get_xlim()
    assert [tick for tick in panel.get_xticks() if low <= tick <= high] == ticks
    assert panel.yaxis.get_major_formatter().get_useOffset() is False


def test_outcomes_are_points_with_their_intervals_beside_the_policy_before() -> None:
    from matplotlib.figure import Figure

    panel = Figure().subplots()
    accuracy = pl.DataFrame(
        {
            "variant": ["one", "two"],
            "greedy": [0.9, 0.3],
            "greedy_low": [0.85, 0.2],
            "greedy_high": [0.95, 0.5],
        }
    )
    _draw_outcomes(panel, accuracy, {"one": look(0), "two": look(1)}, before=0.177)
    assert [tick.get_text() for tick in panel.get_yticklabels()] == ["two", "one"]
    bars = [bar.lines for bar in panel.containers]
    assert [line.get_xydata().tolist() for line, _, _ in bars] == [[[0.3, 0]], [[0.9, 1]]]
    ends = [lines[0].get_segments()[0][:, 0].tolist() for _, _, lines in bars]
    assert ends == [pytest.approx([0.2, 0.5]), pytest.approx([0.85, 0.95])]
    assert [line.get_color() for line, _, _ in bars] == [look(1)["color"], look(0)["color"]]
    (before,) = [line for line in panel.lines if list(line.get_xdata()) == [0.177, 0.177]]
    assert before.get_color() == INK
    assert panel.texts[0].get_text() == "before: 0.177"


def test_the_plot_is_deterministic_and_holds_no_text_as_markup(tmp_path: Path) -> None:
    steps = steps_of(["one<script>&", "two"], 3)
    written = []
    for name in ("1.svg", "2.svg"):
        draw(steps, pl.DataFrame(), tmp_path / name, title="<b>a</b>, iteration 2")
        written.append((tmp_path / name).read_text())
    assert written[0] == written[1]
    assert not [text for text in ("<script", "<b>", "<dc:date>") if text in written[0]]
