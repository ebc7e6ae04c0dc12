"""What runs have learned: ways to answer, where a gain comes from, and an ablation's table."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.reporting import openings
from common.reporting.tables import greedy_difference, scored_completions
from common.runs.layout import DEFAULT_RECIPE, Run
from workflows.ablation.tables import interval

REPOSITORY = Path(__file__).resolve().parents[1]
ITERATIONS = 2

Commands = Callable[..., subprocess.CompletedProcess[str]]


@dataclass(frozen=True)
class Ablation:
    """What the real command did, once for all tests of this file."""

    run: Commands
    recipe: Path
    output: Path
    table: list[dict[str, Any]]
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
            timeout=240,
            check=False,
        )
        assert done.returncode == expect, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    output = folder / "ablation.parquet"
    options = ["--recipe", str(recipe), "--only", "default", "--seeds", "3"]
    options += ["--variant", "shuffled:advantages.shuffle=true"]
    options += ["--iterations", str(ITERATIONS), "--jobs", "2"]
    options += ["--output", str(output), "--json"]
    table = json.loads(run("workflows.ablation", *options).stdout)
    return Ablation(run, recipe, output, table, folder)


def test_an_ablation_compares_with_its_first_variant(ablation: Ablation) -> None:
    default, shuffled = ablation.table
    assert (default["variant"], shuffled["variant"]) == ("default", "shuffled")
    assert default["greedy diff"] is None
    assert shuffled["drawn diff"] == pytest.approx(shuffled["drawn"] - default["drawn"])
    assert shuffled["drawn low"] is None  # of a single seed there is no interval


def test_raw_metrics_are_every_step_of_every_run(ablation: Ablation) -> None:
    steps = pl.read_parquet(ablation.output)
    assert steps["iteration"].to_list() == [1, 2, 1, 2]
    assert steps["variant"].to_list() == ["default"] * 2 + ["shuffled"] * 2
    assert set(steps["seed"]) == {3}
    accuracy = pl.read_parquet(ablation.output.with_name("ablation-accuracy.parquet"))
    assert sorted(set(accuracy["policy"])) == [0, ITERATIONS]
    # Iteration 1 draws the same for both: only what training makes of it differs.
    assert steps["reward_mean"][0] == steps["reward_mean"][2]
    assert steps["grad_norm"][0] != steps["grad_norm"][2]
    right = scored_completions(ablation.trained("default"), 2)["verdict"] == "correct"
    assert steps["drawn_accuracy"][1] == right.mean()


def test_an_ablation_is_read_again_and_goes_on(ablation: Ablation) -> None:
    read = ablation.run("workflows.ablation", "--read", str(ablation.output), "--json")
    assert json.loads(read.stdout) == ablation.table
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
        (["--seeds", "a"], "whole numbers with commas"),
        (["--output", "/x/y.parquet"], "folder that exists"),
        (["--read", "/x.parquet"], "--read /x.parquet"),
        (["--read", "/x.parquet", "--output", "y.parquet"], "leave --output out"),
    ],
)
def test_what_an_ablation_refuses(ablation: Ablation, options: list[str], message: str) -> None:
    assert message in ablation.run("workflows.ablation", *options, expect=2).stderr


def test_openings_by_iteration_are_those_of_the_completions(ablation: Ablation) -> None:
    run = ablation.trained("default")
    drawn = openings.rollouts(run)
    common = openings.most_common(drawn)
    table = openings.by_iteration(drawn, common)
    shares = [name for name in table.columns if name.endswith("'")]
    assert table.select(pl.sum_horizontal(shares)).to_series().to_list() == pytest.approx([1, 1])
    few = openings.by_iteration(drawn, [common[0], openings.OTHERS])
    rest = few[openings.quoted(openings.OTHERS)] + few[openings.quoted(common[0])]
    assert rest.to_list() == pytest.approx([1, 1])
    rows = scored_completions(run, 1)
    careful = rows.filter(pl.col("completion_text").str.strip_chars().str.starts_with("Carefully:"))
    assert table["'Carefully:'"][0] == pytest.approx(careful.height / rows.height)
    right = (careful["verdict"] == "correct").mean()
    assert table["'Carefully:' right"][0] == pytest.approx(right)


def test_openings_are_shown(ablation: Ablation) -> None:
    run = ("--run", "ablation-default-3")
    tables = json.loads(ablation.run("stages.show", "openings", *run, "--json").stdout)
    assert list(tables) == ["iterations", "well_formed", "gain"]
    for row in tables["gain"]:
        assert row["choice"] + row["within"] == pytest.approx(row["difference"], abs=1e-9)
    only = ablation.run("stages.show", "openings", *run, "--task", "counting", "--json").stdout
    assert {row["task"] for row in json.loads(only)["gain"]} == {"counting"}
    unknown = ablation.run("stages.show", "openings", *run, "--task", "x", expect=2)
    assert "--task 'x': there is" in unknown.stderr


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
    svg, curves = ablation.folder / "a.svg", ablation.folder / "curves.parquet"
    files = ("--svg", str(svg), "--output", str(curves))
    printed = ablation.run("workflows.learn", *runs, *files, "--json").stdout
    tables = json.loads(printed)
    assert [row["run"] for row in tables["greedy"]] == [runs[1]] * 4 + [runs[3]] * 4
    *tasks, mean = tables["greedy"][:4]
    assert (mean["task"], mean["after_low"]) == ("mean over tasks", None)
    for row in tasks:
        assert row["after_low"] <= row["after"] <= row["after_high"]
        assert row["difference"] == pytest.approx(row["after"] - row["before"])
        assert row["difference_low"] <= row["difference"] <= row["difference_high"]
    assert {"pass@1", "pass@2 after", "tokens"} <= tables["sampled"][0].keys()
    assert svg.read_text().startswith("<?xml")
    assert pl.read_parquet(curves)["iteration"].to_list() == [1, 2, 1, 2]
    alone = ablation.run("workflows.learn", *runs[:2])
    assert "choosing other openings" in alone.stdout
    nobody = ablation.run("workflows.learn", "--run", "nobody", expect=2)
    assert "no such run; make iteration" in nobody.stderr


def test_a_recipe_is_learned_in_runs_of_its_name(ablation: Ablation) -> None:
    recipe = ablation.folder / "tiny.toml"
    recipe.write_text(ablation.recipe.read_text().replace("every = 10", "every = 1"))
    options = ("--recipe", str(recipe), "--seeds", "5")
    done = ablation.run("workflows.learn", *options, "--iterations", "1", "--json")
    assert {row["run"] for row in json.loads(done.stdout)["greedy"]} == {"tiny-5"}
    assert Run(ablation.folder / "tiny-5").evaluations() == [0, 1]
    for every, message in ((2, "policy 1 would not be evaluated"), (0, "nothing would be eval")):
        recipe.write_text(ablation.recipe.read_text().replace("every = 10", f"every = {every}"))
        odd = ablation.run("workflows.learn", *options, "--iterations", "1", expect=2)
        assert f"evaluate.every = {every}" in odd.stderr and message in odd.stderr


def test_a_run_that_stops_is_told_and_the_others_are_made(ablation: Ablation) -> None:
    options = ["--recipe", str(ablation.recipe), "--only", "default", "--seeds", "3"]
    options += ["--iterations", str(ITERATIONS), "--variant", "lost:model.path=nowhere"]
    done = ablation.run("workflows.ablation", *options, "--json", expect=2)
    assert [row["variant"] for row in json.loads(done.stdout)] == ["default"]
    assert "ablation-lost-3 stopped; its message is above" in done.stderr
    side_by_side = ablation.run("workflows.ablation", *options, "--jobs", "2", expect=2)
    log = ablation.folder / "ablation-lost-3" / "make.log"
    assert f"ablation-lost-3 stopped; the end of {log} says why" in side_by_side.stderr
    assert "nowhere" in log.read_text() and "nowhere" not in side_by_side.stderr


def test_without_the_first_variant_there_is_nothing_to_compare(ablation: Ablation) -> None:
    recipe = ablation.folder / "lost.toml"
    text = ablation.recipe.read_text()
    recipe.write_text(text.replace('"data/models/arithmetic-base"', '"nowhere"'))
    options = ["--recipe", str(recipe), "--only", "kl-0", "--seeds", "3"]
    options += ["--variant", "right:model.path=data/models/arithmetic-base"]
    done = ablation.run("workflows.ablation", *options, "--iterations", "1", expect=2)
    assert "there is no run of 'kl-0', with which the others would be compared" in done.stderr


@st.composite
def judged(draw: st.DrawFn) -> pl.DataFrame:
    """Completions of one task, of up to three questions, with up to six openings."""
    size = draw(st.integers(1, 30))
    several = {"min_size": size, "max_size": size}
    return pl.DataFrame(
        {
            "task": ["a"] * size,
            "prompt_id": draw(st.lists(st.sampled_from("xyz"), **several)),
            "opening": draw(st.lists(st.sampled_from("ABCDEF"), **several)),
            "correct": draw(st.lists(st.booleans(), **several)),
        }
    )


@given(before=judged(), after=judged())
def test_choice_and_accuracy_within_make_up_the_difference(
    before: pl.DataFrame, after: pl.DataFrame
) -> None:
    choice, within = openings.components(before, after)
    assert choice + within == pytest.approx(
        float(after["correct"].mean() or 0) - float(before["correct"].mean() or 0)  # type: ignore[arg-type]
    )
    unchanged = openings.components(before, before)
    assert unchanged == pytest.approx((0, 0), abs=1e-12)


def test_only_another_choice_is_all_choice() -> None:
    """A way that is always right and one that never is: a policy that changes over to the first."""
    frame = {"opening": ["good", "bad"] * 2, "correct": [True, False] * 2}
    before = pl.DataFrame(frame)
    after = pl.DataFrame({"opening": ["good"] * 4, "correct": [True] * 4})
    assert openings.components(before, after) == pytest.approx((0.5, 0))


@pytest.mark.parametrize(
    ("text", "opening"),
    [
        (" Carefully: 4*7=28", "Carefully:"),
        ("<think>\nLet us", "Let"),
        ("", openings.NONE),
        ("   ", openings.NONE),
        ("</think><answer>4</answer>", "4"),
        ("a" * 99, "a" * 24),
    ],
)
def test_openings_are_first_words(text: str, opening: str) -> None:
    frame = pl.DataFrame({"text": [text]})
    assert frame.select(openings.first_word("text")).item() == opening


def test_interval_is_students() -> None:
    middle, low, high = interval([1.0, 2.0, 3.0])
    assert middle == 2
    assert high - middle == pytest.approx(4.303 / math.sqrt(3), abs=1e-3)
    assert middle - low == pytest.approx(high - middle)
    many = np.linspace(0, 1, 40).tolist()  # t of 39 degrees is 2.02; that of 10 is not too narrow
    assert interval(many)[2] == pytest.approx(0.5 + 2.228 * np.std(many, ddof=1) / math.sqrt(40))
