"""Decoding attention that reads the prompt of a group once for all of its samples.

The scores of a group's samples over their prompt are one matrix product, and so are the weighted
sums of the prompt's values; a sample's own tokens are read per row. This is Hydragen (Juravsky et
al. 2024, arXiv:2402.05099), which merges the softmax of the two parts by their log-sum-exp. One
decoding step has few scores, so here both parts are concatenated under a single softmax, with the
same result.

The decoder's own forward does everything else: it finds this attention through transformers'
`AttentionInterface`. What is not supported here, such as attention sinks, raises `NotSharedError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag
from transformers import AttentionInterface

from common.errors import UserError
from common.modeling.load import set_attention
from common.modeling.pack_attention import PLAIN
from common.modeling.pack_layout import by_layer_type

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "staged_grpo_shared_prompts"


class NotSharedError(Exception):
    """The decoder uses a kind of attention that is not computed here."""


class Decoding(Protocol):
    """The argument `decoding` of a forward, which passes it on to the attention of each layer."""

    def attend(
        self, layer: int, query: Tensor, mask: Tensor, scaling: float, softcap: float | None
    ) -> Tensor: ...


@contextmanager
def attending(model: PreTrainedModel, name: str, then: str) -> Iterator[None]:
    """Let the decoder compute attention by the function `name` in this context, then by `then`.

    With `NAME` it attends through the argument `decoding` of its forward.
    """
    set_attention(model, name)
    try:
        yield
    finally:
        set_attention(model, then)


def _interface(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    *,
    decoding: Decoding | None = None,
    scaling: float | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' attention functions do; `decoding` has `key` and `value` already."""
    unknown = [name for name, value in others.items() if value is not None and value is not False]
    if decoding is None or dropout or not PLAIN.issuperset(unknown):
        raise NotSharedError(f"{type(module).__name__}: {sorted(others)}")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return decoding.attend(module.layer_idx, query, attention_mask, scaling, softcap), None


AttentionInterface.register(NAME, _interface)


class Grid:
    """The rows of a step, arranged by their prompts in cells [prompts, most rows of a prompt]."""

    def __init__(self, prompts: np.ndarray, device: torch.device) -> None:
        """Assign each row to a cell.

        Args:
            prompts: int64 [n], the prompt that each row continues. Every prompt up to the highest
                should have a row, otherwise its cells are computed in vain.
        """
        self.prompts, self.rows = int(prompts.max()) + 1, len(prompts)
        counts = np.bincount(prompts, minlength=self.prompts)
        order = np.argsort(prompts, kind="stable")
        ends = counts.cumsum()
        self._width = int(counts.max())
        place = np.arange(self.rows) - np.repeat(ends - counts, counts)
        cell_of_row = np.empty(self.rows, dtype=np.int64)
        cell_of_row[order] = prompts[order] * self._width + place
        row_of_cell = np.zeros(self.prompts * self._width, dtype=np.int64)  # 0 also if it has none
        row_of_cell[cell_of_row] = np.arange(self.rows)
        self.prompt_of_row = torch.from_numpy(prompts).to(device)
        self._row_of_cell = torch.from_numpy(row_of_cell).to(device)
        self._cell_of_row = torch.from_numpy(cell_of_row).to(device)
        self._by_heads: dict[int, tuple[Tensor, Tensor]] = {}

    def by_head(self, heads: int) -> tuple[Tensor, Tensor]:
        """Return indices from cells to rows and back, when each row has `heads` parts in sequence.

        Returns:
            int64 [prompts * heads * width], for each prompt, head and cell the part of its row; and
            int64 [rows * heads], for each row and head the place of its cell in that order.
        """
        if heads not in self._by_heads:
            head = torch.arange(heads, device=self._row_of_cell.device)
            to_cells = self._row_of_cell.view(self.prompts, 1, -1) * heads + head[:, None]
            prompt, place = self._cell_of_row // self._width, self._cell_of_row % self._width
            to_rows = (prompt[:, None] * heads + head) * self._width + place[:, None]
            self._by_heads[heads] = to_cells.flatten(), to_rows.flatten()
        return self._by_heads[heads]


def shared_prompt_attention(
    query: Tensor,
    prompts: tuple[Tensor, Tensor],
    own: tuple[Tensor, Tensor],
    grid: Grid,
    mask: Tensor,
    scaling: float,
    softcap: float | None = None,
) -> Tensor:
    """Compute attention of each row's newest token over its prompt and its own tokens.

    Args:
        query: [n, heads, 1, k].
        prompts: keys [prompts, kv_heads, P, k] and values [prompts, kv_heads, P, v].
        own: keys [n, kv_heads, S, k] and values [n, kv_heads, S, v]. Masked entries of these and of
            the prompts must be finite.
        grid: which prompt each row continues.
        mask: [n, 1, 1, P + S], added to the scores and of their type (`scores_dtype`).
        softcap: c, with which scores become c * tanh(score / c), as in Gemma 2.

    Returns:
        [n, 1, heads, v]
    """
    rows, heads, _, size = query.shape
    kv_heads, length = prompts[0].shape[1:3]
    share = heads // kv_heads  # query heads per key head
    to_cells, to_rows = grid.by_head(kv_heads)
    keys, values, own_keys, own_values = (part.flatten(0, 1) for part in (*prompts, *own))

    queries = query.reshape(rows * kv_heads, share * size)
    cells = queries.index_select(0, to_cells).view(len(keys), -1, size)  # [prompts * kv, C, k]
    of_prompt = _scores(cells, keys.transpose(1, 2)).view(-1, share * length)
    of_prompt = of_prompt.index_select(0, to_rows).view(-1, share, length)
    # Keys come first, because a product of a matrix with few columns is faster.
    of_own = _scores(own_keys, queries.view(-1, share, size).transpose(1, 2)).transpose(1, 2)
    scores = torch.cat([of_prompt, of_own], dim=-1).view(rows, heads, 1, -1)
    if softcap is not None:
        scores, scaling = torch.tanh(scores * (scaling / softcap)), softcap
    weights = torch.add(mask, scores, alpha=scaling).softmax(dim=-1).to(own_values.dtype)

    weights = weights.view(rows * kv_heads, share, -1)  # [n * kv, share, P + S]
    cells = weights.flatten(1).index_select(0, to_cells).view(len(keys), -1, weights.shape[-1])
    summed = torch.bmm(cells[:, :, :length], values).view(-1, share * values.shape[-1])
    summed = summed.index_select(0, to_rows).view(-1, share, values.shape[-1])
    return _add_sums(summed, weights[:, :, length:], own_values).view(rows, 1, heads, -1)


def scores_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type of scores and softmax for queries and keys of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _scores(left: Tensor, right: Tensor) -> Tensor:
    """Return the batched product in `scores_dtype`, since softmax amplifies rounding errors."""
    if left.dtype == scores_dtype(left.dtype):
        return torch.bmm(left, right)
    if left.is_cuda:
        return torch.bmm(left, right, out_dtype=torch.float32)
    return torch.bmm(left.float(), right.float())


def _add_sums(sums: Tensor, weights: Tensor, values: Tensor) -> Tensor:
    """Return `sums` [B, share, v] + `weights` [B, share, S] @ `values` [B, S, v].

    On the CPU a product with so few rows reads memory at half its speed. The same result, as a
    weighted sum of the rows of an embedding, takes half the time.
    """
    if values.device.type != "cpu" or values.dtype != torch.float32:
        return torch.baddbmm(sums, weights, values)
    bags = embedding_bag(
        _bags(*weights.shape),
        values.view(-1, values.shape[-1]),
        per_sample_weights=weights.reshape(-1, weights.shape[-1]),
        mode="sum",
    )
    return sums.add_(bags.view_as(sums))


@lru_cache(maxsize=2)
def _bags(batch: int, share: int, slots: int) -> Tensor:
    """Return int32 [batch * share, slots], the indices of the vectors that each sum adds up."""
    rows = torch.arange(batch * slots, dtype=torch.int32).view(batch, 1, slots)
    return rows.expand(-1, share, -1).reshape(-1, slots)


def step_masks(
    config: Any, prompts: Tensor, counts: Tensor, slots: tuple[int, int], dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """Return the `attention_mask` of one decoding step, one per layer type.

    The rule is that of packs (`modeling/pack_layout.py`): distance is counted in positions.

    Args:
        config: the decoder's (text) configuration.
        prompts: int64 [n], number of tokens of each row's prompt.
        counts: int64 [n], number of each row's own tokens, the newest included.
        slots: P and S, the slots that are read of each prompt and of a row's own part.
        dtype: bool for a mask that is True where a token may attend; any other type for one that is
            0 there and the lowest value elsewhere.

    Returns:
        [n, 1, 1, P + S]; a dict by layer type where the configuration has `layer_types`.
    """
    of_prompt, of_own = (torch.arange(length, device=counts.device) for length in slots)
    # Positions of keys, counted from the end of the prompt; empty slots after a prompt have none.
    position = torch.cat([of_prompt - prompts[:, None], of_own.expand(len(counts), -1)], dim=1)
    ahead = counts[:, None] - position  # [n, P + S], 1 for the newest token itself
    seen = ahead > 0
    seen[:, : slots[0]] &= position[:, : slots[0]] < 0

    def mask(kind: str) -> Tensor:
        within = seen
        if kind == "sliding_attention":
            within = seen & (ahead <= config.sliding_window)
        within = within[:, None, None]
        if dtype == torch.bool:
            return within
        lowest = torch.zeros(within.shape, dtype=dtype, device=within.device)
        return lowest.masked_fill_(~within, torch.finfo(dtype).min)

    return by_layer_type(config, mask)


def check_cacheable(config: Any, attention: str) -> None:
    """Check that a decoder's only state is keys and values by position, and that it takes masks.

    Args:
        config: the decoder's (text) configuration.
        attention: the attention implementation that it is loaded with.

    Raises:
        UserError: either fails; the message names the layer type or the attention implementation.
    """
    known = {"full_attention", "sliding_attention"}
    unknown = sorted(set(getattr(config, "layer_types", None) or []) - known)
    if unknown or getattr(config, "attention_chunk_size", None) is not None:
        kind = unknown[0] if unknown else "chunked_attention"
        raise UserError(
            f"{config.model_type!r} has layers of type {kind!r}, which the sampler cannot decode; "
            "use a decoder with full or sliding attention"
        )
    if attention not in ("sdpa", "eager"):
        raise UserError(
            f"attention implementation {attention!r} takes no mask by row; "
            "load the model with attn_implementation='sdpa' or 'eager'"
        )
