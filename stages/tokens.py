"""tokens: what the trained policy and the objective say of every completion token, for looking at.

Reads   iterations/N/{rollout,score,logprobs}, what iterations/N/train was made with, policies/N
Writes  iterations/N/tokens: token_text, new_logprobs, ratio, clipped, entropy, kl, weight

Nothing depends on this stage and `make iteration` leaves it out: the records are a function of
files, so any iteration whose policy is still there can be looked at later, and training is no
slower for it. One forward of policy N over the completions gives `new_logprobs` and `entropy`; the
rest is computed by the functions of the loss, with the objective that trained (not that of the
recipe in force). The numbers are those after the iteration's last optimizer step: `clipped` is what
one more epoch over the same completions would clip at its start, not a record of what each step
clipped. `weight` is the sampler correction, 0 on tokens that top_entropy_quantile leaves out (in
the batches of the last epoch) and on completions that are not in the loss. Those that dynamic
sampling left out of the batch have empty lists.

python -m stages.tokens --run demo --iteration 3
torchrun --standalone --nproc-per-node 2 -m -- stages.tokens --run demo --iteration 3
python -m stages.show tokens --run demo --iteration 3
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from common.command import (
    Context,
    Debug,
    Iteration,
    Json,
    Overwrite,
    Quiet,
    RunName,
    Shards,
    chosen_shards,
    launch,
    open_context,
)
from common.config import ObjectiveConfig, TrainConfig
from common.modeling.token_texts import TokenTexts
from common.runs.columns import join, without_rejected
from common.runs.freshness import input_hashes, require_fresh
from common.runs.layout import Output
from common.runs.manifest import Manifest, read_manifest
from common.runs.schemas import KEY, TOKEN_RECORDS
from common.runs.shards import OutputWriter, read_named_shard

if TYPE_CHECKING:
    from common.parallel.mesh import Mesh
    from common.training.token_records import Recorder

COLUMNS = {
    "rollout": (
        *(KEY, "group_id", "prompt_ids", "completion_ids"),
        *("sampler_logprobs", "finish_reason", "kept"),
    ),
    "score": (KEY, "advantage"),
    "logprobs": (KEY, "old_logprobs", "ref_logprobs", "entropy"),
}
"""What is read of each stage."""


@dataclass(frozen=True)
class Job:
    """What is to be recorded, the same on every rank."""

    context: Context
    sources: tuple[Output, ...]
    """rollout, score, logprobs."""
    trained: Manifest
    """Of the iteration's training."""
    policy: Output
    """The one that was trained."""

    @classmethod
    def of(cls, context: Context) -> Job:
        """Check that the iteration is complete.

        Raises:
            UserError: a stage is missing or stale.
        """
        run, iteration = context.run, context.iteration
        trained = read_manifest(run.train(iteration))
        require_fresh(run, run.train(iteration))
        sources = (run.rollout(iteration), run.score(iteration), run.logprobs(iteration))
        return cls(context, sources, trained, run.policy(iteration))

    @property
    def objective(self) -> ObjectiveConfig:
        return ObjectiveConfig.model_validate(self.trained.recipe["objective"])

    @property
    def tokens_per_pack(self) -> int:
        return read_manifest(self.sources[-1]).recipe["logprobs"]["tokens_per_pack"]

    def writer(self) -> OutputWriter:
        """The output, described by what decides its numbers."""
        run, iteration = self.context.run, self.context.iteration
        inputs = [*self.sources, run.train(iteration), self.policy]
        return OutputWriter(
            run.tokens(iteration),
            inputs=input_hashes(run, [output.name for output in inputs]),
            recipe={
                "model": self.trained.recipe["model"],
                "objective": self.objective.model_dump(mode="json"),
                "logprobs": {"tokens_per_pack": self.tokens_per_pack},
            },
            seed=self.trained.seed,
            names=[record.name for record in read_manifest(self.sources[0]).shards],
            schema=TOKEN_RECORDS,
        )

    def shard(self, name: str) -> pa.Table:
        """The verified shards of rollout, score and logprobs side by side, completions that nobody
        trained on without tokens."""
        joined, *others = (
            read_named_shard(source, name, COLUMNS[source.stage]) for source in self.sources
        )
        rollout = self.sources[0].name
        for source, part in zip(self.sources[1:], others, strict=True):
            joined = join(joined, part, key=KEY, names=(rollout, source.name))
        return without_rejected(joined)

    def recorder(self) -> Recorder:
        from common.training.token_records import Recorder, entropy_thresholds

        train = TrainConfig.model_validate(self.trained.recipe["train"])
        run, iteration = self.context.run, self.context.iteration
        return Recorder(
            self.objective,
            TokenTexts(self.policy.path),
            entropy_thresholds(run, iteration, self.objective, train, self.trained.seed),
        )


def main(
    run: RunName,
    iteration: Iteration,
    shards: Shards = "",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Per-token records of a trained iteration: ratios, what is clipped, entropy, KL, weights."""
    context = open_context(run, iteration, overwrite=overwrite, quiet=quiet, as_json=as_json)
    output = context.run.tokens(iteration)
    from common.parallel.mesh import Mesh

    with Mesh.from_environment(context.recipe.mesh) as mesh:
        if mesh.broadcast_from_rank0(lambda: context.begin(output)):
            make(Job.of(context), mesh, shards)


def make(job: Job, mesh: Mesh, shards: str) -> None:
    """Record the missing shards of those asked for, and commit once all are there."""
    from common.parallel.shards import make_shards
    from common.training.token_records import record_facts

    writer, recorder = job.writer(), job.recorder()
    chosen = chosen_shards(shards, len(writer.names))
    if not make_shards(
        writer,
        mesh,
        lambda names: compute(job, recorder, mesh, names),
        chosen=chosen,
        by_replica=True,
    ):
        return
    facts = record_facts((recorder.in_loss(job.shard(n)), writer.read(n)) for n in writer.names)
    writer.commit(facts, packages=("torch", "transformers", "tokenizers"))
    job.context.result(
        facts,
        f"{writer.output.name}: {facts['tokens']} tokens in the loss, "
        f"{facts['clipped_low']} clipped from below, {facts['clipped_high']} from above; "
        f"ratio mean {facts['ratio_mean']:.4f}, max {facts['ratio_max']:.3g}",
    )


def compute(
    job: Job, recorder: Recorder, mesh: Mesh, names: list[str]
) -> Iterator[tuple[str, pa.Table]]:
    """The records of each shard, on the last rank of a pipeline; nothing on the others."""
    from common.modeling.load import compute_dtype
    from common.parallel.forward import forward_shards

    rollout = read_manifest(job.sources[0])
    shards = {name: job.shard(name) for name in names}
    numbers = forward_shards(
        job.policy,
        shards,
        mesh,
        source=job.sources[0],
        temperature=rollout.recipe["rollout"]["temperature"],
        dtype=compute_dtype(job.trained.recipe["model"]["dtype"], mesh.device),
        tokens_per_pack=job.tokens_per_pack,
        label="trained policy",
    )
    for name, new in numbers:
        yield name, recorder.table(shards[name], new)


if __name__ == "__main__":
    launch(main)
