"""The rows of a batch that is being decoded: who is in which row, and where each one stands."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.generation.attention import Grid
from common.generation.cache import RowCache
from common.generation.held_prompts import HeldPrompts, Prefill, moves


@dataclass(frozen=True)
class Step:
    """What the next forward takes, for n rows; int64 [n] each."""

    tokens: Tensor
    counts: Tensor
    """Tokens of the completion so far, the one that is fed included."""
    prompt_lengths: Tensor


class Rows:
    """At most R rows; after `compact` those in use are the first `active` ones.

    Tensors are on the device. The host keeps which rows are busy, which prompt each continues and
    a bound of how many tokens it has, so that no step has to wait for the device.
    """

    def __init__(self, size: int, nobody: int, device: torch.device) -> None:
        """Args:
        size: R.
        nobody: sample index that marks a row as ended.
        """
        self.cache = RowCache()
        self._prompts = HeldPrompts(self.cache.prompts)
        self._nobody = nobody
        self._state = torch.zeros((4, size), dtype=torch.int64, device=device)
        self._tokens, self._counts, self._samples, self._prompt_lengths = self._state.unbind()
        self._busy = np.zeros(size, dtype=bool)
        self._entries = np.zeros(size, dtype=np.int64)  # of the prompts in the cache
        self._longest = np.zeros(size, dtype=np.int64)  # bounds of `_counts`
        self._grid: Grid | None = None

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
        """Move the last rows into the gaps, so that the rows in use are the first ones, and the
        same with prompts."""
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

    def begin_step(self) -> Step:
        """What the next forward takes; tells the cache what it reads and writes."""
        active = self.active
        assert self._grid is not None
        counts, bounds = self._counts[:active], self._longest[:active]
        longest = int(bounds.max())
        alike = int(bounds.min()) == longest
        self.cache.begin_step(self._grid, longest if alike else counts, longest)
        return Step(self._tokens[:active], counts, self._prompt_lengths[:active])

    def in_step(self) -> tuple[Tensor, Tensor]:
        """Samples [n] of the rows, and how many tokens they have [n]."""
        active = self.active
        return self._samples[:active], self._counts[:active]

    def end_step(self, tokens: Tensor, ended: Tensor) -> None:
        """Take the tokens drawn [n]; rows that have `ended` [n] stay where they are."""
        n = len(tokens)
        self._tokens[:n] = tokens
        self._counts[:n] += (~ended).long()
        self._samples[:n].masked_fill_(ended, self._nobody)
        self._longest[:n] += 1

    def release_ended(self) -> int:
        """Free the rows whose samples have ended; how many."""
        active = self.active
        ended = (self._samples[:active] == self._nobody).cpu().numpy()
        self._busy[:active] &= ~ended
        if ended.any():
            self._grid = None
        return int(ended.sum())
