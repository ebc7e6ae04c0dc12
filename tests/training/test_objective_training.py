"""The objectives through the train stage: columns read, remarks said, every preset trains."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from support.tiny_runs import UNUSED, start_run, write_iteration

from common.config import PRESETS
from common.errors import NonFiniteError, UserError
from common.runs.freshness import input_hashes
from common.runs.layout import Output, Run
from common.runs.manifest import read_manifest
from common.runs.shards import OutputWriter
from common.training.loop import LossRecorder
from stages.train import main as train

RECIPE = (
    UNUSED
    + """\
[rollout]
prompts_per_iteration = 6

[train]
learning_rate = 1e-3
prompts_per_step = 2
tokens_per_pack = 48
"""
)
"""Three steps an iteration."""

Change = Callable[[pl.DataFrame], pl.DataFrame]
Begin = Callable[..., Run]


@pytest.fixture
def begin(tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Begin:
    """A run ready for its first training, columns of rollout or logprobs changed."""

    def started(rollout: Change = pl.DataFrame.clone, logprobs: Change = pl.DataFrame.clone) -> Run:
        monkeypatch.setenv("STAGED_GRPO_RUNS", str(tmp_path))
        (tmp_path / "recipe.toml").write_text(RECIPE)
        run = Run(tmp_path / "a")
        start_run(run, tiny_policy, tmp_path / "recipe.toml")
        write_iteration(run, 1)
        rewrite(run, run.rollout(1), rollout)
        rewrite(run, run.score(1), pl.DataFrame.clone)
        rewrite(run, run.logprobs(1), logprobs)
        return run

    return started


def rewrite(run: Run, output: Output, change: Change) -> None:
    """The output with other numbers, as its own stage might have made it."""
    (path,) = output.path.glob("*.parquet")
    schema, frame = pq.read_schema(path), pl.read_parquet(path)
    manifest = read_manifest(output)
    shutil.rmtree(output.path)
    inputs = input_hashes(run, list(manifest.inputs))
    writer = OutputWriter(
        output, inputs=inputs, recipe=manifest.recipe, seed=0, names=[path.name], schema=schema
    ).open()
    writer.write(path.name, change(frame).to_arrow().cast(schema))
    writer.commit()


def shifted(column: str, by: float) -> Change:
    values = pl.col(column).list.eval(pl.element() + by)
    return lambda frame: frame.with_columns(values)


def steps(run: Run) -> pl.DataFrame:
    return pl.read_parquet(run.train(1).path / "*.parquet")


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains_from_ratio_one(begin: Begin, preset: str, capsys) -> None:
    run = begin()
    train("a", 1, overrides=[f"preset={preset}"])
    frame = steps(run)
    assert not frame["skipped"].any()
    assert frame["grad_norm"].min() > 0
    assert frame["sampler_weight_mean"].to_list() == [1.0] * 3
    first = frame.row(0, named=True)
    assert first["ratio_mean"] == pytest.approx(1, abs=1e-4)
    assert first["approx_kl"] == pytest.approx(0, abs=1e-6)
    assert first["clip_fraction_low"] == first["clip_fraction_high"] == 0
    assert frame["approx_kl"][2] > 1e-8
    assert "objective." not in capsys.readouterr().err


def test_sampler_weights_and_the_gap_are_of_the_sampler_s_logprobs(begin: Begin) -> None:
    run = begin(rollout=shifted("sampler_logprobs", -0.5))
    train("a", 1, overrides=["objective.sampler_correction=truncate"])
    frame = steps(run)
    np.testing.assert_allclose(frame["sampler_weight_mean"], np.exp(0.5), rtol=1e-5)
    np.testing.assert_allclose(frame["sampler_gap_max"], 0.5, rtol=1e-5)


MASK = "objective.sampler_correction=mask"


def test_a_mask_that_leaves_nothing_is_no_empty_step(begin: Begin, capsys) -> None:
    """All weights are 0, but the KL is computed, and the first ratio still raises the alarm."""
    run = begin(shifted("sampler_logprobs", 5.0), shifted("old_logprobs", -0.1))
    train("a", 1, overrides=[MASK, "objective.kl_coef=0.1"])
    frame = steps(run)
    assert frame["sampler_weight_mean"].to_list() == [0.0] * 3
    assert frame["policy_loss"].to_list() == [0.0] * 3
    assert frame["grad_norm"].min() > 0
    assert not frame["skipped"].any()
    assert "before the first update the mean ratio" in capsys.readouterr().err


def test_nor_are_its_steps_forgotten_when_they_are_left_out(begin: Begin, monkeypatch) -> None:
    begin(rollout=shifted("sampler_logprobs", 5.0))
    original = LossRecorder.__call__

    def call(self, outputs, packs):
        spoilt = torch.stack((outputs[..., 0], torch.full_like(outputs[..., 1], torch.nan)), -1)
        return original(self, spoilt, packs)

    monkeypatch.setattr(LossRecorder, "__call__", call)
    with pytest.raises(NonFiniteError, match=r"step 2: .*3 steps in a row"):
        train("a", 1, overrides=[MASK, "objective.kl_coef=0.1"])


def test_sampler_logprobs_that_are_no_numbers_are_named(begin: Begin, capsys) -> None:
    """Not masked in silence."""
    run = begin(
        rollout=lambda frame: frame.with_columns(
            pl.when(pl.col("rollout_id") == "1-1-2")
            .then(pl.col("sampler_logprobs").list.eval(pl.element() * float("nan")))
            .otherwise("sampler_logprobs")
            .alias("sampler_logprobs")
        )
    )
    train("a", 1, overrides=[MASK])
    assert steps(run)["skipped"].sum() == 1
    assert "not finite: the loss of 1-1-2;" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stage", "column"),
    [
        ("rollout", "sampler_logprobs"),
        ("logprobs", "entropy"),
    ],
)
def test_columns_of_other_lengths_are_refused(begin: Begin, stage: str, column: str) -> None:
    shorter = pl.col(column).list.head(1)
    begin(**{stage: lambda frame: frame.with_columns(shorter)})
    message = rf"{stage}: {column} of 1-\d-\d has 1 values for \d+ completion tokens; make it again"
    with pytest.raises(UserError, match=message):
        train("a", 1)


def test_the_policy_term_is_on_the_tokens_of_highest_stored_entropy(begin: Begin) -> None:
    """With one token of the iteration's above the others, the loss is of that token alone."""
    peaks = pl.col("entropy").list.eval(pl.element() * 0.0)
    highest = pl.col("entropy").list.eval(pl.element().cum_count().cast(pl.Float32))
    last = pl.col("rollout_id") == "1-1-0"
    run = begin(
        logprobs=lambda frame: frame.with_columns(
            pl.when(last).then(highest).otherwise(peaks).alias("entropy")
        )
    )
    one_step = ["train.prompts_per_step=6", "objective.top_entropy_quantile=0.001"]
    train("a", 1, overrides=one_step)
    advantage = pl.read_parquet(run.score(1).path / "*.parquet").filter(last)["advantage"][0]
    (row,) = steps(run).iter_rows(named=True)
    assert advantage != 0
    assert row["policy_loss"] == pytest.approx(-advantage / row["completion_tokens"], rel=1e-4)


def test_remarks_are_said(begin: Begin, capsys) -> None:
    begin()
    chosen = ["objective.ratio_level=sequence", "objective.kl_kind=k1", "objective.kl_coef=0.1"]
    train("a", 1, overrides=chosen)
    said = capsys.readouterr().err
    assert said.count("kl_kind = 'k1'") == 1
    assert said.count("objective.ratio_level = 'sequence'") == 1
