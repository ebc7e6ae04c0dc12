"""What is drawn in one call of the sampler: tokens and logprobs of every sample, on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from common.errors import NonFiniteError
from common.generation.sampling import Sampling, draw
from common.generation.seeds import uniforms


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion."""

    completion_ids: list[int]
    """The stop token included."""
    sampler_logprobs: list[float]
    """float32, nats, of the distribution drawn from; 0 throughout when greedy."""
    sampler_full_logprobs: list[float]
    """float32, nats, at the same temperature over the whole vocabulary."""
    finish_reason: Literal["stop", "length"]


class Drawing:
    """Buffers of N samples of at most M tokens. Row N takes what rows write that have ended."""

    def __init__(
        self,
        seeds: Sequence[int | None],
        stop_ids: Sequence[int],
        max_tokens: int,
        sampling: Sampling,
        *,
        vocabulary: int,
        device: torch.device,
    ) -> None:
        self.count = len(seeds)
        self.nobody = self.count
        """The sample index of a row that has ended."""
        self._max_tokens = max_tokens
        self._sampling = sampling
        shape = (self.count + 1, max_tokens)
        numbers = np.zeros(shape)
        for index, seed in enumerate(seeds):
            if seed is not None:
                numbers[index] = uniforms(seed, max_tokens)
        self._uniforms = torch.from_numpy(numbers).to(device)  # float64 [N + 1, M]
        greedy = [seed is None for seed in seeds]
        self._greedy = torch.tensor([*greedy, False], device=device) if any(greedy) else None
        self._is_stop = torch.zeros(vocabulary, dtype=torch.bool, device=device)
        self._is_stop[[token for token in stop_ids if token < vocabulary]] = True
        self._ids = torch.zeros(shape, dtype=torch.int32, device=device)
        self._logprobs = torch.zeros(shape, device=device)
        self._full_logprobs = torch.zeros(shape, device=device)
        self._lengths = torch.zeros(self.count + 1, dtype=torch.int64, device=device)
        self._stopped = torch.zeros(self.count + 1, dtype=torch.bool, device=device)

    def draw(self, logits: Tensor, samples: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Draw and note the next token of some samples.

        Args:
            logits: [R, V].
            samples: int64 [R], which sample each row belongs to.
            counts: int64 [R], tokens that it has already.

        Returns:
            The tokens, int64 [R], and whether their samples have ended, bool [R].
        """
        greedy = None if self._greedy is None else self._greedy[samples]
        drawn = draw(logits, self._uniforms[samples, counts], greedy, self._sampling)
        self._ids[samples, counts] = drawn.tokens.int()
        self._logprobs[samples, counts] = drawn.logprobs
        self._full_logprobs[samples, counts] = drawn.full_logprobs
        self._lengths[samples] = counts + 1
        stopped = self._is_stop[drawn.tokens]
        self._stopped[samples] = stopped
        full = counts + 1 == self._max_tokens
        return drawn.tokens, stopped | full | (samples == self.nobody)

    def samples(self, policy: str) -> list[Sample]:
        """All samples, once every one of them has ended.

        Args:
            policy: whose logits were drawn from, for the message.

        Raises:
            NonFiniteError: a logprob is not finite.
        """
        lengths, stopped = self._lengths.tolist(), self._stopped.tolist()
        ids, logprobs, full = (
            buffer.cpu().numpy() for buffer in (self._ids, self._logprobs, self._full_logprobs)
        )
        if not (np.isfinite(logprobs[:-1]).all() and np.isfinite(full[:-1]).all()):
            raise NonFiniteError(
                f"{policy}: the logits are not finite: its weights are damaged or overflow the "
                'type it samples in; set model.dtype = "float32", or train it again with a lower '
                "train.learning_rate"
            )
        return [
            Sample(
                completion_ids=ids[index, :length].tolist(),
                sampler_logprobs=logprobs[index, :length].tolist(),
                sampler_full_logprobs=full[index, :length].tolist(),
                finish_reason="stop" if stopped[index] else "length",
            )
            for index, length in enumerate(lengths[:-1])
        ]
