"""A reward in a file beside the recipe, found from any working directory without PYTHONPATH."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.scored_runs import RECIPE, ROWS, scores, write_rollout

from common.runs.layout import Run

Stage = Callable[..., subprocess.CompletedProcess[str]]
FUNCTION = '[rewards.functions.own]\nfunction = "{}:f"\nweight = 1\n'


def folder_with(tmp_path: Path, name: str, module: str = "beside_it", value: int = 7) -> Path:
    """Return a recipe in a folder of its own, with the module of its function beside it."""
    folder = tmp_path / name
    folder.mkdir()
    (folder / f"{module}.py").write_text(f"def f(completion, row): return {value}\n")
    recipe = folder / "own.toml"
    recipe.write_text(RECIPE + FUNCTION.format(module))
    return recipe


@pytest.fixture
def run(runs: Path) -> Run:
    place = Run.named("a")
    place.root.mkdir()
    place.recipe.write_text(RECIPE)
    write_rollout(place, ROWS)
    return place


def test_it_is_found_again_where_the_runs_recipe_came_from(
    run: Run, tmp_path: Path, stage: Stage
) -> None:
    """The second command names no recipe; the third another one, with a file of its own beside."""
    command = ("score", "--run", "a", "--iteration", "1", "--overwrite")
    stage(*command, "--recipe", str(folder_with(tmp_path, "one")))
    assert set(scores(run)["reward_own"]) == {7}
    stage(*command)
    assert set(scores(run)["reward_own"]) == {7}
    stage(*command, "--recipe", str(folder_with(tmp_path, "two", value=8)))
    stage(*command)
    assert set(scores(run)["reward_own"]) == {8}


def test_a_file_is_scored_by_it_too(runs: Path, tmp_path: Path, stage: Stage) -> None:
    row = {"completion_text": "1", "answer": "1", "verify_type": "EXACT"}
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    files = ("--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.parquet"))
    stage("score", *files, "--recipe", str(folder_with(tmp_path, "one")))


def test_an_installed_module_of_the_same_name_is_told(
    run: Run, tmp_path: Path, stage: Stage
) -> None:
    recipe = folder_with(tmp_path, "one", module="tomlkit")
    options = ("--run", "a", "--iteration", "1", "--recipe", str(recipe))
    done = stage("score", *options, expect=2)
    assert f"{recipe.parent / 'tomlkit.py'} is hidden by another module 'tomlkit'" in done.stderr
    assert "give the file another name" in done.stderr
