"""Sampling of tokens from logits by the inverse distribution function, and buffers of samples.

The sample is exact. It takes one uniform number per row, so a token depends on its own row alone.
The distribution function is built in two levels, first over sums of blocks and then inside one
block. The vocabulary is thus read by one softmax and one sum, and never sorted or filled with
noise, unless top-k or top-p selects tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.engines.engine import Sample, SamplingParams
from common.errors import NonFiniteError
from common.seeds import uniforms


@dataclass(frozen=True)
class SampledTokens:
    """One token for each of R rows."""

    tokens: Tensor
    """int64 [R]"""
    logprobs: Tensor
    """float32 [R], nats, under the distribution that the token was sampled from."""


def sample_tokens(
    logits: Tensor, uniforms: Tensor, greedy: Tensor | None, params: SamplingParams
) -> SampledTokens:
    """Sample one token per row.

    Args:
        logits: [R, V], any float type; computations are in float32, or in float64 for float64.
        uniforms: float64 [R] in [0, 1).
        greedy: bool [R], rows that take the most likely token instead; the distribution sampled
            from then has a single point, so the logprob is 0. None if no row is greedy.
    """
    scaled = logits if logits.dtype == torch.float64 else logits.float()
    if params.temperature != 1:
        scaled = scaled / params.temperature
    # The weights need not sum to exactly 1: everything below divides by their actual sum.
    weights = scaled.softmax(dim=-1)  # [R, V]
    if params.truncated:
        weights = weights.masked_fill(~kept(weights, params), 0)
    sums = _block_sums(weights)  # [R, B]
    tokens = _invert(weights, sums, uniforms)
    if greedy is not None:
        tokens = torch.where(greedy, scaled.argmax(-1), tokens)
    chosen = weights.gather(-1, tokens[:, None]).squeeze(-1).double().log()  # [R]
    logprobs = chosen - sums.sum(-1).log()
    if greedy is not None:
        # A difference instead of 0, so that values which are not finite are still noticed later.
        logprobs = torch.where(greedy, logprobs - logprobs, logprobs)
    return SampledTokens(tokens, logprobs.float())


def kept(weights: Tensor, params: SamplingParams) -> Tensor:
    """Return which tokens to keep: of the `top_k` heaviest, the fewest with mass `top_p`.

    Tokens that tie with the last one kept are kept too.

    Args:
        weights: [R, V], proportional to probabilities.

    Returns:
        bool [R, V]
    """
    vocabulary = weights.shape[-1]
    heaviest = weights.topk(min(params.top_k or vocabulary, vocabulary), dim=-1).values  # [R, K]
    mass = heaviest.double().cumsum(-1)
    before = mass - heaviest  # of the heavier tokens, so the heaviest is always inside
    inside = before < params.top_p * mass[:, -1:]
    inside[:, 0] = True
    last = inside.sum(-1, keepdim=True) - 1
    return weights >= heaviest.gather(-1, last)


def _block_size(vocabulary: int) -> int:
    """Return a size near the root of `vocabulary`: about as many blocks as tokens in a block."""
    return 256 if vocabulary > 1 << 14 else 64


def _block_sums(weights: Tensor) -> Tensor:
    """Return sums of [R, V] over blocks of tokens, the last maybe shorter, as float64 [R, B]."""
    vocabulary = weights.shape[-1]
    size = _block_size(vocabulary)
    blocks = vocabulary // size
    sums = weights[:, : blocks * size].unflatten(-1, (blocks, size)).sum(-1)
    if vocabulary % size:
        rest = weights[:, blocks * size :].sum(-1, keepdim=True)
        sums = torch.cat([sums, rest], dim=-1)
    return sums.double()


def _invert(weights: Tensor, sums: Tensor, uniforms: Tensor) -> Tensor:
    """Return the token at which each row's distribution function passes its uniform, int64 [R].

    Whatever the rounding, a token of weight 0 is never returned. The function must exceed the
    target, which is below its last value, and it does not rise at such a token.

    Args:
        weights: [R, V]
        sums: float64 [R, B], the sum of each block.
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
    """Return `values`, or the next float below `bounds` where they reach it."""
    return torch.minimum(values, torch.nextafter(bounds, torch.zeros_like(bounds)))


class SampleBuffers:
    """Tokens and logprobs of N samples of at most M tokens each, on the device.

    An extra row N receives what rows of the batch write after their samples have ended.
    """

    def __init__(
        self,
        seeds: Sequence[int | None],
        stop_ids: Sequence[int],
        params: SamplingParams,
        *,
        vocabulary: int,
        device: torch.device,
    ) -> None:
        self.count = len(seeds)
        self.nobody = self.count
        """Sample index of rows of the batch whose samples have ended."""
        self._params = params
        shape = (self.count + 1, params.max_completion_tokens)
        numbers = np.zeros(shape)
        for index, seed in enumerate(seeds):
            if seed is not None:
                numbers[index] = uniforms(seed, params.max_completion_tokens)
        self._uniforms = torch.from_numpy(numbers).to(device)  # float64 [N + 1, M]
        greedy = [seed is None for seed in seeds]
        self._greedy = torch.tensor([*greedy, False], device=device) if any(greedy) else None
        self._is_stop = torch.zeros(vocabulary, dtype=torch.bool, device=device)
        self._is_stop[[token for token in stop_ids if token < vocabulary]] = True
        self._ids = torch.zeros(shape, dtype=torch.int32, device=device)
        self._logprobs = torch.zeros(shape, device=device)
        self._lengths = torch.zeros(self.count + 1, dtype=torch.int64, device=device)
        self._stopped = torch.zeros(self.count + 1, dtype=torch.bool, device=device)

    def sample(self, logits: Tensor, samples: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Sample the next token of some samples and store it.

        Args:
            logits: [R, V].
            samples: int64 [R], the sample of each row.
            counts: int64 [R], number of tokens that the sample already has.

        Returns:
            The tokens, int64 [R], and whether their samples have ended, bool [R].
        """
        greedy = None if self._greedy is None else self._greedy[samples]
        sampled = sample_tokens(logits, self._uniforms[samples, counts], greedy, self._params)
        self._ids[samples, counts] = sampled.tokens.int()
        self._logprobs[samples, counts] = sampled.logprobs
        self._lengths[samples] = counts + 1
        stopped = self._is_stop[sampled.tokens]
        self._stopped[samples] = stopped
        full = counts + 1 == self._params.max_completion_tokens
        return sampled.tokens, stopped | full | (samples == self.nobody)

    def samples(self, policy: str) -> list[Sample]:
        """Return all samples; each of them must have ended.

        Args:
            policy: name of the policy that was sampled, for the message.

        Raises:
            NonFiniteError: a logprob is not finite.
        """
        lengths, stopped = self._lengths.tolist(), self._stopped.tolist()
        ids, logprobs = self._ids.cpu().numpy(), self._logprobs.cpu().numpy()
        if not np.isfinite(logprobs[:-1]).all():
            raise NonFiniteError(
                f"{policy}: the logits are not finite: its weights are damaged or overflow the "
                'type it samples in; set model.dtype = "float32", or train it again with a lower '
                "train.learning_rate"
            )
        return [
            Sample(
                completion_ids=ids[index, :length].tolist(),
                sampler_logprobs=logprobs[index, :length].tolist(),
                finish_reason="stop" if stopped[index] else "length",
            )
            for index, length in enumerate(lengths[:-1])
        ]
