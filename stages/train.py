"""train: one iteration of GRPO, from the policy that sampled to the next one.

Reads   iterations/N/{rollout,score,logprobs}, policies/N-1, trainer/N-1
Writes  policies/N, trainer/N and iterations/N/train (a row an optimizer step), committed as one;
        with reference.update = "ema" also references/N

Every optimizer step takes `prompts_per_step` groups, packs their completions with shared prompts,
runs the pipeline schedule over microbatches of packs, sums gradients over the mesh, clips and
steps AdamW on float32 masters. The loss is normalised by counts over the whole optimizer batch,
so that no division of the work changes it.

    python -m stages.train --run demo --iteration 3
    torchrun --standalone --nproc-per-node 2 -m -- stages.train --run demo --iteration 3
"""

from __future__ import annotations

from typing import Annotated

import typer

from common.command import (
    AcceptEdits,
    Context,
    Debug,
    Iteration,
    Json,
    Overrides,
    Overwrite,
    Quiet,
    RecipePath,
    RunName,
    launch,
    open_context,
)
from common.config import config_warnings
from common.console import warn
from common.errors import UserError
from common.modeling.load import compute_dtype, precision, require_precision
from common.parallel.mesh import Mesh
from common.parallel.pipeline import Pipeline
from common.runs.manifest import read_manifest
from common.runs.metrics import rebuild_metrics
from common.runs.policies import open_policy, prune, reference_of
from common.runs.schemas import TRAIN
from common.training.commit import commit_iteration, describe_outputs
from common.training.loop import Trainer
from common.training.minibatches import group_samples, plan_minibatches
from common.training.optimizer import MasterWeights, Optimizer
from common.training.resume import continue_training, take_steps
from common.training.samples import read_samples

FreshOptimizer = Annotated[
    bool, typer.Option("--fresh-optimizer", help="Begin AdamW anew, from the policy alone.")
]


def main(
    run: RunName,
    iteration: Iteration,
    recipe: RecipePath = None,
    overrides: Overrides = None,
    overwrite: Overwrite = False,
    fresh_optimizer: FreshOptimizer = False,
    accept_edits: AcceptEdits = False,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """One iteration of GRPO: the next policy, its trainer state and a row an optimizer step."""
    context = open_context(
        run,
        iteration,
        recipe=recipe,
        overrides=overrides,
        overwrite=overwrite,
        quiet=quiet,
        as_json=as_json,
    )
    output = context.run.train(iteration)
    if accept_edits:
        context.accept(output, TRAIN)
        return
    with Mesh.from_environment(context.recipe.mesh) as mesh:
        if mesh.broadcast_from_rank0(lambda: context.begin(output)):
            train(context, mesh, fresh_optimizer)
        if mesh.is_main:
            tidy(context)


def tidy(context: Context) -> None:
    """What follows a commit, also one after which the process was killed."""
    run, keep = context.run, context.recipe.run
    reference = reference_of(run, context.iteration + 1, context.recipe)
    prune(
        run,
        newest=context.iteration,
        keep_policies=keep.keep_policies,
        keep_trainer=keep.keep_trainer,
        in_use=[reference.name] if reference else [],
    )
    rebuild_metrics(run)


def train(context: Context, mesh: Mesh, fresh_optimizer: bool) -> None:
    """Train the iteration on every rank of the mesh and commit it."""
    run, iteration, recipe = context.run, context.iteration, context.recipe
    objective = recipe.objective
    if mesh.is_main:
        for warning in config_warnings(objective):
            warn(warning)
    outputs = describe_outputs(run, iteration, recipe, fresh_optimizer=fresh_optimizer)
    check_old_logprobs(context, mesh)
    data = read_samples(
        run,
        iteration,
        with_reference=objective.kl_coef != 0,
        with_entropy=objective.top_entropy_quantile < 1,
    )
    minibatches = plan_minibatches(
        group_samples(data.samples),
        objective,
        epochs=recipe.train.epochs,
        prompts_per_step=recipe.train.prompts_per_step,
        seed=recipe.run.seed,
        iteration=iteration,
        on_no_signal=recipe.train.on_no_signal,
    )
    mesh.at(f"iteration {iteration}, loading policy {iteration - 1}")
    source = open_policy(run, iteration - 1) if mesh.is_main else run.policy(iteration - 1).path
    mesh.barrier()
    pipeline = Pipeline(
        source,
        mesh,
        dtype=compute_dtype(recipe.model.dtype, mesh.device),
        temperature=data.temperature,
        schedule=recipe.mesh.pipeline_schedule,
        train=True,
        activation_checkpointing=recipe.train.activation_checkpointing,
    )
    optimizer = Optimizer(MasterWeights(pipeline.part, mesh), recipe.train)
    before = 0 if fresh_optimizer else iteration - 1
    continue_training(run, before, pipeline, optimizer)
    writer = outputs.writer()
    if mesh.is_main:
        writer.open()
    mesh.barrier()
    trainer = Trainer(
        pipeline,
        optimizer,
        train=recipe.train,
        objective=objective,
        iteration=iteration,
        steps=len(minibatches),
        max_completion_tokens=data.max_completion_tokens,
    )
    every = recipe.train.checkpoint_every_steps
    take_steps(trainer, minibatches, outputs.metrics.partial, checkpoint_every=every)
    commit_iteration(outputs, writer, pipeline, optimizer, trainer.rows, source=source)
    report(context, trainer)


def check_old_logprobs(context: Context, mesh: Mesh) -> None:
    """Refuse `old_logprobs` of a sampler that computed otherwise, or that are to be corrected.

    Raises:
        UserError: the recipe is another than that which made them.
    """
    logprobs = context.run.logprobs(context.iteration)
    if read_manifest(logprobs).facts.get("old_logprobs_from") != "sampler":
        return
    rollout, recipe = context.run.rollout(context.iteration), context.recipe
    require_precision(rollout, precision(recipe.model.dtype, mesh.device))
    if recipe.objective.sampler_correction != "none":
        raise UserError(
            f'{logprobs.path}: made with logprobs.old_logprobs_from = "sampler", so that '
            f"objective.sampler_correction = {recipe.objective.sampler_correction!r} has nothing "
            f'to correct; set it to "none", or make them again: {logprobs.command}'
        )


def report(context: Context, trainer: Trainer) -> None:
    """Say what the iteration came to."""
    first, last = trainer.rows[0], trainer.rows[-1]
    skipped = sum(row["skipped"] for row in trainer.rows)
    facts = {
        "iteration": context.iteration,
        "steps": len(trainer.rows),
        "skipped": skipped,
        "reward_mean": first["reward_mean"],
        "loss": last["loss"],
        "grad_norm": last["grad_norm"],
    }
    line = (
        f"iteration {context.iteration}: {len(trainer.rows)} optimizer steps"
        f"{f' ({skipped} left out)' if skipped else ''}, mean reward {first['reward_mean']:.3f}; "
        f"{context.run.policy(context.iteration).path}"
    )
    context.result(facts, line)


if __name__ == "__main__":
    launch(main)
