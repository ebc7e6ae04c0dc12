"""Packs against padded rows with full logits: what `logprobs` and `train` compute.

Both get the same prompts and completions. A padded row is a prompt and a completion; the model's
own forward gives the logits of all its positions, and log-softmax is taken of those that predict
the completion. A second baseline makes logits of the completion only, as TRL does. Padded rows go
through the model as transformers alone loads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from common.modeling.packing import Completion, PackBatch, gather_to_rows, pack
from common.parallel.mesh import Mesh
from common.parallel.pipeline import Pipeline
from workflows.bench.floor import Shape
from workflows.bench.measure import Bench, Measurement, rounds
from workflows.bench.plain import plain_model
from workflows.bench.sampler import random_rows

TARGET = 2.0
TOKENS_PER_PACK = 1024


def measure(bench: Bench) -> Iterator[Measurement]:
    """Measure logprobs, then forward and backward, of one group."""
    sizes = bench.sizes
    pipeline = Pipeline(
        bench.model,
        Mesh(device=bench.device),
        dtype=bench.dtype,
        temperature=1.0,
        train=True,
    )
    rows = random_group(pipeline, sizes.prompt_tokens, sizes.group_size, sizes.completion_tokens)
    shape = Shape.of(pipeline.part.config, bench.dtype)
    needed = shape.pack(1, sizes.prompt_tokens, sizes.group_size, sizes.completion_tokens)
    plain = plain_model(bench.model, bench.dtype, bench.device)
    gap = largest_gap(pipeline, plain, rows)
    for name, work, phase in (
        ("logprobs", _forward(pipeline, plain, rows), shape.forward(*needed)),
        ("forward and backward", _step(pipeline, plain, rows), shape.forward_backward(*needed)),
    ):
        taken = rounds({other: bench.clock(does) for other, does in work.items()}, bench.pairs)
        yield from [
            Measurement(
                part="packs",
                name=f"{name}: prompt {sizes.prompt_tokens}, "
                f"{sizes.group_size} x {sizes.completion_tokens} tokens",
                against=other,
                unit="s",
                ours=taken["packs"],
                baseline=taken[other],
                target=TARGET if other == "padded, full logits" else None,
                phases=[phase],
                note=f"logprobs differ by {gap:.1g} at most",
            )
            for other in taken
            if other != "packs"
        ]


def random_group(pipeline: Pipeline, prompt: int, size: int, tokens: int) -> list[Completion]:
    """Return random completions of one random prompt."""
    vocabulary = pipeline.part.config.get_text_config().vocab_size
    (prompt_ids,) = random_rows(1, prompt, vocabulary)
    return [Completion(prompt_ids, ids, 0) for ids in random_rows(size, tokens, vocabulary, seed=1)]


def packed_logprobs(pipeline: Pipeline, rows: list[Completion]) -> Tensor:
    """Return the logprobs of completions through packs: [rows, tokens], float32."""
    packs = pack(rows, tokens_per_pack=TOKENS_PER_PACK)
    outputs = pipeline.run_forward(packs)
    assert outputs is not None
    return torch.stack(
        gather_to_rows(outputs[..., 0], packs, [len(r.completion_ids) for r in rows])
    )


def padded_logprobs(model: Any, rows: list[Completion], *, all_logits: bool = True) -> Tensor:
    """Return the logprobs of equally long completions, one row each: [rows, tokens], float32.

    Args:
        all_logits: make logits of every position; else of those that predict a completion's token.
    """
    tokens = len(rows[0].completion_ids)
    ids = torch.tensor([[*row.prompt_ids, *row.completion_ids] for row in rows])
    ids = ids.to(model.device)
    kept = 0 if all_logits else tokens + 1
    mask = torch.ones_like(ids)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=kept).logits[
        :, -tokens - 1 : -1
    ]
    return logits.float().log_softmax(-1).gather(-1, ids[:, -tokens:, None]).squeeze(-1)


def packed_step(pipeline: Pipeline, rows: list[Completion]) -> None:
    """Compute the gradients of the mean logprob through packs."""
    packs = pack(rows, tokens_per_pack=TOKENS_PER_PACK)
    pipeline.part.zero_grad()
    pipeline.run_step(packs, "auto", mean_logprob(packs))


def padded_step(model: Any, rows: list[Completion], *, all_logits: bool = True) -> None:
    """Compute the same gradients through padded rows."""
    model.zero_grad()
    (-padded_logprobs(model, rows, all_logits=all_logits).mean()).backward()


def mean_logprob(packs: PackBatch) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a loss for `Pipeline.run_step`: minus the mean logprob of all targets."""
    count = packs.num_targets

    def loss(outputs: Tensor, chosen: Tensor) -> Tensor:
        mask = packs.target_mask[chosen.cpu()].to(outputs.device)
        return -(outputs[..., 0] * mask).sum() / count

    return loss


def largest_gap(pipeline: Pipeline, plain: Any, rows: list[Completion]) -> float:
    """Return the largest difference between the two sides' logprobs, in nats."""
    with torch.no_grad():
        padded = padded_logprobs(plain, rows)
    return float((packed_logprobs(pipeline, rows) - padded).abs().max())


def _forward(
    pipeline: Pipeline, plain: Any, rows: list[Completion]
) -> dict[str, Callable[[], object]]:
    padded = torch.no_grad()(padded_logprobs)
    return {
        "packs": lambda: packed_logprobs(pipeline, rows),
        "padded, full logits": lambda: padded(plain, rows),
        "padded, completion logits": lambda: padded(plain, rows, all_logits=False),
    }


def _step(
    pipeline: Pipeline, plain: Any, rows: list[Completion]
) -> dict[str, Callable[[], object]]:
    return {
        "packs": lambda: packed_step(pipeline, rows),
        "padded, full logits": lambda: padded_step(plain, rows),
        "padded, completion logits": lambda: padded_step(plain, rows, all_logits=False),
    }
