"""Rollouts: every sample of every group, the same however the work is divided or interrupted."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from common.errors import UserError
from common.modeling.chat import load_tokenizer, stop_ids
from common.runs.freshness import input_hashes, status_of
from common.runs.layout import Run, shard_name
from common.runs.manifest import read_manifest
from common.runs.policies import commit_folder, commit_policy
from common.runs.recipe import recipe_in_force
from common.runs.schemas import ROLLOUT, TRAIN
from common.runs.shards import OutputWriter, read_output
from common.runs.stages import BY_NAME
from common.seeds import sample_seed
from common.stage import StageRun
from stages import rollout

RECIPE = """\
[model]
path = "{policy}"

[data.multiplication]
kind = "generator"
generator = "multiplication"
train = 10
eval = 3

[rollout]
prompts_per_iteration = 5
group_size = 3
groups_per_shard = 2
max_completion_tokens = 10
max_concurrent = 4

[train]
learning_rate = 1e-3
"""


@pytest.fixture
def run(prepared: Callable[..., Path], at: Callable[[Path], Run]) -> Run:
    """A prepared run with ten questions for one test."""
    return at(prepared(RECIPE))


@pytest.fixture(scope="module")
def whole(prepared: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """The run with its first rollout, made at once; not to be changed."""
    folder = tmp_path_factory.mktemp("whole") / "runs"
    shutil.copytree(prepared(RECIPE), folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAGED_GRPO_RUNS", str(folder))
        rollout.main("a", 1, quiet=True)
        yield Run.named("a")


def frame_of(run: Run, iteration: int = 1) -> pl.DataFrame:
    frame = pl.from_arrow(read_output(run.rollout(iteration)))
    assert isinstance(frame, pl.DataFrame)
    return frame


def content(run: Run, iteration: int = 1) -> str:
    return read_manifest(run.rollout(iteration)).content_hash


def test_every_sample_of_every_group_is_there(whole: Run) -> None:
    frame = frame_of(whole)
    assert frame.columns == ROLLOUT.names
    assert frame.height == 15 and frame["rollout_id"].n_unique() == 15
    groups = frame.group_by("group_id", maintain_order=True).agg("sample_index", "prompt_ids")
    assert groups["group_id"].to_list() == list(range(5))
    assert groups["sample_index"].to_list() == [[0, 1, 2]] * 5
    assert all(ids == [ids[0]] * 3 for ids in groups["prompt_ids"].to_list())
    assert frame["completion_ids"].n_unique() > 10, "samples of a group differ"
    assert frame["kept"].all() and (frame["policy_version"] == 0).all()
    shards = [record.rows for record in read_manifest(whole.rollout(1)).shards]
    assert shards == [6, 6, 3], "groups_per_shard groups each, no group across two"


def test_ids_text_and_lengths_agree(whole: Run, tiny_policy: Path) -> None:
    tokenizer = load_tokenizer(tiny_policy)
    stops = stop_ids(tiny_policy, tokenizer)
    for row in frame_of(whole).to_dicts():
        ids = row["completion_ids"]
        assert 1 <= len(ids) <= 10
        assert len(ids) == len(row["sampler_logprobs"])
        stopped = ids[-1] in stops
        assert row["finish_reason"] == ("stop" if stopped else "length")
        assert stopped or len(ids) == 10
        assert tokenizer.decode(ids[:-1] if stopped else ids) == row["completion_text"]
        prompt = tokenizer.decode(row["prompt_ids"])
        assert row["question"] in prompt and prompt.endswith(row["assistant_prefix"])
        identity = (0, 1, row["prompt_id"], row["sample_index"])
        assert row["seed"] == sample_seed(*identity)


def test_the_manifest_says_what_later_stages_need(whole: Run) -> None:
    manifest = read_manifest(whole.rollout(1))
    frame = frame_of(whole)
    assert set(manifest.inputs) == {"prompts:train", "policies/0000"}
    assert manifest.recipe["rollout"]["temperature"] == manifest.facts["temperature"] == 1.0
    assert manifest.facts["max_completion_tokens"] == 10
    assert (manifest.facts["cursor_start"], manifest.facts["cursor_end"]) == (0, 5)
    assert manifest.facts["completion_tokens"] == frame["completion_ids"].list.len().sum()
    assert manifest.facts["truncated"] == (frame["finish_reason"] == "length").sum()
    assert manifest.recorded["tokens_per_second"] > 0


def test_parts_make_the_same_whole(
    whole: Run, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    rollout.main("a", 1, shards="1")
    assert not run.rollout(1).path.exists(), "incomplete is not there"
    assert "2 of 3 shards are still missing" in capsys.readouterr().out
    rollout.main("a", 1, shards="2")
    rollout.main("a", 1)
    assert "2 of 3 shards were complete already" in capsys.readouterr().out
    assert content(run) == content(whole)


def test_ranks_make_the_same_whole(whole: Run, run: Run, stage: Callable[..., Any]) -> None:
    stage("rollout", "--run", "a", "--iteration", "1", ranks=2)
    assert content(run) == content(whole)


def test_an_interrupted_rollout_goes_on(
    whole: Run, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = OutputWriter.write

    def interrupted(self: OutputWriter, name: str, table: Any) -> None:
        if name == "shard-00001.parquet":
            raise KeyboardInterrupt
        write(self, name, table)

    monkeypatch.setattr(OutputWriter, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rollout.main("a", 1, quiet=True)
    monkeypatch.setattr(OutputWriter, "write", write)
    first = run.rollout(1).partial / "shard-00000.parquet"
    written = first.stat().st_mtime_ns
    rollout.main("a", 1, quiet=True)
    assert (run.rollout(1).path / first.name).stat().st_mtime_ns == written, "it was made again"
    assert content(run) == content(whole)


def test_a_fresh_rollout_is_left_alone_and_overwrite_makes_the_same(
    run: Run, whole: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    rollout.main("a", 1, quiet=True)
    before = [path.stat().st_mtime_ns for path in sorted(run.rollout(1).path.iterdir())]
    rollout.main("a", 1)
    assert "nothing to do" in capsys.readouterr().out
    after = [path.stat().st_mtime_ns for path in sorted(run.rollout(1).path.iterdir())]
    assert before == after
    rollout.main("a", 1, overwrite=True, quiet=True)
    assert content(run) == content(whole)
    rollout.main("a", 1, overwrite=True, quiet=True, overrides=["run.seed=1"])
    assert content(run) != content(whole)


def test_the_next_iteration_begins_where_this_one_stopped(
    whole: Run, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten questions, five an iteration: the second has exactly the others. A rollout of another
    length before it makes it stale, since its cursor is an input."""
    rollout.main("a", 1, quiet=True)
    pretend_training(run)
    rollout.main("a", 2, quiet=True)
    first, second = (set(frame_of(run, n)["prompt_id"]) for n in (1, 2))
    assert len(first) == len(second) == 5 and not first & second
    assert (frame_of(run, 2)["policy_version"] == 1).all()
    assert set(read_manifest(run.rollout(2)).inputs) == {
        "prompts:train",
        "policies/0001",
        "iterations/0001/rollout:cursor_end",
    }
    rollout.main("a", 1, quiet=True, overwrite=True, overrides=["rollout.prompts_per_iteration=4"])
    status = status_of(run, run.rollout(2))
    assert status.state == "stale" and "cursor_end" in status.reason
    with pytest.raises(UserError, match=r"iterations/0001/train is stale.*stages\.train"):
        rollout.main("a", 2, quiet=True)


def pretend_training(run: Run) -> None:
    """Policy 1 with policy 0's weights: a random policy earns no reward to be trained on."""
    shutil.copytree(run.policy(0).path, run.policy(1).partial)
    policy = commit_policy(run.policy(1), inputs={}, recipe={}, seed=0)
    run.trainer(1).partial.mkdir(parents=True)
    trainer = commit_folder(
        run.trainer(1), inputs={}, recipe={}, seed=0, content_hash="state", facts={}
    )
    inputs = input_hashes(run, [run.rollout(1).name, run.policy(0).name])
    writer = OutputWriter(
        run.train(1), inputs=inputs, recipe={}, seed=0, names=[shard_name(0)], schema=TRAIN
    ).open()
    writer.write(shard_name(0), TRAIN.empty_table())
    hashes = {"policies/0001": policy.content_hash, "trainer/0001": trainer.content_hash}
    writer.commit(hashes)


def test_a_prompt_drawn_twice_in_an_iteration_is_sampled_anew(run: Run) -> None:
    overrides = ["rollout.prompts_per_iteration=12", "rollout.max_completion_tokens=4"]
    rollout.main("a", 1, quiet=True, overrides=overrides)
    frame = frame_of(run)
    assert frame["seed"].n_unique() == frame.height == 36
    assert frame["prompt_id"].n_unique() == 10


def test_prompts_that_do_not_fit(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """The context is 256. With `drop`, longer prompts are passed over and counted."""
    recipe = recipe_in_force(run, overrides=["rollout.prompts_per_iteration=10"], write=True)
    stage = BY_NAME["rollout"]
    groups = rollout.begin_groups(StageRun(stage, run, 1, stage.view(recipe)))
    lengths = sorted(len(prompt.ids) for prompt in groups.prompts)
    shortest = lengths.count(lengths[0])
    assert 0 < shortest < 10
    limit = f"rollout.max_completion_tokens={256 - lengths[0]}"
    with pytest.raises(UserError, match=r"prompt \w+ \(multiplication\) has \d+ tokens.*on_long"):
        rollout.main("a", 1, quiet=True, overrides=[limit])
    assert not run.rollout(1).partial.exists(), "refused before anything is made"
    few = [f"rollout.prompts_per_iteration={shortest}", "rollout.group_size=2"]
    rollout.main("a", 1, quiet=True, overrides=['rollout.on_long="drop"', *few])
    facts = read_manifest(run.rollout(1)).facts
    assert set(frame_of(run)["prompt_ids"].list.len()) == {lengths[0]}
    assert facts["cursor_end"] == shortest + facts["dropped_prompts"]
    assert ("were dropped" in capsys.readouterr().err) == bool(facts["dropped_prompts"])
    none = ["rollout.max_completion_tokens=255"]
    with pytest.raises(UserError, match="none of the 10 training prompts"):
        rollout.main("a", 1, quiet=True, overrides=none, overwrite=True)


@pytest.mark.parametrize("shards", ["3", "0-3", "1-0", "x", "-1", "0-", "1,2"])
def test_shards_that_are_not_there_are_refused(run: Run, shards: str) -> None:
    with pytest.raises(UserError, match=r"--shards .* 0-2 or 0; there are 3 shards"):
        rollout.main("a", 1, shards=shards, quiet=True)


def test_without_its_inputs_it_names_the_command_that_makes_them(
    runs: Path, recipe_file: Path
) -> None:
    with pytest.raises(
        UserError, match="no such run; there is none yet; begin it with: make iteration N=1 RUN=b"
    ):
        rollout.main("b", 1, recipe=recipe_file, quiet=True)
    (runs / "b").mkdir()
    with pytest.raises(UserError, match=r"is missing; make it with: make prepare RUN="):
        rollout.main("b", 1, recipe=recipe_file, quiet=True)
