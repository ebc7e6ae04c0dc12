"""score: what is wrong with its input or fails while judging is told, and never a reward of 0."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from support.scored_runs import ROWS, completion, scores, start_scored_run, write_rollout

from common.config import RewardsConfig
from common.errors import UserError
from common.rewards.registry import VERIFY
from common.rewards.rule import Row, Verdict, always
from common.runs.layout import Run, shard_name
from common.runs.manifest import has_manifest, read_manifest
from common.runs.schemas import KEY
from stages import score


@pytest.fixture
def run(runs: Path) -> Run:
    """A run with a rollout of 6 groups of 4 completions in 3 shards."""
    return start_scored_run()


def test_a_missing_or_stale_rollout(run: Run) -> None:
    with pytest.raises(UserError, match="rollout is missing; make it with: make iteration N=2"):
        score.main("a", 2)
    write_rollout(run, ROWS, inputs={"policies/0000": "of another time"})
    with pytest.raises(UserError, match="policies/0000 is missing"):
        score.main("a", 1)


def test_damaged_rollouts_are_never_scored(run: Run) -> None:
    path = run.rollout(1).path / shard_name(1)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="is not what its manifest says"):
        score.main("a", 1)
    assert not has_manifest(run.score(1))


def test_gold_that_cannot_be_read_is_no_reward_of_0(run: Run) -> None:
    rows = [dict(row) for row in ROWS]
    rows[3] |= {"answer": "nan", "verify_type": "LAST_NUMBER"}
    rows[9] |= {"verify_type": "LAST_NUMER"}
    write_rollout(run, rows)
    with pytest.raises(UserError) as raised:
        score.main("a", 1)
    first, second = str(raised.value).splitlines()
    assert "shard-00000.parquet row 3: answer 'nan' cannot be read as LAST_NUMBER" in first
    assert "shard-00001.parquet row 1: unknown verify_type 'LAST_NUMER'" in second
    assert not run.score(1).partial.exists()


def fail(monkeypatch: pytest.MonkeyPatch, *keys: str) -> None:
    """Make the rule fail on these rows."""
    rule = VERIFY["ANSWER_TAG"]
    opened = rule.open(RewardsConfig())

    def judge(text: str, row: Row) -> Verdict:
        if row[KEY] in keys:
            raise TimeoutError(f"no worker for {row[KEY]}")
        return opened(text, row)

    monkeypatch.setitem(VERIFY, "ANSWER_TAG", replace(rule, open=always(judge)))


def test_many_infra_errors_stop_and_are_tried_again(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    score.main("a", 1)
    whole = read_manifest(run.score(1)).content_hash
    with monkeypatch.context() as patch:
        fail(patch, *(row[KEY] for row in ROWS[8:12]))
        with pytest.raises(UserError) as raised:
            score.main("a", 1, overwrite=True)
    text = str(raised.value)
    assert "the reward rules failed on 4 of 24 completions, more than 1%" in text
    assert text.count("ANSWER_TAG: TimeoutError: no worker for") == 3
    assert read_manifest(run.score(1)).content_hash == whole
    capsys.readouterr()
    score.main("a", 1, overwrite=True)
    assert "2 of 3 shards were judged already" in capsys.readouterr().out
    assert read_manifest(run.score(1)).content_hash == whole


def test_few_infra_errors_are_null_and_told(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [completion(group, sample) for group in range(30) for sample in range(4)]
    write_rollout(run, rows)
    failed = rows[12][KEY]
    fail(monkeypatch, failed)
    score.main("a", 1)
    assert (
        f"failed on 1 completions, which have no reward: ANSWER_TAG: TimeoutError: no worker "
        f"for {failed}" in capsys.readouterr().err
    )
    frame = scores(run)
    row = frame.row(by_predicate=pl.col(KEY) == failed, named=True)
    assert (row["reward"], row["advantage"], row["verdict"]) == (None, 0, "infra_error")
    others = frame.filter(pl.col(KEY).str.starts_with("0001-00003"), pl.col(KEY) != failed)
    assert row["group_reward_mean"] == pytest.approx(others["reward"].mean())
    facts = read_manifest(run.score(1)).facts
    assert facts["accuracy"] == (frame["verdict"] == "correct").sum() / 119


def test_an_iteration_without_variance_is_told(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rollout(run, [completion(1, sample) for sample in range(6)])
    score.main("a", 1)
    shown = capsys.readouterr()
    assert "1 of 1 groups without variance" in shown.out
    assert "no group has two different rewards" in shown.err
    assert (scores(run)["advantage"] == 0).all()


def test_edited_scores_are_taken_when_asked(run: Run) -> None:
    score.main("a", 1)
    path = run.score(1).path / shard_name(0)
    pl.read_parquet(path).with_columns(reward=pl.lit(2.0)).write_parquet(path)
    with pytest.raises(UserError, match="--accept-edits"):
        score.main("a", 1)
    score.main("a", 1, accept_edits=True)
    assert scores(run)["reward"][:8].to_list() == [2.0] * 8
