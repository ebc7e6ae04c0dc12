"""The planner: what is made, what is left alone, and that only content decides."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from common.config import Recipe
from common.errors import UserError
from common.runs.folders import commit_folder, open_policy
from common.runs.freshness import input_hashes, plan, recover, require_fresh, status_of
from common.runs.layout import Output, Run, Stage, shard_name
from common.runs.manifest import read_manifest, verify_files
from common.runs.retention import prune
from common.runs.shards import OutputWriter

SCHEMA = pa.schema([pa.field("rollout_id", pa.string()), pa.field("value", pa.int64())])
RECIPE = Recipe.model_validate(
    {"model": {"path": "x"}, "data": {"a": {"kind": "dataset", "path": "y"}}}
)
EVERY_2 = RECIPE.model_copy(update={"evaluate": RECIPE.evaluate.model_copy(update={"every": 2})})


def write(run: Run, output: Output, inputs: list[str], value: int, **facts: object) -> None:
    """An output of one small shard whose content is `value`."""
    writer = OutputWriter(
        output,
        inputs=input_hashes(run, inputs),
        recipe={},
        seed=0,
        names=[shard_name(0)],
        schema=SCHEMA,
    ).open()
    writer.write(shard_name(0), pa.table({"rollout_id": ["a"], "value": [value]}, schema=SCHEMA))
    writer.commit(facts)


def folder(output: Output, content: str, inputs: dict[str, str], *, publish: bool = True) -> str:
    output.partial.mkdir(parents=True)
    (output.partial / "weights.txt").write_text(content)
    manifest = commit_folder(
        output,
        inputs=inputs,
        recipe={},
        seed=0,
        content_hash=content,
        facts={},
        publish_output=publish,
    )
    return manifest.content_hash


def write_prompts(run: Run, train: int, evaluation: int, **facts: object) -> None:
    """Prompts whose splits have the given contents."""
    names = ["train-00000.parquet", "eval-00000.parquet"]
    writer = OutputWriter(
        run.prompts,
        inputs={},
        recipe={"made": [train, evaluation]},
        seed=0,
        names=names,
        schema=SCHEMA,
    ).open()
    for name, value in zip(names, (train, evaluation), strict=True):
        writer.write(name, pa.table({"rollout_id": ["a"], "value": [value]}, schema=SCHEMA))
    writer.commit(facts)


def do(run: Run, stage: Stage, n: int, value: int = 0, *, finish: bool = True) -> None:
    """What the stage would do, with `value` in place of its work."""
    if stage == "prepare":
        policy = folder(run.policy(0), f"policy {value}", {})
        write_prompts(run, value, value, **{run.policy(0).name: policy})
    elif stage == "rollout":
        cursor = [f"{run.rollout(n - 1).name}:cursor_end"] if n > 1 else []
        inputs = ["prompts:train", run.policy(n - 1).name, *cursor]
        write(run, run.rollout(n), inputs, value, cursor_end=32 * n)
    elif stage == "score":
        write(run, run.score(n), [run.rollout(n).name], value)
    elif stage == "logprobs":
        write(run, run.logprobs(n), [run.rollout(n).name, run.policy(n - 1).name], value)
    elif stage == "evaluate":
        write(run, run.evaluation(n), ["prompts:eval", run.policy(n).name], value)
    else:
        train(run, n, value, finish=finish)


def train(run: Run, n: int, value: int, *, finish: bool) -> None:
    state = [run.trainer(n - 1).name] if n > 1 else []
    stages = [run.rollout(n).name, run.score(n).name, run.logprobs(n).name]
    inputs = input_hashes(run, [*stages, run.policy(n - 1).name, *state])
    facts = {
        run.trainer(n).name: folder(run.trainer(n), f"trainer {n} {value}", inputs, publish=False),
        run.policy(n).name: folder(run.policy(n), f"policy {n} {value}", inputs, publish=False),
    }
    writer = OutputWriter(
        run.train(n), inputs=inputs, recipe={}, seed=0, names=[shard_name(0)], schema=SCHEMA
    ).open()
    writer.write(shard_name(0), pa.table({"rollout_id": ["a"], "value": [value]}, schema=SCHEMA))
    writer.commit(facts, publish_output=False)
    if finish:
        recover(run, run.train(n))


def targets(run: Run, to: int, recipe: Recipe = RECIPE, **options: object) -> list[str]:
    return [step.target for step in plan(run, recipe, to=to, **options)]  # type: ignore[arg-type]


def iteration(n: int) -> list[str]:
    return [f"{stage}-{n}" for stage in ("rollout", "score", "logprobs", "train")]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run that is complete up to iteration 2."""
    run = Run(tmp_path / "demo")
    for step in plan(run, RECIPE, to=2):
        do(run, step.stage, step.iteration)
    return run


def test_an_empty_run_needs_everything_in_order(tmp_path: Path) -> None:
    assert targets(Run(tmp_path / "new"), 2) == ["prepare", *iteration(1), *iteration(2)]


def test_a_finished_run_needs_nothing_and_a_longer_one_only_the_rest(run: Run) -> None:
    assert targets(run, 2) == []
    assert targets(run, 1) == []
    assert targets(run, 3) == iteration(3)


def test_evaluations_come_with_the_iterations_they_belong_to(run: Run) -> None:
    assert targets(run, 3, EVERY_2) == ["evaluate-0", "evaluate-2", *iteration(3)]
    do(run, "evaluate", 0)
    assert targets(run, 2, EVERY_2) == ["evaluate-2"]


def test_a_new_score_makes_only_what_depends_on_it(run: Run) -> None:
    do(run, "score", 1, value=7)
    assert targets(run, 2) == ["train-1", *iteration(2)]
    assert status_of(run, run.logprobs(1)).state == "fresh"
    assert status_of(run, run.train(1)).reason == "iterations/0001/score changed"


def test_the_same_content_made_again_leaves_everything_fresh(run: Run) -> None:
    do(run, "score", 1, value=0)
    assert targets(run, 2) == []


def test_rebuilding_stops_where_content_is_the_same_again(run: Run) -> None:
    """Scores differ, but training happens to give the same policy: iteration 2 is not touched."""
    do(run, "score", 1, value=7)
    do(run, "train", 1, value=0)
    assert targets(run, 2) == []


def test_times_and_copies_do_not_matter(run: Run, tmp_path: Path) -> None:
    for shift in (-3600, 3600, 10**9):
        for path in run.root.rglob("*"):
            os.utime(path, (path.stat().st_atime + shift,) * 2)
        assert targets(run, 2) == []
    copy = tmp_path / "elsewhere"
    shutil.copytree(run.root, copy)
    assert targets(Run(copy), 2) == []


def test_a_changed_recipe_is_not_staleness(run: Run) -> None:
    changed = RECIPE.model_copy(
        update={"train": RECIPE.train.model_copy(update={"learning_rate": 1.0})}
    )
    assert targets(run, 2, changed) == []


def test_from_remakes_on_purpose(run: Run) -> None:
    assert targets(run, 2, remake_from=2) == iteration(2)
    assert targets(run, 2, remake_from=1) == [*iteration(1), *iteration(2)]


def test_a_given_recipe_goes_through_prepare_and_remakes_nothing(run: Run) -> None:
    assert targets(run, 2, prepare=True) == ["prepare"]


def test_damage_is_an_error_and_not_a_reason_to_rebuild(run: Run) -> None:
    """Rebuilding silently would throw a user's hand edits away."""
    path = run.score(1).path / shard_name(0)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UserError, match="--accept-edits"):
        targets(run, 2)
    path.unlink()
    with pytest.raises(UserError, match="is missing"):
        targets(run, 2)


def test_a_policy_that_training_did_not_write_makes_training_stale(run: Run) -> None:
    folder(run.policy(1), "someone else's", {})
    assert targets(run, 2) == ["train-1", *iteration(2)]


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_training_commits_policy_and_trainer_as_one(run: Run, renames: int) -> None:
    """Killed after the manifest of the metrics, before or between the renames: `recover` ends
    with all three new, and nothing of the old ones is left."""
    do(run, "score", 2, value=5)
    do(run, "train", 2, value=5, finish=False)
    outputs = [run.trainer(2), run.policy(2), run.train(2)]
    for output in outputs[:renames]:
        output.path.rename(output.replaced)
        output.partial.rename(output.path)
    recover(run, run.train(2))
    assert status_of(run, run.train(2)).state == "fresh"
    assert read_manifest(run.policy(2)).content_hash == "policy 2 5"
    assert not [p for p in run.root.rglob("*") if p.suffix in (".old", ".partial")]
    assert targets(run, 2) == []


def test_before_the_commit_the_old_training_stands(run: Run) -> None:
    """Killed after policy and trainer state, before the metrics' manifest."""
    for output in (run.trainer(2), run.policy(2)):
        folder(output, "half done", {}, publish=False)
    recover(run, run.train(2))
    assert read_manifest(run.policy(2)).content_hash == "policy 2 0"
    assert targets(run, 2) == []


def test_pruned_policies_keep_their_iterations_fresh(run: Run) -> None:
    for n in (3, 4):
        for step in plan(run, RECIPE, to=n):
            do(run, step.stage, step.iteration)
    prune(run, newest=4, keep_policies=2, keep_trainer=2)
    assert [read_manifest(run.policy(n)).pruned for n in range(5)] == [
        False,
        True,
        True,
        False,
        False,
    ]
    assert list(run.policy(1).path.iterdir()) == [run.policy(1).manifest]
    verify_files(run.policy(1), read_manifest(run.policy(1)))
    assert targets(run, 4) == []
    with pytest.raises(UserError, match=r"FROM=4"):
        targets(run, 4, remake_from=3)
    assert targets(run, 4, remake_from=4) == iteration(4)
    with pytest.raises(UserError, match="pruned"):
        open_policy(run, 1)


@pytest.fixture
def long_run(run: Run) -> Run:
    """A run that is complete up to iteration 5."""
    for step in plan(run, RECIPE, to=5):
        do(run, step.stage, step.iteration)
    return run


def test_pruning_spares_what_is_being_made_again(long_run: Run) -> None:
    """Iteration 1 trained again in a run of 5: its policy is the newest, not the oldest."""
    prune(long_run, newest=1, keep_policies=2, keep_trainer=2)
    assert not any(read_manifest(long_run.policy(n)).pruned for n in range(6))


def test_a_pruned_trainer_state_is_found_before_anything_is_made_again(long_run: Run) -> None:
    prune(long_run, newest=5, keep_policies="all", keep_trainer=2)
    with pytest.raises(UserError, match=r"trainer/0001.*FROM=5.*--fresh-optimizer"):
        targets(long_run, 5, remake_from=2)
    assert targets(long_run, 5, remake_from=5) == iteration(5)
    assert targets(long_run, 5, remake_from=1)[:4] == iteration(1)


def test_pruned_policies_are_not_evaluated_any_more(long_run: Run) -> None:
    prune(long_run, newest=5, keep_policies=2, keep_trainer="all")
    assert targets(long_run, 5, EVERY_2) == ["evaluate-0", "evaluate-4"]


def test_from_beyond_n_is_refused(run: Run) -> None:
    with pytest.raises(UserError, match="FROM=3 is beyond N=2"):
        targets(run, 2, remake_from=3)


def test_a_missing_base_policy_is_prepared_again(run: Run) -> None:
    shutil.rmtree(run.policy(0).path)
    assert targets(run, 2)[0] == "prepare"


def test_splits_of_the_prompts_are_inputs_apart(run: Run) -> None:
    """Another evaluation question leaves training fresh; the same rows cut elsewhere do not."""
    do(run, "evaluate", 0)
    policy = {run.policy(0).name: "policy 0"}
    write_prompts(run, 0, 7, **policy)
    assert targets(run, 2, EVERY_2) == ["evaluate-0", "evaluate-2"]
    do(run, "evaluate", 0)
    write_prompts(run, 7, 7, **policy)
    assert status_of(run, run.rollout(1)).reason == "prompts:train changed"
    assert status_of(run, run.evaluation(0)).state == "fresh"


def test_by_hand_too_nothing_is_built_on_what_is_stale(run: Run) -> None:
    """Scores of iteration 1 changed: training 2 has fresh inputs, but they are stale in turn."""
    require_fresh(run, run.train(2))
    do(run, "score", 1, value=7)
    assert status_of(run, run.train(2)).state == "fresh"
    with pytest.raises(UserError, match=r"policies/0001|iterations/0001/train"):
        require_fresh(run, run.train(2))


def test_opening_a_policy_hashes_its_files_always(run: Run) -> None:
    """Same size, same times, other bytes: stat cannot tell, the hash does."""
    path = run.policy(1).path / "weights.txt"
    stat = path.stat()
    path.write_text(path.read_text().replace("policy", "polixy"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(UserError, match="sha256"):
        open_policy(run, 1)


def test_outputs_are_found_by_the_names_in_manifests(run: Run) -> None:
    for output in (
        run.prompts,
        run.policy(3),
        run.trainer(2),
        run.rollout(1),
        run.train(12),
        run.evaluation(0),
    ):
        assert run.output(output.name) == output
        assert run.output(output.name) == replace(output)


@pytest.mark.parametrize("name", ["", ".hidden", "../up", "a/b", "a b", "a\n", "x" * 65, "-rf"])
def test_names_that_could_leave_the_runs_directory_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="--run"):
        Run.named(name)
