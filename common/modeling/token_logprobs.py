"""Logprob and entropy of given tokens from hidden states and a head, without the full logits.

With z the logits over temperature, ℓ = log softmax(z), p = exp ℓ and the token t:

    logprob = ℓ_t             ∂logprob/∂z_j = [j = t] − p_j
    entropy = −Σ_j p_j ℓ_j    ∂entropy/∂z_j = −p_j (ℓ_j + entropy)

Forward and backward process tokens in chunks and hold the logits of one chunk at a time. Under
plain autograd, chunking would save nothing, since every chunk's logits would be kept for backward.
Here backward computes them again from the hidden states, which costs one more product with the
head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from common.errors import UserError
from common.modeling.linear import linear


@dataclass(frozen=True)
class Head:
    """Head with logits = softcap(scale · (hidden · weightᵀ + bias)), as in the family's forward."""

    weight: Tensor
    """[V, H]"""
    bias: Tensor | None = None
    """[V]"""
    scale: float = 1.0
    softcap: float | None = None
    """If it is c, each logit x becomes c · tanh(x / c)."""

    @classmethod
    def from_config(cls, config: Any, weight: Tensor, bias: Tensor | None = None) -> Head:
        """Make the head of a decoder with this configuration.

        Raises:
            UserError: the configuration scales logits in a way that is not known here.
        """
        config = config.get_text_config()
        softcap = getattr(config, "final_logit_softcapping", None)
        return cls(weight, bias, scale=_scale(config), softcap=softcap)

    @classmethod
    def from_model(cls, model: Any) -> Head:
        """Make the head of a Hugging Face causal language model, sharing its parameters."""
        linear = model.get_output_embeddings()
        return cls.from_config(model.config, linear.weight, getattr(linear, "bias", None))

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute logits [N, V], float32 or wider, of hidden states [N, H], before temperature."""
        raw = linear(hidden, self.weight, self.bias)
        return self.transform(raw.to(torch.promote_types(raw.dtype, torch.float32)))

    def transform(self, raw: Tensor) -> Tensor:
        """Apply scale and softcap to raw logits."""
        if self.scale != 1:
            raw = raw * self.scale
        if self.softcap is not None:
            raw = torch.tanh(raw / self.softcap) * self.softcap
        return raw

    def transform_slope(self, logits: Tensor) -> Tensor | float:
        """Return the transform's derivative, given its result: tanh′(x) = 1 − tanh²(x)."""
        if self.softcap is None:
            return self.scale
        return (1 - (logits / self.softcap).square()) * self.scale


# Fields by which families scale logits, for models that `_scale` does not know by name.
_SCALES = ("logits_scaling", "logit_scale", "lm_head_multiplier", "output_multiplier")


def _scale(config: Any) -> float:
    """Return the factor on raw logits; one field divides in some families, multiplies in others."""
    family = config.model_type
    if family.startswith("granite") or family == "minicpm3":
        return 1 / config.logits_scaling
    if family == "hyperclovax":
        return config.logits_scaling
    if family.startswith("cohere"):
        return 1.0 if config.logit_scale is None else config.logit_scale
    if family == "falcon_h1":
        return config.lm_head_multiplier
    for name in _SCALES:
        if getattr(config, name, None) not in (None, 1):
            raise UserError(
                f"{family!r} scales its logits by {name} = {getattr(config, name)} in a way that "
                "is not known here; add the family to common/modeling/token_logprobs.py with a test"
            )
    return 1.0


CHUNK_BYTES = {"cpu": 48 << 20, "cuda": 512 << 20}
"""Size of a chunk's logits by device. On 2 cores and a vocabulary of 151,936, larger chunks were a
tenth faster but took more than a fifth of the full logits' memory. A GPU needs more rows to be
busy."""
PRODUCT_BYTES = {"cpu": 1 << 20, "cuda": 128 << 20}
"""Size of the part of a product that is computed before it is added to the head's gradient, by
device. It is small enough for a processor's cache; a GPU needs more rows to be busy."""


def token_logprobs(
    hidden: Tensor,
    target_ids: Tensor,
    head: Head,
    *,
    temperature: float,
    chunk_tokens: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute each target's logprob under softmax(logits / temperature), and the softmax's entropy.

    Args:
        hidden: [N, H] hidden states after the final norm, any float dtype. The matrix product is
            in this dtype, everything after it in float32 (float64 for float64).
        target_ids: [N] int64
        temperature: the one used in sampling.
        chunk_tokens: number of tokens whose logits exist at once; by default as many as fill
            `CHUNK_BYTES`. The peak is about one float32 buffer of chunk_tokens × V; two if the
            entropy has a gradient, and two more if the family has a softcap.

    Returns:
        logprobs [N] and entropy [N] in nats, float32 (float64 for float64), both with gradients
        to `hidden`, `head.weight` and `head.bias`. Second derivatives are refused.
    """
    assert hidden.ndim == 2 and target_ids.shape == hidden.shape[:1], (
        hidden.shape,
        target_ids.shape,
    )
    chunk = chunk_tokens or _chunk_tokens(len(head.weight), hidden.device)
    return _TokenLogprobs.apply(
        hidden, head.weight, head.bias, target_ids, head, temperature, chunk
    )


def _chunk_tokens(vocabulary: int, device: torch.device) -> int:
    return _rows_within(CHUNK_BYTES, device, vocabulary)


def _rows_within(sizes: dict[str, int], device: torch.device, width: int) -> int:
    """Return how many float32 rows of this width fill the device's size, at least one."""
    return max(1, sizes.get(device.type, sizes["cuda"]) // (4 * width))


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target_ids: Tensor,
        head: Head,
        temperature: float,
        chunk_tokens: int,
    ) -> tuple[Tensor, Tensor]:
        count = len(hidden)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logprobs = hidden.new_empty(count, dtype=wide)
        entropy = hidden.new_empty(count, dtype=wide)
        # Chunks of half the size: forward holds two buffers of a chunk, whereas backward holds one
        # unless the entropy has a gradient.
        for part in _chunks(count, max(1, chunk_tokens // 2)):
            below_max = _below_max(head.logits(hidden[part]), temperature)
            powers = below_max.exp()
            total = powers.sum(dim=-1)
            logprobs[part] = below_max.gather(1, target_ids[part, None]).squeeze(1) - total.log()
            # Neither term is negative, so nothing cancels.
            entropy[part] = total.log() - torch.linalg.vecdot(powers, below_max) / total
            del below_max, powers  # or they would still exist beside the next chunk's
        ctx.save_for_backward(hidden, weight, bias, target_ids, entropy)
        ctx.transform = {"scale": head.scale, "softcap": head.softcap}
        ctx.temperature, ctx.chunk_tokens = temperature, chunk_tokens
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None) -> Any:
        hidden, weight, bias, target_ids, entropy = ctx.saved_tensors
        head = Head(weight, bias, **ctx.transform)
        to_hidden, to_weight, to_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if to_hidden else None
        # Chunks are summed in float32: in bfloat16 a small chunk would vanish beside the sum.
        grad_weight = torch.zeros_like(weight, dtype=entropy.dtype) if to_weight else None
        grad_bias = torch.zeros_like(bias, dtype=entropy.dtype) if to_bias else None
        for part in _chunks(len(hidden), ctx.chunk_tokens):
            logits = head.logits(hidden[part])
            slope = head.transform_slope(logits)
            grad = _grad_scaled_logits(
                _below_max(logits, ctx.temperature),
                target_ids[part],
                entropy[part],
                None if grad_logprobs is None else grad_logprobs[part],
                None if grad_entropy is None else grad_entropy[part],
            )
            grad = grad.div_(ctx.temperature).mul_(slope)
            if grad_bias is not None:
                grad_bias += grad.sum(dim=0)
            grad = grad.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = linear(grad, weight.T)
            if grad_weight is not None:
                _add_product(grad_weight, grad.T, hidden[part])
            del logits, grad
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            *[None] * 4,
        )


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left · right to `total` by blocks of rows; a full temporary would double the memory."""
    size = _rows_within(PRODUCT_BYTES, total.device, total.shape[1])
    for rows in _chunks(len(total), size):
        total[rows] += linear(left[rows], right.T)


def _grad_scaled_logits(
    below_max: Tensor,
    target_ids: Tensor,
    entropy: Tensor,
    grad_logprobs: Tensor | None,
    grad_entropy: Tensor | None,
) -> Tensor:
    """Compute the gradient to logits / temperature, [C, V], by the formulas of the module.

    `below_max` is overwritten.
    """
    if grad_logprobs is None:
        grad_logprobs = torch.zeros_like(entropy)
    if grad_entropy is None:
        powers = below_max.exp_()
        grad = powers.mul_((-grad_logprobs / powers.sum(dim=-1))[:, None])
    else:
        powers = below_max.exp()
        total = powers.sum(dim=-1)
        factor = below_max.add_((entropy - total.log())[:, None]).mul_(grad_entropy[:, None])
        grad = factor.add_(grad_logprobs[:, None]).mul_(powers).div_(-total[:, None])
    return grad.scatter_add_(1, target_ids[:, None], grad_logprobs[:, None])


def _below_max(logits: Tensor, temperature: float) -> Tensor:
    """Compute logits / temperature minus the largest of each row, [C, V]; overwrites `logits`.

    The largest is subtracted before anything is summed, since a difference of logits and their
    logsumexp would have rounding errors at the scale of the logits.
    """
    if temperature != 1:
        logits.div_(temperature)
    return logits.sub_(logits.amax(dim=-1, keepdim=True))


def _chunks(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))
