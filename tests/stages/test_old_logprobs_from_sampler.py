"""The sampler's logprobs as the old policy's: `logprobs.old_logprobs_from = "sampler"`.

An iteration by the real stages, once for each setting, from the same rollout.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from support.interrupted import killed_at_second_shard
from support.logprobs_runs import flat
from support.trained_runs import edit, steps

from common.errors import UserError
from common.parallel.pipeline import Pipeline
from common.runs.layout import Run
from common.runs.manifest import read_manifest, write_manifest
from common.runs.schemas import KEY
from common.runs.shards import read_output
from stages import logprobs, rollout, score, show, tokens, train

SAMPLER = 'logprobs.old_logprobs_from="sampler"'
WITHOUT_KL = "objective.kl_coef=0"

RECIPE = """\
[model]
path = "{policy}"

[data.multiplication]
kind = "generator"
generator = "multiplication"
train = 12
eval = 0

[rollout]
prompts_per_iteration = 6
group_size = 4
groups_per_shard = 2
max_completion_tokens = 12

[rewards.answer]
weight = 0.0

[rewards.repetition]
weight = 1.0
ngram = 1

[objective]
kl_coef = 0.01

[train]
learning_rate = 1e-3
prompts_per_step = 3
"""


@pytest.fixture(scope="module")
def scored(prepared: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs directory with run `a` sampled and scored."""
    folder = tmp_path_factory.mktemp("scored")
    shutil.copytree(prepared(RECIPE), folder / "runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAGED_GRPO_RUNS", str(folder / "runs"))
        rollout.main("a", 1, quiet=True)
        score.main("a", 1, quiet=True)
    return folder / "runs"


@pytest.fixture
def run(scored: Path, at) -> Run:
    return at(scored)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the models that were loaded."""
    names: list[str] = []
    original = Pipeline.__init__

    def watched(self, policy_dir, *args, **kwargs):
        names.append(policy_dir.name)
        original(self, policy_dir, *args, **kwargs)

    monkeypatch.setattr(Pipeline, "__init__", watched)
    return names


def test_without_kl_no_model_is_loaded(run: Run, loaded: list[str], capsys) -> None:
    logprobs.main("a", 1, overrides=[SAMPLER, WITHOUT_KL])
    assert loaded == []
    found, sampled = read_output(run.logprobs(1)), read_output(run.rollout(1))
    assert found[KEY].equals(sampled[KEY])
    assert found["old_logprobs"].to_pylist() == sampled["sampler_logprobs"].to_pylist()
    for unknown in ("ref_logprobs", "entropy"):
        assert found[unknown].null_count == len(found)
    assert "the sampler's own, so no gap is checked" in capsys.readouterr().out
    manifest = read_manifest(run.logprobs(1))
    assert manifest.facts["old_logprobs_from"] == "sampler"
    assert manifest.facts["tokens"] == len(flat(sampled, "completion_ids"))
    assert list(manifest.inputs) == [run.rollout(1).name]
    with pytest.raises(UserError, match=r"nothing to compare the sampler with; approx_kl"):
        show.gap("a", iteration=1)


def test_the_reference_is_computed_as_ever(run: Run, loaded: list[str]) -> None:
    """Also where it is the policy that sampled: the KL compares what the trainer computes."""
    logprobs.main("a", 1, quiet=True)
    before = read_output(run.logprobs(1))["ref_logprobs"]
    logprobs.main("a", 1, overrides=[SAMPLER], overwrite=True, quiet=True)
    assert loaded == ["0000", "0000"]
    assert read_output(run.logprobs(1))["ref_logprobs"].equals(before)


def test_two_pipeline_stages_write_each_shard_once(run: Run, stage) -> None:
    logprobs.main("a", 1, overrides=[SAMPLER], quiet=True)
    alone = read_output(run.logprobs(1))
    stage("logprobs", *("--run", "a", "--iteration", "1", "--overwrite"), ranks=2)
    divided = read_output(run.logprobs(1))
    assert divided["old_logprobs"].equals(alone["old_logprobs"])
    np.testing.assert_allclose(
        flat(divided, "ref_logprobs"), flat(alone, "ref_logprobs"), rtol=0, atol=1e-5
    )


def test_what_was_killed_goes_on_at_the_missing_shards(run: Run) -> None:
    logprobs.main("a", 1, overrides=[SAMPLER], quiet=True)
    whole = read_manifest(run.logprobs(1)).content_hash
    shutil.rmtree(run.logprobs(1).path)
    with killed_at_second_shard() as written:
        logprobs.main("a", 1, quiet=True)
    assert len(written) == 1
    logprobs.main("a", 1, quiet=True)
    assert read_manifest(run.logprobs(1)).content_hash == whole


def test_training_is_the_same_but_for_the_samplers_rounding(run: Run, scored: Path) -> None:
    """Both compute in float32, so that the first ratio is 1 to 1e-4; and what looks at a trained
    iteration does without the entropy."""
    logprobs.main("a", 1, quiet=True)
    train.main("a", 1, quiet=True)
    expected = steps(run).drop("tokens_per_second", "peak_memory_bytes", "step_seconds")
    shutil.rmtree(run.root)
    shutil.copytree(scored / "a", run.root)
    logprobs.main("a", 1, overrides=[SAMPLER], quiet=True)
    train.main("a", 1, quiet=True)
    found = steps(run)
    first = found.row(0, named=True)
    assert abs(first["ratio_mean"] - 1) < 1e-4 and abs(first["ratio_max"] - 1) < 1e-4
    assert first["approx_kl"] < 1e-6
    assert found["sampler_gap_max"].max() == 0
    assert first["grad_norm"] > 0
    for name in ("loss", "policy_loss", "kl", "entropy", "grad_norm", "ratio_mean"):
        assert found[name].to_list() == pytest.approx(expected[name].to_list(), abs=1e-4), name
    tokens.main("a", 1, quiet=True)
    show.tokens("a", iteration=1, every=True)
    show.run("a")


def test_a_sampler_of_another_precision_is_refused(run: Run) -> None:
    """By the stage and, where the recipe changed in between, by training."""
    logprobs.main("a", 1, overrides=[SAMPLER, WITHOUT_KL], quiet=True)
    said = r"sampled in float32 on cpu and training is in bfloat16 on cpu; set model\.dtype"
    other = ['model.dtype="bfloat16"']
    with pytest.raises(UserError, match=said + r".*or make logprobs with .*stages\.logprobs"):
        train.main("a", 1, overrides=other, quiet=True)
    with pytest.raises(UserError, match=said):
        logprobs.main("a", 1, overrides=other, overwrite=True, quiet=True)


def test_a_rollout_that_does_not_say_is_refused(run: Run) -> None:
    manifest = read_manifest(run.rollout(1))
    facts = {name: fact for name, fact in manifest.facts.items() if name != "precision"}
    write_manifest(run.rollout(1).path, manifest.model_copy(update={"facts": facts}))
    with pytest.raises(UserError, match=r"type that no manifest has.*stages\.rollout"):
        logprobs.main("a", 1, overrides=[SAMPLER], quiet=True)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ('objective.sampler_correction="truncate"', r"'truncate' has nothing to correct"),
        ("objective.top_entropy_quantile=0.5", r"entropy of .* is null, but objective\.top_entr"),
    ],
)
def test_settings_that_need_the_old_policy_are_refused_by_training(
    run: Run, setting: str, said: str
) -> None:
    """The recipe can be right by itself and not go with what was made before it."""
    logprobs.main("a", 1, overrides=[SAMPLER, WITHOUT_KL], quiet=True)
    with pytest.raises(UserError, match=said):
        train.main("a", 1, overrides=['logprobs.old_logprobs_from="policy"', setting], quiet=True)


def test_old_logprobs_of_another_policy_are_warned_of(untrained: Path, at, capsys) -> None:
    """Pairs of tokens whose ratios have the mean 1, as those to what was sampled from always have:
    approx_kl tells."""
    run = at(untrained)
    pair = np.array([0.2, -0.2]) + np.log(np.cosh(0.2))

    def moved(frame: pl.DataFrame) -> pl.DataFrame:
        rows = [np.array(row) for row in frame["old_logprobs"]]
        for row in rows:
            whole = len(row) // 2 * 2
            row[:whole] += np.tile(pair, whole // 2)
        return frame.with_columns(pl.Series("old_logprobs", [row.tolist() for row in rows]))

    edit(run.logprobs(1), moved, key=False)
    train.main("a", 1, quiet=True)
    first = steps(run).row(0, named=True)
    assert abs(first["ratio_mean"] - 1) < 1e-4
    said = capsys.readouterr().err
    assert f"approx_kl {first['approx_kl']:.2g}, not 0" in said
