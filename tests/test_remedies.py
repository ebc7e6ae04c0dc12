"""A remedy that an error prints works when it is pasted."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import RECIPE
from support import REPOSITORY

from common.runs.layout import Run
from common.runs.manifest import has_manifest, read_manifest
from workflows.chain.launch import Command

SMALL = ("rollout.prompts_per_iteration=2", "rollout.group_size=2", "evaluate.every=0")
EQUAL = (*SMALL, "rewards.format.weight=0", 'prompt.assistant_prefix="<answer>7</answer>"')
"""A random policy's answers are all wrong numbers: rewards are equal, with nothing unanswered."""


@pytest.fixture
def run(prepared: Callable[..., Path], at: Callable[[Path], Run]) -> Run:
    return at(prepared(RECIPE, *SMALL, "train.on_no_signal=keep"))


def command(*words: str, expect: int) -> str:
    """Run a stage or make, and return all that it prints."""
    parts = Command(words[0], words[1:]).words if "." in words[0] else words
    done = subprocess.run(parts, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def paste(text: str, remedy: str) -> str:
    """Run the command that follows these words of a message in a shell, and return its output."""
    found = re.search(re.escape(remedy) + r"\s*(.*)", text)
    assert found, text
    done = subprocess.run(
        ["bash", "-c", found[1]], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{found[1]}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_a_stage_of_an_iteration_that_does_not_exist(run: Run) -> None:
    """Not the stage before it, which would fail as well."""
    said = command("stages.score", "--run", "a", "--iteration", "2", expect=2)
    assert "make iteration N=2 RUN=a" in said
    paste(said, "make it with:")
    assert has_manifest(run.train(2))
    said = command("stages.evaluate", "--run", "a", "--iteration", "3", expect=2)
    assert "make iteration N=3 RUN=a" in said
    said = command("stages.show", "tokens", "--run", "a", "--iteration", "1", expect=2)
    paste(said, "make it with:")
    assert has_manifest(run.tokens(1))


def test_a_recipe_that_changes_nothing_that_is_finished(run: Run) -> None:
    command("make", "iteration", "N=1", "RUN=a", expect=0)
    said = command("make", "iteration", "N=1", "RUN=a", "SET=train.learning_rate=5e-4", expect=0)
    assert "iteration 1 was made with train.learning_rate = 0.001 and stays so" in said
    paste(said, "as it is now:")
    assert read_manifest(run.train(1)).recipe["train"]["learning_rate"] == 5e-4
    again = command("make", "iteration", "N=1", "RUN=a", "SET=train.learning_rate=5e-4", expect=0)
    assert "stays so" not in again and "nothing to do" in again


def test_no_learning_signal(prepared: Callable[..., Path], at: Callable[[Path], Run]) -> None:
    run = at(prepared(RECIPE, *EQUAL))
    said = command("make", "iteration", "N=1", "RUN=a", expect=2)
    assert "no learning signal" in said
    assert "make iteration N=1 FROM=1 RUN=a SET=rollout.group_size=4" in said
    paste(said, "Go on without an update:")
    assert has_manifest(run.train(1))


def test_a_damaged_shard(run: Run) -> None:
    command("make", "iteration", "N=1", "RUN=a", expect=0)
    (shard, *_) = sorted(run.score(1).path.glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-9])
    said = command("make", "iteration", "N=1", "RUN=a", expect=2)
    paste(said, "Damaged?")
    command("make", "iteration", "N=1", "RUN=a", expect=0)


def test_a_run_that_does_not_exist(run: Run) -> None:
    said = command("make", "show", "RUN=b", expect=2)
    assert "no such run; there are a (RUN=…); begin it with: make iteration N=1 RUN=b" in said


def test_no_run_at_all(runs: Path) -> None:
    said = command("make", "show", expect=2)
    assert "no such run; there is none yet; begin it with: make iteration N=1 RUN=demo" in said
