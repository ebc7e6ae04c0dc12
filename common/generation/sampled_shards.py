"""Shards that are sampled: divided over ranks, and what a rank makes of those of a rollout."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pyarrow as pa

from common.generation.groups import Groups
from common.generation.sampler import Request, Sampler
from common.mesh.mesh import Mesh
from common.mesh.shard_work import make_shards
from common.reporting.progress import Bar, bar
from common.runs.schemas import ROLLOUT
from common.runs.shards import OutputWriter


def sample_shards(
    writer: OutputWriter,
    mesh: Mesh,
    make: Callable[[int, Bar], pa.Table],
    *,
    chosen: range,
    label: str,
    total: int,
) -> bool:
    """`make_shards` by ranks, with a bar that counts completions.

    Args:
        make: shard index → its table; moves the bar by each completion.
        total: completions of a shard.
    """

    def each(names: list[str]) -> Iterator[tuple[str, pa.Table]]:
        with bar(label, len(names) * total) as shown:
            for name in names:
                mesh.at(f"{label}, {name}")
                yield name, make(writer.names.index(name), shown)

    return make_shards(writer, mesh, each, chosen=chosen)


class SampledShards:
    """What a rank does: shard after shard, the weights loaded before the first one."""

    def __init__(self, groups: Groups, mesh: Mesh) -> None:
        self._groups = groups
        self._mesh = mesh
        self._sampler: Sampler | None = None
        self._tokens = 0
        self._seconds = 0.0

    def make(self, writer: OutputWriter, chosen: range) -> bool:
        """Make the missing ones of the chosen shards, together with the other ranks.

        Returns:
            Whether this rank is the first one and no shard is missing.
        """
        rollout = self._groups.recipe.rollout
        completions = rollout.groups_per_shard * rollout.group_size
        return sample_shards(
            writer, self._mesh, self._shard, chosen=chosen, label="rollout", total=completions
        )

    def speeds(self) -> list[tuple[int, float]]:
        """Tokens and seconds of each rank, for the shards made by this object."""
        return self._mesh.gather_objects((self._tokens, self._seconds))

    def _shard(self, shard: int, shown: Bar) -> pa.Table:
        """Sample the groups of one shard, in one call with a cache of its own."""
        groups, recipe = self._groups, self._groups.recipe
        if self._sampler is None:
            self._sampler = groups.policy.sampler(recipe, self._mesh.device)
        chosen = groups.shards[shard]
        started = time.monotonic()
        samples = self._sampler.generate(
            [Request(groups.prompts[group].ids, groups.seeds(group)) for group in chosen],
            max_completion_tokens=recipe.rollout.max_completion_tokens,
            temperature=recipe.rollout.temperature,
            top_p=recipe.rollout.top_p,
            top_k=recipe.rollout.top_k,
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
                "sampler_full_logprobs": sample.sampler_full_logprobs,
                "policy_version": groups.iteration - 1,
                "seed": seed,
                "kept": True,
            }
            for group, in_group in zip(chosen, samples, strict=True)
            for index, (sample, seed) in enumerate(zip(in_group, groups.seeds(group), strict=True))
        ]
        return pa.Table.from_pylist(rows, schema=ROLLOUT)
