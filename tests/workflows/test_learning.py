"""Ablation and learn through the real commands: ways to answer, before and after, tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from support import REPOSITORY

from common.errors import UserError
from common.reporting import opening_tables
from common.reporting.evaluation_tables import greedy_difference
from common.reporting.run_tables import scored_completions
from common.runs.layout import DEFAULT_RECIPE, Run
from workflows.ablation.__main__ import in_order
from workflows.learn.__main__ import trained
from workflows.trials import trials

ITERATIONS = 2

Commands = Callable[..., subprocess.CompletedProcess[str]]


@dataclass(frozen=True)
class Ablation:
    """What the real command did, once for all tests of this file."""

    run: Commands
    recipe: Path
    output: Path
    tables: dict[str, list[dict[str, Any]]]
    folder: Path

    def trained(self, variant: str) -> Run:
        return Run(self.folder / f"ablation-{variant}-3")


@pytest.fixture(scope="module")
def ablation(tmp_path_factory: pytest.TempPathFactory) -> Ablation:
    folder = tmp_path_factory.mktemp("ablation")
    recipe = folder / "small.toml"
    text = DEFAULT_RECIPE.read_text()
    for old, new in (("iteration = 32", "iteration = 6"), ("eval = 200", "eval = 6")):
        text = text.replace(old, new)
    recipe.write_text(text.replace("shard = 8", "shard = 3").replace("samples = 4", "samples = 2"))

    def run(module: str, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=REPOSITORY,
            env=os.environ | {"STAGED_GRPO_RUNS": str(folder), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == expect, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    output = folder / "results"
    options = ["--recipe", str(recipe), "--only", "default", "--seeds", "3"]
    options += ["--variant", "shuffled:advantages.shuffle=true"]
    options += ["--iterations", str(ITERATIONS), "--jobs", "2"]
    options += ["--output", str(output), "--json"]
    tables = json.loads(run("workflows.ablation", *options).stdout)
    return Ablation(run, recipe, output, tables, folder)


def test_an_ablation_compares_with_its_first_variant(ablation: Ablation) -> None:
    default, shuffled = ablation.tables["comparison"]
    assert (default["variant"], shuffled["variant"]) == ("default", "shuffled")
    assert default["greedy diff"] is None
    assert shuffled["drawn diff"] == pytest.approx(shuffled["drawn"] - default["drawn"])
    assert shuffled["drawn low"] is None  # of a single seed there is no interval
    gained, _ = ablation.tables["gains"]
    assert gained["sampled gain"] == pytest.approx(gained["sampled"] - gained["sampled before"])
    assert gained["greedy"] == default["greedy"]


def test_raw_metrics_are_every_step_of_every_run(ablation: Ablation) -> None:
    steps = pl.read_parquet(ablation.output / "steps.parquet")
    assert steps["iteration"].to_list() == [1, 2, 1, 2]
    assert steps["variant"].to_list() == ["default"] * 2 + ["shuffled"] * 2
    assert set(steps["seed"]) == {3}
    accuracy = pl.read_parquet(ablation.output / "accuracy.parquet")
    assert sorted(set(accuracy["policy"])) == [0, ITERATIONS]
    # Iteration 1 draws the same for both: only what training makes of it differs.
    assert steps["reward_mean"][0] == steps["reward_mean"][2]
    assert steps["grad_norm"][0] != steps["grad_norm"][2]
    right = scored_completions(ablation.trained("default"), 2)["verdict"] == "correct"
    assert steps["drawn_accuracy"][1] == right.mean()


def test_an_ablation_is_read_again_and_goes_on(ablation: Ablation) -> None:
    read = ablation.run("workflows.ablation", "--read", str(ablation.output), "--json")
    assert json.loads(read.stdout) == ablation.tables
    options = ["--recipe", str(ablation.recipe), "--only", "default", "--seeds", "3"]
    again = ablation.run("workflows.ablation", *options, "--iterations", str(ITERATIONS))
    assert "nothing to do" in again.stdout
    other = ablation.run("workflows.ablation", *options, "--iterations", "1", expect=2)
    assert "is not the recipe that ablation-default-3 would be" in other.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "x"], "'x' is none of default, grpo"),
        (["--variant", "x"], "write it as NAME:section.key=value"),
        (
            ["--variant", "a b:train.epochs=2"],
            "would call a run 'ablation-a b-0', and a run's name is",
        ),
        (["--seeds", "a"], "whole numbers with commas"),
        (["--output", "/x/y"], "name a folder, new or not, in one that exists"),
        (["--read", "/x"], "--read /x: steps.parquet: No such file"),
        (["--read", "/x", "--only", "gspo"], "with --read nothing is trained: leave --only out"),
    ],
)
def test_what_an_ablation_refuses(ablation: Ablation, options: list[str], message: str) -> None:
    assert message in ablation.run("workflows.ablation", *options, expect=2).stderr


def test_openings_by_iteration_are_those_of_the_completions(ablation: Ablation) -> None:
    run = ablation.trained("default")
    drawn = opening_tables.rollouts(run)
    common = opening_tables.most_common(drawn)
    table = opening_tables.by_iteration(drawn, common)
    shares = [name for name in table.columns if name.endswith("'")]
    assert table.select(pl.sum_horizontal(shares)).to_series().to_list() == pytest.approx([1, 1])
    few = opening_tables.by_iteration(drawn, [common[0], opening_tables.OTHERS])
    rest = few[opening_tables.quoted(opening_tables.OTHERS)] + few[opening_tables.quoted(common[0])]
    assert rest.to_list() == pytest.approx([1, 1])
    rows = scored_completions(run, 1)
    careful = rows.filter(pl.col("completion_text").str.strip_chars().str.starts_with("Carefully:"))
    assert table["'Carefully:'"][0] == pytest.approx(careful.height / rows.height)
    right = (careful["verdict"] == "correct").mean()
    assert table["'Carefully:' right"][0] == pytest.approx(right)


def test_openings_are_shown(ablation: Ablation) -> None:
    run = ("--run", "ablation-default-3")
    tables = json.loads(ablation.run("stages.show", "openings", *run, "--json").stdout)
    assert list(tables) == ["iterations", "well_formed", "gain", "ways"]
    for row in tables["gain"]:
        assert row["choice"] + row["within"] == pytest.approx(row["difference"], abs=1e-9)
        assert row["within_low"] <= row["within"] <= row["within_high"]
        ways = [way for way in tables["ways"] if way["task"] == row["task"]]
        assert sum(way["share_after"] for way in ways) == pytest.approx(1)
        assert sum(way["choice"] for way in ways) == pytest.approx(row["choice"], abs=1e-9)
    only = ablation.run("stages.show", "openings", *run, "--task", "counting", "--json").stdout
    assert {row["task"] for row in json.loads(only)["gain"]} == {"counting"}
    unknown = ablation.run("stages.show", "openings", *run, "--task", "x", expect=2)
    assert "--task 'x': there is" in unknown.stderr


def test_evaluations_are_shown(ablation: Ablation) -> None:
    run = ("--run", "ablation-default-3")
    shown = json.loads(ablation.run("stages.show", "evaluations", *run, "--json").stdout)
    assert [row["policy"] for row in shown["evaluations"]] == [0] * 3 + [ITERATIONS] * 3
    assert shown["difference"][-1]["task"] == "mean over tasks"


def test_answers_before_and_after_are_shown(ablation: Ablation) -> None:
    run = ("--run", "ablation-default-3")
    greedy = json.loads(ablation.run("stages.show", "answers", *run, "--json").stdout)
    assert len(greedy) == 18
    difference = greedy_difference(ablation.trained("default"), 0, ITERATIONS).tail(1)
    counts = Counter(row["change"] for row in greedy)
    change = counts["gained"] - counts["lost"]
    assert change / len(greedy) == pytest.approx(difference["difference"].item())
    sampled = ("stages.show", "answers", *run, "--sample", "1", "--task", "counting")
    (rows, missed) = (
        json.loads(ablation.run(*sampled, *more, "--json").stdout)
        for more in ([], ["--change", "missed"])
    )
    assert len(rows) == 6 and {row["task"] for row in rows} == {"counting"}
    assert missed == [row for row in rows if row["change"] == "missed"]
    evaluated = pl.read_parquet(ablation.trained("default").evaluation(0).path / "*.parquet")
    written = evaluated.filter(task="counting", sample_index=1)["completion_text"]
    assert [row["before"] for row in rows] == written.to_list()
    for options, message in (
        (("--change", "x"), "--change 'x': one of gained, lost, kept, missed"),
        (("--sample", "9"), "evaluated with 2 sampled completions a question"),
        (("--task", "x"), "--task 'x': there is"),
    ):
        assert message in ablation.run("stages.show", "answers", *run, *options, expect=2).stderr


def test_runs_are_put_side_by_side(ablation: Ablation) -> None:
    runs = ("--run", "ablation-default-3", "--run", "ablation-shuffled-3")
    svg, output = ablation.folder / "a.svg", ablation.folder / "learned"
    files = ("--svg", str(svg), "--output", str(output))
    printed = ablation.run("workflows.learn", *runs, *files, "--json").stdout
    tables = json.loads(printed)
    assert [row["run"] for row in tables["greedy"]] == [runs[1]] * 4 + [runs[3]] * 4
    *tasks, mean = tables["greedy"][:4]
    assert (mean["task"], mean["after_low"]) == ("mean over tasks", None)
    for row in tasks:
        assert row["after_low"] <= row["after"] <= row["after_high"]
        assert row["difference"] == pytest.approx(row["after"] - row["before"])
        assert row["difference_low"] <= row["difference"] <= row["difference_high"]
    assert {"pass@1", "pass@2 after", "well_formed", "tokens"} <= tables["sampled"][0].keys()
    assert svg.read_text().startswith("<?xml")
    assert set(pl.read_parquet(output / "ways.parquet")["run"]) == {runs[1], runs[3]}
    assert pl.read_parquet(output / "curves.parquet")["iteration"].to_list() == [1, 2, 1, 2]
    again = ablation.folder / "b.svg"
    read = ("--read", str(output), "--svg", str(again), "--json")
    assert ablation.run("workflows.learn", *read).stdout == printed
    assert again.read_bytes() == svg.read_bytes()
    alone = ablation.run("workflows.learn", *runs[:2])
    assert "choosing other openings" in alone.stdout
    nobody = ablation.run("workflows.learn", "--run", "nobody", expect=2)
    assert "no such run; there are" in nobody.stderr
    idle = ablation.run("workflows.learn", *runs[:2], "--seeds", "7", expect=2)
    assert "with --run nothing is trained: leave --seeds out" in idle.stderr


def test_a_recipe_is_learned_in_runs_of_its_name(ablation: Ablation) -> None:
    """Here of a name and a recipe that have a run already."""
    text = ablation.trained("default").recipe.read_text()
    recipe = ablation.folder / "ablation-default.toml"
    recipe.write_text(text)
    options = ("--recipe", str(recipe), "--seeds", "3")
    done = ablation.run("workflows.learn", *options, "--iterations", str(ITERATIONS))
    assert "ablation-default-3: to iteration 2" in done.stdout and "nothing to do" in done.stdout
    for every, message in ((3, "policy 2 would not be evaluated"), (0, "nothing would be eval")):
        recipe.write_text(text.replace("every = 2", f"every = {every}"))
        with pytest.raises(UserError, match=f"evaluate.every = {every}.*{message}"):
            trained(recipe, "3", ITERATIONS, jobs=1, quiet=True)


def test_a_run_that_stops_is_told_and_the_others_are_made(ablation: Ablation) -> None:
    options = ["--recipe", str(ablation.recipe), "--only", "default", "--seeds", "3"]
    options += ["--iterations", str(ITERATIONS), "--variant", "lost:model.path=./nowhere"]
    done = ablation.run("workflows.ablation", *options, "--json", expect=2)
    compared = json.loads(done.stdout)["comparison"]
    assert [row["variant"] for row in compared] == ["default"]
    assert "ablation-lost-3 stopped; its message is above" in done.stderr
    side_by_side = ablation.run("workflows.ablation", *options, "--jobs", "2", expect=2)
    log = ablation.folder / "ablation-lost-3" / "chain.log"
    assert f"ablation-lost-3 stopped; the end of {log} says why" in side_by_side.stderr
    assert "nowhere" in log.read_text() and "nowhere" not in side_by_side.stderr


def test_the_first_variant_comes_first(ablation: Ablation, runs: Path) -> None:
    made = trials("ablation", ablation.recipe, {"b": (), "a": ()}, "0,1")
    names = [trial.variant.name for trial in in_order(made, ["a", "b"], [])]
    assert names == ["a", "a", "b", "b"]
    with pytest.raises(UserError, match=r"c-0 stopped(.|\n)*there is no run of 'c', with which"):
        in_order(made, ["c", "a", "b"], ["c-0 stopped"])
