"""Attention masks of packs, in the form that a Hugging Face decoder's own forward takes.

A token sees its own prompt copy and its own completion, up to its own position. Distance is
counted in positions and not in indices: in a pack the two differ, since several completions
stand behind one prompt. A decoder given a plain 4D mask applies it to every layer as it is, which
would turn sliding layers into full ones; so each kind of layer gets its own mask here.

A decoder that calls `scaled_dot_product_attention` gets a `PackMask`, which answers that call
from the layout of the packs; the S × S values are made only if something else asks for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._pytree import tree_map_only

from common.errors import UserError
from common.modeling import pack_attention, pack_flex
from common.modeling.pack_layout import PackLayout, Reach

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
        Masks [B, 1, S, S]: for `sdpa` bool (True: may see), a `PackMask` each; for `eager`
        additive, 0 or the lowest value of `dtype`. Padding sees itself alone, so that no row of a
        softmax is empty.

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
    layout = PackLayout(position_ids, group_ids, completion_ids)

    def mask(kind: str) -> Tensor:
        reach = _reach(kind, config)
        if form == "sdpa":
            return PackMask.of(layout, reach)
        seen = layout.visible(reach)
        # Not -inf: a row that a kernel fills with -inf alone becomes nan.
        additive = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        return additive.masked_fill_(~seen, torch.finfo(dtype).min)

    return by_layer_type(config, mask)


def by_layer_type(config: Any, mask: Callable[[str], Tensor]) -> AttentionMasks:
    """The mask of each type of layer that a decoder has; one alone where it names no types.

    Args:
        mask: makes that of a type, such as `sliding_attention`.
    """
    layer_types = getattr(config, "layer_types", None)
    if layer_types:
        return {kind: mask(kind) for kind in dict.fromkeys(layer_types)}
    if getattr(config, "sliding_window", None) is not None:
        return mask("sliding_attention")
    if getattr(config, "attention_chunk_size", None) is not None:
        return mask("chunked_attention")
    return mask("full_attention")


def _reach(kind: str, config: Any) -> Reach:
    """What a layer of this kind sees of a causal text."""
    if kind == "full_attention":
        return Reach()
    if kind == "sliding_attention":
        return Reach(window=config.sliding_window)
    if kind == "chunked_attention":
        return Reach(chunk=config.attention_chunk_size)
    raise UserError(
        f"{config.model_type!r} has layers of type {kind!r}, which carry a state along the row and "
        "cannot be packed; use a decoder with full, sliding or chunked attention"
    )


class PackMask(Tensor):
    """A bool mask [B, 1, S, S] that is not made before its values are needed.

    `scaled_dot_product_attention` does not need them: on the CPU it becomes `row_attention`, on a
    GPU `flex_attention` for long packs. To every other function the mask is the plain tensor
    (`__torch_function__`), so a family that cuts or converts it gets what it would have got.
    """

    packs: PackLayout
    reach: Reach

    @classmethod
    def of(cls, layout: PackLayout, reach: Reach) -> PackMask:
        count, length = layout.group_ids.shape
        nothing = torch.zeros((), dtype=torch.bool, device=layout.group_ids.device)
        mask = nothing.expand(count, 1, length, length).as_subclass(cls)
        mask.packs, mask.reach = layout, reach
        return mask

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FACTS:
            return super().__torch_function__(func, types, args, kwargs)
        if func is functional.scaled_dot_product_attention:
            found = _attention(*args, **kwargs)
            if found is not None:
                return found
        args, kwargs = tree_map_only(PackMask, PackMask.dense, (args, kwargs))
        return func(*args, **kwargs)

    def dense(self) -> Tensor:
        """The plain tensor."""
        return self.packs.visible(self.reach)


_FACTS = frozenset(
    {Tensor.shape.__get__, Tensor.ndim.__get__, Tensor.dtype.__get__, Tensor.device.__get__}  # type: ignore[attr-defined]
    | {Tensor.dim, Tensor.size}
)
"""Of a tensor, for which its values do not matter."""


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    """`scaled_dot_product_attention` [B, H, S, D] with a `PackMask`; None: it needs the values."""
    plain = query.shape == key.shape == value.shape and not (dropout_p or is_causal or enable_gqa)
    if not plain or not isinstance(attn_mask, PackMask):
        return None
    layout, reach = attn_mask.packs, attn_mask.reach
    if pack_flex.takes(query):
        return pack_flex.attention(query, key, value, layout, reach, scale)
    if pack_attention.takes(query) and reach.chunk is None:
        rows = layout.rows(reach.window, query.dtype)
        return pack_attention.row_attention(query, key, value, rows, scale)
    return None
