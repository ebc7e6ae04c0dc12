"""Which prompts an iteration samples: uniformly in shuffled epochs, or by earlier pass rates.

`uniform` continues in the shuffled epochs where the iteration before stopped. `ledger` uses the
pass rates p of earlier iterations as well. A reward that is 1 with probability p and else 0 has
variance p (1 - p). Where that is 0, all rewards of a group are equal and there is no advantage;
where it is largest, a group teaches most ("Learning to reason at the frontier of learnability",
arXiv 2502.12272). So prompts that are sometimes solved are revisited before their turn, and prompts
that are always solved are passed over when their turn comes, except for a recheck now and then.

A turn is one place in the sequence of shuffled epochs. The cursor counts the turns taken since the
run began.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count as count_from
from itertools import islice

import numpy as np

from common.config import Recipe, RolloutConfig
from common.errors import UserError
from common.runs.layout import Run
from common.runs.manifest import read_manifest
from common.seeds import permutation, revisit_seed, uniforms


@dataclass(frozen=True)
class PromptSelection:
    """The prompts of an iteration."""

    prompts: list[int]
    """Indices into the training prompts, one per group; across an epoch's end one may recur."""
    repeats: list[int]
    """For each of `prompts`, how often it occurs earlier in the list."""
    dropped: list[int]
    """Indices of prompts left out because they do not fit."""
    cursor_end: int
    """Turns taken since the run began, including those of prompts left out; the next iteration
    begins there."""

    def facts(self) -> dict[str, int]:
        """Return further facts for the manifest."""
        return {}


@dataclass(frozen=True)
class PromptOrder:
    """How an iteration selects its prompts."""

    select: Callable[..., PromptSelection]
    """Function of a number of prompts and `fits` that selects so many; a larger number only
    appends to the selection."""
    scores: list[str]
    """Names of the score outputs that decided the order; empty without the ledger."""

    @classmethod
    def of(cls, run: Run, recipe: Recipe, iteration: int, prompt_ids: Sequence[str]) -> PromptOrder:
        """Make the order that the recipe's `rollout.sampling` asks for.

        Raises:
            UserError: a score that the ledger needs is missing or stale.
        """
        rollout, seed = recipe.rollout, recipe.run.seed
        cursor, total = cursor_of(run, iteration), len(prompt_ids)
        if rollout.sampling == "uniform":
            return cls(partial(select_prompts, cursor, total=total, seed=seed), [])
        from common.rollout.ledger import last_pass_rates

        last = last_pass_rates(run, prompt_ids, iteration)
        rates = {
            index: last.pass_rates[prompt_id]
            for index, prompt_id in enumerate(prompt_ids)
            if prompt_id in last.pass_rates
        }
        select = partial(
            select_by_ledger,
            cursor,
            total=total,
            seed=seed,
            pass_rates=rates,
            again=revisit_order(rates, seed, iteration),
            revisits=most_revisits(rollout),
            recheck_epochs=rollout.ledger_recheck_epochs,
        )
        return cls(select, last.scores)


def select_prompts(
    cursor: int, count: int, total: int, *, seed: int, fits: Callable[[int], bool]
) -> PromptSelection:
    """Select `count` of `total` prompts, beginning `cursor` turns into the run.

    A larger `count` only appends to the selection.

    Args:
        seed: the run's seed; with the epoch's number it decides the order.
        fits: whether the prompt of an index may be taken.

    Raises:
        UserError: no prompt fits.
    """
    selected: list[int] = []
    repeats: list[int] = []
    dropped: list[int] = []
    upcoming = turns(cursor, total, seed)
    since_last = 0
    while len(selected) < count:
        # Two epochs: a prompt that fits may stand first in one epoch and last in the next.
        if since_last == 2 * total:
            raise none_fits(total)
        _, index = next(upcoming)
        if fits(index):
            repeats.append(selected.count(index))
            selected.append(index)
            since_last = 0
        else:
            dropped.append(index)
            since_last += 1
    return PromptSelection(selected, repeats, dropped, cursor + len(selected) + len(dropped))


def turns(cursor: int, total: int, seed: int) -> Iterator[tuple[int, int]]:
    """Yield (epoch, index of a prompt) without end, beginning at turn `cursor` of the run."""
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
    """Return how many turns the earlier iterations have taken."""
    if iteration == 1:
        return 0
    return int(read_manifest(run.rollout(iteration - 1)).facts["cursor_end"])


@dataclass(frozen=True)
class LedgerSelection(PromptSelection):
    """The prompts of an iteration: first those revisited, then those whose turn it is."""

    revisited: int
    """How many prompts are revisited."""
    passed_over: int
    """Turns skipped because the prompt was always solved or is in the iteration already."""

    def facts(self) -> dict[str, int]:
        return {"revisited": self.revisited, "passed_over": self.passed_over}


def select_by_ledger(
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
) -> LedgerSelection:
    """Select `count` of `total` prompts, beginning `cursor` turns into the run.

    A larger `count` only appends to the selection. No prompt is selected twice before all that may
    be selected have been selected once.

    Args:
        seed: the run's seed; with the epoch's number it decides the order of turns.
        fits: whether the prompt of an index may be taken.
        pass_rates: by prompt, for those that have been attempted; that of the last attempt.
        again: prompts to revisit, each listed once, in order of preference.
        revisits: how many of `again` to take at most.
        recheck_epochs: an always solved prompt takes its turn in one of so many epochs. If all
            prompts are always solved, each takes every turn.

    Raises:
        UserError: no prompt fits.
    """
    solved = {index for index, rate in pass_rates.items() if rate == 1}
    if len(solved) == total:
        solved = set()
    selected = list(islice(filter(fits, again), revisits))
    revisited = len(selected)
    attempts = dict.fromkeys(selected, 1)
    dropped: list[int] = []
    passed = since_last = 0
    most_attempts = 1
    upcoming = turns(cursor, total, seed)
    while len(selected) < count:
        # Any stretch of so many turns holds, for every prompt, one that it may take.
        if since_last == (recheck_epochs + 1) * total:
            if not selected:
                raise none_fits(total)
            most_attempts, since_last = most_attempts + 1, 0
        epoch, index = next(upcoming)
        since_last += 1
        rests = index in solved and (epoch + index) % recheck_epochs != 0
        if rests or attempts.get(index, 0) == most_attempts:
            passed += 1
        elif fits(index):
            attempts[index] = attempts.get(index, 0) + 1
            selected.append(index)
            since_last = 0
        else:
            dropped.append(index)
    taken = len(selected) - revisited + passed + len(dropped)
    repeats = [selected[:place].count(index) for place, index in enumerate(selected)]
    return LedgerSelection(selected, repeats, dropped, cursor + taken, revisited, passed)


def most_revisits(rollout: RolloutConfig) -> int:
    """Return how many prompts of an iteration to revisit at most: the share, rounded down."""
    # 0.29 * 100 is 28.999999999999996, but 29 is meant.
    return math.floor(rollout.ledger_revisit * rollout.prompts_per_iteration + 1e-9)


def revisit_order(pass_rates: Mapping[int, float], run_seed: int, iteration: int) -> list[int]:
    """Return the prompts with 0 < p < 1, drawn without replacement with weights w = p (1 - p).

    Each prompt gets an exponential random number of rate w, and they are sorted by it. This is
    Efraimidis and Spirakis, "Weighted random sampling with a reservoir" (2006), with
    -log(u) / w in place of u^(1 / w). A prompt's u does not depend on which others there are.
    """
    partly = sorted(index for index, rate in pass_rates.items() if 0 < rate < 1)
    if not partly:
        return []
    rates = np.array([pass_rates[index] for index in partly])
    numbers = uniforms(revisit_seed(run_seed, iteration), partly[-1] + 1)[partly]
    rings = -np.log1p(-numbers) / (rates * (1 - rates))  # log(1 - u), since u may be 0
    return [partly[place] for place in np.argsort(rings, kind="stable")]
