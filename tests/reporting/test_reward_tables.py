"""show rewards: figures by rule, disagreements, and what another scoring changes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.scored_files import by, completions, score_twice
from support.tiny_runs import start_run, write_iteration

from common.errors import UserError
from common.reporting import reward_tables, terminal
from common.rewards.rule import VERDICTS
from common.runs.layout import Run
from common.runs.schemas import KEY

Stage = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def scored_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return score_twice(tmp_path_factory.mktemp("scored"))


@pytest.fixture(scope="session")
def scored(scored_files: tuple[Path, Path]) -> pl.DataFrame:
    return reward_tables.read_scored(scored_files[0])


# One scoring


def test_each_rule_has_its_figures_by_task_and_verify_type(scored: pl.DataFrame) -> None:
    frame = reward_tables.rule_table(scored)
    assert frame.select("task", "rule").rows() == [
        *(("tags", rule) for rule in ("reward", "answer: ANSWER_TAG", "format")),
        *(("numbers", rule) for rule in ("reward", "answer: LAST_NUMBER", "format")),
        *(("all", "reward"), ("all", "answer: ANSWER_TAG"), ("all", "answer: LAST_NUMBER")),
        ("all", "format"),
    ]
    numbers = by(frame, task="numbers", rule="answer: LAST_NUMBER")
    assert (numbers["rows"], numbers["judged"], numbers["mean"]) == (4, 1.0, 0.5)
    assert by(frame, task="all", rule="format")["mean"] == 0.5
    whole = by(frame, task="tags", rule="reward")
    values = [1.5, 0.5, 0.0, 0.0]
    assert whole["mean"] == np.mean(values)
    assert whole["std"] == pytest.approx(np.std(values, ddof=1))
    assert (whole["min"], whole["max"]) == (0.0, 1.5)


def test_verdicts_are_counted_and_infra_errors_are_not_wrong() -> None:
    frame = completions(reward=[1.0, None] + [0.0] * 6).with_columns(
        verdict=pl.Series(["correct", "infra_error", "wrong", "timeout"] + ["no_answer"] * 4),
        reward_answer=pl.col("reward"),
    )
    scored = reward_tables.scored_rows(frame, "x")
    tags = by(reward_tables.verdict_table(scored), task="tags")
    assert {name: tags[name] for name in VERDICTS} == {
        "correct": 1,
        "wrong": 1,
        "no_answer": 0,
        "timeout": 1,
        "infra_error": 1,
    }
    assert tags["accuracy"] == pytest.approx(1 / 3)
    rule = by(reward_tables.rule_table(scored), task="tags", rule="reward")
    assert (rule["rows"], rule["judged"], rule["mean"]) == (4, 0.75, pytest.approx(1 / 3))


def test_rules_that_disagree_are_shown_with_what_they_read(scored: pl.DataFrame) -> None:
    pair = by(reward_tables.agreement_table(scored), rule="answer", other="format")
    # Right and well formed twice; `14` alone is right once; 13 in good form is wrong twice.
    counts = [pair[name] for name in ("rows", "both", "only_rule", "only_other", "neither")]
    assert counts == [8, 2, 1, 2, 3]
    answer, form = [1, 0, 0, 0, 1, 0, 1, 0], [1, 1, 0, 0] * 2
    assert pair["correlation"] == pytest.approx(np.corrcoef(answer, form)[0, 1])
    shown = reward_tables.disagreements(scored, 1)
    assert shown.select("liked_by", "not_by", "id", "extracted_answer", "answer").rows() == [
        ("answer", "format", "r6", "14", "14"),
        ("format", "answer", "r1", "13", "14"),
    ]
    assert reward_tables.disagreements(scored, None).height == 3


def test_a_penalty_is_liked_where_it_is_smaller() -> None:
    frame = completions(
        reward=[0.0] * 8,
        verdict=["wrong"] * 8,
        reward_answer=[1.0, 1.0, 0.0, 0.0] * 2,
        reward_length=[0.0, -0.5, 0.0, None] + [0.0] * 4,
        reward_same=[0.1] * 8,
    )
    table = reward_tables.agreement_table(reward_tables.scored_rows(frame, "x"))
    assert table.select("rule", "other").rows() == [("answer", "length")]
    counts = table.select("rows", "both", "only_rule", "only_other", "neither").row(0)
    assert counts == (7, 3, 1, 3, 0)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 1.0, 0.1, None, float("nan")]),
            st.sampled_from([0.0, -0.3, None]),
            st.sampled_from(VERDICTS),
            st.sampled_from(["a", "b", None]),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_counts_add_up_for_any_rewards(rows: list[tuple[Any, ...]]) -> None:
    names = ("reward_answer", "reward_length", "verdict", "task")
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    frame = pl.DataFrame(columns, schema_overrides={"reward_length": pl.Float64}, strict=False)
    scored = reward_tables.scored_rows(frame.with_columns(reward="reward_answer"), "x")
    tables = {
        table.key: table.frame for table in reward_tables.reward_tables(scored, examples=None)
    }
    verdicts = tables["verdicts"]
    parts = verdicts if verdicts.height == 1 else verdicts.filter(pl.col("task") != "all")
    if "all" not in scored["task"].to_list():
        assert parts["rows"].sum() == len(rows)
    assert (verdicts.select(VERDICTS).sum_horizontal() == verdicts["rows"]).all()
    for pair in tables.get("agreement", pl.DataFrame()).to_dicts():
        both_sides = pair["only_rule"] + pair["only_other"]
        assert pair["both"] + both_sides + pair["neither"] == pair["rows"]
        assert tables["disagreements"].height == both_sides


def test_texts_of_models_are_one_short_line(scored: pl.DataFrame) -> None:
    frame = pl.DataFrame({"question": ["a\nb\t c", "x" * 61, "y" * 60, None], "n": [1, 2, 3, 4]})
    short = terminal.shortened(frame)
    assert short["question"].to_list() == ["a b c", "x" * 59 + "…", "y" * 60, None]
    numbered = pl.DataFrame({"question": ["What is " * 9 + "3 + 4?"], "n": ["long" * 20]})
    (row,) = terminal.shortened(numbered, 20, keep_end=["question", "other"]).to_dicts()
    assert row == {"question": "…t is What is 3 + 4?", "n": "longlonglonglonglon…"}


# Files


def test_a_folder_of_shards_is_read_whole(scored_files: tuple[Path, Path], tmp_path: Path) -> None:
    frame = pl.read_parquet(scored_files[0])
    for index in range(2):
        frame[4 * index : 4 * index + 4].write_parquet(tmp_path / f"shard-{index}.parquet")
    assert reward_tables.read_scored(tmp_path).equals(reward_tables.read_scored(scored_files[0]))


def test_files_that_are_no_scores(tmp_path: Path) -> None:
    empty, plain, odd, text = (tmp_path / f"{name}.parquet" for name in "epot")
    completions(reward=[1.0] * 8, verdict=["x"] * 8).clear().write_parquet(empty)
    completions().write_parquet(plain)
    completions(reward=[[1.0]] * 8, verdict=["x"] * 8).write_parquet(odd)
    text.write_text("no Parquet")
    (tmp_path / "folder").mkdir()
    for path, message in [
        (tmp_path / "none.parquet", "no such file"),
        (tmp_path / "folder", "no .parquet file in this folder"),
        (empty, "is empty: no rows"),
        (plain, "no column 'reward', 'verdict', so it is not scored"),
        (odd, "not a table of scores"),
        (text, "cannot be read"),
    ]:
        with pytest.raises(UserError) as raised:
            reward_tables.read_scored(path)
        assert str(path) in str(raised.value)
        assert message in str(raised.value)


# The command


def test_the_command_shows_a_scored_file_and_what_another_changes(
    scored_files: tuple[Path, Path], stage: Stage
) -> None:
    first, second = map(str, scored_files)
    shown = stage("show", "rewards", "--input", first).stdout
    for title in ("rewards by rule", "verdicts", "agreement of rules", "where rules disagree"):
        assert title in shown
    assert "\x1b[2J" not in shown
    assert "\u202e" not in shown
    changes = stage("show", "rewards", "--input", first, "--against", second, "--task", "tags")
    assert "2 of 4 completions changed" in changes.stdout
    found = json.loads(stage("show", "rewards", "--input", first, "--json").stdout)
    assert found.keys() == {"rules", "verdicts", "agreement", "disagreements"}
    assert {row["rule"] for row in found["agreement"]} == {"answer"}


def test_names_in_a_hostile_file_are_shown_clean(tmp_path: Path, stage: Stage) -> None:
    """Verdicts become the heads of columns, names of columns those of rules."""
    path = tmp_path / "scored.parquet"
    pl.DataFrame(
        {
            "reward": [1.0, 0.0, 1.0],
            "reward_[/x]\x1b[31m": [1.0, 2.0, 0.0],
            "verdict": ["\x1b[31mq", "[red]x[/blue]", "correct"],
        }
    ).write_parquet(path)
    shown = stage("show", "rewards", "--input", str(path)).stdout
    assert "\x1b" not in shown
    assert "[red]x[/blue]" in shown


def test_the_command_shows_an_iteration_of_a_run(
    runs: Path, recipe_file: Path, tiny_policy: Path, tmp_path: Path, stage: Stage
) -> None:
    run = Run.named("a")
    start_run(run, tiny_policy, recipe_file)
    write_iteration(run, 1)
    again = tmp_path / "again.parquet"
    rollout = str(run.rollout(1).path)
    stage("score", "--input", rollout, "--output", str(again), "--recipe", str(recipe_file))
    arguments = ("show", "rewards", "--run", "a", "--iteration", "1")
    assert "answer: EXACT" in stage(*arguments).stdout
    changes = json.loads(stage(*arguments, "--against", str(again), "--json").stdout)
    rewarded = [row for row in changes["changed"] if row["verdict"] == "correct"]
    assert len(rewarded) == len(changes["changed"]) > 0
    assert {row["verdict_after"] for row in rewarded} == {"wrong"}
    usage = "give either --iteration (and --run), or --input"
    assert usage in stage("show", "rewards", "--run", "a", expect=2).stderr
    assert usage in stage(*arguments, "--input", str(again), expect=2).stderr
    refused = stage(*arguments, "--task", "none", expect=2)
    assert "--task 'none': there is 'test'" in refused.stderr


# Two scorings


def test_a_change_of_weights_is_told_row_by_row(scored_files: tuple[Path, Path]) -> None:
    before, after = map(reward_tables.read_scored, scored_files)
    after = reward_tables.aligned(before, after, ("a", "b"))
    tables = {table.key: table for table in reward_tables.change_tables(before, after, limit=3)}
    rules = tables["rules"].frame
    reward = by(rules, rule="reward")
    assert (reward["changed"], reward["rose"], reward["fell"]) == (4, 0, 4)
    assert (reward["mean_before"], reward["mean_after"]) == (0.625, -0.125)
    assert by(rules, rule="format")["changed"] == by(rules, rule="answer")["changed"] == 0
    assert tables["changed"].title.startswith("4 of 8 completions changed: 3 of 4 (")
    first = tables["changed"].frame.to_dicts()[0]
    assert (first["id"], first["task"], first["reward"], first["reward_after"]) == (
        *("r0", "tags"),
        *(1.5, 0.0),
    )
    moves = tables["advantages"].frame
    signs = [np.sign(frame["advantage"].to_numpy()) for frame in (before, after)]
    for name, sign in (("negative", -1), ("zero", 0), ("positive", 1)):
        for other, to in (("negative", -1), ("zero", 0), ("positive", 1)):
            counted = int(((signs[0] == sign) & (signs[1] == to)).sum())
            assert by(moves, before=name)[other] == counted
    assert by(moves, before="negative")["positive"] >= 2


def test_rewards_lost_and_gained_and_rules_of_one_side_only() -> None:
    rows = completions(reward=[1.0, None, 0.5, 0.0] * 2, verdict=["correct"] * 8)
    before = reward_tables.scored_rows(rows.with_columns(reward_old=pl.lit(1.0)), "a")
    later = pl.Series([None, None, 0.5 + 1e-8, 1.0] * 2, dtype=pl.Float64)
    verdicts = pl.Series(["infra_error"] + ["correct"] * 7)
    changed = rows.with_columns(reward=later, reward_new=pl.lit(0.25), verdict=verdicts)
    after = reward_tables.scored_rows(changed.reverse(), "b")
    after = reward_tables.aligned(before, after, ("a", "b"))
    table = reward_tables.rule_changes(before, after)
    assert by(table, rule="reward") | {"mean_before": 0, "mean_after": 0} == {
        "rule": "reward",
        "changed": 4,
        "rose": 2,
        "fell": 0,
        "became_null": 2,
        "were_null": 0,
        "mean_before": 0,
        "mean_after": 0,
    }
    assert by(table, rule="old")["mean_after"] is None
    assert by(table, rule="new")["mean_after"] == 0.25
    assert reward_tables.changed_rows(before, after)["id"].to_list() == ["r0", "r3", "r4", "r7"]
    moves = reward_tables.verdict_moves(before, after)
    assert by(moves, before="correct") == {"before": "correct", "correct": 7, "infra_error": 1}


def test_rows_without_ids_are_matched_by_order_and_text(scored: pl.DataFrame) -> None:
    plain = completions(reward=[1.0] * 8, verdict=["correct"] * 8).drop(KEY)
    rows = reward_tables.scored_rows(plain, "a")
    assert rows["id"].to_list()[:2] == ["row 0", "row 1"]
    assert reward_tables.aligned(rows, rows, ("a", "b")).equals(rows)
    # One side with ids is matched by order too.
    assert reward_tables.aligned(rows, scored, ("a", "b")).equals(scored)
    for other, message in [
        (reward_tables.scored_rows(plain.head(7), "b"), "a has 8 rows and b 7"),
        (reward_tables.scored_rows(plain.drop("completion_text"), "b"), "cannot be matched"),
        (
            reward_tables.scored_rows(plain[[0, 1, 2, 2, 4, 5, 6, 7]], "b"),
            "hold different completions: 1 of 8 texts differ, the first is that of row 3",
        ),
    ]:
        with pytest.raises(UserError) as raised:
            reward_tables.aligned(rows, other, ("a", "b"))
        assert message in str(raised.value)


def test_ids_that_do_not_match_are_told(scored: pl.DataFrame) -> None:
    other_text = scored.with_columns(completion_text=pl.lit("x"))
    for other, message in [
        (scored.head(6), "2 rows missing ['r6', 'r7'], 0 superfluous []"),
        (scored[[0, 0, 1, 2, 3, 4, 5, 6]], "b: a rollout_id is missing or occurs twice"),
        (other_text, "hold different completions: 8 of 8"),
    ]:
        with pytest.raises(UserError) as raised:
            reward_tables.aligned(scored, other, ("a", "b"))
        assert message in str(raised.value)
