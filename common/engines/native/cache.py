"""Keys and values during decoding: prompts once for their group, own tokens for each row.

A row's first token after the prompt is in slot 0 of its own part, the next in slot 1, so masks
follow from counts. Rows in use, and prompts in use, always come first. Every step reads a whole
tensor, so it is kept about as large as what it holds: a product over consecutive memory takes half
the time of one that leaves gaps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from common.engines.native.attention import Grid, NotSharedError, shared_prompt_attention

# Lengths are multiples of this, so that few shapes occur.
SLOTS = 16


class PromptCache(Cache):
    """Result of a prefill: keys and values [prompts, kv_heads, length, head_dim] of each layer.

    Unlike in transformers' own caches, sliding layers keep those of the whole prompt: prompts of a
    batch differ in length, and the window of a shorter one ends at an earlier slot.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        assert layer_idx == len(self.keys), (layer_idx, len(self.keys))
        self.keys.append(key_states)
        self.values.append(value_states)
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return query_length, 0


class KeysValues:
    """Keys and values [entries, kv_heads, length, head_dim] of every layer, all of them finite."""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.entries = self.length = 0

    def begin_like(self, prompts: PromptCache) -> None:
        """Take number, dtype and heads of the layers from a prefill, unless they are known."""
        if not self.keys:
            self.keys = [source[:0, :, :0] for source in prompts.keys]
            self.values = [source[:0, :, :0] for source in prompts.values]

    def fit(self, entries: int, length: int) -> None:
        """Make room for `entries` of `length`, or free room if half of it is enough."""
        enough = entries <= self.entries and length <= self.length
        if enough and 2 * entries > self.entries and 2 * length > self.length:
            return
        if 0 < self.entries < entries:
            entries = max(entries, self.entries + self.entries // 2)
        for tensors in (self.keys, self.values):
            for layer, held in enumerate(tensors):
                tensors[layer] = self._resized(held, entries, length)
        self.entries, self.length = entries, length

    def put(self, prompts: PromptCache, which: Tensor, targets: Tensor) -> None:
        """Copy the prompts `which` [n] of a prefill to entries `targets` [n]."""
        length = min(prompts.keys[0].shape[2], self.length)  # what is cut off is padding
        for held, source in zip(
            self.keys + self.values, prompts.keys + prompts.values, strict=True
        ):
            held[targets, :, :length] = source[which, :, :length]

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Copy entries `sources` [n] over `targets` [n]."""
        for tensor in (*self.keys, *self.values):
            tensor[targets] = tensor[sources]

    def _resized(self, held: Tensor, entries: int, length: int) -> Tensor:
        """Return `held` in a larger or smaller tensor whose other slots are 0.

        Uninitialised memory could hold nan, and a masked slot's weight of 0 times nan is nan.
        """
        resized = self._allocate(held, entries, length)
        kept, slots = min(entries, len(held)), min(length, held.shape[2])
        resized[:kept, :, :slots] = held[:kept, :, :slots]
        resized[:kept, :, slots:] = 0
        resized[kept:] = 0
        return resized

    def _allocate(self, like: Tensor, entries: int, length: int) -> Tensor:
        return like.new_empty((entries, like.shape[1], length, like.shape[3]))


class RowCache(Cache):
    """Cache of the prompts in use and each row's own tokens, for forwards of one token per row.

    With `shared` the decoder attends through `attend`. Without it, the decoder gets each row's
    prompt and own tokens in one tensor, built for every layer and step, which works with any
    decoder.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.prompts, self.own = KeysValues(), KeysValues()
        self.shared = True
        self._grid: Grid | None = None
        self._counts: Tensor | int = 0
        self._slots: dict[int, Tensor] = {}
        self._unattended: int | None = None

    @property
    def length(self) -> int:
        """Return the number of slots that a step reads: those of a prompt and a row's own."""
        return self.prompts.length + self.own.length

    def begin_step(self, grid: Grid, counts: Tensor | int, longest: int) -> None:
        """Set what the next forward reads and where it writes.

        Args:
            grid: which prompt each of the n rows continues.
            counts: int64 [n], number of each row's own tokens, including the one that is fed in; a
                single number if all rows that have not ended have the same.
            longest: an upper bound of the counts.
        """
        self.own.fit(grid.rows, room_for(longest))
        self._grid, self._counts, self._slots = grid, counts, {}
        self._unattended = None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store a token's keys and values [n, kv_heads, 1, head_dim] of a layer.

        Returns:
            With `shared`, these keys and values; else those of each row's prompt and own tokens.

        Raises:
            NotSharedError: the layer before did not attend through `attend`.
        """
        self.check_attended()
        rows = len(key_states)
        keys, values = self.own.keys[layer_idx], self.own.values[layer_idx]
        self._store(keys, key_states)
        self._store(values, value_states)
        if self.shared:
            self._unattended = layer_idx
            return key_states, value_states
        assert self._grid is not None
        of_row = self._grid.prompt_of_row
        prompts = self.prompts.keys[layer_idx], self.prompts.values[layer_idx]
        whole = [
            torch.cat([held[of_row], own[:rows]], dim=2)
            for held, own in zip(prompts, (keys, values), strict=True)
        ]
        return whole[0], whole[1]

    def attend(
        self, layer: int, query: Tensor, mask: Tensor, scaling: float, softcap: float | None
    ) -> Tensor:
        """Return a layer's attention [n, 1, heads, head_dim] of `query` [n, heads, 1, head_dim].

        Raises:
            NotSharedError: the layer has not stored keys and values of its own.
        """
        if self._unattended != layer:
            raise NotSharedError(f"layer {layer} attends to keys that it has not stored")
        self._unattended = None
        assert self._grid is not None
        prompts, rows = self._grid.prompts, self._grid.rows
        held, own = self.prompts, self.own
        return shared_prompt_attention(
            query,
            (held.keys[layer][:prompts], held.values[layer][:prompts]),
            (own.keys[layer][:rows], own.values[layer][:rows]),
            self._grid,
            mask,
            scaling,
            softcap,
        )

    def check_attended(self) -> None:
        """Check that the last layer which stored keys has attended through `attend`.

        Raises:
            NotSharedError: it has not, so it attends in a way of its own.
        """
        if self._unattended is not None:
            raise NotSharedError(f"layer {self._unattended} does not attend through the interface")

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.length, 0

    def _store(self, held: Tensor, new: Tensor) -> None:
        """Put keys or values [n, kv_heads, 1, head_dim] into the slot of each row's new token."""
        rows, heads = new.shape[:2]
        if isinstance(self._counts, int):
            held[:rows, :, self._counts - 1] = new[:, :, 0]
            return
        if heads not in self._slots:
            row_heads = torch.arange(rows * heads, device=new.device).view(rows, heads)
            slots = row_heads * self.own.length + (self._counts - 1)[:, None]
            self._slots[heads] = slots.flatten()
        flat = held.view(-1, held.shape[-1])
        flat.index_copy_(0, self._slots[heads], new.reshape(rows * heads, -1))


def room_for(length: int) -> int:
    """Return how many slots to allocate for `length`, when every step needs one more.

    Spare slots cost reads, and growing costs copies. Together they cost least when a length grows
    in steps of about √(12 · length).
    """
    step = max(SLOTS, 1 << (length.bit_length() + 4) // 2)
    return -(-length // step) * step
