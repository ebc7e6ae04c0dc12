"""The README's way from ten rows to a trained policy, as it is printed."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import polars as pl
import pytest
from support import REPOSITORY

from common.runs.layout import Run

SECTION = (
    (REPOSITORY / "README.md")
    .read_text()
    .split("## Your own data, model and reward\n")[1]
    .split("\n## ")[0]
)
SMOLLM2 = "data/models/smollm2-135m-instruct"


def make_run(folder: Path, runs: Path, model: Path) -> Run:
    """Follow the section in `folder`, with another model."""
    (rows,) = re.findall(r"^    (for .*)$", SECTION, re.M)
    (recipe,) = re.findall(r"```toml\n(.*?)```", SECTION, re.S)
    (reward,) = re.findall(r"```python\n(.*?)```", SECTION, re.S)
    (command,) = re.findall(r"`(make iteration [^`]*)`", SECTION)
    subprocess.run(["bash", "-c", rows], cwd=folder, check=True)
    assert len((folder / "mine.jsonl").read_text().splitlines()) == 10
    assert f'"{SMOLLM2}"' in recipe
    recipe = recipe.replace(SMOLLM2, str(model)).replace("mine.jsonl", str(folder / "mine.jsonl"))
    (folder / "mine.toml").write_text(recipe)
    (folder / "mine.py").write_text(reward)
    done = subprocess.run(
        [*command.replace("mine.toml", str(folder / "mine.toml")).split()],
        cwd=REPOSITORY,
        env=os.environ | {"STAGED_GRPO_RUNS": str(runs)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Run(runs / "mine")


def test_ten_rows_a_recipe_and_a_function_make_a_run(
    tmp_path: Path, runs: Path, tiny_policy: Path
) -> None:
    """A random policy in place of the model."""
    run = make_run(tmp_path, runs, tiny_policy)
    scores = pl.read_parquet(run.score(2).path / "*.parquet")
    assert len(scores) == 8 * 16
    assert set(scores["reward_brief"]) <= {0.0, 1.0}
    assert run.last_policy() == 2


@pytest.mark.slow
def test_the_same_with_the_model_of_the_readme(tmp_path: Path, runs: Path) -> None:
    model = REPOSITORY / SMOLLM2
    if not model.is_dir():
        pytest.skip("make smollm2 makes the model")
    run = make_run(tmp_path, runs, model)
    assert pl.read_parquet(run.score(1).path / "*.parquet")["reward"].max() >= 1
