"""How time grows: seconds fitted as a + b·n over samples, length and model size.

`a` is what a call costs whatever it does, `b` what one more sample, token or layer costs. The cost
of length has a quadratic part too (attention); it is small at these sizes, as the fit's R² says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.modeling.linear import use_fast_products
from common.modeling.load import load_causal_lm, load_config, model_class
from common.parallel.mesh import Mesh
from common.parallel.pipeline import Pipeline
from workflows.bench.measure import Bench, rounds
from workflows.bench.packs import packed_step, random_group
from workflows.bench.sampler import random_prompts, sample


@dataclass(frozen=True)
class Law:
    """seconds = a + b · n."""

    work: str
    over: str
    """What n counts."""
    a: float
    """Seconds."""
    b: float
    """Seconds for each unit of n."""
    r_squared: float
    """1 where the law explains all differences between the points."""
    points: list[tuple[float, float]]
    """(n, median seconds)."""


def fit(work: str, over: str, seconds: Mapping[float, Sequence[float]]) -> Law:
    """Fit a law to the medians by least squares.

    Args:
        seconds: by n, the seconds of every round.
    """
    counts = np.array(list(seconds), dtype=np.float64)
    medians = np.array([np.median(taken) for taken in seconds.values()])
    b, a = np.polyfit(counts, medians, 1)
    spread = float(((medians - medians.mean()) ** 2).sum())
    left = float(((medians - a - b * counts) ** 2).sum())
    points = list(zip(counts.tolist(), medians.tolist(), strict=True))
    return Law(work, over, float(a), float(b), 1 - left / spread if spread else 1.0, points)


def measure(bench: Bench) -> list[Law]:
    """Fit sampling over samples, tokens and layers, and forward and backward over the first two."""
    return [*_sampling(bench), *_training(bench), *_model_size(bench)]


def _sampling(bench: Bench) -> list[Law]:
    sizes = bench.sizes
    model = load_causal_lm(bench.model, bench.dtype, bench.device)
    prompts = random_prompts(model, 1, sizes.prompt_tokens)

    def over(name: str, counts: Sequence[int], work: Callable[[int], object]) -> Law:
        return _over(bench, "sampling", name, counts, work)

    shortest = sizes.scale_tokens[0]
    return [
        over("samples", sizes.scale_rows, lambda n: sample(model, prompts, n, shortest)),
        over("tokens", sizes.scale_tokens, lambda n: sample(model, prompts, 8, n)),
    ]


def _training(bench: Bench) -> list[Law]:
    sizes = bench.sizes
    mesh = Mesh(device=bench.device)
    pipeline = Pipeline(bench.model, mesh, dtype=bench.dtype, temperature=1.0, train=True)

    def over(name: str, counts: Sequence[int], size: Callable[[int], tuple[int, int]]) -> Law:
        rows = {n: random_group(pipeline, sizes.prompt_tokens, *size(n)) for n in counts}
        work = "forward and backward"
        return _over(bench, work, name, counts, lambda n: packed_step(pipeline, rows[n]))

    few, short = sizes.scale_rows[0], sizes.scale_tokens[0]
    return [
        over("samples", sizes.scale_rows, lambda n: (n, short)),
        over("tokens", sizes.scale_tokens, lambda n: (few, n)),
    ]


def _model_size(bench: Bench) -> list[Law]:
    """Fit sampling with random models that are the measured one but for the number of layers."""
    sizes = bench.sizes
    models = {n: _with_layers(bench, n) for n in sizes.scale_layers}
    prompts = random_prompts(next(iter(models.values())), 1, sizes.prompt_tokens)
    shortest = sizes.scale_tokens[0]
    return [
        _over(
            bench,
            "sampling",
            "layers",
            sizes.scale_layers,
            lambda n: sample(models[n], prompts, 8, shortest),
        )
    ]


def _over(
    bench: Bench, work: str, name: str, counts: Sequence[int], does: Callable[[int], object]
) -> Law:
    contenders = {str(n): bench.clock(lambda n=n: does(n)) for n in counts}  # type: ignore[misc]
    taken = rounds(contenders, bench.pairs)
    return fit(work, name, {float(n): taken[str(n)] for n in counts})


def _with_layers(bench: Bench, layers: int) -> Any:
    config = load_config(Path(bench.model))
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1] * layers
    torch.manual_seed(0)
    model: Any = model_class(config)(config)
    model.set_attn_implementation("sdpa")
    return use_fast_products(model.to(bench.device, bench.dtype).eval())
