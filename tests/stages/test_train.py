"""The train stage: what it commits, from iteration to iteration."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from support.tiny_models import tiny_model
from support.tiny_runs import write_iteration
from support.trained_runs import made, steps

from common.errors import UserError
from common.parallel.stage_module import recompute_layers
from common.runs.freshness import status_of
from common.runs.layout import Run
from common.runs.manifest import read_manifest
from common.runs.schemas import TRAIN, TRAIN_METRICS
from stages.train import main as train


def test_an_iteration_writes_policy_trainer_and_metrics(trained: Path) -> None:
    run = Run(trained / "a")
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
    lines = (trained / "a/metrics.jsonl").read_text().splitlines()
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


def test_the_first_step_is_on_policy(trained: Path) -> None:
    for iteration in (1, 2):
        first = steps(Run(trained / "a"), iteration).row(0, named=True)
        assert abs(first["ratio_mean"] - 1) < 1e-4
        assert abs(first["ratio_max"] - 1) < 1e-4
        assert first["clip_fraction_low"] == first["clip_fraction_high"] == 0
        assert abs(first["approx_kl"]) < 1e-6


def test_the_second_epoch_is_another_order_of_the_same(trained: Path) -> None:
    frame = steps(Run(trained / "a"))
    tokens = frame["completion_tokens"].to_list()
    assert sum(tokens[:3]) == sum(tokens[3:])
    assert tokens[:3] != tokens[3:]


def test_training_again_gives_the_same_bits(trained: Path, at) -> None:
    run = at(trained)
    before = made(run, 2)
    train("a", 2, overwrite=True)
    assert made(run, 2) == before


def test_recomputed_layers_train_the_same_policy(
    trained: Path, untrained: Path, at, monkeypatch
) -> None:
    run = at(untrained)
    recomputed = []

    def watched(part) -> None:
        recomputed.append(part)
        recompute_layers(part)

    monkeypatch.setattr("common.parallel.pipeline.recompute_layers", watched)
    train("a", 1, overrides=["train.activation_checkpointing=true"])
    assert len(recomputed) == 1
    assert made(run)[:2] == made(Run(trained / "a"))[:2]


def test_optimizer_state_goes_from_iteration_to_iteration(trained: Path, at) -> None:
    run = at(trained)
    assert read_manifest(run.train(2)).inputs.keys() >= {"trainer/0001", "policies/0001"}
    before = made(run, 2)
    train("a", 2, overwrite=True, fresh_optimizer=True)
    assert made(run, 2)[0] != before[0]


def test_an_edited_policy_trains_from_itself_with_a_warning(trained: Path, at, capsys) -> None:
    from safetensors.torch import load_file, save_file

    from common.runs.policies import commit_policy

    run = at(trained)
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


def test_a_pruned_trainer_state_names_the_way_out(trained: Path, at) -> None:
    run = at(trained)
    state = run.trainer(1)
    shutil.rmtree(state.path)
    with pytest.raises(UserError, match=r"FROM=\d.*--fresh-optimizer"):
        train("a", 2, overwrite=True)
    train("a", 2, overwrite=True, fresh_optimizer=True)
