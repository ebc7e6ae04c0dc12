"""rollout: a policy answers the iteration's prompts, each `group_size` times.

Reads   prompts/train-*, policies/N-1, the manifest of iterations/N-1/rollout;
        with rollout.sampling = "ledger" also the rollouts and scores of earlier iterations
Writes  iterations/N/rollout: completions with the sampler's own logprobs

Prompts are taken in the order of shuffled epochs, from where the last iteration stopped. A shard
holds `rollout.groups_per_shard` groups and is sampled by itself. Its random numbers depend only on
run seed, iteration, prompt and sample, so it is the same whichever process makes it, and whatever
that process made before.

With `rollout.dynamic_sampling` the completions are judged here too, and further groups are sampled
to replace those whose rewards are all equal. The replaced groups stay in the files, with
`kept = false`.

    python -m stages.rollout --run demo --iteration 3
    python -m stages.rollout --run demo --iteration 3 --shards 0-1
    torchrun --standalone --nproc-per-node 2 -m -- stages.rollout --run demo --iteration 3
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from common.command import Shards, chosen_shards, launch
from common.console import say, warn
from common.runs.freshness import require_fresh
from common.runs.layout import shard_name
from common.runs.policies import open_policy
from common.runs.shards import OutputWriter, read_split
from common.stage import StageRun, stage_command

if TYPE_CHECKING:
    from common.rollout.groups import Groups


def rollout(stage: StageRun, shards: Shards = "") -> None:
    """Sample the completions of an iteration.

    Shards that are asked for are made, unless they exist already.
    The output is complete once no shard is missing.
    """
    groups = begin_groups(stage)
    dropped = groups.selection.dropped
    if dropped and stage.mesh.is_main:
        warn(f"{len(dropped)} prompts leave no room for a completion and were dropped")
    if stage.recipe.rollout.dynamic_sampling:
        sample_until_full(stage, groups, shards)
        return
    from common.rollout.groups import SampledShards

    writer = stage.writer(shard_names(groups), more_inputs=groups.order.scores)
    work = SampledShards(groups, stage.mesh)
    complete = work.make(writer, chosen_shards(shards, len(writer.names)))
    speeds = work.speeds()
    if complete:
        commit(stage, groups, writer, speeds)


def begin_groups(stage: StageRun) -> Groups:
    """Select and render the prompts, the same on every rank; no weights are loaded.

    Raises:
        UserError: an input is missing or stale, or a prompt leaves no room for a completion.
    """
    from common.rollout.groups import Groups
    from common.rollout.prompt_order import PromptOrder
    from common.rollout.prompts import SamplingPolicy

    run, recipe, iteration = stage.run, stage.recipe, stage.iteration
    if iteration > 1:
        require_fresh(run, run.train(iteration - 1))
    policy = SamplingPolicy(open_policy(run, iteration - 1), recipe.prompt)
    rows = read_split(run, "train").to_pylist()
    order = PromptOrder.of(run, recipe, iteration, [row["prompt_id"] for row in rows])
    groups = Groups(policy, rows, order, recipe, iteration)
    groups.add(recipe.rollout.prompts_per_iteration)
    return groups


def shard_names(groups: Groups) -> list[str]:
    """Return the names of the shards that the groups so far are in."""
    return [shard_name(index) for index in range(len(groups.shards))]


def sample_until_full(stage: StageRun, groups: Groups, shards: str) -> None:
    """Sample with dynamic sampling: judge the first round, sample more, and set what is kept.

    Which shards further rounds have is known only once the first round is complete. So `shards`
    names shards of the first round, and a call without it does the rest.
    """
    from common.rollout.dynamic_sampling import (
        GroupJudge,
        cost_facts,
        fill_batch,
        groups_kept,
        keep,
        tell_filled,
    )
    from common.rollout.groups import SampledShards

    recipe, mesh = stage.recipe, stage.mesh
    wanted = recipe.rollout.prompts_per_iteration
    rewards = recipe.rewards.with_judge_cache(stage.run.judge)
    with GroupJudge(rewards, recipe.rollout, groups.verify_types) as judge:
        mesh.broadcast_from_rank0(lambda: judge.check(groups.prompts))
        writer = stage.writer(
            shard_names(groups),
            more_inputs=groups.order.scores,
            made_by=judge.made_by(),
            extended_by={"rewards": stage.stage.recorded(recipe)["rewards"]},
        )
        work = SampledShards(groups, mesh)
        complete = work.make(writer, chosen_shards(shards, len(writer.names)))
        if not mesh.broadcast_from_rank0(lambda: complete):
            return
        if shards:
            say(f"{writer.output.name}: the first round is complete; go on without --shards")
            return
        outcomes = fill_batch(groups, writer, mesh, judge, work.make, recipe.rollout)
        speeds = work.speeds()
        if mesh.is_main:
            kept = groups_kept(outcomes, wanted)
            keep(writer, kept)
            facts = cost_facts(outcomes, kept, groups.rounds - 1)
            tell_filled(facts, recipe.rollout)
            for line in judge.usage_lines():
                say(line)
            commit(stage, groups, writer, speeds, facts)


def commit(
    stage: StageRun,
    groups: Groups,
    writer: OutputWriter,
    speeds: list[tuple[int, float]],
    dynamic_sampling: dict[str, Any] | None = None,
) -> None:
    """Write the manifest and print what was made.

    Args:
        stage: the stage at work.
        groups: all groups of the iteration.
        writer: holds all shards.
        speeds: tokens and seconds of each rank, for the shards made in this call.
        dynamic_sampling: facts about what dynamic sampling did; None if it is off.
    """
    from common.modeling.load import precision
    from common.rollout.prompt_order import cursor_of

    made = writer.read_all(["completion_ids", "finish_reason"])
    settings, selection = stage.recipe.rollout, groups.selection
    facts: dict[str, Any] = {
        "policy_version": stage.iteration - 1,
        "temperature": settings.temperature,
        "precision": precision(stage.recipe.model.dtype, stage.mesh.device),
        "max_completion_tokens": settings.max_completion_tokens,
        "group_size": settings.group_size,
        "cursor_start": cursor_of(stage.run, stage.iteration),
        "cursor_end": selection.cursor_end,
        "dropped_prompts": len(selection.dropped),
        "completions": len(made),
        "completion_tokens": pc.sum(pc.list_value_length(made["completion_ids"])).as_py(),
        "truncated": pc.sum(pc.equal(made["finish_reason"], "length")).as_py(),
    }
    facts |= selection.facts()
    seconds = max(seconds for _, seconds in speeds)
    tokens_per_second = sum(tokens for tokens, _ in speeds) / seconds if seconds else None
    line = (
        f"{writer.output.name}: {len(made)} completions of {len(selection.prompts)} prompts by "
        f"policy {facts['policy_version']}, {facts['completion_tokens'] / len(made):.1f} tokens in "
        f"the mean, {facts['truncated']} truncated"
    )
    if tokens_per_second:
        line += f", {tokens_per_second:.0f} tokens/s"
    if dynamic_sampling is not None:
        from common.rollout.dynamic_sampling import cost_text

        facts["dynamic_sampling"] = dynamic_sampling
        line += f"; {cost_text(dynamic_sampling, facts['completion_tokens'])}"
    stage.commit(writer, facts, line, {"tokens_per_second": tokens_per_second})


main = stage_command("rollout", rollout)

if __name__ == "__main__":
    launch(main)
