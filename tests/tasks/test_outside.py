"""Files outside a run: another content is told once, with two ways to go on that work."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support import REPOSITORY

from common.config.recipe_file import load_recipe
from common.runs.layout import Run
from common.runs.manifest import read_manifest
from common.tasks.outside import accept_changed_files, changed_files, data_files
from stages import prepare, show
from workflows.chain.launch import Command

RECIPE = """\
[model]
path = "{model}"

[data.mine]
kind = "dataset"
path = "{data}"
eval = 1
verify_type = "EXACT"

[evaluate]
every = 0
"""


def write_rows(path: Path, count: int) -> None:
    rows = [{"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def mine(runs: Path, tmp_path: Path, tiny_policy: Path) -> Run:
    """A prepared run of a file and a model folder in `tmp_path`."""
    shutil.copytree(tiny_policy, tmp_path / "model")
    write_rows(tmp_path / "mine.jsonl", 6)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(model=tmp_path / "model", data=tmp_path / "mine.jsonl"))
    prepare.main("a", recipe=recipe, quiet=True)
    return Run(runs / "a")


def changed(run: Run) -> dict[str, str]:
    return changed_files(run, load_recipe(run.recipe).data)


def chain(*options: str) -> subprocess.CompletedProcess[str]:
    words = Command("workflows.chain", ["iteration", "--run", "a", *options]).words
    return subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_data_and_model_are_recorded(mine: Run, tmp_path: Path) -> None:
    recorded = read_manifest(mine.prompts).outside
    files = {path.name for path in (tmp_path / "model").iterdir()} | {"mine.jsonl"}
    assert {Path(path).name for path in recorded} >= {"mine.jsonl", "model.safetensors"}
    assert {Path(path).name for path in recorded} <= files
    assert changed(mine) == {}


@pytest.mark.parametrize("name", ["mine.jsonl", "model/config.json"])
def test_another_content_is_a_change_and_another_time_is_none(
    mine: Run, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    text = path.read_bytes()
    os.utime(path, (1, 1))
    assert changed(mine) == {}
    path.unlink()
    assert changed(mine) == {}, "the run has what it needs of a file that has vanished"
    path.write_bytes(text + b"\n")
    assert changed(mine) == {str(path): "has another content now"}
    path.write_bytes(text)
    assert changed(mine) == {}


def test_a_further_file_of_a_folder_is_a_change(
    runs: Path, tmp_path: Path, tiny_policy: Path
) -> None:
    folder, recipe = tmp_path / "rows", tmp_path / "recipe.toml"
    folder.mkdir()
    write_rows(folder / "train-1.jsonl", 5)
    recipe.write_text(RECIPE.format(model=tiny_policy, data=folder))
    assert data_files(load_recipe(recipe).data) == [folder / "train-1.jsonl"]
    prepare.main("a", recipe=recipe, quiet=True)
    write_rows(folder / "train-2.jsonl", 7)
    assert changed(Run(runs / "a")) == {str(folder / "train-2.jsonl"): "is new"}


def test_the_chain_asks_once_and_both_answers_work(
    mine: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Accepted content is not asked about again, other content is."""
    write_rows(tmp_path / "mine.jsonl", 9)
    before = read_manifest(mine.prompts).content_hash
    show.status("a")
    asked = chain("--to", "0")
    assert asked.returncode == 2 and asked.stdout == ""
    for said in (asked.stderr, capsys.readouterr().out):
        assert f"{tmp_path}/mine.jsonl: has another content now, since run 'a' was prepared" in said
        assert "--accept-edits" in said and "--overwrite" in said
    go_on, again = re.findall(r":  (\S*python -m stages\.prepare .*)", asked.stderr)
    subprocess.run(shlex.split(go_on), cwd=REPOSITORY, check=True, capture_output=True)
    assert read_manifest(mine.prompts).content_hash == before
    assert "nothing to do" in chain("--to", "0").stdout
    write_rows(tmp_path / "mine.jsonl", 12)
    assert chain("--to", "0").returncode == 2
    subprocess.run(shlex.split(again), cwd=REPOSITORY, check=True, capture_output=True)
    assert read_manifest(mine.prompts).rows == 12
    assert "nothing to do" in chain("--to", "0").stdout


def test_what_is_accepted_is_named(mine: Run, tmp_path: Path) -> None:
    write_rows(tmp_path / "mine.jsonl", 9)
    data = load_recipe(mine.recipe).data
    assert accept_changed_files(mine, data) == [str(tmp_path / "mine.jsonl")]
    assert accept_changed_files(mine, data) == []


def test_a_finished_iteration_is_counted(
    mine: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], make_policy: Callable[..., Path]
) -> None:
    shutil.copytree(mine.policy(0).path, mine.policy(3).path)
    write_rows(tmp_path / "mine.jsonl", 9)
    prepare.main("a")
    said = capsys.readouterr()
    assert "3 finished iterations become stale" in said.err
    assert "nothing to do" in said.out
