"""Policy, trainer state and metrics of an iteration, committed as one.

Each directory is written beside its final place, with a manifest, and then renamed. The manifest of
the metrics is written last and decides: without it everything is made again; with it, the next
process does the renames that are missing (`freshness.recover`). So a policy never exists without
the trainer state that belongs to it. If the reference is a moving average, it is a fourth
directory.
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
    """Outputs of one iteration of training, and what decides their content."""

    run: Run
    iteration: int
    inputs: dict[str, str]
    """Content hash of each input, by name."""
    recipe: dict[str, Any]
    """The sections of the recipe that decide the content."""
    seed: int
    averaged: Output | None
    """The reference that the moving average continues from; None if no average is kept."""
    made_by: dict[str, str]
    """Versions of whatever else decides the content."""

    @property
    def metrics(self) -> Output:
        return self.run.train(self.iteration)

    @property
    def policy(self) -> Output:
        return self.run.policy(self.iteration)

    @property
    def reference(self) -> Output:
        """Return the moving average; it is made only with `averaged`."""
        return self.run.reference(self.iteration)

    @property
    def trainer(self) -> Output:
        return self.run.trainer(self.iteration)

    def writer(self) -> OutputWriter:
        """Return the writer of the metrics; its `open` begins or resumes the iteration."""
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
    """Check the inputs of an iteration's training, and return what it is going to make.

    Raises:
        UserError: an input is missing or stale, or the trainer state to continue from was pruned.
    """
    for output in (run.rollout(iteration), run.score(iteration), run.logprobs(iteration)):
        # Equal keys are not enough: a rollout that was made again has the same keys.
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
    """Check that the trainer state of iteration `before` is there to continue from.

    Raises:
        UserError: it is missing or pruned; the message says from where one can still begin.
    """

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
    """Write and publish everything that the iteration made; called on every rank.

    Args:
        outputs: as `describe_outputs` returns them.
        writer: the writer of the metrics, which is open.
        pipeline: this rank's part of the model.
        optimizer: the optimizer after the last step.
        rows: a row of metrics per optimizer step.
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
        # An earlier training may have left an average, which belongs to another policy.
        shutil.rmtree(reference.path, ignore_errors=True)


def trainer_content_hash(folder: Path) -> str:
    """Return the content hash of a trainer state, the same whatever mesh wrote it."""
    tensors = tensors_content_hash(sorted(folder.glob("*.safetensors")))
    return hash_of_parts([tensors, sha256_of_file(folder / STATE)])
