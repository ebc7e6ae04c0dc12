"""Which model is the reference of an iteration: a function of its number and of what is on disk."""

from __future__ import annotations

from common.config import Recipe
from common.runs.layout import Output, Run
from common.runs.manifest import has_manifest, read_manifest


def reference_of(run: Run, iteration: int, recipe: Recipe) -> Output | None:
    """What iteration N's KL pulls towards; None when `objective.kl_coef` is 0.

    `fixed`: policy 0. `refresh`: policy floor((N - 1) / K) * K. `ema`: the average that training
    N - 1 wrote beside its policy; policy 0 where it wrote none, so at the beginning.
    """
    if not recipe.objective.kl_coef:
        return None
    if recipe.reference.update == "refresh":
        every = recipe.reference.refresh_every
        return run.policy((iteration - 1) // every * every)
    if recipe.reference.update == "ema" and iteration > 1:
        train, average = run.train(iteration - 1), run.reference(iteration - 1)
        # One left over from a training that has been made again without it is not listed there.
        if has_manifest(train) and average.name in read_manifest(train).facts:
            return average
    return run.policy(0)


def keeps_average(recipe: Recipe) -> bool:
    """Whether `train` writes a moving average of the policies."""
    return recipe.objective.kl_coef != 0 and recipe.reference.update == "ema"
