"""Attention of packs over rows: causal tiles, and tokens that see all of what is before theirs.

A completion's token sees two sets of keys, its prompt and its own text (cut into tiles when it is
long, `pack_layout.py`). Each is computed apart by the flash kernel, which also gives the logsumexp
of its scores, and they are then merged: with s₁, s₂ these logsumexps and o₁, o₂ the outputs,

    s = log(exp s₁ + exp s₂)        o = exp(s₁ − s) · o₁ + exp(s₂ − s) · o₂

The kernel's backward makes its probabilities again as exp(score − s). Given the merged o and s it
therefore returns each set's share of the gradients, and these are added. It is how attention is
divided over devices too (Liu et al. 2023, Ring Attention, 2310.01889). Neither scores nor a mask
of S × S are ever held, and keys of a prompt are not copied for its completions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from common.modeling.pack_layout import PackRows, Tiles

_NAME = "_scaled_dot_product_flash_attention_for_cpu"
_AVAILABLE = hasattr(torch.ops.aten, _NAME) and hasattr(torch.ops.aten, f"{_NAME}_backward")
# `scaled_dot_product_attention` calls the same, but keeps the logsumexp to itself.


def takes(query: Tensor) -> bool:
    """Whether `row_attention` is made for such queries."""
    return _AVAILABLE and query.device.type == "cpu" and query.is_floating_point()


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
        parts = [
            _flash(*(_rows(x, tiles) for x in gathered), mask=tiles.band, causal=True, scale=scale)
            for tiles in rows.tiles
        ]
        del gathered
        _to_tokens((o for o, _ in parts), rows, out)
        logsumexp = _to_tokens((s for _, s in parts), rows)  # [B·S, H]
        for part in rows.behind:
            q, k, v = _behind(tokens, part.queries, part.keys)
            out_behind, sums = _flash(q, k, v, mask=part.mask, causal=False, scale=scale)
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
            parts.append(_flash_backward(g, q, k, v, o, s, tiles.band, True, ctx.scale))
        del gathered
        grads = [_to_tokens(shares, rows) for shares in zip(*parts, strict=True)]  # [B·S, H, D]
        for part in rows.behind:
            q, k, v = _behind(tokens, part.queries, part.keys)
            g, o = (_one_row(x[part.queries]) for x in (grad, out))
            s = logsumexp[part.queries].T[None]
            shares = _flash_backward(g, q, k, v, o, s, part.mask, False, ctx.scale)
            places = (part.queries, part.keys, part.keys)
            for total, place, share in zip(grads, places, shares, strict=True):
                total[place] += share[0].transpose(0, 1)
        return *(_by_head(x, query) for x in grads), None, None


def _flash(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, causal: bool, scale: float | None
) -> tuple[Tensor, Tensor]:
    """Output [n, H, L, D] and logsumexp [n, H, L] of rows; a mask says what is causal itself."""
    kernel = getattr(torch.ops.aten, _NAME)
    return kernel(q, k, v, 0.0, causal and mask is None, attn_mask=mask, scale=scale)


def _flash_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, for these keys' share of an output with this logsumexp."""
    kernel = getattr(torch.ops.aten, f"{_NAME}_backward")
    causal = causal and mask is None
    return kernel(grad, q, k, v, out, logsumexp, 0.0, causal, attn_mask=mask, scale=scale)


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
