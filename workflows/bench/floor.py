"""What work cannot do without, counted from a model's config, and how fast this machine can be.

Two things are counted: the multiply-adds of matrix products (those of weights, and the two of
attention over the positions that a token sees), and the bytes that must pass between memory and
processor at least once. Norms, rotary embedding, softmax and sampling are left out: a floor may be
too low, never too high. The machine's two speeds are the best of several tries in the same run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from common.modeling.linear import linear
from common.modeling.load import model_class

TRIES = 7


@dataclass(frozen=True)
class Phase:
    """Work whose operations and memory traffic can overlap, but not with those of other work."""

    multiply_adds: float
    bytes: float

    def __mul__(self, times: float) -> Phase:
        return Phase(self.multiply_adds * times, self.bytes * times)


@dataclass(frozen=True)
class Machine:
    """Best measured speeds in the type that the models compute in."""

    matmul_flops: float
    """Floating-point operations per second (a multiply-add is two) of a square matrix product, by
    the faster of torch's own product and ours."""
    torch_flops: float
    """The same by torch's own product."""
    copy_bytes: float
    """Bytes per second, both read and written, of a copy too large for caches."""


@dataclass(frozen=True)
class Shape:
    """The numbers of a decoder that its floor follows from."""

    layers: int
    layer_weights: int
    """Weights of one layer's matrices: each is a multiply-add per token and a read per forward."""
    head_weights: int
    """Weights of the output head, which is not computed where no logits are needed."""
    attention_width: int
    """Query heads × head size: multiply-adds per position seen, twice (scores and values)."""
    cache_width: int
    """Numbers that one position adds to the cache of one layer: keys and values."""
    item_bytes: int

    @classmethod
    def of(cls, config: Any, dtype: torch.dtype) -> Shape:
        """Return the shape of the decoder that a configuration describes, made without storage."""
        text = config.get_text_config()
        with torch.device("meta"):
            model: Any = model_class(config)(config)
        layers = model.base_model.layers
        matrices = sum(p.numel() for p in layers.parameters() if p.ndim == 2)
        heads = text.num_attention_heads
        size = getattr(text, "head_dim", None) or text.hidden_size // heads
        return cls(
            layers=len(layers),
            layer_weights=matrices // len(layers),
            head_weights=model.get_output_embeddings().weight.numel(),
            attention_width=heads * size,
            cache_width=2 * text.num_key_value_heads * size,
            item_bytes=dtype.itemsize,
        )

    def forward(self, tokens: int, seen: int, predicted: int) -> Phase:
        """Count one forward over `tokens` that together see `seen` positions.

        `predicted` of them get logits. The bytes are those of the weights: activations may stay in
        caches.
        """
        attention = 2 * self.attention_width * seen
        weights = self.layers * self.layer_weights
        return Phase(
            multiply_adds=tokens * weights
            + self.layers * attention
            + predicted * self.head_weights,
            bytes=(weights + self.head_weights) * self.item_bytes,
        )

    def forward_backward(self, tokens: int, seen: int, predicted: int) -> Phase:
        """Count forward and backward: each product needs two more for its gradients.

        Weights are read in both directions and their gradients written.
        """
        return self.forward(tokens, seen, predicted) * 3

    def decode(self, prompts: int, rows: int, prompt: int, steps: int) -> Phase:
        """Count `steps` steps of `rows` rows after `prompts` prompts of `prompt` tokens.

        Every step has logits. A prompt's keys and values are read once per step, however many rows
        share it.
        """
        own = rows * triangle(steps)
        forward = self.forward(rows * steps, rows * steps * prompt + own, rows * steps)
        read = own + prompts * prompt * steps
        cache = read * self.layers * self.cache_width * self.item_bytes
        return Phase(forward.multiply_adds, forward.bytes * steps + cache)

    def sample(self, prompts: int, prompt: int, rows: int, tokens: int) -> list[Phase]:
        """Count the sampling of `rows` rows of `tokens` tokens: prefill, then decoding.

        Each prompt is computed once. Decoding has one step fewer than tokens, since the prompt's
        last hidden state draws the first one.
        """
        prefill = self.forward(prompts * prompt, prompts * triangle(prompt), prompts)
        return [prefill, self.decode(prompts, rows, prompt, tokens - 1)]

    def pack(self, groups: int, prompt: int, size: int, tokens: int) -> tuple[int, int, int]:
        """Return tokens, positions seen and predictions of groups whose prompt is computed once."""
        own = tokens - 1  # the last token predicts nothing that was sampled
        seen = triangle(prompt) + size * (own * prompt + triangle(own))
        return groups * (prompt + size * own), groups * seen, groups * size * tokens


def triangle(count: int) -> int:
    """Return how many positions `count` tokens of a causal text see, themselves included."""
    return count * (count + 1) // 2


def floor_seconds(phases: Sequence[Phase], machine: Machine) -> float:
    """Return the least seconds: in each phase, the slower of its operations and its bytes."""
    return sum(
        max(2 * phase.multiply_adds / machine.matmul_flops, phase.bytes / machine.copy_bytes)
        for phase in phases
    )


def measure_machine(device: torch.device, dtype: torch.dtype, side: int) -> Machine:
    """Measure a product of `side` × `side` matrices, and a copy of 16 of them in float32."""
    left, right = (torch.ones((side, side), dtype=dtype, device=device) for _ in range(2))
    source = torch.ones(16 * side * side, device=device)
    target = torch.empty_like(source)
    torch_s, ours = (
        2 * side**3 / _best(partial(product, left, right), device)
        for product in (functional.linear, linear)
    )
    return Machine(
        matmul_flops=max(torch_s, ours),
        torch_flops=torch_s,
        copy_bytes=2 * source.nbytes / _best(lambda: target.copy_(source), device),
    )


def _best(work: Callable[[], object], device: torch.device) -> float:
    taken = []
    for _ in range(TRIES):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - started)
    return min(taken)
