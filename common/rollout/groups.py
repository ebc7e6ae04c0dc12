"""The groups of an iteration: their prompts, shards and seeds, and how a rank samples them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from common.config import Recipe
from common.console import Bar, bar
from common.engines.engine import Engine, Request, SamplingParams
from common.parallel.mesh import Mesh
from common.parallel.shards import make_shards
from common.rollout.prompt_order import PromptOrder, PromptSelection
from common.rollout.prompts import RenderedPrompt, SamplingPolicy
from common.runs.schemas import ROLLOUT
from common.runs.shards import OutputWriter
from common.seeds import sample_seed


class Groups:
    """The groups of an iteration so far, the same on every rank."""

    selection: PromptSelection

    def __init__(
        self,
        policy: SamplingPolicy,
        rows: Sequence[dict[str, Any]],
        order: PromptOrder,
        recipe: Recipe,
        iteration: int,
    ) -> None:
        """Begin without groups; `add` adds some.

        Args:
            policy: renders the prompts and will be sampled.
            rows: all training prompts.
            order: selects among them.
            recipe: sizes of groups and shards, limits and seed.
            iteration: the number of the iteration.
        """
        self.prompts: list[RenderedPrompt] = []
        """The prompt of each group, in order."""
        self.shards: list[range] = []
        """The groups of each shard."""
        self.rounds = 0
        """How often groups were added."""
        self.policy = policy
        self.order = order
        self._rows = rows
        self.recipe = recipe
        self.iteration = iteration
        self._rendered: dict[int, RenderedPrompt] = {}

    @property
    def verify_types(self) -> set[str]:
        """Return the verify types of all training prompts."""
        return {row["verify_type"] for row in self._rows}

    def add(self, count: int) -> None:
        """Add `count` groups, in shards of their own.

        Raises:
            UserError: a prompt leaves no room for a completion, and the recipe drops none.
        """
        first, size = len(self.prompts), self.recipe.rollout.groups_per_shard
        end = first + count
        self.selection = self.order.select(end, fits=self._fits)
        self.prompts += [self._prompt(index) for index in self.selection.prompts[first:]]
        self.shards += [range(at, min(at + size, end)) for at in range(first, end, size)]
        self.rounds += 1

    def seeds(self, group: int) -> list[int]:
        """Return one seed per sample of a group; a repeated prompt continues its seeds."""
        seed, size = self.recipe.run.seed, self.recipe.rollout.group_size
        before = self.selection.repeats[group] * size
        prompt_id = self.prompts[group].row["prompt_id"]
        return [
            sample_seed(seed, self.iteration, prompt_id, before + sample) for sample in range(size)
        ]

    def _prompt(self, index: int) -> RenderedPrompt:
        if index not in self._rendered:
            self._rendered[index] = self.policy.render(self._rows[index])
        return self._rendered[index]

    def _fits(self, index: int) -> bool:
        rollout = self.recipe.rollout
        limit, on_long = rollout.max_completion_tokens, rollout.on_long
        return self.policy.fits(self._prompt(index), limit, on_long)


def sample_shards(
    writer: OutputWriter,
    mesh: Mesh,
    make: Callable[[int, Bar], pa.Table],
    *,
    chosen: range,
    label: str,
    total: int,
) -> bool:
    """Make the chosen shards that are missing, spread over the ranks; a bar counts completions.

    Args:
        make: makes the table of the shard with an index; advances the bar by each completion.
        chosen: indices of the shards asked for.
        label: what the bar and messages call the work.
        total: completions per shard.

    Returns:
        Whether this rank is the first one and no shard is missing.
    """

    def each(names: list[str]) -> Iterator[tuple[str, pa.Table]]:
        with bar(label, len(names) * total) as shown:
            for name in names:
                mesh.at(f"{label}, {name}")
                yield name, make(writer.names.index(name), shown)

    return make_shards(writer, mesh, each, chosen=chosen)


class SampledShards:
    """Sampler of one rank: makes shard after shard, and loads the weights before the first."""

    def __init__(self, groups: Groups, mesh: Mesh) -> None:
        self._groups = groups
        self._mesh = mesh
        self._engine: Engine | None = None
        self._tokens = 0
        self._seconds = 0.0

    def make(self, writer: OutputWriter, chosen: range) -> bool:
        """Make the chosen shards that are missing, together with the other ranks.

        Returns:
            Whether this rank is the first one and no shard is missing.
        """
        rollout = self._groups.recipe.rollout
        completions = rollout.groups_per_shard * rollout.group_size
        return sample_shards(
            writer, self._mesh, self._shard, chosen=chosen, label="rollout", total=completions
        )

    def speeds(self) -> list[tuple[int, float]]:
        """Return (tokens, seconds) of every rank, for the shards made by this object."""
        return self._mesh.gather_objects((self._tokens, self._seconds))

    def _shard(self, shard: int, shown: Bar) -> pa.Table:
        """Sample the groups of one shard, in one call with a cache of its own."""
        groups, recipe = self._groups, self._groups.recipe
        if self._engine is None:
            self._engine = groups.policy.engine(recipe, self._mesh.device)
        chosen = groups.shards[shard]
        started = time.monotonic()
        samples = self._engine.generate(
            [Request(groups.prompts[group].ids, groups.seeds(group)) for group in chosen],
            SamplingParams(recipe.rollout.max_completion_tokens, recipe.rollout.temperature),
            on_ended=shown.advance,
        )
        self._seconds += time.monotonic() - started
        self._tokens += sum(len(sample.completion_ids) for group in samples for sample in group)
        rows = [
            {
                "rollout_id": f"{groups.iteration:04d}-{group:05d}-{index:04d}",
                "group_id": group,
                "sample_index": index,
                **groups.policy.columns(groups.prompts[group], sample),
                "sampler_logprobs": sample.sampler_logprobs,
                "policy_version": groups.iteration - 1,
                "seed": seed,
                "kept": True,
            }
            for group, in_group in zip(chosen, samples, strict=True)
            for index, (sample, seed) in enumerate(zip(in_group, groups.seeds(group), strict=True))
        ]
        return pa.Table.from_pylist(rows, schema=ROLLOUT)
