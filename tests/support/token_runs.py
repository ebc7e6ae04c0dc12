"""Runs whose iteration 1 is trained, with steps so large that tokens are clipped."""

from __future__ import annotations

from pathlib import Path

from common.runs.layout import Run
from stages import logprobs, train
from support.tiny_runs import start_run, write_iteration

TEMPERATURE = 0.8
STEEP = [
    *("train.learning_rate=0.03", "train.epochs=2", "objective.kl_coef=0.1"),
    # The sampler's logprobs that tiny_runs writes are those of temperature 1.
    *(
        f"rollout.temperature={TEMPERATURE}",
        "logprobs.stop_gap_mean=9",
        "logprobs.warn_gap_mean=9",
    ),
    "logprobs.warn_gap_max=9",
]


def make_trained_run(
    name: str, policy: Path, recipe: Path, *overrides: str, rejected: tuple[int, ...] = ()
) -> Run:
    """Make the run `name`: six groups of four in three shards, real logprobs, one training."""
    run = Run.named(name)
    start_run(run, policy, recipe, [*STEEP, *overrides])
    write_iteration(run, 1, shards=3, rejected=rejected)
    logprobs.main(name, 1, overwrite=True, quiet=True)
    train.main(name, 1, quiet=True)
    return run
