"""Rows to packs and back: the only place that knows which hidden state predicts which token.

A pack is one input row that holds whole groups or parts of them. A group's prompt appears in it
once, followed by its completions, each of which sees the prompt and itself (`pack_layout.py`):

    input      p0 p1 p2 │ a0 a1 │ b0        prompt p, completions a = a0 a1 a2 and b = b0 b1
    position    0  1  2 │  3  4 │  3
    completion -1 -1 -1 │  0  0 │  1

    target        a0  a1  a2  b0  b1
    predict_from   2   3   4   2   5        index of the hidden state, hence the one-token shift

The last token of a completion predicts nothing that was sampled, so it is never an input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError


@dataclass(frozen=True)
class Completion:
    """One row to be packed; rows of the same `group` have the same prompt."""

    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    group: int


@dataclass(frozen=True)
class PackBatch:
    """P packs of S input tokens and T targets, int64 unless stated otherwise, made on the CPU.

    Padding has -1 in `group_ids`, `completion_ids` and `row`, False in `target_mask`, else 0.
    """

    input_ids: Tensor
    """[P, S]"""
    position_ids: Tensor
    """[P, S] position in the text that the model sees: a completion continues its prompt."""
    group_ids: Tensor
    """[P, S] index of the prompt copy in its pack, from 0; tokens never see another copy's."""
    completion_ids: Tensor
    """[P, S] index of the completion in the packed list; -1 on prompt tokens."""
    predict_from: Tensor
    """[P, T] index into S of the hidden state that predicts the target."""
    target_ids: Tensor
    """[P, T]"""
    target_mask: Tensor
    """[P, T] bool, False on padding."""
    row: Tensor
    """[P, T] index of the target's completion in the packed list."""
    offset: Tensor
    """[P, T] index of the target inside its completion."""

    @property
    def num_packs(self) -> int:
        return self.input_ids.shape[0]

    @property
    def num_targets(self) -> int:
        """Return the number of completion tokens in the batch, padding excluded."""
        return int(self.target_mask.sum())

    def to(self, device: torch.device | str) -> PackBatch:
        return PackBatch(*(tensor.to(device) for tensor in self._tensors()))

    def select(self, packs: slice | Tensor) -> PackBatch:
        """Return the given packs: a view for a slice, a copy for an index tensor."""
        return PackBatch(*(tensor[packs] for tensor in self._tensors()))

    def microbatches(self, count: int) -> list[PackBatch]:
        """Return `count` views of P / count packs each; P must be a multiple of `count`."""
        assert self.num_packs % count == 0, (self.num_packs, count)
        size = self.num_packs // count
        return [self.select(slice(i * size, (i + 1) * size)) for i in range(count)]

    def _tensors(self) -> list[Tensor]:
        return [getattr(self, field.name) for field in fields(self)]


def pack(
    completions: Sequence[Completion],
    *,
    tokens_per_pack: int | None,
    share_prompts: bool = True,
    bucket: int = 64,
    min_packs: int = 1,
    multiple_of: int = 1,
) -> PackBatch:
    """Lay completions into packs, deterministically and independently of any device.

    Args:
        completions: rows to pack; `row` is an index into them. One without tokens has no target.
        tokens_per_pack: most input tokens of a pack. A longer completion (its prompt included)
            raises this limit, since every pack is padded to the longest anyway. None gives each
            completion a pack of its own: the padded batch.
        share_prompts: put a prompt once into a pack for all completions of its group there.
        bucket: S and T are rounded up to a multiple of this, so that few shapes occur.
        min_packs: empty packs are added up to this number.
        multiple_of: empty packs are then added up to a multiple of this number.

    Raises:
        UserError: a prompt is empty (nothing predicts the first token), or a group has two prompts.
    """
    _check(completions)
    targets = [len(c.completion_ids) for c in completions]
    packs = _blocks(completions, targets, tokens_per_pack, share_prompts)
    targets_in = [sum(targets[row] for block in blocks for row in block) for blocks in packs]
    # A block has its prompt, and its completions without their last tokens.
    inputs_in = [
        count + sum(len(completions[block[0]].prompt_ids) - len(block) for block in blocks)
        for count, blocks in zip(targets_in, packs, strict=True)
    ]
    batch = _empty(
        _round_up(max(len(packs), min_packs), multiple_of),
        _round_up(max(inputs_in, default=0), bucket),
        _round_up(max(targets_in, default=0), bucket),
    )
    for index, blocks in enumerate(packs):
        _fill(batch, index, blocks, completions)
    return batch


def gather_to_rows(values: Tensor, batch: PackBatch, lengths: Sequence[int]) -> list[Tensor]:
    """Put values of targets, [P, T], back into the order of the packed list.

    Args:
        lengths: tokens of each completion.

    Returns:
        One 1-D tensor per completion; all are views of one tensor on the device of `values`.
    """
    mask = batch.target_mask.to(values.device)
    flat = values.new_empty(sum(lengths))
    assert int(mask.sum()) == len(flat), (int(mask.sum()), len(flat))
    flat[_flat_index(batch, lengths).to(values.device)] = values[mask]
    return list(flat.split(list(lengths)))


def scatter_to_packs(rows: Sequence[Tensor], batch: PackBatch, fill: float | int | bool) -> Tensor:
    """Lay out one 1-D tensor per completion as [P, T], with `fill` on padding.

    This is the inverse of `gather_to_rows`.
    """
    lengths = [len(row) for row in rows]
    flat = torch.cat(list(rows)) if rows else torch.zeros(0)
    assert batch.num_targets == len(flat), (batch.num_targets, len(flat))
    packed = torch.full(batch.row.shape, fill, dtype=flat.dtype, device=flat.device)
    packed[batch.target_mask.to(flat.device)] = flat[_flat_index(batch, lengths).to(flat.device)]
    return packed


def spread_to_packs(values: Tensor, batch: PackBatch, fill: float | int | bool) -> Tensor:
    """Give each target [P, T] the value of its completion from `values` [C]; `fill` on padding."""
    packed = torch.full(batch.row.shape, fill, dtype=values.dtype, device=values.device)
    mask = batch.target_mask.to(values.device)
    packed[mask] = values[batch.row.to(values.device)[mask]]
    return packed


def _check(completions: Sequence[Completion]) -> None:
    prompts: dict[int, list[int]] = {}
    for index, completion in enumerate(completions):
        prompt = list(completion.prompt_ids)
        if not prompt:
            raise UserError(
                f"completion {index} (group {completion.group}) has an empty prompt, so nothing "
                "predicts its first token; render prompts with at least one token"
            )
        if prompts.setdefault(completion.group, prompt) != prompt:
            raise UserError(
                f"completion {index} has another prompt than the first of its group "
                f"{completion.group}; a group is the completions of one prompt"
            )


def _blocks(
    completions: Sequence[Completion],
    targets: list[int],
    tokens_per_pack: int | None,
    share_prompts: bool,
) -> list[list[Block]]:
    """Choose the blocks of each pack; completions without tokens are in none."""
    present = [row for row, count in enumerate(targets) if count]
    if tokens_per_pack is None:
        return [[[row]] for row in present]
    groups: dict[int, list[int]] = {}
    for row in present:
        groups.setdefault(completions[row].group if share_prompts else row, []).append(row)
    prompts = [len(c.prompt_ids) for c in completions]
    own = [count - 1 for count in targets]  # the last token is not an input
    longest = max((prompts[row] + own[row] for row in present), default=0)
    return first_fit(list(groups.values()), prompts, own, max(tokens_per_pack, longest))


def _empty(packs: int, inputs: int, targets: int) -> PackBatch:
    def full(length: int, value: int) -> Tensor:
        return torch.full((packs, length), value, dtype=torch.int64)

    return PackBatch(
        input_ids=full(inputs, 0),
        position_ids=full(inputs, 0),
        group_ids=full(inputs, -1),
        completion_ids=full(inputs, -1),
        predict_from=full(targets, 0),
        target_ids=full(targets, 0),
        target_mask=torch.zeros((packs, targets), dtype=torch.bool),
        row=full(targets, -1),
        offset=full(targets, 0),
    )


def _fill(
    batch: PackBatch, index: int, blocks: Sequence[Block], completions: Sequence[Completion]
) -> None:
    """Write the blocks of pack `index`: each prompt, then its completions, with their targets."""
    # NumPy views of the same memory: to write a slice through torch takes five times as long.
    to = {f.name: getattr(batch, f.name)[index].numpy() for f in fields(batch)}
    at, target = 0, 0  # next free input and next free target of the pack
    for copy, block in enumerate(blocks):
        prompt = completions[block[0]].prompt_ids
        prompt_length = len(prompt)
        last_of_prompt = at + prompt_length - 1
        _write(to, at, prompt, first_position=0, group=copy, completion=-1)
        at += prompt_length
        for row in block:
            tokens = completions[row].completion_ids
            inputs, count = len(tokens) - 1, len(tokens)
            _write(to, at, tokens[:-1], prompt_length, group=copy, completion=row)
            span = slice(target, target + count)
            to["predict_from"][target] = last_of_prompt
            to["predict_from"][target + 1 : target + count] = np.arange(at, at + inputs)
            to["target_ids"][span] = tokens
            to["target_mask"][span] = True
            to["row"][span] = row
            to["offset"][span] = np.arange(count)
            at += inputs
            target += count


def _write(
    to: dict[str, np.ndarray],
    at: int,
    tokens: Sequence[int],
    first_position: int,
    group: int,
    completion: int,
) -> None:
    span = slice(at, at + len(tokens))
    to["input_ids"][span] = tokens
    to["position_ids"][span] = np.arange(first_position, first_position + len(tokens))
    to["group_ids"][span] = group
    to["completion_ids"][span] = completion


def _flat_index(batch: PackBatch, lengths: Sequence[int]) -> Tensor:
    """Return, in pack order, each target's index in the concatenation of all completions."""
    ends = torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0)
    mask = batch.target_mask
    return ends.to(mask.device)[batch.row[mask]] + batch.offset[mask]


def _round_up(length: int, bucket: int) -> int:
    return max(-(-length // bucket), 1) * bucket


Block = list[int]
"""Rows that share one copy of their prompt, in ascending order."""


def first_fit(
    groups: Sequence[Sequence[int]], prompts: Sequence[int], own: Sequence[int], budget: int
) -> list[list[Block]]:
    """Divide groups over packs: each group, the largest first, leaves in each pack what fits there.

    A prompt is repeated wherever its group is split. This costs less than the room that is wasted
    when groups are kept whole: there are 3 to 10 % fewer packs for short prompts, and as many for
    long ones.

    Args:
        groups: groups of rows that have the same prompt.
        prompts: tokens of each row's prompt, the same for all rows of a group.
        own: tokens that each row needs in addition.
        budget: most tokens of a pack; each row must fit alone.
    """
    packs: list[list[Block]] = []
    room: list[int] = []
    for group in sorted(groups, key=lambda rows: -prompts[rows[0]] - sum(own[r] for r in rows)):
        prompt = prompts[group[0]]
        left = sorted(group, key=lambda row: -own[row])
        assert prompt + own[left[0]] <= budget, (prompt, own[left[0]], budget)
        index = 0
        while left:
            if index == len(packs):
                packs.append([])
                room.append(budget)
            chosen, left = _fitting(left, own, room[index] - prompt)
            if chosen:
                packs[index].append(sorted(chosen))
                room[index] -= prompt + sum(own[row] for row in chosen)
            index += 1
    return packs


def _fitting(rows: list[int], own: Sequence[int], room: int) -> tuple[list[int], list[int]]:
    """Split rows into those that fit when they are added one after another, and the others."""
    chosen: list[int] = []
    others: list[int] = []
    for row in rows:
        if own[row] <= room:
            chosen.append(row)
            room -= own[row]
        else:
            others.append(row)
    return chosen, others
