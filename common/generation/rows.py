"""The rows of a batch that is being decoded: who is in which row, and where each one stands."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.generation.cache import PromptCache, RowCache, round_up


@dataclass
class Prefill:
    """Prompts that have been computed, and their samples (K) that wait for a row."""

    cache: PromptCache
    samples: Tensor
    """int64 [K]"""
    prompts: Tensor
    """int64 [K], which prompt of `cache` a sample continues."""
    lengths: Tensor
    """int64 [K], tokens of that prompt; on the CPU."""
    tokens: Tensor
    """int64 [K], the first token of each sample, already drawn."""
    admitted: int = 0

    @property
    def waiting(self) -> int:
        return len(self.samples) - self.admitted


class Rows:
    """At most R rows; after `compact` those in use are the first `active` ones.

    Tensors are on the device. The host keeps which rows are busy and a bound of their lengths, so
    that no step has to wait for the device.
    """

    def __init__(self, size: int, slots: int, nobody: int, device: torch.device) -> None:
        """Args:
        size: R.
        slots: most positions of a row.
        nobody: sample index that marks a row as ended.
        """
        self.cache = RowCache(size, slots)
        self._nobody = nobody
        self._state = torch.zeros((4, size), dtype=torch.int64, device=device)
        self._tokens, self._positions, self._counts, self._samples = self._state.unbind()
        self._busy = np.zeros(size, dtype=bool)
        self._lengths = np.zeros(size, dtype=np.int64)

    @property
    def active(self) -> int:
        return int(self._busy.sum())

    @property
    def free(self) -> int:
        return int((~self._busy).sum())

    def admit(self, prefill: Prefill) -> None:
        """Give free rows to samples that wait, as many as there are of both."""
        rows = np.flatnonzero(~self._busy)[: prefill.waiting]
        taken = slice(prefill.admitted, prefill.admitted + len(rows))
        prefill.admitted += len(rows)
        where = torch.from_numpy(rows).to(self._state.device)
        self.cache.admit(where, prefill.cache, prefill.prompts[taken])
        lengths = prefill.lengths[taken]
        self._state[:, where] = torch.stack(
            [
                prefill.tokens[taken],
                lengths.to(self._state.device),
                torch.ones_like(prefill.tokens[taken]),
                prefill.samples[taken],
            ]
        )
        self._busy[rows] = True
        self._lengths[rows] = lengths.numpy()

    def compact(self) -> None:
        """Move the last rows into the gaps, so that the rows in use are the first ones."""
        active = self.active
        gaps = np.flatnonzero(~self._busy[:active])
        if not len(gaps):
            return
        last = active + np.flatnonzero(self._busy[active:])
        targets, sources = (torch.from_numpy(r).to(self._state.device) for r in (gaps, last))
        self.cache.move(sources, targets, int(self._lengths[last].max()))
        self._state[:, targets] = self._state[:, sources]
        self._lengths[gaps] = self._lengths[last]
        self._busy[:active], self._busy[active:] = True, False

    def begin_step(self) -> tuple[Tensor, Tensor, int]:
        """Tokens [n] and positions [n] of the next forward, and how many slots it reads."""
        active = self.active
        used = min(round_up(int(self._lengths[:active].max()) + 1), self.cache.slots)
        self.cache.begin_step(self._positions[:active], used)
        return self._tokens[:active], self._positions[:active], used

    def in_step(self) -> tuple[Tensor, Tensor]:
        """Samples [n] of the rows, and how many tokens they have [n]."""
        active = self.active
        return self._samples[:active], self._counts[:active]

    def end_step(self, tokens: Tensor, ended: Tensor) -> None:
        """Take the tokens drawn [n]; rows that have `ended` [n] stay where they are."""
        n = len(tokens)
        going_on = (~ended).long()
        self._tokens[:n] = tokens
        self._positions[:n] += going_on
        self._counts[:n] += going_on
        self._samples[:n].masked_fill_(ended, self._nobody)
        self._lengths[:n] += 1

    def release_ended(self) -> int:
        """Free the rows whose samples have ended; how many."""
        active = self.active
        ended = (self._samples[:active] == self._nobody).cpu().numpy()
        self._busy[:active] &= ~ended
        return int(ended.sum())
