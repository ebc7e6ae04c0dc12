"""Keys and values of the rows being decoded: allocated once, each row at its own length.

The token at position p of a row stands in slot p of that row, so masks follow from positions. Rows
in use are always the first ones; a step reads slots up to the longest of them and copies nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from common.errors import UserError

# A step reads this many slots or a multiple, so that few shapes occur.
SLOTS = 32


class PromptCache(Cache):
    """What a prefill leaves: keys and values [prompts, kv_heads, length, head_dim] by layer.

    Sliding layers keep those of the whole prompt, unlike transformers' own caches: the window of
    a shorter prompt of the batch lies further ahead than that of the longest.
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


class RowCache(Cache):
    """Keys and values [rows, kv_heads, slots, head_dim] for each layer of a decoder."""

    def __init__(self, rows: int, slots: int) -> None:
        super().__init__(layers=[])
        self.rows, self.slots = rows, round_up(slots)
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._row_index = torch.empty(0)
        self._positions = torch.empty(0)
        self._used = 0
        self._zeroed = 0

    def admit(self, rows: Tensor, prompts: PromptCache, which: Tensor) -> None:
        """Begin `rows` [n] with the prompts `which` [n] of a prefill, padding and all.

        Slots behind a prompt's end are masked until they are written.
        """
        if not self.keys:
            self.keys = [self._allocate(source) for source in prompts.keys]
            self.values = [self._allocate(source) for source in prompts.values]
        length = prompts.keys[0].shape[2]
        self._zero_up_to(length)
        for own, source in zip(self.keys + self.values, prompts.keys + prompts.values, strict=True):
            own[rows, :, :length] = source[which]

    def move(self, sources: Tensor, targets: Tensor, used: int) -> None:
        """Copy the first `used` slots of rows `sources` [n] over those of `targets` [n]."""
        for tensor in (*self.keys, *self.values):
            tensor[targets, :, :used] = tensor[sources, :, :used]

    def begin_step(self, positions: Tensor, used: int) -> None:
        """Say where the next forward writes.

        Args:
            positions: int64 [n], slot of the new token of the first n rows.
            used: slots to read; all positions are below.
        """
        assert used <= self.slots, (used, self.slots)
        self._zero_up_to(used)
        self._row_index = torch.arange(len(positions), device=positions.device)
        self._positions = positions
        self._used = used

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store a token's keys and values [n, kv_heads, 1, head_dim]; return views of all."""
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        keys[self._row_index, :, self._positions] = key_states[:, :, 0]
        values[self._row_index, :, self._positions] = value_states[:, :, 0]
        rows = len(key_states)
        return keys[:rows, :, : self._used], values[:rows, :, : self._used]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._used

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self._used, 0

    def _allocate(self, like: Tensor) -> Tensor:
        _, heads, _, width = like.shape
        return like.new_empty((self.rows, heads, self.slots, width))

    def _zero_up_to(self, slots: int) -> None:
        """Clear slots before they are first read: what memory held could be nan, and a masked
        slot's weight of 0 times nan is nan. Slots that are never reached cost no memory on CPU."""
        if slots > self._zeroed:
            for tensor in (*self.keys, *self.values):
                tensor[:, :, self._zeroed : slots] = 0
            self._zeroed = slots


def step_masks(
    config: Any, positions: Tensor, used: int, dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """`attention_mask` of one decoding step over a `RowCache`: of each layer type its own.

    The same rule as for packs (`modeling/masks.py`), with slots for positions.

    Args:
        config: the decoder's (text) configuration.
        positions: int64 [n], of the new tokens.
        used: slots read.

    Returns:
        [n, 1, 1, used], bool for `sdpa`, additive in `dtype` for `eager`; a dict by layer type
        where the configuration has `layer_types`.
    """
    slots = torch.arange(used, device=positions.device)
    distance = (positions[:, None] - slots)[:, None, None]  # [n, 1, 1, used]

    def mask(kind: str) -> Tensor:
        seen = distance >= 0
        if kind == "sliding_attention":
            seen &= distance < config.sliding_window
        if config._attn_implementation == "sdpa":
            return seen
        return torch.where(seen, 0.0, torch.finfo(dtype).min).to(dtype)

    layer_types = getattr(config, "layer_types", None)
    if layer_types:
        return {kind: mask(kind) for kind in dict.fromkeys(layer_types)}
    sliding = getattr(config, "sliding_window", None) is not None
    return mask("sliding_attention" if sliding else "full_attention")


def check_cacheable(config: Any) -> None:
    """Refuse decoders whose state is more than keys and values by position.

    Raises:
        UserError: naming the layer type or the attention implementation.
    """
    known = {"full_attention", "sliding_attention"}
    unknown = sorted(set(getattr(config, "layer_types", None) or []) - known)
    if unknown or getattr(config, "attention_chunk_size", None) is not None:
        kind = unknown[0] if unknown else "chunked_attention"
        raise UserError(
            f"{config.model_type!r} has layers of type {kind!r}, which the sampler cannot decode; "
            "use a decoder with full or sliding attention"
        )
    if config._attn_implementation not in ("sdpa", "eager"):
        raise UserError(
            f"attention implementation {config._attn_implementation!r} takes no mask by row; "
            "load the model with attn_implementation='sdpa' or 'eager'"
        )


def round_up(length: int) -> int:
    """The number of slots to read for `length` of them."""
    return -(-length // SLOTS) * SLOTS
