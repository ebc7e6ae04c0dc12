"""Which layers each pipeline stage holds: a pure function of layer counts and costs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, pairwise

from common.errors import UserError


def split_layers(
    num_layers: int, pp_degree: int, *, embed_cost: float = 0.0, head_cost: float = 0.0
) -> list[range]:
    """Divide layers among pipeline stages: contiguous, each layer on one stage, no stage empty.

    A pipeline is as fast as its slowest stage, so the largest cost of a stage is minimised first.
    Among equally fast splits the most even one is chosen (the smallest sum of squared costs), and
    among those the one that gives more layers to earlier stages.

    Args:
        embed_cost: time of the embedding, on the first stage, relative to a layer's.
        head_cost: time of final norm, head and loss, on the last stage, relative to a layer's.

    Raises:
        UserError: there are more pipeline stages than layers.
    """
    if pp_degree > num_layers:
        raise UserError(
            f"mesh.pp_degree = {pp_degree}, but the model has {num_layers} layers and a pipeline "
            f"stage needs at least one; use at most {num_layers}"
        )

    def cost(stage: int, layers: int) -> float:
        return layers + (stage == 0) * embed_cost + (stage == pp_degree - 1) * head_cost

    most = _best(num_layers, pp_degree, lambda a, b: max(a, b), cost)[0]
    # Costs are sums of the same few numbers; the margin is for their rounding.
    bound = most * (1 + 1e-9)

    def squared(stage: int, layers: int) -> float:
        return cost(stage, layers) ** 2 if cost(stage, layers) <= bound else float("inf")

    counts = _best(num_layers, pp_degree, lambda a, b: a + b, squared)[1]
    return [range(start, stop) for start, stop in pairwise(accumulate((0, *counts)))]


def _best(
    num_layers: int,
    pp_degree: int,
    combine: Callable[[float, float], float],
    cost: Callable[[int, int], float],
) -> tuple[float, tuple[int, ...]]:
    """Find the least combined cost of a split, and its layer counts, by dynamic programming.

    Among equal splits, the one with the larger first counts wins.
    """
    # best[n]: the stages so far hold the first n layers.
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for stage in range(pp_degree):
        after = pp_degree - 1 - stage
        extended = {}
        for total in range(stage + 1, num_layers - after + 1):
            options = [
                (combine(value, cost(stage, total - before)), (*counts, total - before))
                for before, (value, counts) in best.items()
                if before < total
            ]
            extended[total] = min(options, key=lambda o: (o[0], tuple(-n for n in o[1])))
        best = extended
    return best[num_layers]
