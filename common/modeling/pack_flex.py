"""Attention of long packs on a GPU, block by block: FlexAttention skips the blocks no token sees.

Not measured and never run on a GPU; the mask's function is tested on the CPU. It is therefore
taken only for packs so long that a dense mask becomes a burden of its own, see `MIN_TOKENS`:
`tokens_per_pack` below it never comes here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from common.modeling.pack_layout import PackLayout, Reach

MIN_TOKENS = 8192
"""Shortest pack. Its dense mask has 64 MiB, which the kernel reads once a head and layer."""

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def takes(query: Tensor) -> bool:
    """Whether `attention` is made for such queries: [B, H, S, D], long, where Triton is."""
    return query.is_cuda and query.shape[2] >= MIN_TOKENS and find_spec("triton") is not None


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackLayout,
    reach: Reach,
    scale: float | None = None,
) -> Tensor:
    """Attention of packs [B, H, S, D], compiled where `takes` says so; differentiable there."""
    flex = _compiled() if query.is_cuda else _flex()
    return flex(query, key, value, block_mask=layout.once(block_mask, reach), scale=scale)


def block_mask(layout: PackLayout, reach: Reach) -> Any:
    """Which blocks of [B, S, S] are seen in full, in part or not at all (a `BlockMask`)."""
    from torch.nn.attention.flex_attention import create_block_mask

    packs, length = layout.group_ids.shape
    device = layout.group_ids.device
    return create_block_mask(mask_mod(layout, reach), packs, None, length, length, device=device)


def mask_mod(layout: PackLayout, reach: Reach) -> MaskMod:
    """`PackLayout.visible` for one pair of indices."""
    positions, groups = layout.position_ids, layout.group_ids
    completions = layout.completion_ids

    def seen(pack: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        at, other = positions[pack, query], positions[pack, key]
        group, text = groups[pack, query], completions[pack, key]
        found = (group == groups[pack, key]) & (group >= 0) & (other <= at)
        found = found & ((text == -1) | (text == completions[pack, query]))
        if reach.window is not None:
            found = found & (at - other < reach.window)
        if reach.chunk is not None:
            found = found & (at // reach.chunk == other // reach.chunk)
        return found | (query == key)

    return seen


def _flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention


@cache
def _compiled() -> Any:
    """Uncompiled, it would make all S × S scores."""
    return torch.compile(_flex(), dynamic=False)
