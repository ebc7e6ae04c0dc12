"""The groups of an iteration: which prompts, in which shards, with which random numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from common.config import Recipe
from common.generation.ledger_order import draw_by_ledger, most_revisits, revisit_order
from common.generation.policy import Prompt, SamplingPolicy
from common.generation.prompt_order import Drawn, cursor_of, draw_prompts
from common.generation.seeds import sample_seed
from common.runs.layout import Run


@dataclass(frozen=True)
class PromptOrder:
    """How an iteration comes to its prompts."""

    draw: Callable[..., Drawn]
    """How many and `fits` → the prompts; of more of them the first are the same."""
    scores: list[str]
    """Names of the scores that it was decided by."""

    @classmethod
    def of(cls, run: Run, recipe: Recipe, iteration: int, prompt_ids: Sequence[str]) -> PromptOrder:
        """By the recipe's `rollout.sampling`.

        Raises:
            UserError: a score that the ledger needs is missing or stale.
        """
        rollout, seed = recipe.rollout, recipe.run.seed
        cursor, total = cursor_of(run, iteration), len(prompt_ids)
        if rollout.sampling == "uniform":
            return cls(partial(draw_prompts, cursor, total=total, seed=seed), [])
        from common.reporting.ledger import last_drawings

        last = last_drawings(run, prompt_ids, iteration)
        rates = {
            index: last.pass_rates[prompt_id]
            for index, prompt_id in enumerate(prompt_ids)
            if prompt_id in last.pass_rates
        }
        draw = partial(
            draw_by_ledger,
            cursor,
            total=total,
            seed=seed,
            pass_rates=rates,
            again=revisit_order(rates, seed, iteration),
            revisits=most_revisits(rollout),
            recheck_epochs=rollout.ledger_recheck_epochs,
        )
        return cls(draw, last.scores)


class Groups:
    """The groups that an iteration has drawn so far, the same on every rank."""

    drawn: Drawn

    def __init__(
        self,
        policy: SamplingPolicy,
        rows: Sequence[dict[str, Any]],
        order: PromptOrder,
        recipe: Recipe,
        iteration: int,
    ) -> None:
        """None yet: `draw` adds some.

        Args:
            rows: the training prompts.
        """
        self.prompts: list[Prompt] = []
        """Of each group, in the order drawn."""
        self.shards: list[range] = []
        """Groups of each shard."""
        self.rounds = 0
        """How often groups were drawn."""
        self.policy = policy
        self._rows = rows
        self._order = order
        self.recipe = recipe
        self.iteration = iteration
        self._rendered: dict[int, Prompt] = {}

    def draw(self, count: int) -> None:
        """Draw `count` more groups, in shards of their own.

        Raises:
            UserError: a prompt leaves no room for a completion, and the recipe drops none.
        """
        first, size = len(self.prompts), self.recipe.rollout.groups_per_shard
        end = first + count
        self.drawn = self._order.draw(end, fits=self._fits)
        self.prompts += [self._prompt(index) for index in self.drawn.prompts[first:]]
        self.shards += [range(at, min(at + size, end)) for at in range(first, end, size)]
        self.rounds += 1

    def seeds(self, group: int) -> list[int]:
        """Seeds of a group's samples; a prompt drawn twice goes on where it stopped."""
        seed, size = self.recipe.run.seed, self.recipe.rollout.group_size
        before = self.drawn.repeats[group] * size
        prompt_id = self.prompts[group].row["prompt_id"]
        return [
            sample_seed(seed, self.iteration, prompt_id, before + sample) for sample in range(size)
        ]

    def _prompt(self, index: int) -> Prompt:
        if index not in self._rendered:
            self._rendered[index] = self.policy.render(self._rows[index])
        return self._rendered[index]

    def _fits(self, index: int) -> bool:
        rollout = self.recipe.rollout
        limit, on_long = rollout.max_completion_tokens, rollout.on_long
        return self.policy.fits(self._prompt(index), limit, on_long)
