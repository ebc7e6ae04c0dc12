"""logprobs: how likely the policy that sampled, and the reference, find every completion token.

Reads   iterations/N/rollout, policies/N-1, the reference (not if objective.kl_coef is 0)
Writes  iterations/N/logprobs: old_logprobs, ref_logprobs, entropy, one number per token

Completions are packed behind their shared prompts and passed through the model, which is divided
over the processes as in training; full logits never exist. The reference runs first, over all
missing shards, and is freed before the policy is loaded. If both are the same model, one pass is
enough. Completions that dynamic sampling left out of the batch (`kept` is false) are not trained on
and have empty lists.

Then `old_logprobs` are compared with the sampler's logprobs of the same tokens. A gap above
`logprobs.warn_gap_mean` or `warn_gap_max` gives a warning; one above `stop_gap_mean` or
`stop_gap_max` stops the iteration, with the tokens and positions where it is found.

With `logprobs.old_logprobs_from = "sampler"` the sampler's logprobs are used as `old_logprobs`:
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

from common.command import Shards, chosen_shards, launch
from common.console import warn
from common.errors import SamplerGapError
from common.modeling.token_texts import TokenTexts
from common.objective.sampler_gap import SamplerGap, exceeded, sampler_gap
from common.reporting.gap_tables import describe, position_table, show_command
from common.rewards.unanswered import refuse_unanswered
from common.runs.columns import flat_values, without_rejected
from common.runs.freshness import require_fresh
from common.runs.layout import Output
from common.runs.manifest import Manifest, read_manifest
from common.runs.policies import reference_of
from common.runs.schemas import KEY
from common.runs.shards import OutputWriter, read_named_shard
from common.runs.stages import keeps_average
from common.stage import StageRun, stage_command

if TYPE_CHECKING:
    from common.parallel.forward import TokenStats

COLUMNS = [KEY, "group_id", "prompt_ids", "completion_ids", "sampler_logprobs", "kept"]
"""The columns that are read of a rollout."""


@dataclass(frozen=True)
class Models:
    """A rollout, and the models that compute logprobs of its tokens."""

    rollout: Output
    manifest: Manifest
    """The manifest of the rollout."""
    policy: Output
    """The policy that sampled."""
    from_sampler: bool
    """Whether the sampler's logprobs are used as `old_logprobs`."""
    reference: Output | None
    """The reference; None if the objective has no KL."""

    @property
    def temperature(self) -> float:
        """Return the temperature of sampling, from the rollout's manifest and not the recipe."""
        return self.manifest.recipe["rollout"]["temperature"]

    @property
    def same_model(self) -> bool:
        """Whether the policy's numbers are computed and serve as the reference's too."""
        if self.reference is None or self.from_sampler:
            return False
        both = (read_manifest(output).content_hash for output in (self.reference, self.policy))
        return len(set(both)) == 1

    def shard(self, name: str) -> pa.Table:
        """Read and verify a shard of the rollout; completions that are not kept have no tokens."""
        return without_rejected(read_named_shard(self.rollout, name, COLUMNS))


def logprobs(stage: StageRun, shards: Shards = "") -> None:
    """Compute old-policy and reference logprobs of an iteration's completions.

    Shards that are asked for are made, unless they exist already.
    Once no shard is missing, the sampler gap is checked.

    Raises:
        SamplerGapError: the gap is above the recipe's bounds. The shards are kept, so that nothing
            has to be computed again after a change of the bounds.
        UserError: the sampler's logprobs are to be used, but it computed in another precision.
    """
    from common.modeling.load import precision, require_precision
    from common.parallel.shards import make_shards

    models = find_models(stage)
    if models.from_sampler:
        here = precision(stage.recipe.model.dtype, stage.mesh.device)
        require_precision(models.rollout, here)
    writer = stage.writer([record.name for record in models.manifest.shards])
    chosen = chosen_shards(shards, len(writer.names))
    if make_shards(
        writer,
        stage.mesh,
        lambda names: compute(stage, models, names),
        chosen=chosen,
        by_replica=True,
    ):
        commit(stage, models, writer)


def find_models(stage: StageRun) -> Models:
    """Check the rollout and find the models, the same on every rank.

    Raises:
        UserError: the rollout is missing, damaged or stale.
        NoLearningSignalError: the iteration is scored, and hardly a completion has an answer.
    """
    run, iteration, recipe = stage.run, stage.iteration, stage.recipe
    rollout = run.rollout(iteration)
    manifest = read_manifest(rollout)
    require_fresh(run, rollout)
    refuse_unanswered(run.score(iteration), recipe.train.on_no_signal)
    reference = reference_of(run, iteration, recipe)
    if iteration > 1 and keeps_average(recipe) and reference == run.policy(0):
        warn(
            f"iteration {iteration - 1} was trained without a moving average, so it "
            'begins anew: the reference is policy 0 (reference.update = "ema")'
        )
    from_sampler = recipe.logprobs.old_logprobs_from == "sampler"
    return Models(rollout, manifest, run.policy(iteration - 1), from_sampler, reference)


def compute(stage: StageRun, models: Models, names: list[str]) -> Iterator[tuple[str, pa.Table]]:
    """Yield the new columns of each shard, on the last rank of a pipeline; nothing on the others.

    The reference runs over all shards before the policy is loaded, if both are needed.
    """
    from common.modeling.load import compute_dtype
    from common.parallel.forward import TokenStats, forward_shards, logprobs_table

    recipe, mesh, same_model = stage.recipe, stage.mesh, models.same_model
    shards = {name: models.shard(name) for name in names}

    def stats(model: Output, label: str) -> Iterator[tuple[str, TokenStats]]:
        return forward_shards(
            model,
            shards,
            mesh,
            source=models.rollout,
            temperature=models.temperature,
            dtype=compute_dtype(recipe.model.dtype, mesh.device),
            tokens_per_pack=recipe.logprobs.tokens_per_pack,
            label=label,
        )

    reference: dict[str, TokenStats] = {}
    if models.reference is not None and not same_model:
        reference = dict(stats(models.reference, "reference"))
        # A schedule's stage objects may be in reference cycles, and their model with them.
        gc.collect()
    if not models.from_sampler:
        old_policy = stats(models.policy, "old policy")
    else:
        old_policy = ((n, TokenStats.of_sampler(s)) for n, s in shards.items() if mesh.is_last)
    for name, old in old_policy:
        ref = old if same_model else reference.get(name)
        yield name, logprobs_table(shards[name], old, ref)


def commit(stage: StageRun, models: Models, writer: OutputWriter) -> None:
    """Check the gap if there is one to compute, write the manifest and print what was made."""
    facts: dict[str, Any] = {
        "old_logprobs_from": stage.recipe.logprobs.old_logprobs_from,
        "temperature": models.temperature,
        "kl_coef": stage.recipe.objective.kl_coef,
        "policy_version": models.policy.iteration,
        "reference": models.reference and models.reference.name,
    }
    recorded: dict[str, Any] = {}
    if models.from_sampler:
        facts["tokens"] = len(flat_values(writer.read_all(["old_logprobs"]), "old_logprobs"))
        said = "old_logprobs are the sampler's own, so no gap is checked"
    else:
        gap = sampler_gap((models.shard(name), writer.read(name)) for name in writer.names)
        check_gap(stage, models, gap)
        facts |= {"tokens": gap.tokens, "gap_mean": gap.mean, "gap_max": gap.max}
        facts["gap_by_position"] = position_table(gap).to_dicts()
        recorded["gap_worst"] = [asdict(token) for token in gap.worst]
        said = f"sampler gap mean {gap.mean:.2g}, max {gap.max:.2g} nats"
    reference = f"reference {models.reference.name}" if models.reference else "no reference"
    line = f"{facts['tokens']} tokens of {models.policy.name}, {reference}; {said}"
    stage.commit(writer, facts, f"{writer.output.name}: {line}", recorded)


def check_gap(stage: StageRun, models: Models, gap: SamplerGap) -> None:
    """Warn of a gap above the recipe's `warn_gap_…`, and stop at one above its `stop_gap_…`.

    Either way the message says where the gap is found.

    Raises:
        SamplerGapError: the mean gap, or the largest, is above its bound.
    """
    bounds = stage.recipe.logprobs
    fatal, notable = exceeded(gap, bounds, "stop"), exceeded(gap, bounds, "warn")
    if not fatal and not notable:
        return
    message = (
        f"{models.rollout.path}: sampler and trainer disagree about the logprobs of these "
        f"{gap.tokens} tokens: {' and '.join((fatal or notable).values())}.\n"
        f"{describe(gap, TokenTexts(models.policy.path))}\n"
        f"All of it: {show_command(models.rollout)}"
    )
    if not fatal:
        warn(message)
        return
    raise SamplerGapError(
        f"{message}\n"
        f"Sampled by other weights or edited? Sample again: {models.rollout.command}\n"
        f"Expected of this engine or type? Raise {' and '.join(fatal)}; the shards are kept"
    )


main = stage_command("logprobs", logprobs)

if __name__ == "__main__":
    launch(main)
