"""Which completions share a pack. Pure: lengths in, row numbers out."""

from __future__ import annotations

from collections.abc import Sequence

Block = list[int]
"""Rows that stand behind one copy of their prompt, ascending."""


def first_fit(
    groups: Sequence[Sequence[int]], prompts: Sequence[int], own: Sequence[int], budget: int
) -> list[list[Block]]:
    """Packs of blocks: each group, the largest first, leaves in every pack what fits there.

    A prompt is repeated wherever its group is cut. That costs less than the room left over when
    groups are kept whole: 3 to 10 % fewer packs for short prompts, as many for long ones.

    Args:
        groups: rows that have a prompt in common.
        prompts: tokens of each row's prompt, the same for all rows of a group.
        own: tokens that each row needs besides.
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
    """The rows that fit one after another, and the others."""
    chosen: list[int] = []
    others: list[int] = []
    for row in rows:
        if own[row] <= room:
            chosen.append(row)
            room -= own[row]
        else:
            others.append(row)
    return chosen, others
