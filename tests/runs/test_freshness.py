"""The planner: what is made, what is left alone, and that only content decides."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from support.planned_runs import (
    EVERY_2,
    RECIPE,
    complete_run,
    do,
    folder,
    iteration,
    targets,
    write_prompts,
)

from common.errors import UserError
from common.runs.freshness import recover, require_fresh, status_of
from common.runs.layout import Run, shard_name
from common.runs.manifest import read_manifest
from common.runs.policies import open_policy


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run that is complete up to iteration 2."""
    return complete_run(tmp_path, to=2)


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


def test_from_beyond_n_is_refused(run: Run) -> None:
    with pytest.raises(UserError, match="FROM=3 is beyond N=2"):
        targets(run, 2, remake_from=3)


def test_a_linked_file_is_hashed_once_more_and_not_for_ever(run: Run) -> None:
    """A link changes the stat and not the content: noted in the manifest, under the same hashes."""
    output = run.policy(2)
    before, weights = read_manifest(output), output.path / "weights.txt"
    os.link(weights, output.path / "link")
    assert [record.seen(output.path / record.name) for record in before.files] != before.files
    assert status_of(run, output).state == "fresh"
    after = read_manifest(output)
    assert [record.seen(output.path / record.name) for record in after.files] == after.files
    assert after.content_hash == before.content_hash
    assert [record.sha256 for record in after.files] == [record.sha256 for record in before.files]


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
