"""Packs as attention sees them: which token sees which, and how tokens are grouped for a kernel.

A token sees its own prompt copy and its own completion, up to its own position. Distance is
counted in positions and not in indices: in a pack the two differ, since several completions
follow one prompt. How far back a layer sees depends on its kind (`Reach`).

Texts are cut into tiles with causal attention inside, and a later tile also sees what precedes it
in the text. For a prompt p and completions a and b, where a has two tiles:

    tiles     p   a1   a2   b         queries and keys are the same tokens, causal
    behind    a1 a2 b → p   a2 → a1   the queries see all of these keys: no mask

Only where a window cuts off keys does such a pair need a mask. For a prompt of P tokens and
completions of L1, L2, … tokens, that makes about P²/2 + ΣL²/2 + P·ΣL scores, where a dense mask has
(P + ΣL)².
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError

Made = TypeVar("Made")
MaskMod = Callable[[Tensor, Any, Tensor, Tensor], Tensor]

TILE = 128
"""Most tokens of a tile. Up to 512 keys, the kernel also computes all scores above the diagonal. It
is less efficient in tiles of 64 (3.8 ns per score and head instead of 3.4)."""
_LANES = 16
_CALL_SCORES = 2000
"""Number of scores that take about as long as one more call of the kernel: tiles are padded to the
longest of their bucket until the padding costs more. Values from 1000 to 8000 gave times within
5 % of each other."""


@dataclass(frozen=True)
class Reach:
    """How far back a layer sees: to the beginning if neither limit is given."""

    window: int | None = None
    """It sees keys that are less than this many positions before the query."""
    chunk: int | None = None
    """It sees keys in the same chunk of this many positions as the query."""

    @classmethod
    def of_kind(cls, kind: str, config: Any) -> Reach:
        """Return the reach of a decoder's layers of this kind, such as `sliding_attention`.

        Raises:
            UserError: the kind carries a state along the row (linear attention, convolution).
        """
        if kind == "full_attention":
            return cls()
        if kind == "sliding_attention":
            return cls(window=config.sliding_window)
        if kind == "chunked_attention":
            return cls(chunk=config.attention_chunk_size)
        raise UserError(
            f"{config.model_type!r} has layers of type {kind!r}, which carry a state along the row "
            "and cannot be packed; use a decoder with full, sliding or chunked attention"
        )

    @classmethod
    def of_layer(cls, layer: int, config: Any) -> Reach:
        """Return the reach of a decoder's layer, indexed from 0 over the whole model."""
        reaches = by_layer_type(config, lambda kind: cls.of_kind(kind, config))
        return reaches[config.layer_types[layer]] if isinstance(reaches, dict) else reaches


def by_layer_type(config: Any, make: Callable[[str], Made]) -> Made | dict[str, Made]:
    """Return what `make` gives for each layer type of a decoder, or one value if it has no types.

    A decoder with `layer_types` takes a dict of masks by layer type. One without takes a single
    mask: sliding if it has a `sliding_window` (Mistral), chunked if it has an
    `attention_chunk_size`. This is the rule of transformers' own `create_masks_for_generate`.

    Args:
        config: the decoder's (text) configuration.
        make: called with the type, such as `sliding_attention`.
    """
    layer_types = getattr(config, "layer_types", None)
    if layer_types:
        return {kind: make(kind) for kind in dict.fromkeys(layer_types)}
    if getattr(config, "sliding_window", None) is not None:
        return make("sliding_attention")
    if getattr(config, "attention_chunk_size", None) is not None:
        return make("chunked_attention")
    return make("full_attention")


@dataclass(frozen=True)
class Tiles:
    """n tiles padded to L tokens each, with causal attention inside."""

    where: slice
    """Their n·L rows among all gathered rows."""
    shape: tuple[int, int]
    """(n, L)"""
    padding: Tensor | None
    """[n, 1, L] bool, True on padding; None if there is none."""
    band: Tensor | None
    """[1, 1, L, L] additive mask of a window shorter than L; None if tiles are simply causal."""


@dataclass(frozen=True)
class Behind:
    """N tokens that see, besides their own tile, P tokens that precede it."""

    queries: slice
    keys: slice
    mask: Tensor | None
    """[1, 1, N, P] additive mask of a window that cuts off some keys; None if all are seen."""


@dataclass(frozen=True)
class PackRows:
    """Plan of attention over packs [B, S], whose tokens are numbered from 0 to B·S − 1."""

    tiles: list[Tiles]
    behind: list[Behind]
    gathered: Tensor
    """[R] int64 tokens of all `tiles`, concatenated; padding repeats the last token of its tile."""
    place: Tensor
    """[B·S] int64 row of each token in `gathered`; 0 on padding."""
    padding: Tensor
    """int64 numbers of the tokens that are padding."""


@dataclass(frozen=True)
class PromptCopy:
    """A prompt and the completions behind it; its tokens are numbered through all packs."""

    start: int
    ends: list[int]
    """The end of the prompt, then of each completion."""

    def texts(self) -> list[tuple[int, int]]:
        """Return each text's (start, end); a prompt and a single completion form one text."""
        if len(self.ends) == 2:
            return [(self.start, self.ends[1])]
        return list(zip([self.start, *self.ends[:-1]], self.ends, strict=True))


@dataclass(frozen=True, eq=False)
class PackLayout:
    """Layout of packs [B, S]. What is derived from it is made on first use, once for all layers."""

    position_ids: Tensor
    group_ids: Tensor
    completion_ids: Tensor
    _made: dict[object, Any] = field(default_factory=dict)

    def sees(self, reach: Reach) -> MaskMod:
        """Return a function that tells whether one token of a pack sees another.

        Padding sees itself.

        Returns:
            A function of index tensors (pack, head, query, key), which broadcast, to bool. The head
            does not matter.
        """
        positions, groups, completions = self.position_ids, self.group_ids, self.completion_ids

        def seen(pack: Tensor, _head: Any, query: Tensor, key: Tensor) -> Tensor:
            at, other = positions[pack, query], positions[pack, key]
            group, text = groups[pack, query], completions[pack, key]
            found = (group == groups[pack, key]) & (group >= 0) & (other <= at)
            found = found & ((text == -1) | (text == completions[pack, query]))
            if reach.window is not None:
                found = found & (at - other < reach.window)
            if reach.chunk is not None:
                found = found & (at // reach.chunk == other // reach.chunk)
            # Padding sees itself, or its row of the softmax would be empty.
            return found | (query == key)

        return seen

    def visible(self, reach: Reach) -> Tensor:
        """Return the dense mask, [B, 1, S, S] bool, query by key."""
        return self.once(PackLayout._visible, reach)

    def rows(self, window: int | None, dtype: torch.dtype) -> PackRows:
        """Return the plan of attention by rows within this window, for queries of this dtype."""
        if window is not None and window >= self._longest:
            window = None
        return self.once(PackLayout._rows, window, dtype)

    def once(self, make: Callable[..., Made], *how: Any) -> Made:
        """Return make(self, *how), which is called only once for the same arguments."""
        if (make, how) not in self._made:
            self._made[make, how] = make(self, *how)
        return self._made[make, how]

    def _rows(self, window: int | None, dtype: torch.dtype) -> PackRows:
        return plan_rows(self._copies, self.position_ids.flatten().numpy(), window, dtype)

    def _visible(self, reach: Reach) -> Tensor:
        packs, length = self.group_ids.shape
        index = torch.arange(max(packs, length), device=self.group_ids.device)
        pack, token = index[:packs, None, None], index[:length]
        return self.sees(reach)(pack, None, token[:, None], token)[:, None]

    @cached_property
    def _copies(self) -> list[PromptCopy]:
        return find_copies(self.group_ids, self.completion_ids)

    @cached_property
    def _longest(self) -> int:
        """Return the length of the longest text in positions, its prompt included."""
        return int(self.position_ids.max()) + 1


def find_copies(group_ids: Tensor, completion_ids: Tensor) -> list[PromptCopy]:
    """Find the prompt copies of packs [B, S], in order.

    Packs must be laid out as by `packing.pack`: each prompt directly followed by its completions.
    """
    groups, completions = group_ids.numpy(), completion_ids.numpy()
    begins = np.ones(groups.shape, dtype=bool)
    begins[:, 1:] = (np.diff(groups) != 0) | (np.diff(completions) != 0)
    starts = np.flatnonzero(begins)
    ends = [*starts[1:].tolist(), groups.size]
    copies: list[PromptCopy] = []
    for start, end, group, completion in zip(
        starts.tolist(),
        ends,
        groups.ravel()[starts].tolist(),
        completions.ravel()[starts].tolist(),
        strict=True,
    ):
        if group >= 0 and completion < 0:
            copies.append(PromptCopy(start, [end]))
        elif group >= 0:
            assert copies and copies[-1].ends[-1] == start, (start, "does not follow its prompt")
            copies[-1].ends.append(end)
    return copies


def plan_rows(
    copies: Sequence[PromptCopy], positions: np.ndarray, window: int | None, dtype: torch.dtype
) -> PackRows:
    """Plan how to compute attention over these prompt copies.

    Args:
        positions: [B·S] positions in the text that the model sees.
        window: as in `Reach`.
        dtype: dtype of the additive masks, the same as that of queries and keys.
    """
    window = window or len(positions) + 1
    texts = [text for copy in copies for text in copy.texts()]
    spans = [span for text in texts for span in _cut(text)]
    tiles, indices, base = [], [], 0
    place = np.full(len(positions), -1)
    # If there is only padding, its first token becomes a tile.
    for bucket in _buckets(spans or [(0, 1)]):
        index, kept = _padded(bucket)
        place[index[kept]] = base + np.flatnonzero(kept)
        tiles.append(_tiles(base, kept, window, dtype))
        indices.append(index.ravel())
        base += index.size
    behind = [
        _behind(queries, keys, positions, window, dtype)
        for queries, keys in _pairs(copies, texts, window)
    ]
    padding = np.flatnonzero(place < 0)
    place[padding] = 0
    arrays = (np.concatenate(indices), place, padding)
    return PackRows(tiles, behind, *map(torch.from_numpy, arrays))


def _cut(text: tuple[int, int]) -> list[tuple[int, int]]:
    """Cut a text into equal tiles, rounded up to the kernel's lanes; the last may be shorter."""
    start, end = text
    count = -(-(end - start) // TILE)
    size = _round_up(-(-(end - start) // count))
    return [(at, min(at + size, end)) for at in range(start, end, size)]


def _pairs(
    copies: Sequence[PromptCopy], texts: Sequence[tuple[int, int]], window: int
) -> Iterator[tuple[slice, slice]]:
    """Yield queries with those keys before them that lie in the window of the first query."""
    seen = [(copy.start, copy.ends[0], copy.ends[-1]) for copy in copies if len(copy.ends) > 2]
    seen += [(text[0], *tile) for text in texts for tile in _cut(text)[1:]]
    for start, end, last in seen:
        start = max(start, end - window + 1)
        if start < end:
            yield slice(end, last), slice(start, end)


def _buckets(spans: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Group the tiles that are padded together, the longest first."""
    buckets: list[list[tuple[int, int]]] = []
    wasted, longest = 0, 0
    for start, end in sorted(spans, key=lambda span: span[0] - span[1]):
        length = _filled(end - start)
        wasted += longest * longest - length * length
        if not buckets or wasted > _CALL_SCORES:
            buckets.append([])
            wasted, longest = 0, length
        buckets[-1].append((start, end))
    return buckets


def _padded(spans: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of the padded tiles, [n, L], and which of them are not padding."""
    starts, ends = np.array(spans).T[:, :, None]
    index = starts + np.arange(_filled(int((ends - starts).max())))
    return np.minimum(index, ends - 1), index < ends


def _tiles(base: int, kept: np.ndarray, window: int, dtype: torch.dtype) -> Tiles:
    count, length = kept.shape
    padding = None if kept.all() else torch.from_numpy(~kept[:, None])
    band = None
    if length > window:
        steps = np.arange(length)
        distance = steps[:, None] - steps
        band = _additive((distance >= 0) & (distance < window), dtype)
    return Tiles(slice(base, base + kept.size), (count, length), padding, band)


def _behind(
    queries: slice, keys: slice, positions: np.ndarray, window: int, dtype: torch.dtype
) -> Behind:
    first, last = positions[keys.start], positions[queries].max()
    if last - first < window:
        return Behind(queries, keys, None)
    distance = positions[queries, None] - positions[keys]
    return Behind(queries, keys, _additive(distance < window, dtype))


def _additive(seen: np.ndarray, dtype: torch.dtype) -> Tensor:
    """Turn bool [N, M] into an additive mask [1, 1, N, M]: 0 where True, else the lowest value.

    It is not -inf, since a row that holds nothing but -inf would become nan.
    """
    mask = torch.zeros(seen.shape, dtype=dtype)
    return mask.masked_fill_(torch.from_numpy(~seen), torch.finfo(dtype).min)[None, None]


def _filled(length: int) -> int:
    """Round a length up to full lanes if it is just short of them.

    Just short of full lanes, the kernel takes a quarter longer than with full ones.
    """
    full = _round_up(length)
    return full if full - length <= _LANES // 4 else length


def _round_up(length: int) -> int:
    return -(-length // _LANES) * _LANES
