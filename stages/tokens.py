"""tokens: what the trained policy and the objective make of every completion token, for inspection.

Reads   iterations/N/{rollout,score,logprobs}, the manifest of iterations/N/train, policies/N
Writes  iterations/N/tokens: token_text, new_logprobs, ratio, clipped, entropy, kl, weight

Nothing depends on this stage, and `make iteration` leaves it out. The records are a function of
files: any iteration whose policy still exists can be inspected later, and training does not slow
down. One forward pass of policy N over the completions gives `new_logprobs` and `entropy`. The rest
is computed by the functions of the loss, with the objective that the iteration was trained with
(not that of the recipe in force).

The numbers are those after the iteration's last optimizer step. So `clipped` is what one more epoch
over the same completions would clip at its start, not a record of what each step clipped. `weight`
is the sampler correction; it is 0 on tokens that top_entropy_quantile leaves out (in the batches of
the last epoch) and on completions that are not in the loss. Completions that dynamic sampling left
out of the batch have empty lists.

    python -m stages.tokens --run demo --iteration 3
    torchrun --standalone --nproc-per-node 2 -m -- stages.tokens --run demo --iteration 3
    python -m stages.show tokens --run demo --iteration 3
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from common.command import Shards, chosen_shards, launch
from common.config import ObjectiveConfig, TrainConfig
from common.modeling.token_texts import TokenTexts
from common.runs.columns import join, without_rejected
from common.runs.freshness import require_fresh
from common.runs.layout import Output
from common.runs.manifest import Manifest, read_manifest
from common.runs.schemas import KEY
from common.runs.shards import read_named_shard
from common.stage import StageRun, stage_command

if TYPE_CHECKING:
    from common.training.token_records import Recorder

COLUMNS = {
    "rollout": (
        *(KEY, "group_id", "prompt_ids", "completion_ids"),
        *("sampler_logprobs", "finish_reason", "kept"),
    ),
    "score": (KEY, "advantage"),
    "logprobs": (KEY, "old_logprobs", "ref_logprobs", "entropy"),
}
"""The columns that are read of each stage."""


@dataclass(frozen=True)
class Trained:
    """The iteration whose tokens are recorded, and what it was trained with."""

    sources: tuple[Output, ...]
    """The outputs of rollout, score and logprobs, in this order."""
    manifest: Manifest
    """The manifest of the iteration's training."""
    policy: Output
    """The policy that was trained."""

    @property
    def objective(self) -> ObjectiveConfig:
        return ObjectiveConfig.model_validate(self.manifest.recipe["objective"])

    @property
    def tokens_per_pack(self) -> int:
        return read_manifest(self.sources[-1]).recipe["logprobs"]["tokens_per_pack"]

    def shard(self, name: str) -> pa.Table:
        """Read a shard of rollout, score and logprobs, verified and joined.

        Completions that dynamic sampling left out of the batch have empty lists.
        """
        joined, *others = (
            read_named_shard(source, name, COLUMNS[source.stage]) for source in self.sources
        )
        rollout = self.sources[0].name
        for source, part in zip(self.sources[1:], others, strict=True):
            joined = join(joined, part, key=KEY, names=(rollout, source.name))
        return without_rejected(joined)


def tokens(stage: StageRun, shards: Shards = "") -> None:
    """Record ratio, clipping, entropy, KL and weight of every token of a trained iteration."""
    from common.parallel.shards import make_shards
    from common.training.token_records import record_facts

    trained = find_trained(stage)
    writer = stage.writer(
        [record.name for record in read_manifest(trained.sources[0]).shards],
        recipe={
            "model": trained.manifest.recipe["model"],
            "objective": trained.objective.model_dump(mode="json"),
            "logprobs": {"tokens_per_pack": trained.tokens_per_pack},
        },
        seed=trained.manifest.seed,
    )
    recorder = make_recorder(stage, trained)
    if not make_shards(
        writer,
        stage.mesh,
        lambda names: compute(stage, trained, recorder, names),
        chosen=chosen_shards(shards, len(writer.names)),
        by_replica=True,
    ):
        return
    facts = record_facts((recorder.in_loss(trained.shard(n)), writer.read(n)) for n in writer.names)
    line = (
        f"{writer.output.name}: {facts['tokens']} tokens in the loss, "
        f"{facts['clipped_low']} clipped from below, {facts['clipped_high']} from above; "
        f"ratio mean {facts['ratio_mean']:.4f}, max {facts['ratio_max']:.3g}"
    )
    stage.commit(writer, facts, line)


def find_trained(stage: StageRun) -> Trained:
    """Check that the iteration is trained and fresh, and return its outputs.

    Raises:
        UserError: a stage is missing or stale.
    """
    run, iteration = stage.run, stage.iteration
    manifest = read_manifest(run.train(iteration))
    require_fresh(run, run.train(iteration))
    sources = (run.rollout(iteration), run.score(iteration), run.logprobs(iteration))
    return Trained(sources, manifest, run.policy(iteration))


def make_recorder(stage: StageRun, trained: Trained) -> Recorder:
    """Make the recorder, which turns logprobs of the trained policy into records."""
    from common.training.token_records import Recorder, entropy_thresholds

    train = TrainConfig.model_validate(trained.manifest.recipe["train"])
    thresholds = entropy_thresholds(
        stage.run, stage.iteration, trained.objective, train, trained.manifest.seed
    )
    return Recorder(trained.objective, TokenTexts(trained.policy.path), thresholds)


def compute(
    stage: StageRun, trained: Trained, recorder: Recorder, names: list[str]
) -> Iterator[tuple[str, pa.Table]]:
    """Yield the records of each shard, on the last rank of a pipeline; nothing on the others."""
    from common.modeling.load import compute_dtype
    from common.parallel.forward import forward_shards

    rollout = read_manifest(trained.sources[0])
    shards = {name: trained.shard(name) for name in names}
    stats = forward_shards(
        trained.policy,
        shards,
        stage.mesh,
        source=trained.sources[0],
        temperature=rollout.recipe["rollout"]["temperature"],
        dtype=compute_dtype(trained.manifest.recipe["model"]["dtype"], stage.mesh.device),
        tokens_per_pack=trained.tokens_per_pack,
        label="trained policy",
    )
    for name, new in stats:
        yield name, recorder.table(shards[name], new)


main = stage_command("tokens", tokens)

if __name__ == "__main__":
    launch(main)
