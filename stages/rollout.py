"""rollout: a policy answers the iteration's prompts, each `group_size` times.

Reads   prompts/train-*, policies/N-1, where iterations/N-1/rollout stopped in the prompts;
        with rollout.sampling = "ledger" also the scores of earlier iterations
Writes  iterations/N/rollout: completions with the sampler's own logprobs

Prompts are taken from an epoch's shuffle, from where the last iteration stopped. A shard holds
`rollout.groups_per_shard` groups and is sampled by itself, with random numbers that come from run
seed, iteration, prompt and sample: it is the same whichever process makes it, after whatever.

With `rollout.dynamic_sampling` the completions are judged here too, and further groups are drawn in
place of those whose rewards are equal; these stay in the files as `kept = false`.

python -m stages.rollout --run demo --iteration 3
python -m stages.rollout --run demo --iteration 3 --shards 0-1
torchrun --standalone --nproc-per-node 2 -m -- stages.rollout --run demo --iteration 3
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
from common.console import say, warn
from common.runs.freshness import input_hashes, require_fresh
from common.runs.layout import shard_name
from common.runs.policies import open_policy
from common.runs.schemas import ROLLOUT
from common.runs.shards import OutputWriter, read_split

if TYPE_CHECKING:
    from common.parallel.mesh import Mesh
    from common.rollout.dynamic_sampling import GroupJudge
    from common.rollout.groups import Groups


@dataclass(frozen=True)
class Job:
    """The groups of an iteration, the same on every rank."""

    context: Context
    groups: Groups
    scores: list[str]
    """Names of the scores that the order of the prompts was decided by."""
    verify_types: set[str]
    """Of all training prompts."""

    @classmethod
    def of(cls, context: Context) -> Job:
        """Draw and render the prompts; no weights are loaded.

        Raises:
            UserError: an input is missing or stale, or a prompt leaves no room for a completion.
        """
        from common.rollout.groups import Groups
        from common.rollout.prompt_order import PromptOrder
        from common.rollout.prompts import SamplingPolicy

        run, recipe, iteration = context.run, context.recipe, context.iteration
        if iteration > 1:
            require_fresh(run, run.train(iteration - 1))
        policy = SamplingPolicy(open_policy(run, iteration - 1), recipe.prompt)
        rows = read_split(run, "train").to_pylist()
        order = PromptOrder.of(run, recipe, iteration, [row["prompt_id"] for row in rows])
        groups = Groups(policy, rows, order, recipe, iteration)
        groups.add(recipe.rollout.prompts_per_iteration)
        return cls(context, groups, order.scores, {row["verify_type"] for row in rows})

    def writer(self, judge: GroupJudge | None) -> OutputWriter:
        """The output, described by what decides its content.

        Args:
            judge: with dynamic sampling, where rewards decide too.
        """
        run, recipe, iteration = self.context.run, self.context.recipe, self.context.iteration
        inputs = [f"{run.prompts.name}:train", run.policy(iteration - 1).name]
        if iteration > 1:
            inputs.append(f"{run.rollout(iteration - 1).name}:cursor_end")
        sections = {
            "model": {"dtype": recipe.model.dtype},
            "prompt": recipe.prompt.model_dump(mode="json"),
            "rollout": recipe.rollout.model_dump(mode="json"),
        }
        rewards = recipe.rewards.model_dump(mode="json", exclude={"workers"})
        return OutputWriter(
            run.rollout(iteration),
            inputs=input_hashes(run, inputs + self.scores),
            recipe=sections,
            seed=recipe.run.seed,
            names=[shard_name(index) for index in range(len(self.groups.shards))],
            schema=ROLLOUT,
            made_by=judge.made_by() if judge is not None else None,
            extended_by={"rewards": rewards} if judge is not None else None,
        )

    def judge(self) -> GroupJudge:
        """Of the completions, for dynamic sampling."""
        from common.rollout.dynamic_sampling import GroupJudge

        recipe = self.context.recipe
        return GroupJudge(recipe.rewards, recipe.rollout, self.verify_types)


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
    from common.parallel.mesh import Mesh

    # Shards need no pipeline: any number of processes will do, whatever the recipe's mesh is.
    processes = MeshConfig(timeout_seconds=context.recipe.mesh.timeout_seconds)
    with Mesh.from_environment(processes) as mesh:
        if mesh.broadcast_from_rank0(lambda: context.begin(output)):
            make(Job.of(context), mesh, shards)


def make(job: Job, mesh: Mesh, shards: str) -> None:
    """Sample the missing shards of those asked for; commit once all are there."""
    dropped = job.groups.selection.dropped
    if dropped and mesh.is_main:
        warn(f"{len(dropped)} prompts leave no room for a completion and were dropped")
    if job.context.recipe.rollout.dynamic_sampling:
        with job.judge() as judge:
            make_and_fill(job, mesh, judge, shards)
        return
    from common.rollout.groups import SampledShards

    writer = job.writer(None)
    work = SampledShards(job.groups, mesh)
    complete = work.make(writer, chosen_shards(shards, len(writer.names)))
    speeds = work.speeds()
    if complete:
        commit(job, mesh, writer, speeds)


def make_and_fill(job: Job, mesh: Mesh, judge: GroupJudge, shards: str) -> None:
    """The same with dynamic sampling: judge the first round, draw on, and say what is kept.

    Which shards further rounds have is known only when the first round is complete, so `shards`
    names shards of the first one, and a call without it goes on.
    """
    from common.rollout.dynamic_sampling import (
        cost_facts,
        fill_batch,
        groups_kept,
        keep,
        tell_filled,
    )
    from common.rollout.groups import SampledShards

    rollout, groups = job.context.recipe.rollout, job.groups
    mesh.broadcast_from_rank0(lambda: judge.check(groups.prompts))
    writer = job.writer(judge)
    work = SampledShards(job.groups, mesh)
    complete = work.make(writer, chosen_shards(shards, len(writer.names)))
    if not mesh.broadcast_from_rank0(lambda: complete):
        return
    if shards:
        say(f"{writer.output.name}: the first round is complete; go on without --shards")
        return
    outcomes = fill_batch(groups, writer, mesh, judge, work.make, rollout)
    speeds = work.speeds()
    if mesh.is_main:
        kept = groups_kept(outcomes, rollout.prompts_per_iteration)
        keep(writer, kept)
        facts = cost_facts(outcomes, kept, groups.rounds - 1)
        tell_filled(facts, rollout)
        commit(job, mesh, writer, speeds, facts)


def commit(
    job: Job,
    mesh: Mesh,
    writer: OutputWriter,
    speeds: list[tuple[int, float]],
    dynamic_sampling: dict[str, Any] | None = None,
) -> None:
    """Write the manifest and say what was made.

    Args:
        speeds: tokens and seconds of each rank, for the shards made in this call.
        dynamic_sampling: what it did, where it is on.
    """
    from common.modeling.load import precision
    from common.rollout.prompt_order import cursor_of

    made = writer.read_all(["completion_ids", "finish_reason"])
    run, rollout, selection = job.context.run, job.context.recipe.rollout, job.groups.selection
    facts: dict[str, Any] = {
        "policy_version": job.context.iteration - 1,
        "temperature": rollout.temperature,
        "precision": precision(job.context.recipe.model.dtype, mesh.device),
        "max_completion_tokens": rollout.max_completion_tokens,
        "group_size": rollout.group_size,
        "cursor_start": cursor_of(run, job.context.iteration),
        "cursor_end": selection.cursor_end,
        "dropped_prompts": len(selection.dropped),
        "completions": len(made),
        "completion_tokens": pc.sum(pc.list_value_length(made["completion_ids"])).as_py(),
        "truncated": pc.sum(pc.equal(made["finish_reason"], "length")).as_py(),
    }
    facts |= selection.facts()
    seconds = max(seconds for _, seconds in speeds)
    tokens_per_second = sum(tokens for tokens, _ in speeds) / seconds if seconds else None
    recorded = {"tokens_per_second": tokens_per_second}
    if dynamic_sampling is not None:
        facts["dynamic_sampling"] = dynamic_sampling
    writer.commit(facts, recorded, packages=("torch", "transformers"))
    line = (
        f"{writer.output.name}: {len(made)} completions of {len(selection.prompts)} prompts by "
        f"policy {facts['policy_version']}, {facts['completion_tokens'] / len(made):.1f} tokens in "
        f"the mean, {facts['truncated']} truncated"
    )
    if tokens_per_second:
        line += f", {tokens_per_second:.0f} tokens/s"
    if dynamic_sampling is not None:
        from common.rollout.dynamic_sampling import cost_text

        line += f"; {cost_text(dynamic_sampling, facts['completion_tokens'])}"
    job.context.result(facts | recorded, line)


if __name__ == "__main__":
    launch(main)
