"""Dynamic sampling: the batch is filled with groups that teach, whatever happens on the way."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from support import REPOSITORY
from support.dynamic_runs import RECIPE, groups_of, sayings, shard_bytes
from support.written_shards import table, writer_for

from common.errors import MissingToolError, NoLearningSignalError, UserError
from common.rewards.registry import VERIFY
from common.rewards.rule import Row, Verdict, always
from common.rollout.dynamic_sampling import GroupJudge
from common.runs import shards as shards_module
from common.runs.freshness import status_of
from common.runs.layout import Run, shard_name
from common.runs.manifest import read_manifest
from common.runs.recipe import recipe_in_force
from common.runs.shards import read_output
from stages import logprobs, rollout, score, train

GOLDS = [7, 7, 7, 12345] * 10


@pytest.fixture
def run(prepared: Callable[..., Path], at: Callable[[Path], Run]) -> Run:
    """A prepared run with forty prompts, few of them solved in part, for one test."""
    return at(prepared(RECIPE, rows=sayings(GOLDS)))


@pytest.fixture(scope="module")
def whole(prepared: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """The first rollout made at once, then scored; not to be changed."""
    folder = tmp_path_factory.mktemp("whole") / "runs"
    shutil.copytree(prepared(RECIPE, rows=sayings(GOLDS)), folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAGED_GRPO_RUNS", str(folder))
        rollout.main("a", 1, quiet=True)
        score.main("a", 1, quiet=True)
        yield Run.named("a")


def test_the_batch_is_filled_with_groups_that_have_variance(whole: Run) -> None:
    """By the rewards that `score` gives them, in the order drawn; and what it cost is told."""
    groups = groups_of(whole)
    assert (groups["varied"] == groups["has_advantage"]).all()
    varied = groups.filter(pl.col("varied"))
    assert groups.filter(pl.col("kept"))["group_id"].to_list() == (
        varied["group_id"].head(5).to_list()
    )
    manifest = read_manifest(whole.rollout(1))
    found = manifest.facts["dynamic_sampling"]
    assert found["extra_rounds"] > 0, "else the fixture shows nothing"
    equal, rejected = groups.filter(~pl.col("varied")), groups.filter(~pl.col("kept"))
    assert found == {
        "extra_rounds": found["extra_rounds"],
        "groups_sampled": groups.height,
        "groups_with_variance": varied.height,
        "always_solved": (equal["rate"] == 1).sum(),
        "never_solved": (equal["rate"] == 0).sum(),
        "otherwise_equal": 0,
        "filled": 0,
        "surplus": rejected["varied"].sum(),
        "groups_rejected": rejected.height,
        "rejected_completion_tokens": rejected["tokens"].sum(),
    }
    assert found["always_solved"] > 0 and found["never_solved"] > 0
    assert manifest.facts["cursor_end"] == groups.height
    assert manifest.recipe["rewards"]["answer"] == {"weight": 1.0}
    assert "reward" not in pl.read_parquet(whole.rollout(1).path / "*.parquet").columns


def test_score_tells_the_batch_from_the_rejected(
    whole: Run, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = read_manifest(whole.score(1)).facts
    groups = groups_of(whole)
    rejected = groups.filter(~pl.col("kept"))
    assert (facts["groups"], facts["zero_variance_groups"]) == (5, 0)
    assert facts["rejected_groups"] == rejected.height
    assert facts["rejected_zero_variance_groups"] == (~rejected["varied"]).sum()
    assert facts["completions"] == 4 * groups.height, "all are judged"
    rollout.main("a", 1)
    shown = capsys.readouterr().out
    assert f"{groups.height} groups drawn for 5: " in shown and "% of the tokens rejected" in shown
    score.main("a", 1)
    assert "0 of 5 groups without variance, and " in capsys.readouterr().out


def test_training_sees_the_batch_only_and_rescoring_redraws_nothing(run: Run) -> None:
    for stage in (rollout, score, logprobs, train):
        stage.main("a", 1, quiet=True)
    steps = pl.read_parquet(run.train(1).path / "*.parquet")
    assert steps["completions"].to_list() == [20]
    assert steps["zero_variance_groups"].to_list() == [0]
    rollout.main("a", 2, quiet=True)
    first, second = (read_manifest(run.rollout(n)).facts for n in (1, 2))
    assert second["cursor_start"] == first["cursor_end"]
    score.main("a", 1, quiet=True, overwrite=True, overrides=["rewards.format.weight=0.5"])
    assert status_of(run, run.rollout(1)).state == "fresh"


# The same whatever happens


def test_ranks_make_the_same_bytes(whole: Run, run: Run, stage: Callable[..., Any]) -> None:
    done = stage("rollout", "--run", "a", "--iteration", "1", ranks=2)
    assert "groups drawn for 5" in done.stdout
    assert shard_bytes(run) == shard_bytes(whole)


def stop_after(writes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the rollout; it is interrupted after so many files."""
    write, left = shards_module.write_atomically, writes

    def interrupted(path: Path, data: bytes) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(shards_module, "write_atomically", interrupted)
        with pytest.raises(KeyboardInterrupt):
            rollout.main("a", 1, quiet=True)


def count_judgings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Completions of each judging from now on."""
    judge, judgings = GroupJudge.outcomes, list[int]()

    def counted(self: GroupJudge, completions: Any) -> Any:
        judgings.append(len(completions))
        return judge(self, completions)

    monkeypatch.setattr(GroupJudge, "outcomes", counted)
    return judgings


@pytest.mark.parametrize("writes", [2, 8, 11, 16, 20, 25])
def test_an_interrupted_rollout_ends_with_the_same_bytes(
    whole: Run, run: Run, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """Of the plan, of shards each with its record, of what came of them, of further shards, of all
    shards in the end. What was noted of a shard is not judged again."""
    stop_after(writes, monkeypatch)
    noted = len(list(run.rollout(1).partial.glob("*.outcomes.done.json")))
    judgings = count_judgings(monkeypatch)
    rollout.main("a", 1, quiet=True)
    assert shard_bytes(run) == shard_bytes(whole)
    assert len(judgings) == len(shard_bytes(whole)) - noted
    assert {path.suffix for path in run.rollout(1).path.iterdir()} == {".parquet", ".json"}
    assert len(list(run.rollout(1).path.glob("*.json"))) == 1, "notes are not left behind"


@pytest.mark.parametrize("writes", [11, 20, 25])
def test_other_rewards_keep_the_samples_of_the_first_round(
    whole: Run, run: Run, monkeypatch: pytest.MonkeyPatch, capsys, writes: int
) -> None:
    """They were drawn before anything was judged; what was noted of them and drawn since goes."""
    recipe_in_force(run, overrides=["rewards.answer.weight=2.0"], write=True)
    stop_after(writes, monkeypatch)
    judgings = count_judgings(monkeypatch)
    rollout.main("a", 1, overrides=["rewards.answer.weight=1.0"])
    assert "3 of 3 shards were complete already" in capsys.readouterr().out
    assert shard_bytes(run) == shard_bytes(whole)
    assert len(judgings) == len(shard_bytes(whole))


def test_shards_of_the_first_round_can_be_made_apart(
    whole: Run, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    rollout.main("a", 1, shards="0-1")
    assert "1 of 3 shards are still missing" in capsys.readouterr().out
    rollout.main("a", 1, shards="2")
    assert "the first round is complete; go on without --shards" in capsys.readouterr().out
    assert not run.rollout(1).path.exists()
    with pytest.raises(UserError, match=r"--shards '3'.* 0-2 or 0; there are 3 shards"):
        rollout.main("a", 1, shards="3")
    rollout.main("a", 1)
    assert "3 of 3 shards were complete already" in capsys.readouterr().out
    assert shard_bytes(run) == shard_bytes(whole)


# Where it cannot be filled, or not be judged


def test_rejected_groups_fill_what_the_rounds_could_not(
    prepared: Callable[..., Path],
    at: Callable[[Path], Run],
    capsys: pytest.CaptureFixture[str],
) -> None:
    golds = sayings([12345] * 13)
    run = at(prepared(RECIPE, "rollout.max_extra_rounds=1", rows=golds))
    rollout.main("a", 1)
    shown = capsys.readouterr()
    assert "warning: 5 of 5 groups of the batch have equal rewards" in shown.err
    assert "1 extra round, 10 groups drawn for 5: " in shown.out
    score.main("a", 1)
    assert "no group has two different rewards" in capsys.readouterr().err
    groups = groups_of(run)
    assert groups["kept"].to_list() == [True] * 5 + [False] * 5
    facts = read_manifest(run.rollout(1)).facts["dynamic_sampling"]
    assert (facts["filled"], facts["never_solved"], facts["surplus"]) == (5, 10, 0)
    logprobs.main("a", 1, quiet=True)
    with pytest.raises(NoLearningSignalError, match="in each of the 5 groups"):
        train.main("a", 1, quiet=True)


def judge_with(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    monkeypatch.setitem(VERIFY, "LAST_NUMBER", replace(VERIFY["LAST_NUMBER"], **changes))


def test_rules_that_fail_stop_it_and_are_tried_again(
    whole: Run, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(text: str, row: Row) -> Verdict:
        raise TimeoutError("no worker")

    with monkeypatch.context() as patch:
        judge_with(patch, open=always(fail))
        for _ in range(2):
            with pytest.raises(UserError, match=r"on 20 of 20 completions(.*\n)+.*: no worker"):
                rollout.main("a", 1, quiet=True)
    rollout.main("a", 1, quiet=True)
    assert shard_bytes(run) == shard_bytes(whole)


def test_what_cannot_be_judged_is_refused_before_sampling(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(rewards: object) -> None:
        raise MissingToolError("no such package")

    def unreadable(answer: str) -> None:
        from common.rewards.rule import GoldError

        raise GoldError("is of another kind")

    for change, error in ((missing, MissingToolError), (unreadable, UserError)):
        with monkeypatch.context() as patch:
            judge_with(patch, **{{missing: "require"}.get(change, "read_gold"): change})
            with pytest.raises(error, match=r"no such package|prompt \w+ \(sayings\): answer '7'"):
                rollout.main("a", 1, quiet=True)
        assert not run.rollout(1).partial.exists()


def test_without_it_no_reward_rule_is_loaded(run: Run) -> None:
    program = (
        "import json, sys; from stages import rollout; "
        "rollout.main('a', 1, quiet=True, overrides=['rollout.dynamic_sampling=false']); "
        "print(json.dumps([name for name in sys.modules if name.startswith('common.rewards')]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []
    assert pl.read_parquet(run.rollout(1).path / "*.parquet")["kept"].all()
    manifest = read_manifest(run.rollout(1))
    assert "rewards" not in manifest.recipe and "dynamic_sampling" not in manifest.facts


def test_shards_that_follow_from_others_and_notes_about_them_are_kept(tmp_path: Path) -> None:
    """They are no part of the plan: what is opened and extended again goes on from them."""
    output = Run(tmp_path / "demo").score(1)
    writer = writer_for(output).open()
    writer.extend([shard_name(3)])
    writer.write(shard_name(3), table(3))
    writer.note("found", {"of": [1.5]})
    again = writer_for(output).open()
    assert again.noted("found") == {"of": [1.5]} and again.noted("other") is None
    assert again.pending() == [shard_name(i) for i in range(3)]
    again.extend([shard_name(3)])
    assert again.pending() == [shard_name(i) for i in range(3)]
    for index in range(3):
        again.write(shard_name(index), table(index))
    again.commit()
    assert read_output(output).num_rows == 12
    assert len(list(output.path.glob("*.json"))) == 1, "notes end with the work"
