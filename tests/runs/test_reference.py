"""The reference of the KL: policy 0, a policy taken anew now and then, or a moving average."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from support.tiny_models import tiny_model
from support.tiny_runs import UNUSED, start_run, write_iteration
from torch import Tensor

from common.config import Recipe
from common.runs.freshness import plan, recover, status_of
from common.runs.layout import Output, Run
from common.runs.manifest import has_manifest, read_manifest
from common.runs.policies import reference_of
from common.runs.recipe import recipe_in_force
from stages.logprobs import main as logprobs
from stages.train import main as train

ALPHA = 0.25
RECIPE = (
    UNUSED
    + f"""\
[rollout]
prompts_per_iteration = 6

[objective]
kl_coef = 0.01

[reference]
update = "ema"
ema_alpha = {ALPHA}

[train]
learning_rate = 1e-3
tokens_per_pack = 48
"""
)


@pytest.fixture(scope="module")
def two_iterations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs directory with run `a` trained for two iterations with a moving average."""
    folder = tmp_path_factory.mktemp("averaged")
    tiny_model("qwen2", tied=True, num_hidden_layers=2).save_pretrained(folder / "policy")
    (folder / "recipe.toml").write_text(RECIPE)
    run = Run(folder / "a")
    start_run(run, folder / "policy", folder / "recipe.toml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAGED_GRPO_RUNS", str(folder))
        for iteration in (1, 2):
            write_iteration(run, iteration)
            train("a", iteration)
    return folder


@pytest.fixture
def run(two_iterations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A copy of it for this test's commands."""
    shutil.copytree(two_iterations, tmp_path / "runs")
    monkeypatch.setenv("STAGED_GRPO_RUNS", str(tmp_path / "runs"))
    return Run(tmp_path / "runs" / "a")


def weights(output: Output) -> dict[str, Tensor]:
    return {
        n: t for p in sorted(output.path.glob("*.safetensors")) for n, t in load_file(p).items()
    }


def recipe_with(**tables: dict) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"path": "x"},
            "data": {"a": {"kind": "generator", "generator": "counting"}},
            "objective": {"kl_coef": 0.1},
        }
        | tables
    )


def test_fixed_and_refreshed_references_are_functions_of_the_number() -> None:
    place = Run(Path("nowhere"))
    fixed = recipe_with()
    every_three = recipe_with(reference={"update": "refresh", "refresh_every": 3})
    assert {reference_of(place, n, fixed) for n in range(1, 9)} == {place.policy(0)}
    numbers = [reference_of(place, n, every_three) for n in range(1, 9)]
    assert numbers == [place.policy(n) for n in (0, 0, 0, 3, 3, 3, 6, 6)]
    assert reference_of(place, 5, recipe_with(objective={"kl_coef": 0.0})) is None


def test_the_average_is_the_one_written_out(run: Run) -> None:
    """(1 - alpha) · before + alpha · policy, from policy 0 on, in float32."""
    expected = weights(run.policy(0))
    for iteration in (1, 2):
        policy, found = weights(run.policy(iteration)), weights(run.reference(iteration))
        expected = {n: (1 - ALPHA) * t + ALPHA * policy[n] for n, t in expected.items()}
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            assert tensor.dtype == torch.float32
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6)
            assert not torch.equal(tensor, policy[name])
    recipe = recipe_in_force(run)
    references = [reference_of(run, n, recipe) for n in (1, 2, 3)]
    assert references == [run.policy(0), run.reference(1), run.reference(2)]


def test_logprobs_takes_the_average(run: Run) -> None:
    """`ref_logprobs` of iteration 2 are those of a plain forward of references/0001."""
    logprobs("a", 2, overwrite=True)
    manifest = read_manifest(run.logprobs(2))
    assert manifest.facts["reference"] == "references/0001"
    assert "references/0001" in manifest.inputs
    model = tiny_model("qwen2", tied=True).from_pretrained(run.reference(1).path)
    rows = pl.read_parquet(run.rollout(2).path / "*.parquet").join(
        pl.read_parquet(run.logprobs(2).path / "*.parquet"), on="rollout_id"
    )
    for row in rows.head(5).to_dicts():
        prompt, completion = row["prompt_ids"], row["completion_ids"]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + completion])).logits
        plain = logits[0, len(prompt) - 1 : -1].log_softmax(-1)[range(len(completion)), completion]
        torch.testing.assert_close(torch.tensor(row["ref_logprobs"]), plain, rtol=0, atol=1e-5)
        assert row["ref_logprobs"] != row["old_logprobs"]


def test_it_is_committed_with_its_policy(run: Run) -> None:
    """Remade with it, missed when it is gone, published by whoever comes after a kill."""
    reference, metrics = run.reference(2), run.train(2)
    assert status_of(run, metrics).state == "fresh"
    shutil.move(metrics.path, metrics.partial)
    shutil.move(reference.path, reference.partial)
    recover(run, metrics)
    assert status_of(run, metrics).state == "fresh"
    shutil.rmtree(reference.path)
    status = status_of(run, metrics)
    assert (status.state, status.reason) == ("stale", "references/0002 is missing")


def test_the_average_before_is_an_input(run: Run) -> None:
    """Iteration 1 made again: iteration 2 is made again too."""
    assert "references/0001" in read_manifest(run.train(2)).inputs
    steps = plan(run, recipe_in_force(run), to=2, remake_from=1)
    assert "train-2" in [str(step) for step in steps]


def test_without_an_average_there_is_none_left(run: Run, capsys) -> None:
    train("a", 2, overrides=["reference.update=fixed"], overwrite=True)
    assert not run.reference(2).path.exists()
    assert not any(name.startswith("references") for name in read_manifest(run.train(2)).facts)
    averaged = recipe_in_force(run, overrides=["reference.update=ema"])
    assert reference_of(run, 3, averaged) == run.policy(0)
    write_iteration(run, 3)
    logprobs("a", 3, overrides=["reference.update=ema"], overwrite=True)
    assert "iteration 2 was trained without a moving average" in capsys.readouterr().err
    assert read_manifest(run.logprobs(3)).facts["reference"] == "policies/0000"


def test_without_kl_no_average_is_written(run: Run) -> None:
    train("a", 2, overrides=["objective.kl_coef=0.0"], overwrite=True)
    assert not run.reference(2).path.exists()


def test_a_bounded_disk_keeps_the_reference_to_come(run: Run) -> None:
    """Policies beyond the newest two are pruned, but not the one that the KL still needs."""
    every_three = ["reference.update=refresh", "reference.refresh_every=3", "run.keep_policies=2"]
    train("a", 2, overrides=every_three, overwrite=True)
    for iteration in (3, 4, 5):
        write_iteration(run, iteration)
        train("a", iteration)
    pruned = [read_manifest(run.policy(n)).pruned for n in range(6)]
    assert pruned == [False, True, True, False, False, False]
    assert read_manifest(run.reference(1)).pruned
    train("a", 5, overrides=["reference.refresh_every=10"], overwrite=True)
    assert read_manifest(run.policy(3)).pruned


def test_two_ranks_write_the_average_of_their_policy(
    run: Run, stage: Callable[..., object]
) -> None:
    """Each pipeline stage its own layers; the tied embedding once."""
    stage("train", "--run", "a", "--iteration", "2", "--overwrite", ranks=2)
    assert len(list(run.reference(2).path.glob("*.safetensors"))) == 2
    before, policy, found = (
        weights(output) for output in (run.reference(1), run.policy(2), run.reference(2))
    )
    assert found.keys() == before.keys() == policy.keys()
    for name, tensor in found.items():
        expected = (1 - ALPHA) * before[name] + ALPHA * policy[name]
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-6)
    assert has_manifest(run.reference(2))
