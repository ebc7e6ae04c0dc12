"""Prompts and seeds for the sampler, and a look at what its model computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from common.engines.engine import Request, Sample, SamplingParams
from common.seeds import sample_seed
from support.tiny_models import VOCABULARY

FAMILIES = ["qwen2", "qwen2_sliding", "qwen3", "llama", "mistral", "gemma2", "stablelm"]


STOPS = [1, 7, 11, 23]


def prompts_of(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def seeds_of(prompt: int, count: int) -> list[int]:
    return [sample_seed(0, 1, f"prompt-{prompt}", index) for index in range(count)]


def params_of(
    temperature: float = 1.0, *, top_p: float = 1.0, top_k: int = 0, tokens: int = 1
) -> SamplingParams:
    return SamplingParams(tokens, temperature, top_p, top_k)


def requests_of(prompts: list[list[int]], samples: int) -> list[Request]:
    return [Request(ids, seeds_of(n, samples)) for n, ids in enumerate(prompts)]


@torch.inference_mode()
def own_logits(model: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Return the logits [T, V] that predict a completion's tokens: a plain forward, no cache."""
    logits = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0]
    return logits[len(prompt) - 1 : -1]


def ids_of(groups: list[list[Sample]]) -> list[list[list[int]]]:
    return [[sample.completion_ids for sample in group] for group in groups]


@contextmanager
def batches_seen(model: Any) -> Iterator[list[tuple[int, int]]]:
    """Yield a list that collects the shape (rows, tokens per row) of every forward of the model."""
    shapes: list[tuple[int, int]] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        shapes.append(tuple(kwargs["input_ids"].shape))

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield shapes
    finally:
        handle.remove()
