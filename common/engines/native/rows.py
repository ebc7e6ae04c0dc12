"""The rows of a batch that is being decoded: their samples, and the prompts that they share."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from torch import Tensor

from common.engines.native.attention import Grid
from common.engines.native.cache import SLOTS, KeysValues, PromptCache, RowCache


@dataclass(frozen=True)
class DecodeStep:
    """Inputs of the next forward for n rows, int64 [n] each."""

    tokens: Tensor
    counts: Tensor
    """Number of tokens of the completion so far, including the one that is fed in."""
    prompt_lengths: Tensor


class Rows:
    """At most R rows; after `compact` the rows in use are the first `active` ones.

    Tensors are on the device. The host knows which rows are busy, which prompt each continues and
    an upper bound of its number of tokens, so that no step has to wait for the device.
    """

    def __init__(self, size: int, nobody: int, device: torch.device) -> None:
        """Create empty rows.

        Args:
            size: R.
            nobody: sample index that marks a row as ended.
        """
        self.cache = RowCache()
        self._prompts = HeldPrompts(self.cache.prompts)
        self._nobody = nobody
        self._state = torch.zeros((4, size), dtype=torch.int64, device=device)
        self._tokens, self._counts, self._samples, self._prompt_lengths = self._state.unbind()
        self._busy = np.zeros(size, dtype=bool)
        self._entries = np.zeros(size, dtype=np.int64)  # where the prompts are in the cache
        self._longest = np.zeros(size, dtype=np.int64)  # upper bounds of `_counts`
        self._grid: Grid | None = None

    @property
    def active(self) -> int:
        return int(self._busy.sum())

    @property
    def free(self) -> int:
        return int((~self._busy).sum())

    def admit(self, prefill: Prefill) -> None:
        """Give free rows to waiting samples, until one or the other runs out."""
        rows = np.flatnonzero(~self._busy)[: prefill.waiting]
        taken = slice(prefill.admitted, prefill.admitted + len(rows))
        prefill.admitted += len(rows)
        self.cache.own.begin_like(prefill.cache)
        self._entries[rows] = self._prompts.hold(prefill, taken, self._entries[self._busy])
        self._busy[rows] = True
        self._longest[rows] = 1
        self._grid = None
        tokens, lengths = prefill.tokens[taken], torch.from_numpy(prefill.lengths[taken])
        self._state[:, torch.from_numpy(rows)] = torch.stack(
            [
                tokens,
                torch.ones_like(tokens),
                prefill.samples[taken],
                lengths.to(tokens.device),
            ]
        )

    def compact(self) -> None:
        """Move the last rows in use into the gaps, so that rows in use come first.

        The same is done with the prompts in use.
        """
        if self._grid is not None:
            return
        sources, targets = moves(self._busy)
        if len(sources):
            last, gaps = torch.from_numpy(sources), torch.from_numpy(targets)
            self.cache.own.move(last, gaps)
            self._state[:, gaps] = self._state[:, last]
            self._entries[targets] = self._entries[sources]
            self._longest[targets] = self._longest[sources]
        active = self.active
        self._busy[:active], self._busy[active:] = True, False
        self._entries[:active] = self._prompts.compact(self._entries[:active])
        self._grid = Grid(self._entries[:active], self._state.device)

    def begin_step(self) -> DecodeStep:
        """Return the inputs of the next forward, and prepare the cache for it."""
        active = self.active
        assert self._grid is not None
        counts, bounds = self._counts[:active], self._longest[:active]
        longest = int(bounds.max())
        alike = int(bounds.min()) == longest
        self.cache.begin_step(self._grid, longest if alike else counts, longest)
        return DecodeStep(self._tokens[:active], counts, self._prompt_lengths[:active])

    def in_step(self) -> tuple[Tensor, Tensor]:
        """Return the sample of each row [n], and how many tokens it has [n]."""
        active = self.active
        return self._samples[:active], self._counts[:active]

    def end_step(self, tokens: Tensor, ended: Tensor) -> None:
        """Store the tokens drawn [n]; rows that have `ended` [n] keep their place and count."""
        n = len(tokens)
        self._tokens[:n] = tokens
        self._counts[:n] += (~ended).long()
        self._samples[:n].masked_fill_(ended, self._nobody)
        self._longest[:n] += 1

    def release_ended(self) -> int:
        """Free the rows whose samples have ended, and return how many they are."""
        active = self.active
        ended = (self._samples[:active] == self._nobody).cpu().numpy()
        self._busy[:active] &= ~ended
        if ended.any():
            self._grid = None
        return int(ended.sum())


@dataclass
class Prefill:
    """Prompts that have been computed, and their K samples that wait for rows."""

    cache: PromptCache
    first: int
    """Index of its first prompt among all prompts of the call."""
    samples: Tensor
    """int64 [K], indices of the samples."""
    prompts: np.ndarray
    """int64 [K], the prompt in `cache` that each sample continues, in ascending order."""
    lengths: np.ndarray
    """int64 [K], number of tokens of that prompt."""
    tokens: Tensor
    """int64 [K], the first token of each sample, which is already drawn."""
    admitted: int = 0

    @property
    def waiting(self) -> int:
        return len(self.samples) - self.admitted


class HeldPrompts:
    """A record, on the host, of which prompt is in which entry of the cache."""

    def __init__(self, cache: KeysValues) -> None:
        self._cache = cache
        self._numbers: list[int] = []
        self._lengths: list[int] = []

    def hold(self, prefill: Prefill, taken: slice, in_use: np.ndarray) -> np.ndarray:
        """Make sure that the cache holds the prompts of samples `taken` [k] of a prefill.

        Args:
            in_use: entries that rows continue; all others may be overwritten.

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
        """Move the last prompts into the gaps, so that the prompts in use come first.

        Args:
            in_use: int64 [n], entries that rows continue.

        Returns:
            int64 [n], the entries where these prompts are now.
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
        """Mark entries that are not used as empty, so that fitting may cut them off."""
        for entry in set(range(len(self._numbers))) - used:
            self._numbers[entry], self._lengths[entry] = -1, 0

    def _fit(self) -> None:
        self._cache.fit(len(self._numbers), -(-max(self._lengths) // SLOTS) * SLOTS)


def moves(busy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return sources and targets of moves into gaps after which the busy places come first."""
    first = int(busy.sum())
    return first + np.flatnonzero(busy[first:]), np.flatnonzero(~busy[:first])
