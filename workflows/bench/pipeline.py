"""A step of 1F1B over two ranks against one process with as many threads as both have together.

Both sides keep their processes and wait for their turns. The step is forward and backward of the
mean logprob, with one microbatch per pack; the losses are compared too.

    python -m workflows.bench.pipeline SPEC.json    (started by `make bench`, also under torchrun)
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.config import MeshConfig
from common.console import say
from common.modeling.packing import Completion, pack
from common.parallel.mesh import Mesh
from common.parallel.pipeline import Pipeline
from workflows.bench.floor import Shape
from workflows.bench.measure import Bench, Measurement, rounds
from workflows.bench.packs import mean_logprob
from workflows.bench.process import Partner, connect
from workflows.bench.sampler import random_rows
from workflows.chain.launch import Command

TARGET = 0.9
RANKS = 2
MODULE = "workflows.bench.pipeline"


def measure(bench: Bench) -> list[Measurement]:
    """Return one measurement, or none where there are fewer GPUs than ranks."""
    if bench.device.type == "cuda" and torch.cuda.device_count() < RANKS:
        say(f"pipeline: not measured, {RANKS} ranks need {RANKS} GPUs")
        return []
    sizes = bench.sizes
    spec = bench.scratch / "pipeline.json"
    spec.write_text(
        json.dumps(
            {
                "model": str(bench.model),
                "dtype": str(bench.dtype).removeprefix("torch."),
                "groups": sizes.microbatches,
                "group_size": sizes.group_size,
                "prompt": sizes.prompt_tokens,
                "tokens": sizes.completion_tokens,
            }
        )
    )
    each = max(bench.threads // RANKS, 1)
    with (
        Partner(Command(MODULE, [str(spec)], RANKS), each, bench.device) as ranks,
        Partner(Command(MODULE, [str(spec)]), bench.threads, bench.device) as alone,
    ):
        taken = rounds({"ranks": ranks.seconds, "alone": alone.seconds}, bench.pairs)
        losses = [partner.work()["loss"] for partner in (ranks, alone)]
        shape = Shape.of(ranks_config(bench), bench.dtype)
        layers = ranks.ready["layers"]
    needed = shape.pack(
        sizes.microbatches, sizes.prompt_tokens, sizes.group_size, sizes.completion_tokens
    )
    return [
        Measurement(
            part="pipeline",
            name=f"1F1B, {RANKS} ranks with layers {layers}, {sizes.microbatches} microbatches",
            against=f"one process, {bench.threads} threads",
            unit="s",
            ours=taken["ranks"],
            baseline=taken["alone"],
            target=TARGET,
            phases=[shape.forward_backward(*needed)],
            note=f"losses {losses[0]:.6f} and {losses[1]:.6f}",
        )
    ]


def ranks_config(bench: Bench) -> Any:
    """Load the configuration of the measured model."""
    from common.modeling.load import load_config

    return load_config(bench.model)


def take_turns(spec: Mapping[str, Any]) -> None:
    """Load this rank's part of the model, then take a step whenever the first rank is told to."""
    with Mesh.from_environment(MeshConfig(timeout_seconds=3600)) as mesh:
        kind = getattr(torch, spec["dtype"])
        pipeline = Pipeline(Path(spec["model"]), mesh, dtype=kind, temperature=1.0, train=True)
        vocabulary = pipeline.part.config.get_text_config().vocab_size
        prompts = random_rows(spec["groups"], spec["prompt"], vocabulary)
        count = spec["groups"] * spec["group_size"]
        drawn = random_rows(count, spec["tokens"], vocabulary, seed=1)
        rows = [
            Completion(prompts[index // spec["group_size"]], ids, index // spec["group_size"])
            for index, ids in enumerate(drawn)
        ]
        ready = {"layers": " and ".join(str(len(part)) for part in pipeline.layers)}
        channel = connect(ready) if mesh.is_main else None
        while mesh.broadcast_from_rank0(lambda: channel is not None and channel.wait()):
            answer = step(pipeline, rows)
            if channel is not None:
                channel.tell(answer)


def step(pipeline: Pipeline, rows: list[Completion]) -> dict[str, float]:
    """Compute the gradients of all packs, one group each.

    Returns:
        The `seconds` until all ranks are done, and the `loss`.
    """
    mesh = pipeline.mesh
    pipeline.part.zero_grad()
    mesh.barrier()
    started = time.perf_counter()
    # As many tokens as a group has: each pack is one group.
    tokens = len(rows[0].prompt_ids) + sum(len(r.completion_ids) - 1 for r in rows if r.group == 0)
    packs = pack(rows, tokens_per_pack=tokens, min_packs=mesh.pp_degree)
    of_targets, total = mean_logprob(packs), torch.zeros((), dtype=torch.float64)

    def loss(outputs: Tensor, chosen: Tensor) -> Tensor:
        value = of_targets(outputs, chosen)
        total.add_(value.detach().double().cpu())
        return value

    pipeline.run_step(packs, "auto", loss)
    mesh.barrier()
    if mesh.device.type == "cuda":
        torch.cuda.synchronize(mesh.device)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "loss": sum(mesh.gather_objects(float(total)))}


if __name__ == "__main__":
    take_turns(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
