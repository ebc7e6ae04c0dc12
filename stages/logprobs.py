"""logprobs: what the policy that sampled, and the reference, say of every completion token.

Reads   iterations/N/rollout, policies/N-1, the reference (not if objective.kl_coef is 0)
Writes  iterations/N/logprobs: old_logprobs, ref_logprobs, entropy, one number a token

Completions are packed behind their shared prompts and go through the model forward, cut over the
processes as in training; full logits never exist. The reference goes first, over all missing
shards, and has left memory when the policy is loaded; where both are the same model, once is
enough. Completions that dynamic sampling left out of the batch (`kept` is false) are trained on by
nobody and have empty lists.

Then `old_logprobs` is compared with what the sampler noted for the same tokens: a gap above
`logprobs.warn_gap_mean` or `warn_gap_max` is warned of, above `stop_gap_mean` or `stop_gap_max`
it stops the iteration, naming the tokens and positions where it sits.

With `logprobs.old_logprobs_from = "sampler"` what the sampler noted is taken for `old_logprobs`:
the policy is not loaded, `entropy` is null, and there is nothing to compare.

python -m stages.logprobs --run demo --iteration 3
torchrun --standalone --nproc-per-node 2 -m -- stages.logprobs --run demo --iteration 3
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

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
from common.console import warn
from common.errors import SamplerGapError
from common.modeling.token_texts import TokenTexts
from common.objective.sampler_gap import SamplerGap, exceeded, sampler_gap
from common.reporting.gap_tables import describe, position_table, show_command
from common.runs.columns import flat_values, without_rejected
from common.runs.freshness import input_hashes, require_fresh
from common.runs.layout import Output
from common.runs.manifest import Manifest, read_manifest
from common.runs.policies import keeps_average, reference_of
from common.runs.schemas import KEY, LOGPROBS
from common.runs.shards import OutputWriter, read_named_shard

if TYPE_CHECKING:
    from common.parallel.forward import TokenStats
    from common.parallel.mesh import Mesh


COLUMNS = [KEY, "group_id", "prompt_ids", "completion_ids", "sampler_logprobs", "kept"]
"""What is read of a rollout."""


@dataclass(frozen=True)
class Job:
    """What is to be computed for the iteration, the same on every rank."""

    context: Context
    source: Output
    """The rollout."""
    rollout: Manifest
    temperature: float
    """The one that sampled, from the rollout's manifest and not from the recipe."""
    policy: Output
    """The one that sampled."""
    from_sampler: bool
    """Whether `old_logprobs` are what the sampler noted."""
    reference: Output | None
    """None: no KL in the objective, so no reference is loaded."""
    same_model: bool
    """Whether the reference is the policy, and the policy's numbers are computed."""

    @classmethod
    def of(cls, context: Context) -> Job:
        """Check the rollout and find the models.

        Raises:
            UserError: the rollout is missing, damaged, or made by another policy than is there.
        """
        run, policy = context.run, context.run.policy(context.iteration - 1)
        source = run.rollout(context.iteration)
        rollout = read_manifest(source)
        require_fresh(run, source)
        reference = reference_of(run, context.iteration, context.recipe)
        if context.iteration > 1 and keeps_average(context.recipe) and reference == run.policy(0):
            warn(
                f"iteration {context.iteration - 1} was trained without a moving average, so it "
                'begins anew: the reference is policy 0 (reference.update = "ema")'
            )
        from_sampler = context.recipe.logprobs.old_logprobs_from == "sampler"
        return cls(
            context=context,
            source=source,
            rollout=rollout,
            temperature=rollout.recipe["rollout"]["temperature"],
            policy=policy,
            from_sampler=from_sampler,
            reference=reference,
            same_model=reference is not None
            and not from_sampler
            and read_manifest(reference).content_hash == read_manifest(policy).content_hash,
        )

    def writer(self) -> OutputWriter:
        """The output, described by what decides its numbers."""
        run, recipe = self.context.run, self.context.recipe
        inputs = [self.source.name] + ([] if self.from_sampler else [self.policy.name])
        sections: dict[str, Any] = {
            "model": {"dtype": recipe.model.dtype},
            "objective": {"kl_coef": recipe.objective.kl_coef},
            "logprobs": {
                "old_logprobs_from": recipe.logprobs.old_logprobs_from,
                "tokens_per_pack": recipe.logprobs.tokens_per_pack,
            },
        }
        if self.reference is not None:
            inputs.append(self.reference.name)
            sections["reference"] = recipe.reference.model_dump(mode="json")
        return OutputWriter(
            run.logprobs(self.context.iteration),
            inputs=input_hashes(run, list(dict.fromkeys(inputs))),
            recipe=sections,
            seed=recipe.run.seed,
            names=[record.name for record in self.rollout.shards],
            schema=LOGPROBS,
        )

    def shard(self, name: str) -> pa.Table:
        """A verified shard of the rollout, completions that nobody trains on without tokens."""
        return without_rejected(read_named_shard(self.source, name, COLUMNS))


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
    """Old-policy and reference logprobs of an iteration's completions."""
    context = open_context(
        run,
        iteration,
        recipe=recipe,
        overrides=overrides,
        overwrite=overwrite,
        quiet=quiet,
        as_json=as_json,
    )
    output = context.run.logprobs(iteration)
    if accept_edits:
        context.accept(output, LOGPROBS)
        return
    from common.parallel.mesh import Mesh

    with Mesh.from_environment(context.recipe.mesh) as mesh:
        if mesh.broadcast_from_rank0(lambda: context.begin(output)):
            make(Job.of(context), mesh, shards)


def make(job: Job, mesh: Mesh, shards: str) -> None:
    """Compute the missing shards of those asked for; once all are there, check the gap and commit.

    Raises:
        SamplerGapError: the gap is above the recipe's bounds. The shards are kept, so that another
            bound needs no second computation.
        UserError: the sampler's numbers are wanted, and it computed otherwise than is done here.
    """
    from common.modeling.load import precision, require_precision
    from common.parallel.shards import make_shards

    if job.from_sampler:
        require_precision(job.source, precision(job.context.recipe.model.dtype, mesh.device))
    writer = job.writer()
    chosen = chosen_shards(shards, len(writer.names))
    if make_shards(
        writer, mesh, lambda names: compute(job, mesh, names), chosen=chosen, by_replica=True
    ):
        commit(job, writer)


def commit(job: Job, writer: OutputWriter) -> None:
    """Check the gap, where there is one, write the manifest and say what was made."""
    recipe = job.context.recipe
    facts: dict[str, Any] = {
        "old_logprobs_from": recipe.logprobs.old_logprobs_from,
        "temperature": job.temperature,
        "kl_coef": recipe.objective.kl_coef,
        "policy_version": job.policy.iteration,
        "reference": job.reference and job.reference.name,
    }
    recorded: dict[str, Any] = {}
    if job.from_sampler:
        facts["tokens"] = len(flat_values(writer.read_all(["old_logprobs"]), "old_logprobs"))
        said = "old_logprobs are the sampler's own, so no gap is checked"
    else:
        gap = sampler_gap((job.shard(name), writer.read(name)) for name in writer.names)
        check_gap(job, gap)
        facts |= {"tokens": gap.tokens, "gap_mean": gap.mean, "gap_max": gap.max}
        facts["gap_by_position"] = position_table(gap).to_dicts()
        recorded["gap_worst"] = [asdict(token) for token in gap.worst]
        said = f"sampler gap mean {gap.mean:.2g}, max {gap.max:.2g} nats"
    writer.commit(facts, recorded, packages=("torch", "transformers"))
    reference = f"reference {job.reference.name}" if job.reference else "no reference"
    job.context.result(
        facts,
        f"{writer.output.name}: {facts['tokens']} tokens of {job.policy.name}, {reference}; {said}",
    )


def compute(job: Job, mesh: Mesh, names: list[str]) -> Iterator[tuple[str, pa.Table]]:
    """The new columns of each shard, on the last rank of a pipeline; nothing on the others.

    The reference goes over all shards before the policy is loaded, where that is needed at all.
    """
    from common.modeling.load import compute_dtype
    from common.parallel.forward import TokenStats, forward_shards, logprobs_table

    recipe = job.context.recipe
    shards = {name: job.shard(name) for name in names}

    def numbers(model: Output, label: str) -> Iterator[tuple[str, TokenStats]]:
        return forward_shards(
            model,
            shards,
            mesh,
            source=job.source,
            temperature=job.temperature,
            dtype=compute_dtype(recipe.model.dtype, mesh.device),
            tokens_per_pack=recipe.logprobs.tokens_per_pack,
            label=label,
        )

    reference: dict[str, TokenStats] = {}
    if job.reference is not None and not job.same_model:
        reference = dict(numbers(job.reference, "reference"))
        # A schedule's stage objects may be in reference cycles, and their model with them.
        gc.collect()
    if not job.from_sampler:
        former = numbers(job.policy, "old policy")
    else:
        former = ((n, TokenStats.of_sampler(s)) for n, s in shards.items() if mesh.is_last)
    for name, old in former:
        ref = old if job.same_model else reference.get(name)
        yield name, logprobs_table(shards[name], old, ref)


def check_gap(job: Job, gap: SamplerGap) -> None:
    """Say where the gap sits if it is above the recipe's alarms, and stop above its bounds.

    Raises:
        SamplerGapError: the mean gap, or the largest, is above its bound.
    """
    bounds = job.context.recipe.logprobs
    fatal, notable = exceeded(gap, bounds, "stop"), exceeded(gap, bounds, "warn")
    if not fatal and not notable:
        return
    message = (
        f"{job.source.path}: sampler and trainer disagree about the logprobs of these "
        f"{gap.tokens} tokens: {' and '.join((fatal or notable).values())}.\n"
        f"{describe(gap, TokenTexts(job.policy.path))}\n"
        f"All of it: {show_command(job.source)}"
    )
    if not fatal:
        warn(message)
        return
    raise SamplerGapError(
        f"{message}\n"
        f"Sampled by other weights or edited? Sample again: {job.source.command}\n"
        f"Expected of this engine or type? Raise {' and '.join(fatal)}; the shards are kept"
    )


if __name__ == "__main__":
    launch(main)
