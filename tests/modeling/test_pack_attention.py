"""Attention by rows is that of the dense mask: outputs and gradients, whatever the packs.

The other side is torch's own `scaled_dot_product_attention` under the mask that `PackLayout`
writes out; `test_packed_decoder.py` holds both against plain rows.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.tiny_models import layout_of
from test_packing import completion_lists
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from common.modeling import pack_attention as pack_attention_module
from common.modeling import pack_layout
from common.modeling.pack_attention import flex_attention, pack_attention
from common.modeling.pack_layout import PackLayout, Reach
from common.modeling.packing import Completion, PackBatch, pack

WINDOWS = [None, 1, 2, 5, 40]
NARROW = 4
"""Tokens of a tile in some tests, so that short texts are cut."""


def inputs(batch: PackBatch, dtype: torch.dtype = torch.float64, heads: int = 3) -> list[Tensor]:
    """Query, key and value [B, H, S, D] as a decoder has them, and a gradient of the output."""
    packs, length = batch.input_ids.shape
    generator = torch.Generator().manual_seed(length)
    shape = (packs, length, heads, 8)
    made = [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(4)]
    return [x.transpose(1, 2) for x in made]


def dense_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: PackLayout, reach: Reach, scale: float | None
) -> Tensor:
    mask = layout.visible(reach)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


def outputs_and_gradients(
    attention: Callable[..., Tensor], batch: PackBatch, *how: object
) -> list[Tensor]:
    """[B, H, S, D] each, 0 on padding; the gradient there is 0 too, as of a loss that masks it."""
    real = (batch.group_ids >= 0)[:, None, :, None]
    *qkv, grad = inputs(batch)
    leaves = [x.clone().requires_grad_() for x in qkv]
    out = attention(*leaves, *how)
    return [out * real, *torch.autograd.grad(out, leaves, grad * real)]


def assert_rows_equal_dense(
    batch: PackBatch, window: int | None, scale: float | None = None
) -> None:
    how = layout_of(batch), Reach(window=window), scale
    rows = outputs_and_gradients(pack_attention, batch, *how)
    dense = outputs_and_gradients(dense_attention, batch, *how)
    for ours, expected in zip(rows, dense, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


random_packs = st.fixed_dictionaries(
    {
        "tokens_per_pack": st.none() | st.integers(1, 60),
        "share_prompts": st.booleans(),
        "bucket": st.sampled_from([1, 8]),
        "min_packs": st.integers(1, 3),
    }
)


@pytest.mark.parametrize("tile", [NARROW, 128])
@given(completion_lists(), random_packs, st.sampled_from(WINDOWS))
@example([], {"tokens_per_pack": 8, "min_packs": 2}, None)
@example([Completion([1], [2], 0)], {"tokens_per_pack": 8, "bucket": 1}, None)
@example([Completion([1, 2], [3], 0), Completion([1, 2], [4], 0)], {"tokens_per_pack": 9}, 1)
@settings(max_examples=60)
def test_outputs_and_gradients_are_those_of_the_dense_mask(tile, rows, how, window):
    """Empty packs, single tokens, prompts without inputs behind them, windows inside a prompt."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack_layout, "TILE", tile)
        patch.setattr(pack_layout, "_LANES", min(tile // 2, 16))
        assert_rows_equal_dense(pack(rows, **how), window)


@pytest.mark.parametrize("window", [None, 100, 300])
def test_long_texts_are_cut_into_tiles(window):
    """Prompt and completions of several tiles, unequal, with a scale of its own."""
    lengths = (300, 129, 128, 260, 17, 1)
    rows = [Completion([1] * 140, [2] * length, 0) for length in lengths]
    rows += [Completion([3] * 200, [2] * 150, 1)]
    batch = pack(rows, tokens_per_pack=4096)
    plan = layout_of(batch).rows(window, torch.float64)
    assert len(plan.behind) > 5
    assert all(tiles.shape[1] <= pack_layout.TILE for tiles in plan.tiles)
    assert_rows_equal_dense(batch, window, scale=0.7)


def test_no_mask_is_made_where_no_window_cuts():
    rows = [Completion([1] * 20, [2] * length, 0) for length in (30, 9, 14)]
    layout = layout_of(pack(rows, tokens_per_pack=128))
    plan = layout.rows(49, torch.float32)  # the longest text has 20 + 29 inputs
    assert plan is layout.rows(None, torch.float32)
    assert all(tiles.band is None for tiles in plan.tiles)
    assert all(part.mask is None for part in plan.behind)
    assert any(part.mask is not None for part in layout.rows(48, torch.float32).behind)


def test_scores_computed_are_a_small_part_of_the_square():
    """Prompt 64 and 8 × 64 tokens: 69,120 of 331,776 scores; 16 × 256 behind 256, a tenth."""

    def share(prompt: int, count: int, tokens: int) -> float:
        rows = [Completion([1] * prompt, [2] * tokens, 0) for _ in range(count)]
        batch = pack(rows, tokens_per_pack=8192)
        plan = layout_of(batch).rows(None, torch.float32)
        computed = sum(tiles.shape[0] * tiles.shape[1] ** 2 for tiles in plan.tiles)
        computed += sum(
            (part.queries.stop - part.queries.start) * (part.keys.stop - part.keys.start)
            for part in plan.behind
        )
        return computed / batch.input_ids.shape[1] ** 2

    assert share(64, 8, 64) < 0.21
    assert share(256, 16, 256) < 0.11


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_types_stay_as_close_as_the_dense_mask(dtype):
    """Both against float64; repeated calls give the same bits."""
    rows = [Completion([1] * 50, [2] * length, 0) for length in (90, 33, 64)]
    batch = pack(rows, tokens_per_pack=512)
    layout = layout_of(batch)
    exact, narrow = inputs(batch)[:3], [x.to(dtype) for x in inputs(batch)[:3]]
    real = (batch.group_ids >= 0)[:, None, :, None]
    how = layout, Reach(), None
    expected = dense_attention(*exact, *how) * real
    dense = dense_attention(*narrow, *how) * real
    ours, again = (pack_attention(*narrow, *how) * real for _ in range(2))
    assert ours.dtype == dtype
    assert (ours - expected).abs().max() < 2 * (dense - expected).abs().max() + 1e-6
    assert torch.equal(ours, again)


def test_attention_that_rows_are_not_made_for_is_computed_densely(monkeypatch):
    """Chunks, values of another width, and a torch without the kernels: the same numbers."""
    rows = [Completion([1] * 5, [2] * 7, 0) for _ in range(3)]
    batch = pack(rows, tokens_per_pack=64)
    layout = layout_of(batch)
    query, key, value, _ = inputs(batch, heads=4)

    def refuse(*_: object) -> None:
        raise AssertionError("computed by rows")

    def check(reach: Reach, value: Tensor) -> None:
        given = query, key, value, layout, reach, None
        assert torch.equal(pack_attention(*given), dense_attention(*given))

    monkeypatch.setattr(pack_attention_module, "row_attention", refuse)
    with pytest.raises(AssertionError, match="by rows"):
        check(Reach(), value)
    check(Reach(chunk=4), value)
    check(Reach(), value[..., :5])
    monkeypatch.setattr(pack_attention_module, "cpu_flash_attention", lambda: None)
    check(Reach(), value)


@given(completion_lists(), random_packs, st.sampled_from([Reach(), Reach(3), Reach(chunk=4)]))
@settings(max_examples=40)
def test_who_sees_whom_pair_by_pair(rows, how, reach):
    """The rule in words, for every pair; FlexAttention is given the same function."""
    batch = pack(rows, **how)
    visible = layout_of(batch).visible(reach)[:, 0].tolist()
    tokens = torch.stack([batch.group_ids, batch.completion_ids, batch.position_ids], -1).tolist()

    def sees(query: list[int], key: list[int]) -> bool:
        (group, text, at), (other_group, other_text, before) = query, key
        same_text = other_text in (-1, text)
        near = reach.window is None or at - before < reach.window
        near &= reach.chunk is None or at // reach.chunk == before // reach.chunk
        return group == other_group != -1 and same_text and before <= at and near

    for of_pack, seen in zip(tokens, visible, strict=True):
        for index, query in enumerate(of_pack):
            expected = [sees(query, key) or key is query for key in of_pack]
            assert seen[index] == expected


@pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile")
def test_flex_attention_of_packs_on_the_cpu():
    """Uncompiled: the block mask, the scale and the order of arguments."""
    batch = pack([Completion([1] * 9, [2] * n, 0) for n in (30, 70, 50)], tokens_per_pack=256)
    layout = layout_of(batch)
    query, key, value, _ = (x.float() for x in inputs(batch))
    for reach in (Reach(), Reach(window=20)):
        ours = flex_attention(query, key, value, layout, reach, 0.3)
        expected = scaled_dot_product_attention(
            query, key, value, attn_mask=layout.visible(reach), scale=0.3
        )
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
