"""Prompts in the cache: each once, for as long as a row continues it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from torch import Tensor

from common.generation.cache import SLOTS, KeysValues, PromptCache


@dataclass
class Prefill:
    """Prompts that have been computed, and their samples (K) that wait for a row."""

    cache: PromptCache
    first: int
    """Number of its first prompt among those of the call."""
    samples: Tensor
    """int64 [K]"""
    prompts: np.ndarray
    """int64 [K], which prompt of `cache` a sample continues; ascending."""
    lengths: np.ndarray
    """int64 [K], tokens of that prompt."""
    tokens: Tensor
    """int64 [K], the first token of each sample, already drawn."""
    admitted: int = 0

    @property
    def waiting(self) -> int:
        return len(self.samples) - self.admitted


class HeldPrompts:
    """Which prompt stands in which entry of the cache. The host alone decides."""

    def __init__(self, cache: KeysValues) -> None:
        self._cache = cache
        self._numbers: list[int] = []
        self._lengths: list[int] = []

    def hold(self, prefill: Prefill, taken: slice, in_use: np.ndarray) -> np.ndarray:
        """See that the prompts of samples `taken` [k] of a prefill are held.

        Args:
            in_use: entries that rows continue; any others may be overwritten.

        Returns:
            int64 [k], the entry of each sample's prompt.
        """
        prompts = prefill.prompts[taken]
        lengths = dict(zip(prompts.tolist(), prefill.lengths[taken].tolist(), strict=True))
        entries = {number: entry for entry, number in enumerate(self._numbers)}
        new = [prompt for prompt in lengths if prefill.first + prompt not in entries]
        wanted = {prefill.first + prompt for prompt in lengths}
        used = {*in_use.tolist(), *(entries[n] for n in wanted if n in entries)}
        free = (entry for entry in count() if entry not in used)
        for prompt, entry in zip(new, free, strict=False):
            self._put(entry, prefill.first + prompt, lengths[prompt])
            entries[prefill.first + prompt] = entry
        if new:
            self._forget(used | {entries[prefill.first + prompt] for prompt in new})
            self._cache.begin_like(prefill.cache)
            self._fit()
            targets = [entries[prefill.first + prompt] for prompt in new]
            self._cache.put(prefill.cache, torch.tensor(new), torch.tensor(targets))
        return np.array([entries[prefill.first + prompt] for prompt in prompts.tolist()])

    def compact(self, in_use: np.ndarray) -> np.ndarray:
        """Move the last prompts into the gaps, so that those that rows continue are the first.

        Args:
            in_use: int64 [n], entries that rows continue.

        Returns:
            int64 [n], where these prompts are now.
        """
        busy = np.zeros(len(self._numbers), dtype=bool)
        busy[in_use] = True
        if busy.all() or not len(in_use):
            return in_use
        sources, targets = moves(busy)
        self._cache.move(torch.from_numpy(sources), torch.from_numpy(targets))
        now = np.arange(len(busy))
        now[sources] = targets
        for source, target in zip(sources.tolist(), targets.tolist(), strict=True):
            self._put(target, self._numbers[source], self._lengths[source])
        del self._numbers[busy.sum() :], self._lengths[busy.sum() :]
        self._fit()
        return now[in_use]

    def _put(self, entry: int, number: int, length: int) -> None:
        if entry == len(self._numbers):
            self._numbers.append(number)
            self._lengths.append(length)
        self._numbers[entry], self._lengths[entry] = number, length

    def _forget(self, used: set[int]) -> None:
        """What is not used may lose its end when the cache is fitted."""
        for entry in set(range(len(self._numbers))) - used:
            self._numbers[entry], self._lengths[entry] = -1, 0

    def _fit(self) -> None:
        self._cache.fit(len(self._numbers), -(-max(self._lengths) // SLOTS) * SLOTS)


def moves(busy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the last busy places move so that the busy ones are the first: sources, targets."""
    first = int(busy.sum())
    return first + np.flatnonzero(busy[first:]), np.flatnonzero(~busy[:first])
