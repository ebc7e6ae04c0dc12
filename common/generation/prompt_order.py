"""Which prompts an iteration draws: epochs shuffled without repetition, from where the last one
stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count as count_from

from common.errors import UserError
from common.generation.seeds import permutation
from common.runs.layout import Run
from common.runs.manifest import read_manifest


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
    """Turns taken since the run began, those of prompts passed over included: where the next
    iteration begins."""

    def facts(self) -> dict[str, int]:
        """What else is to be said of them in the manifest."""
        return {}


def draw_prompts(
    cursor: int, count: int, total: int, *, seed: int, fits: Callable[[int], bool]
) -> Drawn:
    """Draw `count` of `total` prompts, beginning `cursor` prompts into the run.

    More of them begin the same: drawing n and then m is drawing n + m.

    Args:
        seed: the run's; with the epoch's number it decides the order.
        fits: whether a prompt may be taken.

    Raises:
        UserError: no prompt fits.
    """
    drawn: list[int] = []
    repeats: list[int] = []
    dropped: list[int] = []
    upcoming = turns(cursor, total, seed)
    since_last = 0
    while len(drawn) < count:
        # One that fits may stand first in an epoch and last in the next one.
        if since_last == 2 * total:
            raise none_fits(total)
        _, index = next(upcoming)
        if fits(index):
            repeats.append(drawn.count(index))
            drawn.append(index)
            since_last = 0
        else:
            dropped.append(index)
            since_last += 1
    return Drawn(drawn, repeats, dropped, cursor + len(drawn) + len(dropped))


def turns(cursor: int, total: int, seed: int) -> Iterator[tuple[int, int]]:
    """(epoch, index of a prompt) without end, from the turn `cursor` of the run."""
    first, skipped = divmod(cursor, total)
    for epoch in count_from(first):
        for index in permutation(seed, epoch, total)[skipped:]:
            yield epoch, int(index)
        skipped = 0


def none_fits(total: int) -> UserError:
    return UserError(
        f"none of the {total} training prompts leaves room for a completion; lower "
        "rollout.max_completion_tokens or take shorter prompts"
    )


def cursor_of(run: Run, iteration: int) -> int:
    """Turns that the iterations before this one have taken."""
    if iteration == 1:
        return 0
    return int(read_manifest(run.rollout(iteration - 1)).facts["cursor_end"])
