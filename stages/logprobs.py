"""logprobs: what the policy that sampled, and the reference, say of every completion token.

Reads   iterations/N/rollout, policies/N-1, the reference policy (not if objective.kl_coef is 0)
Writes  iterations/N/logprobs: old_logprobs, ref_logprobs, entropy, one number a token

Completions are packed behind their shared prompts and go through the model forward, cut over the
processes as in training; full logits never exist. The reference goes first, over all missing
shards, and has left memory when the policy is loaded; where both are the same model, once is
enough. Then `old_logprobs` is compared with what the sampler noted for the same tokens, and a
mean gap above `logprobs.max_gap_mean` stops the iteration, naming the worst tokens.

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
from common.errors import SamplerGapError, UserError
from common.modeling.sampler_gap import SamplerGap, sampler_gap
from common.reporting.progress import say, track, warn
from common.runs.folders import open_policy
from common.runs.freshness import input_hashes, require_fresh
from common.runs.layout import Output
from common.runs.manifest import Manifest, read_manifest
from common.runs.schemas import KEY, LOGPROBS
from common.runs.shards import OutputWriter, read_shard

if TYPE_CHECKING:
    from common.mesh.mesh import Mesh
    from common.modeling.columns import Numbers


COLUMNS = [KEY, "group_id", "prompt_ids", "completion_ids", "sampler_full_logprobs"]
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
    policy: int
    reference: int | None
    """None: no KL in the objective, so no reference is loaded."""
    same_model: bool
    """Whether the reference is the policy, so that its numbers are the policy's."""

    @classmethod
    def of(cls, context: Context) -> Job:
        """Check the rollout and find the models.

        Raises:
            UserError: the rollout is missing, damaged, or made by another policy than is there.
        """
        run, policy = context.run, context.iteration - 1
        source = run.rollout(context.iteration)
        rollout = read_manifest(source)
        require_fresh(run, source)
        reference = 0 if context.recipe.objective.kl_coef else None
        hashes = {
            number: read_manifest(run.policy(number)).content_hash
            for number in (policy, reference)
            if number is not None
        }
        return cls(
            context=context,
            source=source,
            rollout=rollout,
            temperature=rollout.recipe["rollout"]["temperature"],
            policy=policy,
            reference=reference,
            same_model=reference is not None and hashes[reference] == hashes[policy],
        )

    def writer(self) -> OutputWriter:
        """The output, described by what decides its numbers."""
        run, recipe = self.context.run, self.context.recipe
        policies = [n for n in (self.policy, self.reference) if n is not None]
        inputs = [self.source.name, *(run.policy(number).name for number in policies)]
        return OutputWriter(
            run.logprobs(self.context.iteration),
            inputs=input_hashes(run, list(dict.fromkeys(inputs))),
            recipe={
                "model": {"dtype": recipe.model.dtype},
                "objective": {"kl_coef": recipe.objective.kl_coef},
                "logprobs": {"tokens_per_pack": recipe.logprobs.tokens_per_pack},
            },
            seed=recipe.run.seed,
            names=[record.name for record in self.rollout.shards],
            schema=LOGPROBS,
        )

    def shard(self, name: str) -> pa.Table:
        """A verified shard of the rollout."""
        (record,) = (record for record in self.rollout.shards if record.name == name)
        return read_shard(self.source, record).select(COLUMNS)


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
    from common.mesh.mesh import Mesh

    with Mesh.from_environment(context.recipe.mesh) as mesh:
        if mesh.from_main(lambda: context.begin(output)):
            make(Job.of(context), mesh, shards)


def make(job: Job, mesh: Mesh, shards: str) -> None:
    """Compute the missing shards of those asked for; once all are there, check the gap and commit.

    Raises:
        SamplerGapError: the mean gap is above the recipe's bound. The shards are kept, so that
            another bound needs no second computation.
    """
    _remark_on_kl(job, mesh)
    writer = job.writer()
    chosen = [writer.names[index] for index in chosen_shards(shards, len(writer.names))]
    if mesh.is_main:
        writer.open()
    pending = mesh.from_main(writer.pending)
    if kept := len(writer.names) - len(pending):
        say(f"{writer.output.name}: {kept} of {len(writer.names)} shards were complete already")
    wanted = [name for name in chosen if name in pending]
    if wanted:
        for name, table in compute(job, mesh, wanted[mesh.dp_rank :: mesh.dp_degree]):
            writer.write(name, table)
    mesh.barrier()
    if not mesh.is_main:
        return
    if missing := len(writer.pending()):
        say(f"{writer.output.name}: {missing} of {len(writer.names)} shards are still missing")
        return
    pairs = ((job.shard(n), writer.read(n)) for n in writer.names)
    gap = sampler_gap(pairs)
    check_gap(job, gap)
    facts: dict[str, Any] = {
        "gap_mean": gap.mean,
        "gap_max": gap.max,
        "tokens": gap.tokens,
        "temperature": job.temperature,
        "kl_coef": job.context.recipe.objective.kl_coef,
        "policy_version": job.policy,
        "reference_version": job.reference,
    }
    recorded = {"gap_worst": [asdict(token) for token in gap.worst]}
    writer.commit(facts, recorded, packages=("torch", "transformers"))
    reference = "no reference" if job.reference is None else f"reference policy {job.reference}"
    job.context.result(
        facts,
        f"{writer.output.name}: {gap.tokens} tokens of policy {job.policy}, {reference}; "
        f"sampler gap mean {gap.mean:.2g}, max {gap.max:.2g} nats",
    )


def compute(job: Job, mesh: Mesh, names: list[str]) -> Iterator[tuple[str, pa.Table]]:
    """The new columns of each shard, on the last rank of a pipeline; nothing on the others.

    The reference goes over all shards before the policy is loaded.
    """
    from common.modeling.columns import logprobs_table

    shards = {name: job.shard(name) for name in names}
    reference: dict[str, Numbers] = {}
    if job.reference is not None and not job.same_model:
        reference = dict(forward(job, mesh, job.reference, "reference", shards))
        # A schedule's stage objects may be in reference cycles, and their model with them.
        gc.collect()
    for name, old in forward(job, mesh, job.policy, "old policy", shards):
        ref = old if job.same_model else reference.get(name)
        yield name, logprobs_table(shards[name], old, ref)


def forward(
    job: Job, mesh: Mesh, policy: int, label: str, shards: dict[str, pa.Table]
) -> Iterator[tuple[str, Numbers]]:
    """A policy's numbers for each shard, on the last rank of a pipeline; nothing on the others.

    The model lives as long as the iteration over it.
    """
    from common.modeling.columns import Numbers, shard_completions
    from common.modeling.load import compute_dtype
    from common.modeling.packing import pack
    from common.parallel.pipeline import Pipeline

    run, recipe = job.context.run, job.context.recipe
    mesh.at(f"loading policy {policy} ({label})")
    source = open_policy(run, policy) if mesh.is_main else run.policy(policy).path
    mesh.barrier()
    pipeline = Pipeline(
        source,
        mesh,
        dtype=compute_dtype(recipe.model.dtype, mesh.device),
        temperature=job.temperature,
    )
    for name, shard in track(shards.items(), label, len(shards)):
        mesh.at(f"{label}, {name}")
        budget = recipe.logprobs.tokens_per_pack
        try:
            packs = pack(shard_completions(shard), tokens_per_pack=budget, min_packs=mesh.pp_degree)
        except UserError as error:
            raise UserError(f"{job.source.path / name}: {error}") from None
        outputs = pipeline.run_forward(packs)
        if outputs is not None:
            yield name, Numbers.of(outputs, packs, shard)


def _remark_on_kl(job: Job, mesh: Mesh) -> None:
    from common.objective.kl import UNWEIGHTED_K1

    objective = job.context.recipe.objective
    unweighted_k1 = objective.kl_kind == "k1" and not objective.kl_importance_weight
    if mesh.is_main and objective.kl_coef and unweighted_k1:
        warn(UNWEIGHTED_K1)


def check_gap(job: Job, gap: SamplerGap) -> None:
    """Raise `SamplerGapError`, naming the worst tokens, if the mean gap is above the bound."""
    bound = job.context.recipe.logprobs.max_gap_mean
    if not gap.exceeds(bound):
        return
    from common.modeling.chat import load_tokenizer

    tokenizer = load_tokenizer(open_policy(job.context.run, job.policy))
    raise SamplerGapError(
        f"{job.source.path}: sampler and trainer disagree about the logprobs of these completions "
        f"by {gap.mean:.4g} nats in the mean over {gap.tokens} tokens, more than "
        f"logprobs.max_gap_mean = {bound:g}. The worst:\n"
        f"{gap.describe(lambda token: str(tokenizer.decode([token])))}\n"
        f"Sampled by other weights or edited? Sample again: {job.source.command}\n"
        "Expected of this engine or type? Raise logprobs.max_gap_mean"
    )


if __name__ == "__main__":
    launch(main)
