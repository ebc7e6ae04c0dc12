"""Which prompts an iteration draws by the ledger: where there is something left to learn.

A reward of 0 or 1 that comes with probability p has variance p (1 - p). Where it is 0, a group has
equal rewards and no advantage; where it is largest, a group teaches most ("Learning to reason at
the frontier of learnability", arXiv 2502.12272). So prompts solved in part come again before their
turn, and those always solved pass when it is their turn, but for a recheck now and then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np

from common.config import RolloutConfig
from common.generation.prompt_order import Drawn, none_fits, turns
from common.generation.seeds import revisit_seed, uniforms


@dataclass(frozen=True)
class DrawnByLedger(Drawn):
    """The prompts of an iteration: those that come again first, then those whose turn it is."""

    revisited: int
    """How many come again."""
    passed_over: int
    """Turns that passed because the prompt was always solved, or stands in the iteration."""

    def facts(self) -> dict[str, int]:
        return {"revisited": self.revisited, "passed_over": self.passed_over}


def draw_by_ledger(
    cursor: int,
    count: int,
    total: int,
    *,
    seed: int,
    fits: Callable[[int], bool],
    pass_rates: Mapping[int, float],
    again: Iterable[int],
    revisits: int,
    recheck_epochs: int,
) -> DrawnByLedger:
    """Draw `count` of `total` prompts, beginning `cursor` turns into the run.

    More of them begin the same: drawing n and then m is drawing n + m. No prompt is drawn twice
    before all that may be drawn have been.

    Args:
        seed: the run's; with the epoch's number it decides the order of turns.
        fits: whether a prompt may be taken.
        pass_rates: of the prompts that have been drawn, at their last drawing.
        again: prompts to come again, each once, the first of them before all others.
        revisits: how many of `again`, at most.
        recheck_epochs: an always solved prompt takes its turn in one of so many epochs. If all
            prompts are always solved, each takes every turn.

    Raises:
        UserError: no prompt fits.
    """
    solved = {index for index, rate in pass_rates.items() if rate == 1}
    if len(solved) == total:
        solved = set()
    drawn = list(islice(filter(fits, again), revisits))
    revisited = len(drawn)
    drawings = dict.fromkeys(drawn, 1)
    dropped: list[int] = []
    passed = since_last = 0
    most_drawings = 1
    upcoming = turns(cursor, total, seed)
    while len(drawn) < count:
        # So many turns hold one of every prompt, wherever they begin and with its recheck.
        if since_last == (recheck_epochs + 1) * total:
            if not drawn:
                raise none_fits(total)
            most_drawings, since_last = most_drawings + 1, 0
        epoch, index = next(upcoming)
        since_last += 1
        rests = index in solved and (epoch + index) % recheck_epochs != 0
        if rests or drawings.get(index, 0) == most_drawings:
            passed += 1
        elif fits(index):
            drawings[index] = drawings.get(index, 0) + 1
            drawn.append(index)
            since_last = 0
        else:
            dropped.append(index)
    taken = len(drawn) - revisited + passed + len(dropped)
    repeats = [drawn[:place].count(index) for place, index in enumerate(drawn)]
    return DrawnByLedger(drawn, repeats, dropped, cursor + taken, revisited, passed)


def most_revisits(rollout: RolloutConfig) -> int:
    """How many groups of an iteration are to come again: their share, rounded down."""
    # 0.29 * 100 is 28.999999999999996.
    return math.floor(rollout.ledger_revisit * rollout.prompts_per_iteration + 1e-9)


def revisit_order(pass_rates: Mapping[int, float], run_seed: int, iteration: int) -> list[int]:
    """Prompts with 0 < p < 1, drawn one after another without replacement with weights p (1 - p).

    The i-th of them is the i-th to ring of clocks with the weights as rates: Efraimidis and
    Spirakis, "Weighted random sampling with a reservoir" (2006), with -log(u) / w for u^(1 / w).
    A prompt's u does not depend on which others there are.
    """
    partly = sorted(index for index, rate in pass_rates.items() if 0 < rate < 1)
    if not partly:
        return []
    rates = np.array([pass_rates[index] for index in partly])
    numbers = uniforms(revisit_seed(run_seed, iteration), partly[-1] + 1)[partly]
    rings = -np.log1p(-numbers) / (rates * (1 - rates))  # 1 - u is above 0, u may be 0
    return [partly[place] for place in np.argsort(rings, kind="stable")]
