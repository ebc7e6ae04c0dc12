"""What training refuses, leaves out or warns of."""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
import pytest
from support.tiny_models import tiny_model
from support.tiny_runs import write_iteration
from support.trained_runs import edit, nothing_made, steps, without_entropy

from common.errors import NoLearningSignalError, NonFiniteError, UserError
from common.runs.layout import Run
from common.runs.manifest import has_manifest, read_manifest
from stages.train import main as train


def test_equal_rewards_everywhere_are_no_signal(untrained: Path, at, capsys) -> None:
    run = at(untrained)
    for output in (run.rollout(1), run.score(1), run.logprobs(1)):
        shutil.rmtree(output.path)
    write_iteration(run, 1, equal_rewards=True)
    with pytest.raises(NoLearningSignalError, match="6 groups all rewards are equal"):
        train("a", 1)
    assert NoLearningSignalError.exit_code == 4
    assert nothing_made(run)
    train("a", 1, overrides=["train.on_no_signal=keep"])
    before, after = (read_manifest(run.policy(n)).facts["hashes"]["tensors"] for n in (0, 1))
    assert before == after
    assert all(steps(run)["skipped"])
    assert "mean ratio" not in capsys.readouterr().err


def test_weights_that_are_not_finite_are_never_committed(untrained: Path, at) -> None:
    run = at(untrained)
    with pytest.raises(NonFiniteError, match=r"learning_rate"):
        train("a", 1, overrides=["train.learning_rate=1e39"])
    assert not has_manifest(run.policy(1)) and not has_manifest(run.train(1))


@pytest.mark.parametrize("stage", ["score", "logprobs"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame[1:], "1 rows missing"),
        (lambda frame: frame.reverse(), "another order"),
        (
            lambda frame: pl.concat([frame, frame[:1].with_columns(rollout_id=pl.lit("x"))]),
            "1 superfluous",
        ),
    ],
)
def test_rows_that_do_not_match_are_refused(untrained, at, stage, change, message) -> None:
    run = at(untrained)
    edit(run.of(stage, 1), change, key=True)
    with pytest.raises(UserError, match=message):
        train("a", 1)
    assert nothing_made(run)


def test_logprobs_of_other_lengths_are_refused(untrained: Path, at) -> None:
    run = at(untrained)
    shorter = pl.col("old_logprobs").list.head(1)
    edit(run.logprobs(1), lambda frame: frame.with_columns(shorter), key=False)
    with pytest.raises(UserError, match=r"old_logprobs of 1-\d-\d has 1 values for"):
        train("a", 1)


def test_a_rollout_made_again_makes_its_score_useless(untrained: Path, at) -> None:
    """The keys are the same, so the join alone would train on the scores of other texts."""
    run = at(untrained)
    edit(run.rollout(1), lambda f: f.with_columns(completion_text=pl.lit("other")), key=False)
    with pytest.raises(UserError, match=r"score is stale \(iterations/0001/rollout changed\)"):
        train("a", 1)


def test_null_references_are_refused_when_the_objective_needs_them(untrained: Path, at) -> None:
    run = at(untrained)
    kind = pl.List(pl.Float32)
    nulls = pl.lit(None, dtype=kind).alias("ref_logprobs")
    edit(run.logprobs(1), lambda frame: frame.with_columns(nulls), key=False)
    with pytest.raises(UserError, match="kl_coef is not 0"):
        train("a", 1)
    train("a", 1, overrides=["objective.kl_coef=0.0"])
    assert steps(run)["kl"].to_list() == [0.0] * 6


def spoil(run: Run, groups: list[int]) -> None:
    """Old logprobs that are not a number in some groups."""
    bad = pl.col("rollout_id").str.split("-").list.get(1).cast(pl.Int64).is_in(groups)
    nan = pl.col("old_logprobs").list.eval(pl.element() * float("nan"))
    edit(
        run.logprobs(1),
        lambda f: f.with_columns(
            pl.when(bad).then(nan).otherwise("old_logprobs").alias("old_logprobs")
        ),
        key=False,
    )


def test_a_step_that_is_not_finite_is_left_out_and_its_completions_named(
    untrained: Path, at, capsys
) -> None:
    run = at(untrained)
    spoil(run, [1])
    train("a", 1)
    frame = steps(run)
    assert frame["skipped"].sum() == 2, "once in each epoch"
    assert frame.filter("skipped")["loss"].is_nan().all()
    error = capsys.readouterr().err
    assert "not finite: the loss of 1-1-0, 1-1-1, 1-1-2, 1-1-3;" in error
    policy = tiny_model("qwen2", tied=True).from_pretrained(run.policy(1).path)
    assert all(p.isfinite().all() for p in policy.parameters())


def test_the_third_such_step_in_a_row_ends_it(untrained: Path, at) -> None:
    run = at(untrained)
    spoil(run, [1, 2, 3, 4, 5])
    with pytest.raises(NonFiniteError, match=r"step 2: not finite: the loss of 1-\d-\d.*3 steps"):
        train("a", 1)
    assert not has_manifest(run.policy(1)) and not has_manifest(run.train(1))


def test_steps_left_out_for_their_entropy_count_as_well(untrained: Path, at, monkeypatch) -> None:
    at(untrained)
    without_entropy(monkeypatch)
    with pytest.raises(NonFiniteError, match=r"step 2: .*3 steps in a row"):
        train("a", 1)


def test_steps_with_nothing_to_compute_are_no_faults(
    untrained: Path, at, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """The first group has no variance, so that its step computes nothing; then three faults."""
    at(untrained)
    without_entropy(monkeypatch)
    options = ["run.seed=1", "train.prompts_per_step=1", "objective.kl_coef=0.0"]
    with pytest.raises(NonFiniteError, match=r"step 3: .*3 steps in a row"):
        train("a", 1, overrides=options)
    assert "mean ratio" not in capsys.readouterr().err


def test_a_first_ratio_that_is_not_one_raises_the_alarm(untrained: Path, at, capsys) -> None:
    run = at(untrained)
    shifted = pl.col("old_logprobs").list.eval(pl.element() - 0.1)
    edit(run.logprobs(1), lambda frame: frame.with_columns(shifted), key=False)
    train("a", 1)
    assert "before the first update the mean ratio" in capsys.readouterr().err
