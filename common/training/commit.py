"""Policy, trainer state and metrics of an iteration, committed as one.

The directories are written beside their places, each with its manifest. That of the metrics comes
last and decides: without it all are made again, with it the renames that are missing are done by
whoever comes next (`freshness.recover`). A policy therefore never stands without the trainer state
that made it. Where the reference is a moving average, a fourth directory has it.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from common.config import Recipe
from common.errors import NonFiniteError, UserError
from common.parallel.pipeline import Pipeline
from common.parallel.shards import open_verified
from common.runs.freshness import input_hashes, inputs_of, recover, require_fresh
from common.runs.hashing import hash_of_parts, sha256_of_file, tensors_content_hash
from common.runs.layout import Output, Run, shard_name
from common.runs.manifest import has_manifest, read_manifest
from common.runs.metrics import StepRow
from common.runs.policies import (
    commit_folder,
    commit_policy,
    reference_of,
)
from common.runs.schemas import TRAIN
from common.runs.shards import OutputWriter
from common.runs.stages import BY_NAME, keeps_average
from common.training.checkpoint import STATE, save_average, save_policy, save_trainer
from common.training.optimizer import Optimizer
from common.training.policy_term import policy_term_versions
from common.training.resume import clear_progress

PACKAGES = ("torch", "transformers")


@dataclass(frozen=True)
class TrainOutputs:
    """What one iteration of training makes."""

    run: Run
    iteration: int
    inputs: dict[str, str]
    """Content hashes by name."""
    recipe: dict[str, Any]
    """The sections that decide the content."""
    seed: int
    averaged: Output | None
    """The reference that the moving average goes on from; None when none is kept."""
    made_by: dict[str, str]
    """Versions of what decides the content beside these."""

    @property
    def metrics(self) -> Output:
        return self.run.train(self.iteration)

    @property
    def policy(self) -> Output:
        return self.run.policy(self.iteration)

    @property
    def reference(self) -> Output:
        """The moving average; made only with `averaged`."""
        return self.run.reference(self.iteration)

    @property
    def trainer(self) -> Output:
        return self.run.trainer(self.iteration)

    def writer(self) -> OutputWriter:
        """Of the metrics; its `open` begins or takes up the iteration."""
        return OutputWriter(
            self.metrics,
            inputs=self.inputs,
            recipe=self.recipe,
            seed=self.seed,
            names=[shard_name(0)],
            schema=TRAIN,
            made_by=self.made_by,
        )


def describe_outputs(
    run: Run, iteration: int, recipe: Recipe, *, fresh_optimizer: bool
) -> TrainOutputs:
    """What training an iteration is going to make, and from what.

    Raises:
        UserError: an input is missing or stale, or the trainer state to continue from was pruned.
    """
    for output in (run.rollout(iteration), run.score(iteration), run.logprobs(iteration)):
        # Keys alone would not tell: a rollout that was made again has the keys of the former.
        require_fresh(run, output)
    inputs = inputs_of(run, "train", iteration, recipe)
    before = run.trainer(iteration - 1)
    if fresh_optimizer:
        inputs = [name for name in inputs if name != before.name]
    elif iteration > 1:
        _require_trainer(run, iteration - 1)
    return TrainOutputs(
        run=run,
        iteration=iteration,
        inputs=input_hashes(run, inputs),
        recipe=BY_NAME["train"].recorded(recipe),
        seed=recipe.run.seed,
        averaged=reference_of(run, iteration, recipe) if keeps_average(recipe) else None,
        made_by=policy_term_versions(recipe.objective),
    )


def _require_trainer(run: Run, before: int) -> None:
    """Refuse to train without the optimizer of the iteration before."""

    def kept(number: int) -> bool:
        state = run.trainer(number)
        return has_manifest(state) and not read_manifest(state).pruned

    if kept(before):
        return
    later = (number + 1 for number in range(before, run.last_policy() + 1) if kept(number))
    state = run.trainer(before)
    raise UserError(
        f"{state.path} is needed to continue the optimizer and is "
        f"{'pruned' if has_manifest(state) else 'missing'} (run.keep_trainer); begin at "
        f"FROM={next(later, 1)}, the oldest iteration still possible, or use --fresh-optimizer"
    )


def commit_iteration(
    outputs: TrainOutputs,
    writer: OutputWriter,
    pipeline: Pipeline,
    optimizer: Optimizer,
    rows: list[StepRow],
    *,
    source: Path,
) -> None:
    """Write and publish everything; called on every rank.

    Args:
        source: directory of the policy that was trained.

    Raises:
        NonFiniteError: a weight is infinite or nan; nothing is written.
    """
    mesh = optimizer.weights.mesh
    mesh.at(f"iteration {outputs.iteration}, saving")
    if not optimizer.weights.all_finite():
        raise NonFiniteError(
            f"iteration {outputs.iteration}: the optimizer made weights that are not finite; the "
            "policy stays as it was. Lower train.learning_rate"
        )
    policy, reference, trainer = outputs.policy, outputs.reference, outputs.trainer
    if mesh.is_main:
        for output in (policy, reference, trainer):
            shutil.rmtree(output.partial, ignore_errors=True)
        for output in (policy, trainer, *((reference,) if outputs.averaged else ())):
            output.partial.mkdir(parents=True)
    mesh.barrier()
    save_policy(policy.partial, optimizer.weights, source=source)
    if outputs.averaged is not None:
        before = open_verified(outputs.averaged, mesh)
        save_average(
            reference.partial,
            optimizer.weights,
            before=pipeline.wide_parameters(before),
            alpha=outputs.recipe["reference"]["ema_alpha"],
            source=source,
        )
    separate = optimizer.weights.separate
    save_trainer(trainer.partial, optimizer, with_masters=separate, facts={})
    if mesh.is_main:
        _publish(outputs, writer, rows)
    mesh.barrier()


def _publish(outputs: TrainOutputs, writer: OutputWriter, rows: list[StepRow]) -> None:
    policy, reference, trainer = outputs.policy, outputs.reference, outputs.trainer
    made: dict[str, Any] = {
        "inputs": outputs.inputs,
        "recipe": outputs.recipe,
        "seed": outputs.seed,
        "publish_output": False,
    }
    of_policy = commit_policy(policy, **made)
    of_trainer = commit_folder(
        trainer,
        content_hash=trainer_content_hash(trainer.partial),
        facts={policy.name: of_policy.content_hash},
        **made,
    )
    facts = {policy.name: of_policy.content_hash, trainer.name: of_trainer.content_hash}
    if outputs.averaged is not None:
        facts[reference.name] = commit_policy(reference, **made).content_hash
    columns = {name: [row[name] for row in rows] for name in TRAIN.names}
    writer.write(shard_name(0), pa.table(columns, schema=TRAIN))
    clear_progress(outputs.metrics.partial)
    writer.commit(facts, packages=PACKAGES, publish_output=False)
    recover(outputs.run, outputs.metrics)
    if outputs.averaged is None:
        # Left by a training that is made again without an average: of another policy.
        shutil.rmtree(reference.path, ignore_errors=True)


def trainer_content_hash(folder: Path) -> str:
    """Content of a trainer state, whatever mesh wrote it."""
    tensors = tensors_content_hash(sorted(folder.glob("*.safetensors")))
    return hash_of_parts([tensors, sha256_of_file(folder / STATE)])
