"""rollout: a policy answers the iteration's prompts, each `group_size` times.

Reads   prompts/train-*, policies/N-1, where iterations/N-1/rollout stopped in the prompts
Writes  iterations/N/rollout: completions with the sampler's own logprobs

Prompts are taken from an epoch's shuffle, from where the last iteration stopped. A shard holds
`rollout.groups_per_shard` groups and is sampled by itself, with random numbers that come from run
seed, iteration, prompt and sample: it is the same whichever process makes it, after whatever.

python -m stages.rollout --run demo --iteration 3
python -m stages.rollout --run demo --iteration 3 --shards 0-1
torchrun --standalone --nproc-per-node 2 -m -- stages.rollout --run demo --iteration 3
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from common.command import (
    AcceptEdits,
    Context,
    Debug,
    Iteration,
    Json,
    Overrides,
    Overwrite,
    Quiet,
    RecipePath,
    RunName,
    Shards,
    chosen_shards,
    launch,
    open_context,
)
from common.config import MeshConfig
from common.reporting.progress import Bar, warn
from common.runs.folders import open_policy
from common.runs.freshness import input_hashes, require_fresh
from common.runs.layout import Run, shard_name
from common.runs.manifest import read_manifest
from common.runs.schemas import ROLLOUT
from common.runs.shards import OutputWriter

if TYPE_CHECKING:
    from common.generation.policy import Prompt, SamplingPolicy
    from common.generation.prompt_order import Drawn
    from common.mesh.mesh import Mesh


@dataclass(frozen=True)
class Job:
    """The groups of an iteration, the same on every rank."""

    context: Context
    policy: SamplingPolicy
    drawn: Drawn
    prompts: list[Prompt]
    """Of each group, in order."""

    @classmethod
    def of(cls, context: Context) -> Job:
        """Draw and render the prompts; no weights are loaded.

        Raises:
            UserError: an input is missing or stale, or a prompt leaves no room for a completion.
        """
        from common.generation.policy import SamplingPolicy
        from common.generation.prompt_order import draw_prompts
        from common.generation.shard_work import read_prompts

        run, recipe, iteration = context.run, context.recipe, context.iteration
        if iteration > 1:
            require_fresh(run, run.train(iteration - 1))
        policy = SamplingPolicy(open_policy(run, iteration - 1), recipe.prompt)
        rows = read_prompts(run, "train").to_pylist()
        rendered: dict[int, Prompt] = {}

        def fits(index: int) -> bool:
            rendered[index] = policy.render(rows[index])
            limit, on_long = recipe.rollout.max_completion_tokens, recipe.rollout.on_long
            return policy.fits(rendered[index], limit, on_long)

        drawn = draw_prompts(
            cursor_of(run, iteration),
            recipe.rollout.prompts_per_iteration,
            len(rows),
            seed=recipe.run.seed,
            fits=fits,
        )
        return cls(context, policy, drawn, [rendered[index] for index in drawn.prompts])

    def writer(self) -> OutputWriter:
        """The output, described by what decides its content."""
        run, recipe, iteration = self.context.run, self.context.recipe, self.context.iteration
        inputs = [f"{run.prompts.name}:train", run.policy(iteration - 1).name]
        if iteration > 1:
            inputs.append(f"{run.rollout(iteration - 1).name}:cursor_end")
        count = math.ceil(len(self.prompts) / recipe.rollout.groups_per_shard)
        return OutputWriter(
            run.rollout(iteration),
            inputs=input_hashes(run, inputs),
            recipe={
                "model": {"dtype": recipe.model.dtype},
                "prompt": recipe.prompt.model_dump(mode="json"),
                "rollout": recipe.rollout.model_dump(mode="json"),
            },
            seed=recipe.run.seed,
            names=[shard_name(index) for index in range(count)],
            schema=ROLLOUT,
        )

    def groups(self, shard: int) -> range:
        """The groups of a shard."""
        size = self.context.recipe.rollout.groups_per_shard
        return range(shard * size, min((shard + 1) * size, len(self.prompts)))

    def seeds(self, group: int) -> list[int]:
        """Seeds of a group's samples; a prompt drawn twice goes on where it stopped."""
        from common.generation.seeds import sample_seed

        recipe, size = self.context.recipe, self.context.recipe.rollout.group_size
        first = self.drawn.repeats[group] * size
        prompt_id = self.prompts[group].row["prompt_id"]
        return [
            sample_seed(recipe.run.seed, self.context.iteration, prompt_id, first + index)
            for index in range(size)
        ]


def main(
    run: RunName,
    iteration: Iteration,
    recipe: RecipePath = None,
    overrides: Overrides = None,
    shards: Shards = "",
    overwrite: Overwrite = False,
    accept_edits: AcceptEdits = False,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Sample the completions of an iteration."""
    context = open_context(
        run,
        iteration,
        recipe=recipe,
        overrides=overrides,
        overwrite=overwrite,
        quiet=quiet,
        as_json=as_json,
    )
    output = context.run.rollout(iteration)
    if accept_edits:
        context.accept(output, ROLLOUT)
        return
    from common.mesh.mesh import Mesh

    # Shards need no pipeline: any number of processes will do, whatever the recipe's mesh is.
    processes = MeshConfig(timeout_seconds=context.recipe.mesh.timeout_seconds)
    with Mesh.from_environment(processes) as mesh:
        if mesh.from_main(lambda: context.begin(output)):
            make(Job.of(context), mesh, shards)


def make(job: Job, mesh: Mesh, shards: str) -> None:
    """Sample the missing shards of those asked for; commit once all are there."""
    from common.generation.shard_work import make_shards

    rollout = job.context.recipe.rollout
    writer = job.writer()
    chosen = chosen_shards(shards, len(writer.names))
    if job.drawn.dropped and mesh.is_main:
        warn(f"{len(job.drawn.dropped)} prompts leave no room for a completion and were dropped")
    work = Work(job, mesh)
    complete = make_shards(
        writer,
        mesh,
        work.shard,
        chosen=chosen,
        label="rollout",
        total=rollout.groups_per_shard * rollout.group_size,
    )
    speeds = mesh.gather_objects((work.tokens, work.seconds))
    if complete:
        commit(job, writer, speeds)


class Work:
    """What a rank does: shard after shard, the weights loaded before the first one."""

    def __init__(self, job: Job, mesh: Mesh) -> None:
        self.tokens = 0
        self.seconds = 0.0
        self._job = job
        self._mesh = mesh
        self._sampler: Any = None

    def shard(self, shard: int, shown: Bar) -> pa.Table:
        """Sample the groups of one shard, in one call with a cache of its own."""
        from common.generation.sampler import Request

        job, recipe = self._job, self._job.context.recipe
        if self._sampler is None:
            self._sampler = job.policy.sampler(recipe, self._mesh.device)
        groups = job.groups(shard)
        started = time.monotonic()
        samples = self._sampler.generate(
            [Request(job.prompts[group].ids, job.seeds(group)) for group in groups],
            max_completion_tokens=recipe.rollout.max_completion_tokens,
            temperature=recipe.rollout.temperature,
            top_p=recipe.rollout.top_p,
            top_k=recipe.rollout.top_k,
            on_ended=shown.advance,
        )
        self.seconds += time.monotonic() - started
        self.tokens += sum(len(sample.completion_ids) for group in samples for sample in group)
        rows = [
            {
                "rollout_id": f"{job.context.iteration:04d}-{group:05d}-{index:04d}",
                "group_id": group,
                "sample_index": index,
                **job.policy.columns(job.prompts[group], sample),
                "sampler_logprobs": sample.sampler_logprobs,
                "sampler_full_logprobs": sample.sampler_full_logprobs,
                "policy_version": job.context.iteration - 1,
                "seed": seed,
                "kept": True,
            }
            for group, in_group in zip(groups, samples, strict=True)
            for index, (sample, seed) in enumerate(zip(in_group, job.seeds(group), strict=True))
        ]
        return pa.Table.from_pylist(rows, schema=ROLLOUT)


def commit(job: Job, writer: OutputWriter, speeds: list[tuple[int, float]]) -> None:
    """Write the manifest and say what was made.

    Args:
        speeds: tokens and seconds of each rank, for the shards made in this call.
    """
    made = writer.read_all(["completion_ids", "finish_reason"])
    rollout = job.context.recipe.rollout
    facts: dict[str, Any] = {
        "policy_version": job.context.iteration - 1,
        "temperature": rollout.temperature,
        "top_p": rollout.top_p,
        "top_k": rollout.top_k,
        "max_completion_tokens": rollout.max_completion_tokens,
        "group_size": rollout.group_size,
        "cursor_start": cursor_of(job.context.run, job.context.iteration),
        "cursor_end": job.drawn.cursor_end,
        "dropped_prompts": len(job.drawn.dropped),
        "completions": len(made),
        "completion_tokens": pc.sum(pc.list_value_length(made["completion_ids"])).as_py(),
        "truncated": pc.sum(pc.equal(made["finish_reason"], "length")).as_py(),
    }
    seconds = max(seconds for _, seconds in speeds)
    tokens_per_second = sum(tokens for tokens, _ in speeds) / seconds if seconds else None
    recorded = {"tokens_per_second": tokens_per_second}
    writer.commit(facts, recorded, packages=("torch", "transformers"))
    speed = f", {tokens_per_second:.0f} tokens/s" if tokens_per_second else ""
    job.context.result(
        facts | recorded,
        f"{writer.output.name}: {len(made)} completions of {len(job.prompts)} prompts by policy "
        f"{facts['policy_version']}, {facts['completion_tokens'] / len(made):.1f} tokens in the "
        f"mean, {facts['truncated']} truncated{speed}",
    )


def cursor_of(run: Run, iteration: int) -> int:
    """Prompts that the iterations before this one have passed."""
    if iteration == 1:
        return 0
    return int(read_manifest(run.rollout(iteration - 1)).facts["cursor_end"])


if __name__ == "__main__":
    launch(main)
