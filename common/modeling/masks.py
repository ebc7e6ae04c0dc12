"""Attention masks of packs, in the form that a Hugging Face decoder's own forward takes.

A token sees its own prompt copy and its own completion, up to its own position. Distance is
counted in positions and not in indices: in a pack the two differ, since several completions
stand behind one prompt. A decoder given a plain 4D mask applies it to every layer as it is, which
would turn sliding layers into full ones; so each kind of layer gets its own mask here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from common.errors import UserError

AttentionMasks = Tensor | dict[str, Tensor]


def attention_masks(
    config: Any,
    position_ids: Tensor,
    group_ids: Tensor,
    completion_ids: Tensor,
    dtype: torch.dtype,
) -> AttentionMasks:
    """What to pass as `attention_mask` for packs [B, S] (`packing.PackBatch`).

    Args:
        config: the decoder's (text) configuration. With `layer_types`, its forward takes a dict of
            masks by layer type; without, one mask, sliding if `sliding_window` is set (Mistral),
            chunked if `attention_chunk_size` is: the rule of transformers' own
            `create_masks_for_generate`.
        dtype: of the hidden states, for the additive form.

    Returns:
        Masks [B, 1, S, S]: bool (True: may see) for `sdpa`, else additive 0 / lowest value of
        `dtype` for `eager`. Padding sees itself alone, so that no row of a softmax is empty.

    Raises:
        UserError: attention that packs cannot have: a kernel without arbitrary masks, or layers
            that carry a state along the row (linear attention, convolution).
    """
    form = getattr(config, "_attn_implementation", None)
    if form not in ("sdpa", "eager"):
        raise UserError(
            f"attention implementation {form!r} of {config.model_type!r} takes no mask of packs; "
            "load the model with attn_implementation='sdpa' or 'eager'"
        )
    visible = _visible(position_ids, group_ids, completion_ids)

    def mask(kind: str) -> Tensor:
        seen = (visible & _within(kind, config, position_ids)).unsqueeze(1)
        if form == "sdpa":
            return seen
        # Not -inf: a row that a kernel fills with -inf alone becomes nan.
        additive = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        return additive.masked_fill_(~seen, torch.finfo(dtype).min)

    layer_types = getattr(config, "layer_types", None)
    if layer_types:
        return {kind: mask(kind) for kind in dict.fromkeys(layer_types)}
    if getattr(config, "sliding_window", None) is not None:
        return mask("sliding_attention")
    if getattr(config, "attention_chunk_size", None) is not None:
        return mask("chunked_attention")
    return mask("full_attention")


def _visible(position_ids: Tensor, group_ids: Tensor, completion_ids: Tensor) -> Tensor:
    """[B, S, S] bool, query by key: the full attention of packs."""

    def query(ids: Tensor) -> Tensor:
        return ids[:, :, None]

    def key(ids: Tensor) -> Tensor:
        return ids[:, None, :]

    same_group = (query(group_ids) == key(group_ids)) & (query(group_ids) >= 0)
    same_text = (key(completion_ids) == -1) | (query(completion_ids) == key(completion_ids))
    causal = key(position_ids) <= query(position_ids)
    itself = torch.eye(group_ids.shape[1], dtype=torch.bool, device=group_ids.device)
    return (same_group & same_text & causal) | itself


def _within(kind: str, config: Any, position_ids: Tensor) -> Tensor:
    """[B, S, S] or [1, 1, 1] bool: what a layer of this kind sees of a causal text."""
    if kind == "full_attention":
        return position_ids.new_ones((1, 1, 1), dtype=torch.bool)
    if kind == "sliding_attention":
        distance = position_ids[:, :, None] - position_ids[:, None, :]
        return distance < config.sliding_window
    if kind == "chunked_attention":
        chunk = position_ids // config.attention_chunk_size
        return chunk[:, :, None] == chunk[:, None, :]
    raise UserError(
        f"{config.model_type!r} has layers of type {kind!r}, which carry a state along the row and "
        "cannot be packed; use a decoder with full, sliding or chunked attention"
    )
