"""Attention over packs, computed inside a decoder's own forward.

The decoder does everything else. It finds `NAME` through transformers' `AttentionInterface`, and
its forward receives the layout of the packs as an argument, which it passes on to each layer's
attention. No mask is registered for `NAME` with transformers' `AttentionMaskInterface`, so the
decoder makes none. If a family computes attention in a way that is not supported here, its own
attention is given dense masks instead (`PackedDecoder`).

On the CPU, a token attends to two sets of keys: its prompt and its own text (cut into tiles when it
is long, `pack_layout.py`). The flash kernel computes attention over each set separately, and also
returns the logsumexp of the scores. Then the two are merged: with logsumexps s₁, s₂ and outputs
o₁, o₂,

    s = log(exp s₁ + exp s₂)        o = exp(s₁ − s) · o₁ + exp(s₂ − s) · o₂

The kernel's backward recomputes probabilities as exp(score − s). Given the merged o and s, it
therefore returns each set's share of the gradients, and the shares are added. Ring Attention
divides attention over devices in the same way (Liu et al. 2023, arXiv 2310.01889). Neither S × S
scores nor an S × S mask are ever held, and a prompt's keys are not copied for its completions.

On a GPU, long packs use FlexAttention, which skips the blocks that no token sees. Its speed has not
been measured, so it is used only for packs so long that a dense mask is itself a burden
(`FLEX_TOKENS`).
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
"""Length of the shortest pack for FlexAttention. A dense mask of this size takes 64 MiB, and a
kernel reads it once per head and layer."""

PLAIN = frozenset({"position_ids", "cache_position", "sliding_window", "use_cache"})
"""Arguments of attention functions that may be ignored: they do not change queries, keys or their
product, or a layer's mask already accounts for them."""


class NotPackedError(Exception):
    """The decoder's attention is of a kind that this module does not support."""


class PackedDecoder:
    """The decoder of a causal language model, or of a part of one, applied to packs.

    The model's attention is switched to packs; from then on the model computes nothing else.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Switch the model's attention to packs.

        Args:
            model: a model with `sdpa` or `eager` attention.

        Raises:
            UserError: the attention cannot work on packs: its kernel takes no arbitrary masks, or
                layers carry a state along the row (linear attention, convolution).
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
        """Compute the hidden states [B, S, H] of packs, in the model's dtype.

        Args:
            layout: layout of the packs [B, S].
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
        """Return the mask [B, 1, S, S] for layers of this kind: bool, or additive for `eager`."""
        seen = layout.visible(Reach.of_kind(kind, self._config))
        if self._own == "sdpa":
            return seen
        # Not -inf: a row that holds nothing but -inf would become nan.
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
    """Compute attention over packs for transformers: query [B, H, S, D] to [B, S, H, D]."""
    unknown = [name for name, value in others.items() if value is not None and value is not False]
    if packs is None or attention_mask is not None or dropout or not PLAIN.issuperset(unknown):
        raise NotPackedError(f"{type(module).__name__}: {sorted(others)}")
    reach = Reach.of_layer(module.layer_idx, module.config)
    share = query.shape[1] // key.shape[1]  # query heads per key head
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
    """Compute `scaled_dot_product_attention` over packs, by rows or by blocks where possible.

    Args:
        query, key: [B, H, S, D], and value [B, H, S, V]; all have the same number of heads.
        scale: factor on the scores; by default 1 / √D.

    Returns:
        [B, H, S, V]; meaningless on padding.
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
    """Compute attention over packs [B, H, S, D] by blocks; on a GPU compiled and differentiable."""
    from torch.nn.attention import flex_attention as flex

    compute: Any = _compiled(flex.flex_attention) if query.is_cuda else flex.flex_attention
    blocks = layout.once(_block_mask, reach)
    return compute(query, key, value, block_mask=blocks, scale=scale)


def _block_mask(layout: PackLayout, reach: Reach) -> Any:
    """Find which blocks of [B, S, S] are seen in full, in part or not at all."""
    from torch.nn.attention.flex_attention import create_block_mask

    packs, length = layout.group_ids.shape
    device = layout.group_ids.device
    return create_block_mask(layout.sees(reach), packs, None, length, length, device=device)


@cache
def _compiled(function: Any) -> Any:
    """Compile FlexAttention, which would otherwise make all S × S scores."""
    return torch.compile(function, dynamic=False)


def row_attention(
    query: Tensor, key: Tensor, value: Tensor, rows: PackRows, scale: float | None = None
) -> Tensor:
    """Compute attention over packs on the CPU; differentiable once.

    Args:
        query, key, value: [B, H, S, D]; all have the same number of heads.
        rows: the plan for the B·S tokens.
        scale: factor on the scores; by default 1 / √D.

    Returns:
        [B, H, S, D], contiguous as [B, S, H, D]; 0 on padding.
    """
    return _RowAttention.apply(query, key, value, rows, scale)


class _RowAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, rows: PackRows, scale: float | None
    ) -> Tensor:
        # Allocated before the temporaries: allocated after them, it would leave gaps in memory.
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
                # Probabilities of padding become 0, and with them all that it would add.
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
    """Turn [B, H, S, D] into [B·S, H, D]: a view of a projection, a copy of repeated keys."""
    return x.transpose(1, 2).contiguous().flatten(0, 1)


def _by_head(x: Tensor, like: Tensor) -> Tensor:
    """View [B·S, H, D] as [B, H, S, D]."""
    return x.unflatten(0, (like.shape[0], like.shape[2])).transpose(1, 2)


def _gather(x: Tensor, rows: PackRows) -> Tensor:
    """Gather [B·S, H, …] into [R, H, …], the rows of all tiles."""
    return x.index_select(0, rows.gathered)


def _rows(gathered: Tensor, tiles: Tiles) -> Tensor:
    """View the rows of these tiles in [R, H, …] as [n, H, L, …]."""
    return gathered[tiles.where].unflatten(0, tiles.shape).transpose(1, 2)


def _one_row(x: Tensor) -> Tensor:
    """View [L, H, D] as [1, H, L, D]."""
    return x.transpose(0, 1)[None]


def _behind(tokens: list[Tensor], queries: slice, keys: slice) -> list[Tensor]:
    """Take the queries, keys and values of a `Behind`, one row of each."""
    places = (queries, keys, keys)
    return [_one_row(x[place]) for x, place in zip(tokens, places, strict=True)]


def _to_tokens(parts: Iterable[Tensor], rows: PackRows, out: Tensor | None = None) -> Tensor:
    """Put [n, H, L, …] of each bucket back into the order of tokens, [B·S, H, …]; 0 on padding."""
    laid = [part.transpose(1, 2).flatten(0, 1) for part in parts]
    joined = laid[0] if len(laid) == 1 else torch.cat(laid)
    return torch.index_select(joined, 0, rows.place, out=out).index_fill_(0, rows.padding, 0)
