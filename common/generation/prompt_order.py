"""Which prompts an iteration draws: epochs shuffled without repetition, from where the last one
stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from common.errors import UserError
from common.generation.seeds import permutation


@dataclass(frozen=True)
class Drawn:
    """The prompts of an iteration."""

    prompts: list[int]
    """Indices into the training prompts, one a group; at an epoch's end one may come twice."""
    repeats: list[int]
    """How often each one has been drawn before in this iteration."""
    dropped: list[int]
    """Indices passed over because they do not fit."""
    cursor_end: int
    """Prompts passed since the run began, dropped ones included: where the next one begins."""


def draw_prompts(
    cursor: int, count: int, total: int, *, seed: int, fits: Callable[[int], bool]
) -> Drawn:
    """Draw `count` of `total` prompts, beginning `cursor` prompts into the run.

    Args:
        seed: the run's; with the epoch's number it decides the order.
        fits: whether a prompt may be taken.

    Raises:
        UserError: no prompt fits.
    """
    drawn: list[int] = []
    repeats: list[int] = []
    dropped: list[int] = []
    epoch, order = -1, permutation(seed, 0, 0)
    since_last = 0
    while len(drawn) < count:
        # One that fits may stand first in an epoch and last in the next one.
        if since_last == 2 * total:
            raise UserError(
                f"none of the {total} training prompts leaves room for a completion; lower "
                "rollout.max_completion_tokens or take shorter prompts"
            )
        if cursor // total != epoch:
            epoch = cursor // total
            order = permutation(seed, epoch, total)
        index = int(order[cursor % total])
        cursor += 1
        if fits(index):
            repeats.append(drawn.count(index))
            drawn.append(index)
            since_last = 0
        else:
            dropped.append(index)
            since_last += 1
    return Drawn(drawn, repeats, dropped, cursor)
