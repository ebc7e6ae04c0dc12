"""Bounding the disk: what is pruned, what stays fresh without its files, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.planned_runs import EVERY_2, RECIPE, complete_run, folder, iteration, targets

from common.config import Recipe
from common.errors import UserError
from common.runs.layout import Run
from common.runs.manifest import read_manifest, verify_files
from common.runs.policies import open_policy, prune


@pytest.fixture
def long_run(tmp_path: Path) -> Run:
    """A run that is complete up to iteration 5."""
    return complete_run(tmp_path, to=5)


def test_pruned_policies_keep_their_iterations_fresh(tmp_path: Path) -> None:
    run = complete_run(tmp_path, to=4)
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


def refreshed_every(iterations: int) -> Recipe:
    """The KL's reference is the policy, taken anew every so many iterations."""
    changed = {"objective": {"kl_coef": 0.1}, "reference": {"update": "refresh"}}
    changed["reference"]["refresh_every"] = iterations
    return Recipe.model_validate(RECIPE.model_dump() | changed)


def test_a_pruned_reference_is_found_before_anything_is_made_again(long_run: Run) -> None:
    """Policy 4, from which iteration 5 starts, is there; policy 3, its reference, is not."""
    prune(long_run, newest=5, keep_policies=2, keep_trainer="all")
    with pytest.raises(UserError, match=r"policies/0003: its files were pruned.*FROM=1"):
        targets(long_run, 5, refreshed_every(3), remake_from=5)
    assert targets(long_run, 5, refreshed_every(2), remake_from=5) == iteration(5)


def test_what_is_in_use_is_not_pruned(long_run: Run) -> None:
    """The next iteration's reference; a moving average goes with its policy otherwise."""
    for number in (2, 3):
        folder(long_run.reference(number), f"average {number}", {})
    kept = [long_run.policy(1).name, long_run.reference(3).name]
    prune(long_run, newest=5, keep_policies=2, keep_trainer="all", in_use=kept)
    assert [read_manifest(long_run.policy(n)).pruned for n in (1, 2, 3, 4)] == [
        False,
        True,
        True,
        False,
    ]
    assert [read_manifest(long_run.reference(n)).pruned for n in (2, 3)] == [True, False]
