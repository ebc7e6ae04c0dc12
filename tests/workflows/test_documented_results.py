"""The tables of what was learned, in workflows/README.md, are those of the tracked results."""

from __future__ import annotations

import polars as pl

from common.config.recipe_file import load_recipe
from common.reporting.opening_tables import ways_of
from common.runs.layout import REPOSITORY
from workflows.ablation import tables as ablation_tables
from workflows.learn import tables as learn_tables
from workflows.results import read_results

RESULTS = REPOSITORY / "data" / "results"
RECIPES = REPOSITORY / "workflows" / "recipes"
README = (REPOSITORY / "workflows" / "README.md").read_text(encoding="utf-8")


def table_of(title: str, index: int = 0) -> list[list[str]]:
    """Cells of a table below a heading, without its head."""
    below = README.split(f"## {title}\n")[1].split("\n## ")[0]
    lines = below.split("\n|---")[index + 1].split("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def with_interval(value: float | None, low: float, high: float, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.3f} [{low:.3f}, {high:.3f}]"


def test_one_factor_at_a_time() -> None:
    found = read_results(RESULTS / "ablation", ablation_tables.COLUMNS)
    compared = ablation_tables.comparison(found["steps"], found["accuracy"]).to_dicts()
    shown = table_of("One factor at a time")
    for (name, *cells), row in zip(shown, compared, strict=True):
        assert row["variant"] == name.split("`")[1]
        expected = []
        for metric in ("greedy", "drawn"):
            difference = [row[f"{metric} {part}"] for part in ("diff", "low", "high")]
            expected += [f"{row[metric]:.3f}", with_interval(*difference)]
        assert cells == expected


def test_gains_of_the_control_and_the_default() -> None:
    accuracy = read_results(RESULTS / "ablation", ablation_tables.COLUMNS)["accuracy"]
    gains = {row["variant"]: row for row in ablation_tables.gains(accuracy).to_dicts()}
    text = " ".join(README.split("## One factor at a time\n")[1].split())
    for variant, between in (("shuffled", "and sampled accuracy by"), ("default", "and")):
        greedy, sampled = (
            with_interval(*(gains[variant][f"{metric} {part}"] for part in ("gain", "low", "high")))
            for metric in ("greedy", "sampled")
        )
        assert f"by {greedy} {between} {sampled}" in text


def test_what_was_learned() -> None:
    greedy = read_results(RESULTS / "learn", learn_tables.COLUMNS)["greedy"]
    runs = greedy["run"].unique(maintain_order=True).to_list()
    assert runs == ["learn-0", "learn-1", "learn-2"]
    tasks = load_recipe(RECIPES / "learn.toml").data
    for (_, *cells), task in zip(table_of("What was learned"), tasks, strict=True):
        rows = greedy.filter(pl.col("task") == task)
        assert rows["before"].n_unique() == 1
        figures = [rows["before"][0], *rows["after"]]
        assert cells == [str(rows["questions"][0]), *(f"{figure:.3f}" for figure in figures)]


def test_what_a_gain_is_made_of() -> None:
    gain = read_results(RESULTS / "learn", learn_tables.COLUMNS)["gain"]
    by_task = {row["task"]: row for row in gain.filter(run="learn-1").to_dicts()}
    shown = table_of("What was learned", 1)
    assert [task for task, *_ in shown] == ["multiplication", "counting", "scheduling"]
    for task, *cells in shown:
        row = by_task[task]
        parts = [
            [row[f"{part}{end}"] for end in ("", "_low", "_high")] for part in ("choice", "within")
        ]
        assert cells == [f"{row['difference']:.3f}", *(with_interval(*part) for part in parts)]


def test_what_another_name_would_make_of_it() -> None:
    """ "Guess:" counted as "Guess.": the bounds of what a first word can say."""
    ways = read_results(RESULTS / "learn", learn_tables.COLUMNS)["ways"]
    name = pl.col("opening").replace("Guess:", "Guess.")
    parts = [
        ways.filter(run="learn-1", task="multiplication").select(
            name.alias("opening"),
            pl.col(f"share{when}").alias("weight"),
            pl.col(f"right{when}").fill_null(0.0).alias("correct"),
        )
        for when in ("", "_after")
    ]
    merged = ways_of(*parts)
    choice, within = merged["choice"].sum(), merged["within"].sum()
    assert f"choice would be {choice:.2f} and accuracy within {within:.2f}" in " ".join(
        README.split()
    )


def test_a_pretrained_model() -> None:
    found = read_results(RESULTS / "sums-smollm2", learn_tables.COLUMNS)
    sampled = {row["task"]: row for row in found["sampled"].to_dicts()}
    greedy = {row["task"]: row for row in found["greedy"].to_dicts()}
    tasks = [*load_recipe(RECIPES / "sums-smollm2.toml").data, "mean over tasks"]
    for (_, *cells), task in zip(table_of("A pretrained model"), tasks, strict=True):
        row = greedy[task]
        bounds = (row[f"difference{part}"] for part in ("", "_low", "_high"))
        expected = [str(row["questions"]), f"{row['before']:.3f}", f"{row['after']:.3f}"]
        expected.append(with_interval(*bounds, sign="+"))
        drawn = sampled.get(task)
        expected += (
            [f"{drawn[name]:.3f}" for name in ("pass@1", "pass@1 after")] if drawn else ["", ""]
        )
        assert cells == expected
