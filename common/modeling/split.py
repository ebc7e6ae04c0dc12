"""Which layers each pipeline stage holds: a pure function of layer counts and costs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, pairwise

from common.errors import UserError


def split_layers(
    num_layers: int, pp_degree: int, *, embed_cost: float = 0.0, head_cost: float = 0.0
) -> list[range]:
    """Contiguous layers for each pipeline stage, every layer on exactly one, none empty.

    A pipeline is as fast as its slowest stage: the greatest cost of a stage is made as small as
    possible, then the sum of squared costs (the most even of the equally fast splits), then
    earlier stages take the greater part.

    Args:
        embed_cost: time of the embedding, on the first stage, in layers.
        head_cost: time of final norm, head and loss, on the last stage, in layers.

    Raises:
        UserError: more pipeline stages than layers.
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
    """Least combined cost over all splits, and the layer counts that have it, by dynamic program.

    Of equal splits the one whose first counts are greater.
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
