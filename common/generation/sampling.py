"""Logits to tokens: temperature, top-k, top-p, and an exact draw by inverse distribution function.

A draw takes one uniform number per row, so a token depends on its own row alone. The distribution
function is built in two levels, sums of blocks and then one block, so that the vocabulary is read
three times (maximum, exponential, sum) and never sorted, normalised or filled with noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. `top_k` 0 and `top_p` 1 leave the distribution whole."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    @property
    def truncated(self) -> bool:
        return self.top_k > 0 or self.top_p < 1


@dataclass(frozen=True)
class Drawn:
    """One token a row. R rows."""

    tokens: Tensor
    """int64 [R]"""
    logprobs: Tensor
    """float32 [R], nats, under the distribution that the token was drawn from."""
    full_logprobs: Tensor
    """float32 [R], nats, under softmax(logits / temperature) of the whole vocabulary."""


def draw(logits: Tensor, uniforms: Tensor, greedy: Tensor | None, sampling: Sampling) -> Drawn:
    """Draw one token a row.

    Args:
        logits: [R, V], any float type; computed with in float32, or float64 if they are that.
        uniforms: float64 [R] in [0, 1).
        greedy: bool [R], rows that take the most likely token instead; the distribution drawn
            from has then one point, so its logprob is 0. None when no row does.
        sampling: temperature, top-k and top-p, applied in that order.
    """
    scaled = logits if logits.dtype == torch.float64 else logits.float()
    if sampling.temperature != 1:
        scaled = scaled / sampling.temperature
    peak = scaled.amax(dim=-1, keepdim=True)  # [R, 1]
    weights = (scaled - peak).exp_()  # [R, V], the heaviest is 1
    blocks = _blocks(weights)  # [R, B, S]
    sums = blocks.sum(-1).double()  # [R, B]
    total = full_total = sums.sum(-1)  # [R]
    if sampling.truncated:
        blocks = _blocks(weights.masked_fill(~kept(weights, sampling), 0))
        sums = blocks.sum(-1).double()
        total = sums.sum(-1)
    tokens = _invert(blocks, sums, uniforms)
    if greedy is not None:
        tokens = torch.where(greedy, scaled.argmax(-1), tokens)
    above = (scaled.gather(-1, tokens[:, None]) - peak).squeeze(-1).double()  # [R]
    logprobs = above - total.log()
    if greedy is not None:
        logprobs = logprobs.masked_fill(greedy, 0)
    return Drawn(tokens, logprobs.float(), (above - full_total.log()).float())


def kept(weights: Tensor, sampling: Sampling) -> Tensor:
    """Which tokens remain: the `top_k` heaviest, and of these the fewest with mass `top_p`.

    Tokens that tie with the last one kept are kept too.

    Args:
        weights: [R, V], proportional to probabilities.

    Returns:
        bool [R, V]
    """
    vocabulary = weights.shape[-1]
    heaviest = weights.topk(min(sampling.top_k or vocabulary, vocabulary), dim=-1).values  # [R, K]
    mass = heaviest.double().cumsum(-1)
    before = mass - heaviest  # of the heavier tokens, so the heaviest is always inside
    inside = before < sampling.top_p * mass[:, -1:]
    inside[:, 0] = True
    last = inside.sum(-1, keepdim=True) - 1
    return weights >= heaviest.gather(-1, last)


def _blocks(weights: Tensor) -> Tensor:
    """[R, V] as [R, B, S]: consecutive tokens, zeros behind the last if no size divides V."""
    vocabulary = weights.shape[-1]
    size = next((s for s in (256, 128, 64) if vocabulary % s == 0), 256)
    if missing := -vocabulary % size:
        weights = torch.nn.functional.pad(weights, (0, missing))
    return weights.view(len(weights), -1, size)


def _invert(blocks: Tensor, sums: Tensor, uniforms: Tensor) -> Tensor:
    """The token at which the distribution function of each row passes its uniform: int64 [R].

    A token of weight 0 is never returned, whatever the rounding: the function must exceed the
    target, which stays below its last value, and it does not rise at such a token.

    Args:
        blocks: [R, B, S] weights.
        sums: float64 [R, B], of each block.
    """
    ends = sums.cumsum(-1)  # [R, B]
    target = _below(uniforms * ends[:, -1], ends[:, -1])[:, None]  # [R, 1]
    block = (ends <= target).sum(-1, keepdim=True)  # [R, 1]
    inside = sums.gather(-1, block)
    share = ((target - ends.gather(-1, block) + inside) / inside).clamp(0, 1)
    rows = torch.arange(len(blocks), device=blocks.device)
    ends = blocks[rows, block.squeeze(-1)].double().cumsum(-1)  # [R, S]
    target = _below(share.squeeze(-1) * ends[:, -1], ends[:, -1])[:, None]
    return block.squeeze(-1) * blocks.shape[-1] + (ends <= target).sum(-1)


def _below(values: Tensor, bounds: Tensor) -> Tensor:
    """`values`, or the largest float below `bounds` where they have reached it."""
    return torch.minimum(values, torch.nextafter(bounds, torch.zeros_like(bounds)))
