"""The train stage: what it commits, how it goes on after a kill, what it refuses."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from multirank import torchrun
from tiny_models import tiny_model
from tiny_runs import start_run, write_iteration

from common.config import ObjectiveConfig
from common.errors import NoLearningSignalError, NonFiniteError, UserError
from common.parallel.batches import Sample, deal, group_samples, permutation, plan_minibatches
from common.parallel.training import Observed, Trainer
from common.runs.freshness import status_of
from common.runs.layout import Output, Run
from common.runs.manifest import has_manifest, read_manifest
from common.runs.schemas import TRAIN, TRAIN_METRICS
from common.runs.shards import encode_parquet
from stages.train import main as train

RECIPE = """\
[model]
path = "unused"

[data.multiplication]
kind = "generator"
generator = "multiplication"

[rollout]
prompts_per_iteration = 6

[objective]
kl_coef = 0.01

[train]
learning_rate = 1e-3
prompts_per_step = 2
epochs = 2
tokens_per_pack = 48
"""
"""Six steps an iteration."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs directory with run `a` at the door of its first training."""
    folder = tmp_path_factory.mktemp("prepared")
    tiny_model("qwen2", tied=True, num_hidden_layers=3).save_pretrained(folder / "policy")
    (folder / "recipe.toml").write_text(RECIPE)
    run = Run(folder / "a")
    start_run(run, folder / "policy", folder / "recipe.toml")
    write_iteration(run, 1)
    return folder


@pytest.fixture(scope="module")
def finished(prepared: Path) -> Path:
    """A runs directory with run `a` trained for two iterations without interruption."""
    folder = prepared.with_name("finished")
    shutil.copytree(prepared, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAGED_GRPO_RUNS", str(folder))
        train("a", 1)
        write_iteration(Run(folder / "a"), 2)
        train("a", 2)
    return folder


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Run]:
    """A copy of a runs directory for this test's commands; returns its run `a`."""

    def copied(folder: Path) -> Run:
        runs = tmp_path / "runs"
        shutil.copytree(folder, runs)
        monkeypatch.setenv("STAGED_GRPO_RUNS", str(runs))
        return Run(runs / "a")

    return copied


def steps(run: Run, iteration: int = 1) -> pl.DataFrame:
    return pl.read_parquet(run.train(iteration).path / "*.parquet")


def made(run: Run, iteration: int = 1) -> list[str]:
    """Content hashes of all that an iteration of training makes."""
    outputs = [run.policy(iteration), run.trainer(iteration), run.train(iteration)]
    return [read_manifest(output).content_hash for output in outputs]


def nothing_made(run: Run, iteration: int = 1) -> bool:
    outputs = [run.policy(iteration), run.trainer(iteration), run.train(iteration)]
    return not any(has_manifest(o) or o.partial.exists() for o in outputs)


def test_an_iteration_writes_policy_trainer_and_metrics(finished: Path) -> None:
    run = Run(finished / "a")
    frame = steps(run)
    assert frame.columns == TRAIN.names
    assert set(TRAIN_METRICS) <= set(frame.columns)
    assert frame["step"].to_list() == list(range(6))
    assert frame["epoch"].to_list() == [0, 0, 0, 1, 1, 1]
    assert frame["completions"].to_list() == [8] * 6
    assert not frame["skipped"].any()
    assert frame["grad_norm"].min() > 0
    assert frame["zero_variance_groups"].sum() >= 2
    for number in (1, 2):
        assert status_of(run, run.train(number)).state == "fresh"
    lines = (finished / "a/metrics.jsonl").read_text().splitlines()
    assert len(lines) == 12
    # AutoModelForCausalLM reads every policy; that it does exactly is test_checkpoint's matter.
    weights = [
        tiny_model("qwen2", tied=True)
        .from_pretrained(run.policy(n).path)
        .get_input_embeddings()
        .weight
        for n in range(3)
    ]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_the_first_step_is_on_policy(finished: Path) -> None:
    for iteration in (1, 2):
        first = steps(Run(finished / "a"), iteration).row(0, named=True)
        assert abs(first["ratio_mean"] - 1) < 1e-4
        assert abs(first["ratio_max"] - 1) < 1e-4
        assert first["clip_fraction_low"] == first["clip_fraction_high"] == 0
        assert abs(first["approx_kl"]) < 1e-6


def test_the_second_epoch_is_another_order_of_the_same(finished: Path) -> None:
    frame = steps(Run(finished / "a"))
    tokens = frame["completion_tokens"].to_list()
    assert sum(tokens[:3]) == sum(tokens[3:])
    assert tokens[:3] != tokens[3:]


def test_training_again_gives_the_same_bits(finished: Path, at) -> None:
    run = at(finished)
    before = made(run, 2)
    train("a", 2, overwrite=True)
    assert made(run, 2) == before


def test_optimizer_state_goes_from_iteration_to_iteration(finished: Path, at) -> None:
    run = at(finished)
    assert read_manifest(run.train(2)).inputs.keys() >= {"trainer/0001", "policies/0001"}
    before = made(run, 2)
    train("a", 2, overwrite=True, fresh_optimizer=True)
    assert made(run, 2)[0] != before[0]


@pytest.mark.parametrize("stop", [3, 5])
def test_killed_and_continued_is_as_never_killed(
    prepared: Path, finished: Path, at, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """Commits every two steps; killed in step `stop`; the content of an uninterrupted run."""
    run = at(prepared)
    options = ["train.checkpoint_every_steps=2"]
    taken = stop_in_step(monkeypatch, stop)
    with pytest.raises(KeyboardInterrupt):
        train("a", 1, overrides=options)
    assert not has_manifest(run.train(1)) and not has_manifest(run.policy(1))
    monkeypatch.undo()
    monkeypatch.setenv("STAGED_GRPO_RUNS", str(run.root.parent))
    taken = stop_in_step(monkeypatch, None)
    train("a", 1)
    assert taken == list(range(stop - stop % 2, 6))
    assert made(run) == made(Run(finished / "a"))
    assert not list(run.root.rglob("checkpoint*"))


def stop_in_step(monkeypatch: pytest.MonkeyPatch, stop: int | None) -> list[int]:
    """Note the steps that are taken; break off in the middle of one."""
    taken: list[int] = []
    original = Trainer.accumulate

    def accumulate(self, minibatch):
        taken.append(minibatch.step)
        if minibatch.step == stop:
            raise KeyboardInterrupt
        return original(self, minibatch)

    monkeypatch.setattr(Trainer, "accumulate", accumulate)
    return taken


def test_a_damaged_commit_is_not_used(
    prepared: Path, finished: Path, at, monkeypatch, capsys
) -> None:
    run = at(prepared)
    stop_in_step(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        train("a", 1, overrides=["train.checkpoint_every_steps=2"])
    monkeypatch.undo()
    monkeypatch.setenv("STAGED_GRPO_RUNS", str(run.root.parent))
    (path,) = run.train(1).partial.glob("checkpoint-*/*.safetensors")
    data = bytearray(path.read_bytes())
    data[-20] ^= 4
    path.write_bytes(data)
    taken = stop_in_step(monkeypatch, None)
    train("a", 1)
    assert taken == list(range(6))
    assert "damaged" in capsys.readouterr().err
    assert made(run) == made(Run(finished / "a"))


def test_a_rank_that_dies_and_another_mesh_that_goes_on(
    prepared: Path, finished: Path, at, capsys
) -> None:
    """Rank 1 of 2 is killed in step 3; the other names it; one process continues from step 2."""
    run = at(prepared)
    text = torchrun(2, "test_train.py", "a", expect=1).stderr
    first = "rank 0: rank 1 (pipeline stage 1 of 2, replica 0) failed first, at iteration 1, step 3"
    assert f"{first}, forward and backward" in text
    assert not has_manifest(run.train(1)) and not has_manifest(run.policy(1))
    train("a", 1)
    assert "continuing after step 2" in capsys.readouterr().out
    reference = Run(finished / "a")
    for name in ("loss", "grad_norm", "kl"):
        np.testing.assert_allclose(steps(run)[name], steps(reference)[name], rtol=2e-3, atol=1e-5)


def dying_rank(name: str) -> None:
    """Train, and on rank 1 be killed in step 3."""
    original = Trainer.accumulate

    def accumulate(self, minibatch):
        if minibatch.step == 3 and self.mesh.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, minibatch)

    Trainer.accumulate = accumulate  # type: ignore[method-assign]
    train(name, 1, overrides=["train.checkpoint_every_steps=2"])


def test_equal_rewards_everywhere_are_no_signal(prepared: Path, at, capsys) -> None:
    run = at(prepared)
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


def test_weights_that_are_not_finite_are_never_committed(prepared: Path, at) -> None:
    run = at(prepared)
    with pytest.raises(NonFiniteError, match=r"learning_rate"):
        train("a", 1, overrides=["train.learning_rate=1e39"])
    assert not has_manifest(run.policy(1)) and not has_manifest(run.train(1))


def edit(output: Output, change: Callable[[pl.DataFrame], pl.DataFrame], *, key: bool) -> None:
    """Change an output's shard as its own stage might have written it."""
    from common.runs.edits import accept_edits
    from common.runs.shards import OutputWriter

    (path,) = output.path.glob("*.parquet")
    schema = pq.read_schema(path)
    table = change(pl.read_parquet(path)).to_arrow().cast(schema)
    if not key:
        path.write_bytes(encode_parquet(table))
        accept_edits(output, schema)
        return
    manifest = read_manifest(output)
    writer = OutputWriter(
        output, inputs=manifest.inputs, recipe={}, seed=0, names=[path.name], schema=schema
    ).open()
    writer.write(path.name, table)
    writer.commit()


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
def test_rows_that_do_not_match_are_refused(prepared, at, stage, change, message) -> None:
    run = at(prepared)
    edit(run.stage_output(stage, 1), change, key=True)
    with pytest.raises(UserError, match=message):
        train("a", 1)
    assert nothing_made(run)


def test_logprobs_of_other_lengths_are_refused(prepared: Path, at) -> None:
    run = at(prepared)
    shorter = pl.col("old_logprobs").list.head(1)
    edit(run.logprobs(1), lambda frame: frame.with_columns(shorter), key=False)
    with pytest.raises(UserError, match=r"old_logprobs of 1-\d-\d has 1 values for"):
        train("a", 1)


def test_a_rollout_made_again_makes_its_score_useless(prepared: Path, at) -> None:
    """The keys are the same, so the join alone would train on the scores of other texts."""
    run = at(prepared)
    edit(run.rollout(1), lambda f: f.with_columns(completion_text=pl.lit("other")), key=False)
    with pytest.raises(UserError, match=r"score is stale \(iterations/0001/rollout changed\)"):
        train("a", 1)


def test_null_references_are_refused_when_the_objective_needs_them(prepared: Path, at) -> None:
    run = at(prepared)
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
    prepared: Path, at, capsys
) -> None:
    run = at(prepared)
    spoil(run, [1])
    train("a", 1)
    frame = steps(run)
    assert frame["skipped"].sum() == 2, "once in each epoch"
    assert frame.filter("skipped")["loss"].is_nan().all()
    error = capsys.readouterr().err
    assert "not finite: the loss of 1-1-0, 1-1-1, 1-1-2, 1-1-3;" in error
    policy = tiny_model("qwen2", tied=True).from_pretrained(run.policy(1).path)
    assert all(p.isfinite().all() for p in policy.parameters())


def test_the_third_such_step_in_a_row_ends_it(prepared: Path, at) -> None:
    run = at(prepared)
    spoil(run, [1, 2, 3, 4, 5])
    with pytest.raises(NonFiniteError, match=r"step 2: not finite: the loss of 1-\d-\d.*3 steps"):
        train("a", 1)
    assert not has_manifest(run.policy(1)) and not has_manifest(run.train(1))


def without_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entropies that are not a number, as of logits of minus infinity; the loss stays finite."""
    original = Observed.__call__

    def call(self, outputs, packs):
        spoilt = torch.stack((outputs[..., 0], torch.full_like(outputs[..., 1], torch.nan)), -1)
        return original(self, spoilt, packs)

    monkeypatch.setattr(Observed, "__call__", call)


def test_steps_left_out_for_their_entropy_count_as_well(prepared: Path, at, monkeypatch) -> None:
    at(prepared)
    without_entropy(monkeypatch)
    with pytest.raises(NonFiniteError, match=r"step 2: .*3 steps in a row"):
        train("a", 1)


def test_left_out_steps_count_across_an_interruption(
    prepared: Path, at, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = at(prepared)
    without_entropy(monkeypatch)
    stop_in_step(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        train("a", 1, overrides=["train.checkpoint_every_steps=1"])
    monkeypatch.undo()
    monkeypatch.setenv("STAGED_GRPO_RUNS", str(run.root.parent))
    without_entropy(monkeypatch)
    taken = stop_in_step(monkeypatch, None)
    with pytest.raises(NonFiniteError, match=r"step 2: .*3 steps in a row"):
        train("a", 1)
    assert taken == [2]


def test_steps_with_nothing_to_compute_are_no_faults(
    prepared: Path, at, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """The first group has no variance, so that its step computes nothing; then three faults."""
    at(prepared)
    without_entropy(monkeypatch)
    options = ["run.seed=1", "train.prompts_per_step=1", "objective.kl_coef=0.0"]
    with pytest.raises(NonFiniteError, match=r"step 3: .*3 steps in a row"):
        train("a", 1, overrides=options)
    assert "mean ratio" not in capsys.readouterr().err


def test_an_edited_policy_trains_from_itself_with_a_warning(finished: Path, at, capsys) -> None:
    from safetensors.torch import load_file, save_file

    from common.runs.folders import commit_policy

    run = at(finished)
    before = made(run, 2)
    policy = run.policy(1)
    shutil.copytree(policy.path, policy.partial)
    path = policy.partial / "model.safetensors"
    save_file({n: t * 1.01 for n, t in load_file(path).items()}, path, {"format": "pt"})
    commit_policy(policy, inputs={}, recipe={}, seed=0)
    for output in (run.rollout(2), run.score(2), run.logprobs(2)):
        shutil.rmtree(output.path)
    write_iteration(run, 2)
    train("a", 2)
    assert "training starts from the policy" in capsys.readouterr().err
    assert made(run, 2)[0] != before[0]
    assert abs(steps(run, 2)["ratio_mean"][0] - 1) < 1e-4


def test_a_pruned_trainer_state_names_the_way_out(finished: Path, at) -> None:
    run = at(finished)
    state = run.trainer(1)
    shutil.rmtree(state.path)
    with pytest.raises(UserError, match=r"FROM=\d.*--fresh-optimizer"):
        train("a", 2, overwrite=True)
    train("a", 2, overwrite=True, fresh_optimizer=True)


def test_a_first_ratio_that_is_not_one_raises_the_alarm(prepared: Path, at, capsys) -> None:
    run = at(prepared)
    shifted = pl.col("old_logprobs").list.eval(pl.element() - 0.1)
    edit(run.logprobs(1), lambda frame: frame.with_columns(shifted), key=False)
    train("a", 1)
    assert "before the first update the mean ratio" in capsys.readouterr().err


def sample(group: int, tokens: int = 3, advantage: float = 1.0) -> Sample:
    values = np.zeros(tokens, np.float32)
    return Sample(
        rollout_id=f"{group}-{tokens}",
        group=group,
        prompt_ids=[1, 2],
        completion_ids=[3] * tokens,
        old_logprobs=values,
        ref_logprobs=None,
        entropy=values,
        sampler_logprobs=values,
        sampler_full_logprobs=values,
        advantage=advantage,
        reward=advantage,
        truncated=False,
    )


def test_every_epoch_has_every_group_once_in_an_order_of_its_own() -> None:
    groups = group_samples([sample(g) for g in range(7) for _ in range(2)])
    how = {"epochs": 3, "prompts_per_step": 3, "seed": 1}
    batches = plan_minibatches(groups, ObjectiveConfig(), iteration=1, **how)
    assert [b.step for b in batches] == list(range(9))
    assert [len(b.groups) for b in batches] == [3, 3, 1] * 3
    orders = []
    for epoch in range(3):
        order = [g.samples[0].group for b in batches if b.epoch == epoch for g in b.groups]
        assert sorted(order) == list(range(7))
        orders.append(order)
    assert orders[0] != orders[1] != orders[2]
    again = plan_minibatches(groups, ObjectiveConfig(), iteration=1, **how)
    assert [b.groups for b in again] == [b.groups for b in batches]


def test_permutations_are_the_same_everywhere() -> None:
    """Fixed numbers: a change would replay interrupted iterations in another order."""
    assert permutation(8, "0/1/0") == [6, 2, 3, 7, 4, 1, 0, 5]


def test_groups_without_variance_are_dropped_but_counted() -> None:
    groups = group_samples([sample(0, 4, 0.0), sample(0, 2, 0.0), sample(1, 3), sample(1, 1)])
    (batch,) = plan_minibatches(
        groups, ObjectiveConfig(), epochs=1, prompts_per_step=None, seed=0, iteration=1
    )
    assert [group.samples[0].group for group in batch.computed] == [1]
    assert batch.completion_tokens == 10
    assert batch.facts()["completions"] == 4
    assert batch.facts()["zero_variance_groups"] == 1
    (kept,) = plan_minibatches(
        groups, ObjectiveConfig(kl_coef=0.1), epochs=1, prompts_per_step=None, seed=0, iteration=1
    )
    assert len(kept.computed) == 2


def test_an_iteration_without_signal_can_be_passed_over() -> None:
    """With `keep` nothing is computed, not even the KL that would otherwise have a gradient."""
    groups = group_samples([sample(g, 3, 0.0) for g in range(3) for _ in range(2)])
    how = {"epochs": 1, "prompts_per_step": None, "seed": 0, "iteration": 1}
    with_kl = ObjectiveConfig(kl_coef=0.1)
    with pytest.raises(NoLearningSignalError, match="on_no_signal"):
        plan_minibatches(groups, with_kl, **how)
    (batch,) = plan_minibatches(groups, with_kl, on_no_signal="keep", **how)
    assert batch.computed == ()
    assert batch.facts()["zero_variance_groups"] == 3


def test_replicas_get_like_numbers_of_tokens() -> None:
    groups = group_samples([sample(g, tokens) for g, tokens in enumerate([50, 20, 20, 10, 9, 1])])
    shares = deal(groups, 2)
    tokens = [sum(g.tokens for g in share) for share in shares]
    assert abs(tokens[0] - tokens[1]) <= 10
    assert sorted(g.samples[0].group for share in shares for g in share) == list(range(6))
    assert deal(groups[:1], 3)[1:] == [[], []]


if __name__ == "__main__":
    dying_rank(sys.argv[1])
