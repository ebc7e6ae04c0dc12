"""What a score is made with besides the recipe: own functions, versions, the shards there are."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from support.scored_runs import RECIPE, ROWS, start_scored_run

from common.errors import UserError
from common.runs.layout import Run
from common.runs.manifest import read_manifest
from common.runs.schemas import KEY
from common.runs.shards import read_output
from stages import score

FUNCTIONS = """
[rewards.functions.{}]
function = "mine:first"
weight = 1
[rewards.functions.{}]
function = "mine:second"
weight = 1
"""


@pytest.fixture
def run(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run whose recipe has two functions of a module in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine.py").write_text(
        "def first(completion, row): return 1.0\ndef second(completion, row): return 2.0\n"
    )
    return start_scored_run(RECIPE + FUNCTIONS.format("z", "a"))


def frame_of(run: Run) -> pl.DataFrame:
    frame = pl.from_arrow(read_output(run.score(1)))
    assert isinstance(frame, pl.DataFrame)
    return frame


def test_shards_of_another_function_are_judged_anew(run: Run, tmp_path: Path) -> None:
    score.main("a", 1, shards="0-1", quiet=True)
    (tmp_path / "mine.py").write_text(
        "def first(completion, row): return 5.0\ndef second(completion, row): return 2.0\n"
    )
    score.main("a", 1, shards="2", quiet=True)
    assert not run.score(1).path.exists(), "the first two were made by another file"
    score.main("a", 1, quiet=True)
    assert frame_of(run)["reward_z"].to_list() == [5.0] * len(ROWS)
    made_by = read_manifest(run.score(1)).recorded["made_by"]
    assert {name: len(version) for name, version in made_by.items()} == {
        "z: mine:first": 64,
        "a: mine:second": 64,
    }


def test_functions_in_another_order_are_other_columns(run: Run) -> None:
    score.main("a", 1, shards="0-1", quiet=True)
    run.recipe.write_text(
        RECIPE
        + FUNCTIONS.format("a", "z")
        .replace("first", "x")
        .replace("second", "first")
        .replace("mine:x", "mine:second")
    )
    score.main("a", 1, quiet=True)
    assert set(frame_of(run)["reward_z"]) == {1.0}
    assert set(frame_of(run)["reward_a"]) == {2.0}


def test_failures_in_shards_that_were_not_asked_for_are_judged_again(
    run: Run, tmp_path: Path
) -> None:
    good = (tmp_path / "mine.py").read_text()
    key = ROWS[0][KEY]
    (tmp_path / "mine.py").write_text(
        good + f"def first(completion, row): return None if row['{KEY}'] != '{key}' else 1 / 0\n"
    )
    with pytest.raises(UserError, match="ZeroDivisionError"):
        score.main("a", 1, quiet=True)
    with pytest.raises(UserError, match="ZeroDivisionError"):
        score.main("a", 1, shards="1-2", quiet=True)
    (tmp_path / "mine.py").write_text(good)
    score.main("a", 1, quiet=True)
    assert frame_of(run)["reward"].null_count() == 0


def test_the_rollouts_limit_is_the_limit_of_length(run: Run) -> None:
    """20 tokens in the rollout; the manifest tells the recipe as it was written."""
    overrides = ["rewards.length.weight=1", "rewards.length.buffer_tokens=19"]
    score.main("a", 1, overrides=overrides, quiet=True)
    (reward,) = set(frame_of(run)["reward_length"])
    assert reward == pytest.approx(-1 / 19)
    assert read_manifest(run.score(1)).recipe["rewards"]["length"]["max_tokens"] is None


def test_a_rollout_of_a_run_is_scored_by_the_runs_recipe(run: Run, tmp_path: Path) -> None:
    source, target = run.rollout(1).path, tmp_path / "out.parquet"
    score.main(input_path=source, output_path=target, quiet=True)
    scored = pl.read_parquet(target)
    assert {"reward_z", "reward_a", "reward_format"} <= set(scored.columns)


def test_options_of_runs_are_no_options_of_files(run: Run, tmp_path: Path) -> None:
    for options in ({"shards": "0"}, {"accept_edits": True}, {"iteration": 1}):
        with pytest.raises(UserError, match="without options of a run"):
            score.main(
                input_path=run.rollout(1).path,
                output_path=tmp_path / "out.parquet",
                **options,  # type: ignore[arg-type]
            )


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (["1 2"] * 4, "the reward 'length' needs a column 'completion_ids' of lists"),
        ([None] * 4, "the reward 'length' needs a column 'completion_ids' of lists"),
        ([[1], [1], None, [1]], "row 2: no value in column 'completion_ids'"),
    ],
)
def test_token_ids_are_lists_where_they_are_needed(
    ids: list[object], said: str, runs: Path, tmp_path: Path
) -> None:
    source, target = tmp_path / "in.parquet", tmp_path / "out.parquet"
    columns = {"completion_text": ["1"] * 4, "answer": ["1"] * 4, "verify_type": ["EXACT"] * 4}
    pl.DataFrame(columns | {"completion_ids": ids}).write_parquet(source)
    score.main(input_path=source, output_path=target, quiet=True)
    assert pl.read_parquet(target)["reward"].to_list() == [1.0] * 4
    overrides = ["rewards.length.weight=1", "rewards.length.max_tokens=50"]
    with pytest.raises(UserError) as raised:
        score.main(
            input_path=source, output_path=target, overrides=overrides, overwrite=True, quiet=True
        )
    assert said in str(raised.value)
