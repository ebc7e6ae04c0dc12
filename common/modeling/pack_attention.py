"""Attention of packs, as a decoder's own forward computes it.

The decoder stays in charge of all else: it finds `NAME` through transformers' `AttentionInterface`
and is given the layout of the packs as an argument of its forward, which it passes on to each
layer's attention. No mask is registered for `NAME` with transformers' `AttentionMaskInterface`, so
the decoder makes none. Where a family computes attention in a way that is not known here, its own
attention takes the masks written out (`PackedDecoder`).

On the CPU a token sees two sets of keys, its prompt and its own text (cut into tiles when it is
long, `pack_layout.py`). Each is computed apart by the flash kernel, which also gives the logsumexp
of its scores, and they are then merged: with s₁, s₂ these logsumexps and o₁, o₂ the outputs,

    s = log(exp s₁ + exp s₂)        o = exp(s₁ − s) · o₁ + exp(s₂ − s) · o₂

The kernel's backward makes its probabilities again as exp(score − s). Given the merged o and s it
therefore returns each set's share of the gradients, and these are added. It is how attention is
divided over devices too (Liu et al. 2023, Ring Attention, 2310.01889). Neither scores nor a mask
of S × S are ever held, and keys of a prompt are not copied for its completions.

On a GPU long packs go block by block: FlexAttention skips the blocks that no token sees. It is not
measured, and is therefore taken only for packs so long that a dense mask becomes a burden of its
own (`FLEX_TOKENS`).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from common.compat import FlashAttention, attention_implementation, cpu_flash_attention
from common.console import warn_once
from common.errors import UserError
from common.modeling.load import set_attention
from common.modeling.pack_layout import PackLayout, PackRows, Reach, Tiles, by_layer_type

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "staged_grpo_packs"

FLEX_TOKENS = 8192
"""Shortest pack for FlexAttention. Its dense mask has 64 MiB, which a kernel reads once a head and
layer."""

PLAIN = frozenset({"position_ids", "cache_position", "sliding_window", "use_cache"})
"""Arguments of attention functions that leave keys, queries and their product as they are, or that
a layer's mask contains already."""


class NotPackedError(Exception):
    """The decoder's attention is not of the kind that is computed here."""


class PackedDecoder:
    """The decoder of a causal language model, or of a part of it, over packs.

    The model's attention is set for packs: from here on it computes nothing else.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Args:
            model: of `sdpa` or `eager` attention.

        Raises:
            UserError: attention that packs cannot have: a kernel without arbitrary masks, or layers
                that carry a state along the row (linear attention, convolution).
        """
        self._model = model
        self._config = model.config
        by_layer_type(self._config, lambda kind: Reach.of_kind(kind, self._config))
        found = attention_implementation(model)
        self._own = "sdpa" if found == NAME else found
        if self._own not in ("sdpa", "eager"):
            raise UserError(
                f"attention implementation {found!r} of {self._config.model_type!r} takes no mask "
                "of packs; load the model with attn_implementation='sdpa' or 'eager'"
            )
        self._by_layout = self._own == "sdpa"
        if self._by_layout:
            set_attention(model, NAME)
            forward = inspect.signature(model.base_model.forward).parameters.values()
            passes_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in forward)
            if not passes_on or attention_implementation(model) != NAME:
                self._take_masks("the family has a way of its own")

    def __call__(self, layout: PackLayout, **inputs: Tensor) -> Tensor:
        """Hidden states [B, S, H] of packs, of the model's type.

        Args:
            layout: of the packs [B, S].
            inputs: `input_ids` [B, S] int64, or `inputs_embeds` [B, S, H].
        """
        if self._by_layout:
            try:
                return self._hidden(layout, inputs, attention_mask=None, packs=layout)
            except NotPackedError as reason:
                self._take_masks(reason)
        masks = by_layer_type(self._config, lambda kind: self._mask(layout, kind))
        return self._hidden(layout, inputs, attention_mask=masks)

    def _take_masks(self, reason: object) -> None:
        warn_once(
            f"{self._config.model_type}: its attention cannot be computed from the layout of packs "
            f"({reason}), so each layer reads a dense mask, which is slower"
        )
        self._by_layout = False
        set_attention(self._model, self._own)

    def _hidden(self, layout: PackLayout, inputs: dict[str, Tensor], **how: Any) -> Tensor:
        position_ids = layout.position_ids
        decoder: Any = self._model.base_model
        made = decoder(**inputs, position_ids=position_ids, use_cache=False, **how)
        return made.last_hidden_state

    def _mask(self, layout: PackLayout, kind: str) -> Tensor:
        """[B, 1, S, S] for layers of this kind: bool, or additive for `eager`."""
        seen = layout.visible(Reach.of_kind(kind, self._config))
        if self._own == "sdpa":
            return seen
        # Not -inf: a row that a kernel fills with -inf alone becomes nan.
        dtype = self._model.dtype
        additive = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        return additive.masked_fill_(~seen, torch.finfo(dtype).min)


def _interface(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packs: PackLayout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers: query [B, H, S, D] to [B, S, H, D]."""
    unknown = [name for name, value in others.items() if value is not None and value is not False]
    if packs is None or attention_mask is not None or dropout or not PLAIN.issuperset(unknown):
        raise NotPackedError(f"{type(module).__name__}: {sorted(others)}")
    reach = Reach.of_layer(module.layer_idx, module.config)
    share = query.shape[1] // key.shape[1]  # query heads of a head of keys
    if share > 1:
        key, value = (
            x[:, :, None].expand(-1, -1, share, -1, -1).flatten(1, 2) for x in (key, value)
        )
    out = pack_attention(query, key, value, packs, reach, scaling)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _interface)


def pack_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackLayout,
    reach: Reach,
    scale: float | None = None,
) -> Tensor:
    """`scaled_dot_product_attention` of packs, by rows or blocks where these are made for it.

    Args:
        query, key: [B, H, S, D], and value [B, H, S, V]; the same number of heads in all.
        scale: of the scores; 1 / √D when not given.

    Returns:
        [B, H, S, V]; without meaning on padding.
    """
    if query.shape == value.shape:
        if query.is_cuda and query.shape[2] >= FLEX_TOKENS and find_spec("triton") is not None:
            return flex_attention(query, key, value, layout, reach, scale)
        on_cpu = query.device.type == "cpu" and query.is_floating_point()
        if on_cpu and reach.chunk is None and cpu_flash_attention() is not None:
            rows = layout.rows(reach.window, query.dtype)
            return row_attention(query, key, value, rows, scale)
    mask = layout.visible(reach)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


def flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackLayout,
    reach: Reach,
    scale: float | None = None,
) -> Tensor:
    """Attention of packs [B, H, S, D] by blocks; compiled on a GPU, and differentiable there."""
    from torch.nn.attention import flex_attention as flex

    compute: Any = _compiled(flex.flex_attention) if query.is_cuda else flex.flex_attention
    blocks = layout.once(_block_mask, reach)
    return compute(query, key, value, block_mask=blocks, scale=scale)


def _block_mask(layout: PackLayout, reach: Reach) -> Any:
    """Which blocks of [B, S, S] are seen in full, in part or not at all."""
    from torch.nn.attention.flex_attention import create_block_mask

    packs, length = layout.group_ids.shape
    device = layout.group_ids.device
    return create_block_mask(layout.sees(reach), packs, None, length, length, device=device)


@cache
def _compiled(function: Any) -> Any:
    """Uncompiled, it would make all S × S scores."""
    return torch.compile(function, dynamic=False)


def row_attention(
    query: Tensor, key: Tensor, value: Tensor, rows: PackRows, scale: float | None = None
) -> Tensor:
    """Attention of packs, on the CPU; differentiable once.

    Args:
        query, key, value: [B, H, S, D], the same number of heads in all.
        rows: the layout of the B·S tokens.
        scale: of the scores; 1 / √D when not given.

    Returns:
        [B, H, S, D], contiguous as [B, S, H, D]; 0 on padding.
    """
    return _RowAttention.apply(query, key, value, rows, scale)


class _RowAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, rows: PackRows, scale: float | None
    ) -> Tensor:
        # Made before what is freed again: memory that stays would leave gaps behind that.
        out = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)
        out = out.flatten(0, 1)  # [B·S, H, D]
        tokens = [_by_token(x) for x in (query, key, value)]
        gathered = [_gather(x, rows) for x in tokens]
        flash = _flash()
        parts = [
            flash.forward(
                *(_rows(x, tiles) for x in gathered), mask=tiles.band, causal=True, scale=scale
            )
            for tiles in rows.tiles
        ]
        del gathered
        _to_tokens((o for o, _ in parts), rows, out)
        logsumexp = _to_tokens((s for _, s in parts), rows)  # [B·S, H]
        for part in rows.behind:
            q, k, v = _behind(tokens, part.queries, part.keys)
            out_behind, sums = flash.forward(q, k, v, mask=part.mask, causal=False, scale=scale)
            own, s = out[part.queries], logsumexp[part.queries]
            out_behind, sums = out_behind[0].transpose(0, 1), sums[0].T
            own.lerp_(out_behind, torch.sigmoid(sums - s).to(own.dtype)[..., None])
            s.copy_(torch.logaddexp(s, sums))
        ctx.save_for_backward(query, key, value, out, logsumexp)
        ctx.rows, ctx.scale = rows, scale
        return _by_head(out, query)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> Any:
        query, key, value, out, logsumexp = ctx.saved_tensors
        rows: PackRows = ctx.rows
        flash, scale = _flash(), ctx.scale
        tokens = [_by_token(x) for x in (query, key, value)]
        grad = _by_token(grad_out)
        gathered = [_gather(x, rows) for x in (grad, out, *tokens)]
        sums, parts = _gather(logsumexp, rows), []
        for tiles in rows.tiles:
            s = _rows(sums, tiles)
            if tiles.padding is not None:
                # Its probabilities become 0, and so all that it would add.
                s = s.masked_fill(tiles.padding, float("inf"))
            g, o, q, k, v = (_rows(x, tiles) for x in gathered)
            shares = flash.backward(g, q, k, v, o, s, mask=tiles.band, causal=True, scale=scale)
            parts.append(shares)
        del gathered
        grads = [_to_tokens(shares, rows) for shares in zip(*parts, strict=True)]  # [B·S, H, D]
        for part in rows.behind:
            q, k, v = _behind(tokens, part.queries, part.keys)
            g, o = (_one_row(x[part.queries]) for x in (grad, out))
            s = logsumexp[part.queries].T[None]
            shares = flash.backward(g, q, k, v, o, s, mask=part.mask, causal=False, scale=scale)
            places = (part.queries, part.keys, part.keys)
            for total, place, share in zip(grads, places, shares, strict=True):
                total[place] += share[0].transpose(0, 1)
        return *(_by_head(x, query) for x in grads), None, None


def _flash() -> FlashAttention:
    kernels = cpu_flash_attention()
    assert kernels is not None, "`pack_attention` looks for them"
    return kernels


def _by_token(x: Tensor) -> Tensor:
    """[B, H, S, D] to [B·S, H, D]: a view of what a projection gives, a copy of repeated keys."""
    return x.transpose(1, 2).contiguous().flatten(0, 1)


def _by_head(x: Tensor, like: Tensor) -> Tensor:
    """[B·S, H, D] to [B, H, S, D], a view."""
    return x.unflatten(0, (like.shape[0], like.shape[2])).transpose(1, 2)


def _gather(x: Tensor, rows: PackRows) -> Tensor:
    """[B·S, H, …] to [R, H, …], the rows of all tiles."""
    return x.index_select(0, rows.gathered)


def _rows(gathered: Tensor, tiles: Tiles) -> Tensor:
    """[R, H, …] to [n, H, L, …], a view."""
    return gathered[tiles.where].unflatten(0, tiles.shape).transpose(1, 2)


def _one_row(x: Tensor) -> Tensor:
    """[L, H, D] to [1, H, L, D], a view."""
    return x.transpose(0, 1)[None]


def _behind(tokens: list[Tensor], queries: slice, keys: slice) -> list[Tensor]:
    """The tokens of a `Behind`, a row each of queries, keys and values."""
    places = (queries, keys, keys)
    return [_one_row(x[place]) for x, place in zip(tokens, places, strict=True)]


def _to_tokens(parts: Iterable[Tensor], rows: PackRows, out: Tensor | None = None) -> Tensor:
    """[n, H, L, …] of each bucket to [B·S, H, …]; 0 on padding."""
    laid = [part.transpose(1, 2).flatten(0, 1) for part in parts]
    joined = laid[0] if len(laid) == 1 else torch.cat(laid)
    return torch.index_select(joined, 0, rows.place, out=out).index_fill_(0, rows.padding, 0)
