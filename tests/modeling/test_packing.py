"""Packs hold every completion token once as a target, behind the hidden state that predicts it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from common.modeling.packing import (
    Completion,
    PackBatch,
    gather_to_rows,
    pack,
    scatter_to_packs,
)


@st.composite
def completion_lists(draw: st.DrawFn) -> list[Completion]:
    """Groups in any order of rows, prompts of 1 to 8 tokens, completions of 0 to 12.

    All tokens differ, so that a token found in a pack has one possible origin.
    """
    sizes = draw(st.lists(st.integers(1, 4), max_size=4))
    fresh = iter(range(1, 10_000))
    rows = []
    for group, size in enumerate(sizes):
        prompt = [next(fresh) for _ in range(draw(st.integers(1, 8)))]
        for _ in range(size):
            length = draw(st.integers(0, 12))
            rows.append(Completion(prompt, [next(fresh) for _ in range(length)], group * 7))
    return draw(st.permutations(rows))


settings_of_pack = st.fixed_dictionaries(
    {
        "tokens_per_pack": st.none() | st.integers(1, 60),
        "share_prompts": st.booleans(),
        "bucket": st.sampled_from([1, 8, 64]),
        "min_packs": st.integers(1, 5),
        "multiple_of": st.integers(1, 4),
    }
)


def targets_of(batch: PackBatch) -> list[tuple[int, int, int, int, int]]:
    """(pack, row, offset, target, predict_from) of every target."""
    mask = batch.target_mask
    packs = torch.arange(batch.num_packs)[:, None].expand_as(mask)
    columns = (packs, batch.row, batch.offset, batch.target_ids, batch.predict_from)
    return list(zip(*(column[mask].tolist() for column in columns), strict=True))


@given(completion_lists(), settings_of_pack)
@settings(max_examples=200)
def test_every_completion_token_is_a_target_once(rows, options):
    batch = pack(rows, **options)
    found = sorted((row, offset, target) for _, row, offset, target, _ in targets_of(batch))
    expected = [
        (row, offset, token)
        for row, completion in enumerate(rows)
        for offset, token in enumerate(completion.completion_ids)
    ]
    assert found == expected
    assert batch.num_targets == len(expected)


@given(completion_lists(), settings_of_pack)
@settings(max_examples=200)
def test_each_target_is_predicted_by_exactly_its_text(rows, options):
    """The state that predicts a target stands behind prompt and earlier tokens, and sees no other.

    What it sees is rebuilt from the ids that the mask is made of, sorted by position; a shift by
    one, a wrong prompt copy or a missing token would all change that text.
    """
    batch = pack(rows, **options)
    for p, row, offset, _, at in targets_of(batch):
        group, completion = batch.group_ids[p, at], batch.completion_ids[p, at]
        seen = [
            (int(batch.position_ids[p, s]), int(batch.input_ids[p, s]))
            for s in range(batch.input_ids.shape[1])
            if batch.group_ids[p, s] == group
            and batch.completion_ids[p, s] in (-1, completion)
            and batch.position_ids[p, s] <= batch.position_ids[p, at]
        ]
        text = [*rows[row].prompt_ids, *rows[row].completion_ids[:offset]]
        assert sorted(seen) == list(enumerate(text))


@given(completion_lists(), settings_of_pack)
@settings(max_examples=200)
def test_shapes_budget_and_filling(rows, options):
    batch = pack(rows, **options)
    budget, bucket = options["tokens_per_pack"], options["bucket"]
    inputs = (batch.group_ids >= 0).sum(dim=1)
    longest = max(
        (len(r.prompt_ids) + len(r.completion_ids) - 1 for r in rows if r.completion_ids), default=0
    )
    assert int(inputs.max()) <= max(budget or 0, longest)
    assert batch.num_packs >= options["min_packs"]
    assert batch.num_packs % options["multiple_of"] == 0
    packs, length = batch.input_ids.shape
    targets = batch.target_mask.shape[1]
    assert length % bucket == targets % bucket == 0
    assert length < max(int(inputs.max()), 1) + bucket
    for name, tensor in vars(batch).items():
        assert tensor.shape == (packs, targets if tensor.shape[1] == targets else length), name
        assert tensor.dtype == (torch.bool if name == "target_mask" else torch.int64), name
    if budget is None:
        assert all(
            len(set(r[m].tolist())) <= 1 for r, m in zip(batch.row, batch.target_mask, strict=True)
        )


@given(completion_lists(), settings_of_pack)
@settings(max_examples=100)
def test_a_completion_never_crosses_a_pack_and_prompts_are_shared(rows, options):
    batch = pack(rows, **options)
    pack_of = {}
    for p, row, *_ in targets_of(batch):
        assert pack_of.setdefault(row, p) == p
    if options["share_prompts"] and options["tokens_per_pack"] is not None:
        for p in range(batch.num_packs):
            copies = len(set(batch.group_ids[p].tolist()) - {-1})
            assert copies == len({rows[row].group for row, where in pack_of.items() if where == p})


@given(completion_lists(), settings_of_pack)
@settings(max_examples=100)
def test_scatter_and_gather_are_inverse(rows, options):
    batch = pack(rows, **options)
    lengths = [len(r.completion_ids) for r in rows]
    values = [torch.rand(length, dtype=torch.float64) for length in lengths]
    packed = scatter_to_packs(values, batch, fill=-3.0)
    assert packed.shape == batch.row.shape
    assert bool((packed[~batch.target_mask] == -3.0).all())
    back = gather_to_rows(packed, batch, lengths)
    assert [t.tolist() for t in back] == [t.tolist() for t in values]


def test_the_picture_of_the_docstring():
    rows = [Completion([10, 11, 12], [20, 21, 22], 5), Completion([10, 11, 12], [30, 31], 5)]
    batch = pack(rows, tokens_per_pack=100, bucket=1)
    assert batch.input_ids.tolist() == [[10, 11, 12, 20, 21, 30]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 3]]
    assert batch.completion_ids.tolist() == [[-1, -1, -1, 0, 0, 1]]
    assert batch.target_ids.tolist() == [[20, 21, 22, 30, 31]]
    assert batch.predict_from.tolist() == [[2, 3, 4, 2, 5]]


def test_no_rows_make_empty_packs():
    batch = pack([], tokens_per_pack=32, min_packs=3, multiple_of=2)
    assert batch.num_packs == 4
    assert batch.num_targets == 0
    assert gather_to_rows(torch.zeros(batch.row.shape), batch, []) == []
    assert scatter_to_packs([], batch, fill=1.0).unique().tolist() == [1.0]


def test_a_group_larger_than_the_budget_repeats_its_prompt():
    prompt = list(range(1, 11))
    rows = [Completion(prompt, [100 + i] * 6, 0) for i in range(4)]
    batch = pack(rows, tokens_per_pack=20, bucket=1)
    assert batch.num_packs == 2
    assert bool((batch.input_ids[:, :10] == torch.tensor(prompt)).all())


def test_one_long_completion_lets_the_others_fill_the_padding():
    """All packs are padded to the longest row, so leaving short rows apart would save nothing."""
    rows = [Completion([1], [5] * 100, 0)] + [
        Completion([2 + i], [6] * 25, 1 + i) for i in range(4)
    ]
    batch = pack(rows, tokens_per_pack=30, bucket=1)
    assert batch.input_ids.shape == (2, 100)


def test_packing_is_deterministic_and_microbatches_are_its_views():
    rows = [Completion([1, 2], [3] * n, g) for g in range(5) for n in (1, 7, 4)]
    first, second = (pack(rows, tokens_per_pack=16, multiple_of=2) for _ in range(2))
    assert all(torch.equal(vars(first)[name], vars(second)[name]) for name in vars(first))
    parts = first.microbatches(2)
    assert torch.equal(torch.cat([part.input_ids for part in parts]), first.input_ids)
    assert parts[0].input_ids.data_ptr() == first.input_ids.data_ptr()
    chosen = first.select(torch.tensor([1, 0]))
    assert torch.equal(chosen.row, first.row[[1, 0]])


def test_an_empty_prompt_is_refused():
    with pytest.raises(UserError, match=r"completion 0 .*empty prompt"):
        pack([Completion([], [1], 0)], tokens_per_pack=8)


def test_two_prompts_in_a_group_are_refused():
    rows = [Completion([1], [2], 4), Completion([1, 3], [2], 4)]
    with pytest.raises(UserError, match=r"completion 1 has another prompt .* 4"):
        pack(rows, tokens_per_pack=8)


@given(completion_lists(), st.integers(1, 60))
@settings(max_examples=100)
def test_no_completion_would_fit_into_an_earlier_pack(rows, budget):
    """First fit: room is left over only where nothing that came later fits."""
    batch = pack(rows, tokens_per_pack=budget)
    packs_of = [
        set(row[mask].tolist()) for row, mask in zip(batch.row, batch.target_mask, strict=True)
    ]
    inputs = (batch.group_ids >= 0).sum(dim=1)
    room = [max(budget, int(inputs.max())) - int(count) for count in inputs]
    for later, members in enumerate(packs_of):
        for row in members:
            for earlier in range(later):
                there = {rows[other].group for other in packs_of[earlier]}
                prompt = 0 if rows[row].group in there else len(rows[row].prompt_ids)
                assert prompt + len(rows[row].completion_ids) - 1 > room[earlier]
