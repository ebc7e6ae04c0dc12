"""score where dynamic sampling rejected groups: all are judged, the batch is told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from support.scored_files import completions
from support.scored_runs import completion, start_scored_run, write_rollout

from common.errors import UserError
from common.objective.advantages import compute_advantages
from common.reporting.run_tables import groups_table
from common.runs.layout import Run
from common.runs.manifest import read_manifest
from common.runs.shards import read_output
from stages import score

# Of the six groups, 1 is right and 2 is wrong throughout; 2 and 3 are rejected.
REJECTED = (2, 3)
ROWS = [
    completion(group, sample, kept=group not in REJECTED)
    for group in range(6)
    for sample in range(4)
]
GROUPS = [row["group_id"] for row in ROWS]
KEPT = [row["kept"] for row in ROWS]


@pytest.fixture
def run(runs: Path) -> Run:
    place = start_scored_run()
    write_rollout(place, ROWS)
    return place


@pytest.mark.parametrize("kind", ["group", "batch"])
def test_the_batch_has_its_own_statistics(
    run: Run, kind: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    score.main("a", 1, overrides=[f'advantages.kind="{kind}"'])
    assert capsys.readouterr().out.endswith(
        "; 1 of 4 groups without variance, and 1 of 2 rejected ones\n"
    )
    table = read_output(run.score(1))
    rewards = table["reward"].to_pylist()
    assert None not in rewards, "rejected groups are judged too"
    expected = compute_advantages(GROUPS, rewards, kind, KEPT)
    np.testing.assert_array_equal(table["advantage"].to_numpy(), expected.advantage)
    if kind == "batch":
        batch = [reward for reward, kept in zip(rewards, KEPT, strict=True) if kept]
        scale = np.std(batch, ddof=1) + 1e-4
        mean = np.mean(rewards[:4])
        np.testing.assert_allclose(
            table["advantage"].to_numpy()[:4], (np.array(rewards[:4]) - mean) / scale
        )
    facts = read_manifest(run.score(1)).facts
    counted = {name: facts[name] for name in facts if name.endswith("groups")}
    assert counted == {
        "groups": 4,
        "zero_variance_groups": 1,
        "rejected_groups": 2,
        "rejected_zero_variance_groups": 1,
    }
    assert facts["completions"] == 24


def test_a_batch_without_variance_is_told_whatever_was_rejected(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rollout(run, [row | {"kept": row["group_id"] in (1, 2)} for row in ROWS])
    score.main("a", 1)
    assert "no group has two different rewards" in capsys.readouterr().err


def test_groups_are_shown_with_whether_they_are_kept(run: Run) -> None:
    score.main("a", 1, quiet=True)
    groups = groups_table(run, 1)
    assert groups.filter(~pl.col("kept"))["group_id"].to_list() == list(REJECTED)
    write_rollout(run, [row | {"kept": True} for row in ROWS])
    score.main("a", 1, quiet=True)
    assert "kept" not in groups_table(run, 1).columns


def score_rows(folder: Path, kept: list[Any]) -> pl.DataFrame:
    source, target = folder / "rows.parquet", folder / "scored.parquet"
    completions(kept=kept).write_parquet(source)
    score.main(input_path=source, output_path=target, overrides=['advantages.kind="batch"'])
    return pl.read_parquet(target)


def test_files_of_no_run_may_say_what_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Group 0 has one right of four, and alone is the batch."""
    scored = score_rows(tmp_path, [True] * 4 + [False] * 4)
    assert "0 of 1 groups without variance, and 0 of 1 rejected ones" in capsys.readouterr().out
    assert scored["advantage"][0] == pytest.approx(0.75 / (0.5 + 1e-4))


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (["yes"] * 8, "'kept' holds large_string"),
        ([True] * 7 + [None], "'kept' holds nulls"),
        ([True] * 6 + [False] * 2, "row 6: kept is False, but not so in other rows of its group"),
    ],
)
def test_what_is_kept_must_be_clear(tmp_path: Path, kept: list[Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        score_rows(tmp_path, kept)
    assert not (tmp_path / "scored.parquet").exists()
