"""Runs of a tiny model that are ready for training or trained, and functions to inspect them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
import torch

from common.runs.layout import Output, Run
from common.runs.manifest import has_manifest, read_manifest
from common.runs.shards import encode_parquet
from common.training.loop import LossRecorder
from support.tiny_models import tiny_model
from support.tiny_runs import UNUSED, start_run, write_iteration

RECIPE = (
    UNUSED
    + """\
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
)
"""A recipe with six steps per iteration."""


def prepare_training(folder: Path) -> None:
    """Make `folder` a runs directory with run `a` ready for its first training."""
    tiny_model("qwen2", tied=True, num_hidden_layers=3).save_pretrained(folder / "policy")
    (folder / "recipe.toml").write_text(RECIPE)
    run = Run(folder / "a")
    start_run(run, folder / "policy", folder / "recipe.toml")
    write_iteration(run, 1)


def finish_training(untrained: Path, folder: Path) -> None:
    """Make `folder` a runs directory with run `a` trained for two iterations, uninterrupted."""
    from stages.train import main as train

    shutil.copytree(untrained, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAGED_GRPO_RUNS", str(folder))
        train("a", 1)
        write_iteration(Run(folder / "a"), 2)
        train("a", 2)


def steps(run: Run, iteration: int = 1) -> pl.DataFrame:
    return pl.read_parquet(run.train(iteration).path / "*.parquet")


def made(run: Run, iteration: int = 1) -> list[str]:
    """Return the content hashes of all that an iteration of training makes."""
    outputs = [run.policy(iteration), run.trainer(iteration), run.train(iteration)]
    return [read_manifest(output).content_hash for output in outputs]


def nothing_made(run: Run, iteration: int = 1) -> bool:
    outputs = [run.policy(iteration), run.trainer(iteration), run.train(iteration)]
    return not any(has_manifest(o) or o.partial.exists() for o in outputs)


def edit(output: Output, change: Callable[[pl.DataFrame], pl.DataFrame], *, key: bool) -> None:
    """Change an output's only shard, as if its own stage had written it so.

    With `key`, the output is written anew, since accepted edits may not change its keys.
    """
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


def without_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make all entropies NaN, as logits of minus infinity do; the loss stays finite."""
    original = LossRecorder.__call__

    def call(self, outputs, packs):
        spoilt = torch.stack((outputs[..., 0], torch.full_like(outputs[..., 1], torch.nan)), -1)
        return original(self, spoilt, packs)

    monkeypatch.setattr(LossRecorder, "__call__", call)
