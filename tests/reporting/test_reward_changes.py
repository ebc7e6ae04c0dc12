"""What another scoring of the same completions changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from support.scored_files import by, completions, score_twice

from common.errors import UserError
from common.reporting import reward_changes, rewards
from common.runs.schemas import KEY


@pytest.fixture(scope="session")
def scored_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return score_twice(tmp_path_factory.mktemp("scored"))


@pytest.fixture(scope="session")
def scored(scored_files: tuple[Path, Path]) -> pl.DataFrame:
    return rewards.read_scored(scored_files[0])


def test_a_change_of_weights_is_told_row_by_row(scored_files: tuple[Path, Path]) -> None:
    before, after = map(rewards.read_scored, scored_files)
    after = reward_changes.aligned(before, after, ("a", "b"))
    tables = {table.key: table for table in reward_changes.change_tables(before, after, limit=3)}
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
    before = rewards.scored_rows(rows.with_columns(reward_old=pl.lit(1.0)), "a")
    later = pl.Series([None, None, 0.5 + 1e-8, 1.0] * 2, dtype=pl.Float64)
    verdicts = pl.Series(["infra_error"] + ["correct"] * 7)
    changed = rows.with_columns(reward=later, reward_new=pl.lit(0.25), verdict=verdicts)
    after = rewards.scored_rows(changed.reverse(), "b")
    after = reward_changes.aligned(before, after, ("a", "b"))
    table = reward_changes.rule_changes(before, after)
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
    assert reward_changes.changed_rows(before, after)["id"].to_list() == ["r0", "r3", "r4", "r7"]
    moves = reward_changes.verdict_moves(before, after)
    assert by(moves, before="correct") == {"before": "correct", "correct": 7, "infra_error": 1}


def test_rows_without_ids_are_matched_by_order_and_text(scored: pl.DataFrame) -> None:
    plain = completions(reward=[1.0] * 8, verdict=["correct"] * 8).drop(KEY)
    rows = rewards.scored_rows(plain, "a")
    assert rows["id"].to_list()[:2] == ["row 0", "row 1"]
    assert reward_changes.aligned(rows, rows, ("a", "b")).equals(rows)
    # One side with ids is matched by order too.
    assert reward_changes.aligned(rows, scored, ("a", "b")).equals(scored)
    for other, message in [
        (rewards.scored_rows(plain.head(7), "b"), "a has 8 rows and b 7"),
        (rewards.scored_rows(plain.drop("completion_text"), "b"), "cannot be matched"),
        (
            rewards.scored_rows(plain[[0, 1, 2, 2, 4, 5, 6, 7]], "b"),
            "hold different completions: 1 of 8 texts differ, the first is that of row 3",
        ),
    ]:
        with pytest.raises(UserError) as raised:
            reward_changes.aligned(rows, other, ("a", "b"))
        assert message in str(raised.value)


def test_ids_that_do_not_match_are_told(scored: pl.DataFrame) -> None:
    other_text = scored.with_columns(completion_text=pl.lit("x"))
    for other, message in [
        (scored.head(6), "2 rows missing ['r6', 'r7'], 0 superfluous []"),
        (scored[[0, 0, 1, 2, 3, 4, 5, 6]], "b: a rollout_id is missing or occurs twice"),
        (other_text, "hold different completions: 8 of 8"),
    ]:
        with pytest.raises(UserError) as raised:
            reward_changes.aligned(scored, other, ("a", "b"))
        assert message in str(raised.value)
