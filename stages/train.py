"""train: one iteration of GRPO, from the policy that sampled to the next one.

Reads   iterations/N/{rollout,score,logprobs}, policies/N-1, trainer/N-1
Writes  policies/N, trainer/N and iterations/N/train (a row per optimizer step), committed as one;
        with reference.update = "ema" also references/N

Every optimizer step takes `prompts_per_step` groups, packs their completions with shared prompts,
runs the pipeline schedule over microbatches of packs, sums and clips the gradients over the mesh,
and steps AdamW on float32 master weights. The loss is normalised by counts over the whole optimizer
batch, so that it does not depend on how the work is divided. All of that is in
`common/training/loop.py`.

    python -m stages.train --run demo --iteration 3
    torchrun --standalone --nproc-per-node 2 -m -- stages.train --run demo --iteration 3
"""

from __future__ import annotations

from typing import Annotated

import typer

from common.command import launch
from common.config import config_warnings
from common.console import warn
from common.runs.metrics import StepRow, rebuild_metrics
from common.runs.policies import prune, reference_of
from common.stage import StageRun, stage_command
from common.training.loop import train_iteration

FreshOptimizer = Annotated[
    bool, typer.Option("--fresh-optimizer", help="Begin AdamW anew, from the policy alone.")
]


def train(stage: StageRun, fresh_optimizer: FreshOptimizer = False) -> None:
    """Train the next policy by one iteration of GRPO.

    Policy, trainer state and a row per optimizer step are committed as one.
    """
    if stage.mesh.is_main:
        for warning in config_warnings(stage.recipe.objective):
            warn(warning)
    rows = train_iteration(
        stage.run, stage.iteration, stage.recipe, stage.mesh, fresh_optimizer=fresh_optimizer
    )
    report(stage, rows)


def report(stage: StageRun, rows: list[StepRow]) -> None:
    """Print the result of the iteration."""
    first, last = rows[0], rows[-1]
    skipped = sum(row["skipped"] for row in rows)
    facts = {
        "iteration": stage.iteration,
        "steps": len(rows),
        "skipped": skipped,
        "reward_mean": first["reward_mean"],
        "loss": last["loss"],
        "grad_norm": last["grad_norm"],
    }
    line = (
        f"iteration {stage.iteration}: {len(rows)} optimizer steps"
        f"{f' ({skipped} left out)' if skipped else ''}, mean reward {first['reward_mean']:.3f}; "
        f"{stage.run.policy(stage.iteration).path}"
    )
    stage.tell(facts, line)


def tidy(stage: StageRun) -> None:
    """Prune old policies and trainer states, and rebuild the run's metrics.

    This is also done if the stage had nothing to do, in case a process was killed after its commit.
    """
    run, keep = stage.run, stage.recipe.run
    reference = reference_of(run, stage.iteration + 1, stage.recipe)
    prune(
        run,
        newest=stage.iteration,
        keep_policies=keep.keep_policies,
        keep_trainer=keep.keep_trainer,
        in_use=[reference.name] if reference else [],
    )
    rebuild_metrics(run)


main = stage_command("train", train, afterwards=tidy)

if __name__ == "__main__":
    launch(main)
