"""Logits to tokens: temperature, top-k, top-p, and an exact draw by inverse distribution function.

A draw takes one uniform number per row, so a token depends on its own row alone. The distribution
function is built in two levels, sums of blocks and then one block, so that the vocabulary is read
by one softmax and one sum, and never sorted or filled with noise.
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
    # Its own rounding of their sum cancels, since all is divided by sums taken here.
    probabilities = scaled.softmax(dim=-1)  # [R, V]
    weights, sums = probabilities, _block_sums(probabilities)  # [R, B]
    total = full_total = sums.sum(-1)  # [R]
    if sampling.truncated:
        weights = probabilities.masked_fill(~kept(probabilities, sampling), 0)
        sums = _block_sums(weights)
        total = sums.sum(-1)
    tokens = _invert(weights, sums, uniforms)
    if greedy is not None:
        tokens = torch.where(greedy, scaled.argmax(-1), tokens)
    chosen = probabilities.gather(-1, tokens[:, None]).squeeze(-1).double().log()  # [R]
    logprobs = chosen - total.log()
    if greedy is not None:
        logprobs = logprobs.masked_fill(greedy, 0)
    return Drawn(tokens, logprobs.float(), (chosen - full_total.log()).float())


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


def _block_size(vocabulary: int) -> int:
    """Near the root of it, as there are then about as many blocks as tokens in one."""
    return 256 if vocabulary > 1 << 14 else 64


def _block_sums(weights: Tensor) -> Tensor:
    """[R, V] to float64 [R, B]: sums of consecutive tokens, the last block possibly shorter."""
    vocabulary = weights.shape[-1]
    size = _block_size(vocabulary)
    blocks = vocabulary // size
    sums = weights[:, : blocks * size].unflatten(-1, (blocks, size)).sum(-1)
    if vocabulary % size:
        rest = weights[:, blocks * size :].sum(-1, keepdim=True)
        sums = torch.cat([sums, rest], dim=-1)
    return sums.double()


def _invert(weights: Tensor, sums: Tensor, uniforms: Tensor) -> Tensor:
    """The token at which the distribution function of each row passes its uniform: int64 [R].

    A token of weight 0 is never returned, whatever the rounding: the function must exceed the
    target, which stays below its last value, and it does not rise at such a token.

    Args:
        weights: [R, V]
        sums: float64 [R, B], of each block.
    """
    vocabulary = weights.shape[-1]
    ends = sums.cumsum(-1)  # [R, B]
    target = _below(uniforms * ends[:, -1], ends[:, -1])[:, None]  # [R, 1]
    block = (ends <= target).sum(-1, keepdim=True)  # [R, 1]
    inside = sums.gather(-1, block)
    share = ((target - ends.gather(-1, block) + inside) / inside).clamp(0, 1)
    size = _block_size(vocabulary)
    index = block * size + torch.arange(size, device=weights.device)  # [R, S]
    within = weights.gather(-1, index.clamp(max=vocabulary - 1)).double()
    ends = within.masked_fill_(index >= vocabulary, 0).cumsum(-1)  # [R, S]
    target = _below(share.squeeze(-1) * ends[:, -1], ends[:, -1])[:, None]
    return block.squeeze(-1) * size + (ends <= target).sum(-1)


def _below(values: Tensor, bounds: Tensor) -> Tensor:
    """`values`, or the largest float below `bounds` where they have reached it."""
    return torch.minimum(values, torch.nextafter(bounds, torch.zeros_like(bounds)))
