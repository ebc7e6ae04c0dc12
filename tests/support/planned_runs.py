"""Runs whose stages are simulated: each output exists and holds a small value instead of work."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from common.config import Recipe
from common.runs.freshness import input_hashes, plan, recover
from common.runs.layout import Output, Run, shard_name
from common.runs.policies import commit_folder
from common.runs.shards import OutputWriter
from common.runs.stages import StageName

SCHEMA = pa.schema([pa.field("rollout_id", pa.string()), pa.field("value", pa.int64())])
RECIPE = Recipe.model_validate(
    {"model": {"path": "x"}, "data": {"a": {"kind": "dataset", "path": "y"}}}
)
EVERY_2 = RECIPE.model_copy(update={"evaluate": RECIPE.evaluate.model_copy(update={"every": 2})})


def write(run: Run, output: Output, inputs: list[str], value: int, **facts: object) -> None:
    """Write an output of one small shard whose content is `value`."""
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
    """Write prompts whose splits have the given contents."""
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


def do(run: Run, stage: StageName, n: int, value: int = 0, *, finish: bool = True) -> None:
    """Write what the stage would write, with `value` in place of its work.

    Without `finish`, `train` leaves its outputs unpublished.
    """
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
    return [str(step) for step in plan(run, recipe, to=to, **options)]  # type: ignore[arg-type]


def iteration(n: int) -> list[str]:
    return [f"{stage}-{n}" for stage in ("rollout", "score", "logprobs", "train")]


def complete_run(folder: Path, *, to: int) -> Run:
    """Make a run that is complete up to an iteration."""
    run = Run(folder / "demo")
    for step in plan(run, RECIPE, to=to):
        do(run, step.stage.name, step.number)
    return run
