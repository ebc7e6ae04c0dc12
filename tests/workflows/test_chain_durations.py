"""How long iterations will take, from the times of finished ones; nothing where nobody knows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import REPOSITORY

from common.config import Recipe
from common.runs.freshness import PlannedStage, plan
from common.runs.layout import Run
from common.runs.manifest import read_manifest
from common.runs.recipe import recipe_in_force
from common.runs.stages import BY_NAME
from workflows.chain.__main__ import _Chain
from workflows.chain.durations import LATEST, Durations


def step(name: str, number: int) -> PlannedStage:
    return PlannedStage(BY_NAME[name], number, "missing")  # type: ignore[index]


def test_times_add_up_and_the_latest_count() -> None:
    durations = Durations()
    assert durations.of([step("rollout", 1)]) is None
    for seconds in (1000.0, *([10.0] * LATEST)):
        durations.add("rollout", seconds)
    durations.add("train", 3.0)
    assert durations.of([step("rollout", n) for n in (2, 3)] + [step("train", 2)]) == 23.0
    assert durations.of([step("rollout", 2), step("evaluate", 2)]) is None, "never timed"
    assert durations.of([]) == 0


@pytest.fixture
def run(finished: Path, at: Callable[[Path], Run]) -> Run:
    return at(finished)


def test_manifests_of_the_same_recipe_say_how_long(run: Run) -> None:
    recipe = recipe_in_force(run)
    steps = plan(run, recipe, to=4)
    names = {step.stage.name for step in steps}
    assert names == {"rollout", "score", "logprobs", "train"}
    seconds = sum(
        2 * read_manifest(run.of(name, n)).recorded["wall_seconds"] / 2
        for name in names
        for n in (1, 2)
    )
    assert Durations.recorded(run, recipe).of(steps) == pytest.approx(seconds, abs=0.01)


def test_another_recipe_is_no_measure(run: Run) -> None:
    other = recipe_in_force(run, overrides=["rollout.group_size=8"])
    durations = Durations.recorded(run, other)
    assert durations.of([step("rollout", 3)]) is None
    assert durations.of([step("logprobs", 3)]) is not None, "which that key does not decide"


def chain(run: Run, recipe: Recipe, **options: object) -> _Chain:
    settings = {"jobs": 1, "fork": True, "quiet": False, "end_with": None} | options
    return _Chain(run, recipe, **settings)  # type: ignore[arg-type]


def test_the_chain_says_it_before_each_iteration_but_the_last(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And nothing when quiet, when stages run side by side, or when nobody knows."""
    recipe = recipe_in_force(run)
    steps = dict.fromkeys(plan(run, recipe, to=5), None)
    monkeypatch.setattr(_Chain, "_run_iteration", lambda self, waiting: 0)
    monkeypatch.setattr(Durations, "of", lambda self, left: 60.0 * len(left))
    capsys.readouterr()
    chain(run, recipe).run(steps)  # type: ignore[arg-type]
    assert capsys.readouterr().out.splitlines() == [
        "iterations 3 to 5 take about 12 min",
        "iterations 4 to 5 take about 8 min",
    ]
    chain(run, recipe, quiet=True).run(steps)  # type: ignore[arg-type]
    chain(run, recipe, jobs=2).run(steps)  # type: ignore[arg-type]
    monkeypatch.setattr(Durations, "of", lambda self, left: None)
    chain(run, recipe).run(steps)  # type: ignore[arg-type]
    assert capsys.readouterr().out == ""


def call(*arguments: str) -> tuple[int, object, str]:
    done = subprocess.run(
        [sys.executable, "-m", "workflows.chain", *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return done.returncode, json.loads(done.stdout), done.stderr


def test_the_chain_answers_in_json(run: Run) -> None:
    to_2 = ("iteration", "--json", "--run", "a", "--to", "2")
    assert call(*to_2)[:2] == (0, {"run": "a", "iteration": 2, "made": []})
    code, planned, _ = call(*to_2[:-1], "3", "--dry-run")
    assert code == 0 and "stages.rollout --run a --iteration 3" in str(planned)
    fresh = call("stage", "score", "--json", "--", "--run", "a", "--iteration", "1")
    assert fresh[:2] == (0, {"fresh": True})
    (shard,) = run.score(2).path.glob("*.parquet")
    shard.write_bytes(b"damaged")
    code, facts, said = call(*to_2)
    assert code == 2 and facts == {"error": said.removeprefix("error: ").strip(), "exit_code": 2}


def test_a_stage_that_fails_is_named_in_json(run: Run) -> None:
    wrong = "rewards.functions.mine.function=no_such_module:f"
    given = ("--set", wrong, "--set", "rewards.functions.mine.weight=1.0")
    code, facts, said = call("iteration", "--json", "--run", "a", "--to", "3", *given)
    assert code == 2
    assert facts == {
        "error": "score-3 ended with exit code 2; why is on standard error",
        "exit_code": 2,
    }
    assert "no_such_module" in said
