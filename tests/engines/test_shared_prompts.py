"""Attention that reads a prompt once for its group, against attention row by row."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sampler_requests import FAMILIES, STOPS, ids_of, prompts_of, requests_of
from support.tiny_models import tiny_model
from torch import Tensor

from common.engines.engine import SamplingParams
from common.engines.native import cache as cache_module
from common.engines.native.attention import Grid, scores_dtype, shared_prompt_attention, step_masks
from common.engines.native.cache import KeysValues, PromptCache, RowCache, room_for
from common.engines.native.sampler import Sampler
from common.errors import UserError

CPU = torch.device("cpu")


def plain_attention(
    query: Tensor, keys: Tensor, values: Tensor, scaling: float, softcap: float | None
) -> Tensor:
    """[heads, v] of one row: query [heads, k] over keys [kv_heads, T, k], values [kv_heads, T, v]
    that it sees all of."""
    share = len(query) // len(keys)
    keys, values = (part.repeat_interleave(share, 0) for part in (keys, values))
    scores = torch.einsum("hk,htk->ht", query, keys) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return torch.einsum("ht,htv->hv", scores.softmax(-1), values)


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    entries=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 7)), min_size=1, max_size=9),
    heads=st.sampled_from([(1, 1), (2, 1), (2, 3)]),
    window=st.sampled_from([None, 1, 3, 8, 100]),
    softcap=st.sampled_from([None, 1.5]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
@settings(max_examples=120)
def test_it_is_plain_attention_of_each_row(
    lengths: list[int],
    entries: list[tuple[int, int]],
    heads: tuple[int, int],
    window: int | None,
    softcap: float | None,
    dtype: torch.dtype,
) -> None:
    """Rows of any prompts in any order, groups of any sizes and of one, prompts and own tokens of
    any lengths, windows that end in the prompt; keys and values have widths of their own. What is
    masked is large, so that any weight on it shows."""
    generator = torch.Generator().manual_seed(len(entries))

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    kv_heads, share = heads
    prompt_of_row = np.array([entry % len(lengths) for entry, _ in entries])
    counts = torch.tensor([count for _, count in entries])
    rows, slots = len(entries), 8
    prompts = random(len(lengths), kv_heads, 10, 4), random(len(lengths), kv_heads, 10, 6)
    own = random(rows, kv_heads, slots, 4), random(rows, kv_heads, slots, 6)
    for part in (*prompts, *own):
        ends = counts if part.shape[2] == slots else lengths
        for entry, end in enumerate(ends):
            part[entry, :, end:] = 1e4
    query = random(rows, kv_heads * share, 1, 4)
    config = SimpleNamespace(sliding_window=window)
    of_row = torch.tensor(lengths)[prompt_of_row]
    mask = step_masks(config, of_row, counts, (10, slots), scores_dtype(dtype))
    used = int(prompt_of_row.max()) + 1
    found = shared_prompt_attention(
        query,
        (prompts[0][:used], prompts[1][:used]),
        own,
        Grid(prompt_of_row, CPU),
        mask,
        0.7,
        softcap,
    )
    assert found.shape == (rows, 1, kv_heads * share, 6)
    for row, prompt in enumerate(prompt_of_row):
        keys, values = (
            torch.cat([part[prompt, :, : lengths[prompt]], mine[row, :, : counts[row]]], dim=1)
            for part, mine in zip(prompts, own, strict=True)
        )
        near = slice(None) if window is None else slice(-window, None)
        expected = plain_attention(query[row, :, 0], keys[:, near], values[:, near], 0.7, softcap)
        tolerance = 1e-12 if dtype == torch.float64 else 2e-5
        torch.testing.assert_close(found[row, 0], expected, atol=tolerance, rtol=tolerance)


def test_masks_are_of_each_layer_type_and_form() -> None:
    config = SimpleNamespace(layer_types=["sliding_attention", "full_attention"], sliding_window=3)
    masks: Any = step_masks(config, torch.tensor([2, 1]), torch.tensor([2, 3]), (3, 4), torch.bool)
    assert masks["full_attention"].int().tolist() == [
        [[[1, 1, 0, 1, 1, 0, 0]]],
        [[[1, 0, 0, 1, 1, 1, 0]]],
    ]
    assert masks["sliding_attention"].int().tolist() == [
        [[[0, 1, 0, 1, 1, 0, 0]]],
        [[[0, 0, 0, 1, 1, 1, 0]]],
    ]
    added: Any = step_masks(
        SimpleNamespace(), torch.tensor([2]), torch.tensor([2]), (3, 4), torch.float32
    )
    assert torch.equal(added == 0, masks["full_attention"][:1])
    assert added.min() == torch.finfo(torch.float32).min


@pytest.mark.parametrize("family", FAMILIES)
def test_families_share_prompts_or_are_known_not_to(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without this, every test of the sampler would pass by the way that shares nothing. StableLM's
    layers do not pass on what the attention function needs."""
    model = tiny_model(family)
    own = model.config._attn_implementation
    calls = []

    def counting(*args: Any) -> Tensor:
        calls.append(args)
        return shared_prompt_attention(*args)

    monkeypatch.setattr(cache_module, "shared_prompt_attention", counting)
    Sampler(model, []).generate(requests_of(prompts_of([4, 9]), 3), SamplingParams(5))
    assert len(calls) == (0 if family == "stablelm" else 4 * model.config.num_hidden_layers)
    assert model.config._attn_implementation == own


def test_the_attention_is_given_back_when_sampling_fails() -> None:
    model = tiny_model("llama")
    sampler = Sampler(model, STOPS)

    def fail(*args: Any) -> None:
        raise UserError("no")

    handle = model.get_output_embeddings().register_forward_hook(fail)
    with pytest.raises(UserError, match="no"):
        sampler.generate(requests_of(prompts_of([4]), 2), SamplingParams(5))
    handle.remove()
    assert model.config._attn_implementation == "sdpa"


def test_scores_of_bfloat16_are_not_rounded_before_the_softmax() -> None:
    """Scores near 100, where bfloat16 has steps of 0.5: rounded, weights would be a third off."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(torch.bfloat16)

    query = random(3, 2, 1, 64)
    prompts, own = [tuple(random(n, 1, 5, 64) for _ in "kv") for n in (1, 3)]
    mask = torch.zeros(3, 1, 1, 10)
    grid = Grid(np.zeros(3, dtype=np.int64), CPU)
    found = shared_prompt_attention(query, prompts, own, grid, mask, 6.0)
    for row in range(3):
        keys, values = (
            torch.cat([part[0], mine[row]], dim=1).double()
            for part, mine in zip(prompts, own, strict=True)
        )
        expected = plain_attention(query[row, :, 0].double(), keys, values, 6.0, None)
        torch.testing.assert_close(found[row, 0].double(), expected, atol=0.03, rtol=0.02)


def test_a_prompt_stands_in_the_cache_once_for_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of 8, two and a bit at a time: at most 4 prompts are held, and own parts have room for
    completions alone; a copy of the prompt for each of the 20 rows would be 20 of 48 slots."""
    allocated: dict[int, tuple[int, int]] = {}
    resized = KeysValues._resized

    def noting(self: KeysValues, held: Tensor, entries: int, length: int) -> Tensor:
        before = allocated.get(id(self), (0, 0))
        allocated[id(self)] = max(before[0], entries), max(before[1], length)
        return resized(self, held, entries, length)

    monkeypatch.setattr(KeysValues, "_resized", noting)
    model = tiny_model("llama")
    requests = requests_of(prompts_of([40, 35, 42, 33, 48, 37]), 8)
    Sampler(model, STOPS, max_concurrent=20).generate(requests, SamplingParams(14))
    own, prompts = sorted(allocated.values(), reverse=True)
    assert own == (20, 16)
    assert prompts[0] <= 6 and prompts[1] == 48


def test_what_is_held_survives_growing_moving_and_giving_back() -> None:
    held = KeysValues()
    prompts = PromptCache()
    content = torch.arange(3 * 2 * 5 * 4.0).view(3, 2, 5, 4)
    prompts.update(content, content + 1000, 0)
    held.begin_like(prompts)
    held.fit(3, 16)
    held.put(prompts, torch.tensor([2, 0, 1]), torch.tensor([0, 1, 2]))
    held.fit(4, 32)
    assert (held.entries, held.length) == (4, 32), "half as much again"
    held.move(torch.tensor([2]), torch.tensor([0]))
    held.fit(2, 16)
    assert held.keys[0].shape == held.values[0].shape == (2, 2, 16, 4)
    assert torch.equal(held.keys[0][:, :, :5], content[[1, 0]])
    assert torch.equal(held.values[0][:, :, :5], content[[1, 0]] + 1000)
    assert not held.keys[0][:, :, 5:].any()
    before = held.keys[0]
    held.fit(2, 9)
    assert held.keys[0] is before, "more than half is in use"


def test_room_grows_in_few_and_small_steps() -> None:
    rooms = [room_for(length) for length in range(1, 5000)]
    assert all(length <= room for length, room in enumerate(rooms, 1))
    assert all(room < 2 * length for length, room in enumerate(rooms[15:], 16))
    assert len(set(rooms)) < 60


def test_the_last_layers_own_attention_is_noticed() -> None:
    """A decoder whose last layer does not attend through the interface has no layer behind it that
    would tell."""
    cache = RowCache()
    prompts = PromptCache()
    prompts.update(torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4), 0)
    cache.own.begin_like(prompts)
    cache.begin_step(Grid(np.array([0]), CPU), 1, 1)
    cache.update(torch.ones(1, 1, 1, 4), torch.ones(1, 1, 1, 4), 0)
    with pytest.raises(Exception, match="layer 0 does not attend"):
        cache.check_attended()


def test_rows_of_other_groups_follow_as_if_alone() -> None:
    """Few rows, groups of unequal sizes and prompts from 1 to 40 tokens under a window of 5: rows
    are taken over by other groups and prompts move, and in float64 no token may change."""
    model = tiny_model("qwen2_sliding", dtype=torch.float64)
    prompts = prompts_of([40, 1, 17, 6, 33, 2, 25])
    requests = [
        type(request)(request.prompt_ids, request.seeds[: 1 + 3 * (number % 3)])
        for number, request in enumerate(requests_of(prompts, 7))
    ]
    together = Sampler(model, STOPS, max_concurrent=5, prefill_tokens=80).generate(
        requests, SamplingParams(22)
    )
    alone = [Sampler(model, STOPS).generate([r], SamplingParams(22))[0] for r in requests]
    assert ids_of(together) == ids_of(alone)
