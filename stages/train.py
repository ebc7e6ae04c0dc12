"""train: one iteration of GRPO, from the policy that sampled to the next one.

Reads   iterations/N/{rollout,score,logprobs}, policies/N-1, trainer/N-1
Writes  policies/N, trainer/N and iterations/N/train (a row an optimizer step), committed as one

Every optimizer step takes `prompts_per_step` groups, packs their completions with shared prompts,
runs the pipeline schedule over microbatches of packs, sums gradients over the mesh, clips and
steps AdamW on float32 masters. The loss is normalised by counts over the whole optimizer batch,
so that no division of the work changes it.

    python -m stages.train --run demo --iteration 3
    torchrun --standalone --nproc-per-node 2 -m -- stages.train --run demo --iteration 3
"""

from __future__ import annotations

from pathlib import Path
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
from common.config import Recipe
from common.errors import UserError
from common.mesh.mesh import Mesh
from common.modeling.load import compute_dtype
from common.parallel.batches import Minibatch, group_samples, plan_minibatches
from common.parallel.checkpoint import load_trainer, read_state
from common.parallel.commit import TrainOutputs, commit_iteration
from common.parallel.masters import Masters
from common.parallel.optimizer import Optimizer
from common.parallel.pipeline import Pipeline
from common.parallel.resume import resume_progress, save_progress
from common.parallel.rows import read_samples
from common.parallel.training import Trainer, step_line
from common.reporting.metrics import rebuild_metrics
from common.reporting.progress import say, warn
from common.runs.edits import accept_edits as take_edits
from common.runs.folders import open_folder, open_policy
from common.runs.freshness import input_hashes, status_of
from common.runs.manifest import has_manifest, read_manifest
from common.runs.retention import prune
from common.runs.schemas import TRAIN

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
        names = take_edits(output, TRAIN)
        context.result({"accepted": names}, f"{output.name}: accepted {', '.join(names) or 'none'}")
        return
    with Mesh.from_environment(context.recipe.mesh) as mesh:
        # Asked on rank 0 alone: it may finish an interrupted commit, which the others must see.
        wanted = context.begin(output) if mesh.is_main else None
        if mesh.gather_objects(wanted)[0]:
            train(context, mesh, fresh_optimizer)


def train(context: Context, mesh: Mesh, fresh_optimizer: bool) -> None:
    """Train the iteration on every rank of the mesh and commit it."""
    run, iteration, recipe = context.run, context.iteration, context.recipe
    objective = recipe.objective
    outputs = describe(context, fresh_optimizer)
    data = read_samples(run, iteration, with_reference=objective.kl_coef != 0)
    minibatches = plan_minibatches(
        group_samples(data.samples),
        objective,
        epochs=recipe.train.epochs,
        prompts_per_step=recipe.train.prompts_per_step,
        seed=recipe.run.seed,
        iteration=iteration,
    )
    source = open_policy(run, iteration - 1) if mesh.is_main else run.policy(iteration - 1).path
    mesh.barrier()
    pipeline = Pipeline(
        source,
        mesh,
        dtype=compute_dtype(recipe.model.dtype, mesh.device),
        temperature=data.temperature,
        schedule=recipe.mesh.pipeline_schedule,
        train=True,
    )
    optimizer = Optimizer(Masters(pipeline.part, mesh), recipe.train)
    continue_training(context, pipeline, optimizer, fresh_optimizer)
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
    take_steps(trainer, minibatches, outputs.metrics.partial, recipe)
    commit_iteration(outputs, writer, optimizer, trainer.rows, source=source)
    if mesh.is_main:
        prune(run, keep_policies=recipe.run.keep_policies, keep_trainer=recipe.run.keep_trainer)
        rebuild_metrics(run)
    report(context, trainer)


def describe(context: Context, fresh_optimizer: bool) -> TrainOutputs:
    """What is going to be made and from what.

    Raises:
        UserError: an input is missing or stale, or the trainer state to continue from was pruned.
    """
    run, iteration, recipe = context.run, context.iteration, context.recipe
    joined = [run.rollout(iteration), run.score(iteration), run.logprobs(iteration)]
    for output in joined:
        # Keys alone would not tell: a rollout that was made again has the keys of the former.
        now = status_of(run, output)
        if now.state != "fresh":
            raise UserError(f"{output.path}: {now.state}, {now.reason}; run: {output.command}")
    inputs = [*(output.name for output in joined), run.policy(iteration - 1).name]
    if iteration > 1 and not fresh_optimizer:
        require_trainer(context)
        inputs.append(run.trainer(iteration - 1).name)
    return TrainOutputs(
        run=run,
        iteration=iteration,
        inputs=input_hashes(run, inputs),
        recipe={
            "objective": recipe.objective.model_dump(mode="json"),
            "train": recipe.train.model_dump(mode="json"),
            "model": {"dtype": recipe.model.dtype},
        },
        seed=recipe.run.seed,
    )


def require_trainer(context: Context) -> None:
    """Refuse to train without the optimizer of the iteration before, unless asked to."""
    run, before = context.run, context.iteration - 1
    state = run.trainer(before)
    if has_manifest(state) and not read_manifest(state).pruned:
        return
    kept = [
        number
        for number in range(1, run.last_policy() + 1)
        if has_manifest(run.trainer(number)) and not read_manifest(run.trainer(number)).pruned
    ]
    oldest = next((number + 1 for number in kept if number > before), 1)
    raise UserError(
        f"{state.path} is needed to continue the optimizer and is "
        f"{'pruned' if has_manifest(state) else 'missing'} (run.keep_trainer); begin at "
        f"FROM={oldest}, the oldest iteration still possible, or use --fresh-optimizer"
    )


def continue_training(
    context: Context, pipeline: Pipeline, optimizer: Optimizer, fresh_optimizer: bool
) -> None:
    """Take up masters and optimizer of the iteration before, if they made this very policy."""
    run, before, mesh = context.run, context.iteration - 1, pipeline.mesh
    loaded = with_masters = False
    if before > 0 and not fresh_optimizer:
        state = run.trainer(before)
        folder = open_folder(state) if mesh.is_main else state.path
        mesh.barrier()
        policy = run.policy(before)
        if read_manifest(state).facts[policy.name] == read_manifest(policy).content_hash:
            with_masters = read_state(folder)["masters"]
            loaded = load_trainer(folder, optimizer, as_policy=True)
        if not loaded and mesh.is_main:
            warn(
                f"{policy.path} is not the policy that {state.path} was saved with: training "
                "starts from the policy, with a new optimizer"
            )
    if optimizer.masters.separate and not (loaded and with_masters):
        optimizer.masters.fill(pipeline.wide_parameters())


def take_steps(
    trainer: Trainer, minibatches: list[Minibatch], partial: Path, recipe: Recipe
) -> None:
    """All optimizer steps of the iteration, from the last commit within it if there is one."""
    trainer.rows = resume_progress(partial, trainer.optimizer)
    if trainer.rows:
        say(f"continuing after step {len(trainer.rows)} of {len(minibatches)}")
    every = recipe.train.checkpoint_every_steps
    for minibatch in minibatches[len(trainer.rows) :]:
        say(step_line(trainer.step(minibatch), len(minibatches)))
        done = len(trainer.rows)
        if every and done % every == 0 and done < len(minibatches):
            save_progress(partial, trainer.optimizer, trainer.rows)


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
