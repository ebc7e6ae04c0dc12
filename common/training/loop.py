"""One iteration of GRPO: load, continue; for each minibatch forward, loss, backward, step; commit.

`train_iteration` is all of it, in order; every rank of the mesh runs it. Its input is read in
`samples.py`; completions become optimizer batches in `minibatches.py`; the loss is in
`objective/loss.py`, and the schedule over pipeline stages in `parallel/pipeline.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from common.config import ObjectiveConfig, Recipe, TrainConfig
from common.console import duration_text, say, warn
from common.errors import NoLearningSignalError, NonFiniteError
from common.modeling.load import compute_dtype
from common.objective.loss import PolicyTerm, TokenBatch, grpo_loss, merge_sums, metrics
from common.parallel.mesh import Mesh
from common.parallel.pipeline import Pipeline
from common.parallel.shards import open_verified
from common.runs.layout import Run
from common.runs.manifest import peak_memory_bytes
from common.runs.metrics import StepRow
from common.training.commit import commit_iteration, describe_outputs
from common.training.minibatches import (
    Minibatch,
    ReplicaBatch,
    make_replica_batch,
    plan_minibatches,
)
from common.training.optimizer import MasterWeights, Optimizer, learning_rate
from common.training.policy_term import load_policy_term
from common.training.resume import continue_training, resume_progress, save_progress
from common.training.samples import (
    Group,
    IterationRows,
    check_old_logprobs,
    group_samples,
    read_samples,
)

WORTH_SAYING = 10
"""Seconds from which a step's line says how long the others will take."""

_SKIPS_ALLOWED = 2
_SAMPLES_NAMED = 8
_FIRST_BOUND = 1e-2
"""How far |mean ratio − 1| and approx_kl may be from 0 at the first step of an iteration.

Policy and old policy are the same there: in float32 the mean ratio is 1 within 1e-4 and approx_kl 0
within 1e-6. The bound leaves room for bfloat16, whose rounding depends on how rows are packed. The
mean ratio alone would not be enough: its expectation is 1 whatever distribution the tokens were
sampled from.
"""


def train_iteration(
    run: Run, iteration: int, recipe: Recipe, mesh: Mesh, *, fresh_optimizer: bool = False
) -> list[StepRow]:
    """Train policy N from policy N-1 and commit it; called on every rank.

    Args:
        run: the run.
        iteration: N.
        recipe: the recipe in force.
        mesh: the processes that train.
        fresh_optimizer: begin AdamW anew, from the policy alone.

    Returns:
        A row per optimizer step, the same on every rank.

    Raises:
        UserError: an input is missing, stale, or does not fit the recipe; or the recipe's own
            policy term is missing or faulty.
        NoLearningSignalError: all groups have equal rewards, and the recipe says to stop.
        NonFiniteError: loss or gradient is not finite three steps in a row, or a weight is not.
    """
    # 1. Read the policy term, and every kept completion in optimizer batches.
    own_term = load_policy_term(recipe.objective, mesh.device)
    outputs = describe_outputs(run, iteration, recipe, fresh_optimizer=fresh_optimizer)
    check_old_logprobs(run, iteration, recipe, mesh.device)
    data, minibatches = _read_minibatches(run, iteration, recipe)
    # 2. Load this rank's part of the policy that sampled.
    mesh.at(f"iteration {iteration}, loading policy {iteration - 1}")
    source = open_verified(run.policy(iteration - 1), mesh)
    pipeline = _load_pipeline(source, mesh, recipe, data.temperature)
    optimizer = Optimizer(MasterWeights(pipeline.part, mesh), recipe.train)
    # 3. Continue the optimizer of the iteration before, and from a commit within this one.
    continue_training(run, 0 if fresh_optimizer else iteration - 1, pipeline, optimizer)
    writer = outputs.writer()
    if mesh.is_main:
        writer.open()
    mesh.barrier()
    trainer = Trainer(
        pipeline,
        optimizer,
        train=recipe.train,
        objective=recipe.objective,
        own_term=own_term,
        iteration=iteration,
        steps=len(minibatches),
        max_completion_tokens=data.max_completion_tokens,
    )
    trainer.rows = resume_progress(outputs.metrics.partial, optimizer)
    if trainer.rows:
        say(f"continuing after step {len(trainer.rows)} of {len(minibatches)}")
    # 4. Each minibatch: forward, loss, backward, step.
    for minibatch in minibatches[len(trainer.rows) :]:
        trainer.step(minibatch)
        say(step_line(trainer.rows, len(minibatches)))
        if minibatch.step + 1 < len(minibatches) and _is_to_be_saved(minibatch, recipe):
            save_progress(outputs.metrics.partial, optimizer, trainer.rows)
    # 5. Commit policy, trainer state and metrics as one.
    commit_iteration(outputs, writer, pipeline, optimizer, trainer.rows, source=source)
    return trainer.rows


def _read_minibatches(
    run: Run, iteration: int, recipe: Recipe
) -> tuple[IterationRows, list[Minibatch]]:
    data = read_samples(
        run,
        iteration,
        with_reference=recipe.objective.kl_coef != 0,
        with_entropy=recipe.objective.top_entropy_quantile < 1,
    )
    groups = group_samples(data.samples)
    try:
        minibatches = plan_minibatches(
            groups,
            recipe.objective,
            epochs=recipe.train.epochs,
            prompts_per_step=recipe.train.prompts_per_step,
            seed=recipe.run.seed,
            iteration=iteration,
            on_no_signal=recipe.train.on_no_signal,
        )
    except NoLearningSignalError as error:
        raise NoLearningSignalError(f"{error}.\n{_what_helps(run, iteration, groups)}") from None
    return data, minibatches


def _what_helps(run: Run, iteration: int, groups: Sequence[Group]) -> str:
    """Return the commands that get an iteration without a learning signal further."""
    size = max((len(group.samples) for group in groups), default=1)
    larger = run.make(iteration, remake_from=iteration, settings={"rollout.group_size": 2 * size})
    keep = run.make(iteration, settings={"train.on_no_signal": "keep"})
    return f"  Sample more of each prompt:  {larger}\n  Go on without an update:     {keep}"


def _load_pipeline(source: Path, mesh: Mesh, recipe: Recipe, temperature: float) -> Pipeline:
    """Load this rank's part of the policy in folder `source`, for training."""
    return Pipeline(
        source,
        mesh,
        dtype=compute_dtype(recipe.model.dtype, mesh.device),
        temperature=temperature,
        schedule=recipe.mesh.pipeline_schedule,
        train=True,
        activation_checkpointing=recipe.train.activation_checkpointing,
    )


def _is_to_be_saved(minibatch: Minibatch, recipe: Recipe) -> bool:
    """Return whether the state is to be saved after this step of the iteration."""
    every = recipe.train.checkpoint_every_steps
    return every > 0 and (minibatch.step + 1) % every == 0


class Trainer:
    """Trainer of one iteration: takes its optimizer steps and keeps a row of metrics for each."""

    def __init__(
        self,
        pipeline: Pipeline,
        optimizer: Optimizer,
        *,
        train: TrainConfig,
        objective: ObjectiveConfig,
        iteration: int,
        steps: int,
        max_completion_tokens: int,
        own_term: PolicyTerm | None = None,
    ) -> None:
        """Prepare for an iteration.

        Args:
            pipeline: this rank's part of the model.
            optimizer: the optimizer of its weights.
            train: the recipe's section.
            objective: the recipe's section.
            iteration: the number of the iteration.
            steps: optimizer steps of the iteration.
            max_completion_tokens: the rollout's limit.
            own_term: what `load_policy_term` returns for the objective.
        """
        self.pipeline = pipeline
        self.optimizer = optimizer
        self.mesh: Mesh = pipeline.mesh
        self.rows: list[StepRow] = []
        self._train = train
        self._objective = objective
        self._own_term = own_term
        self._iteration = iteration
        self._steps = steps
        self._max_completion_tokens = max_completion_tokens

    def step(self, minibatch: Minibatch) -> StepRow:
        """Take one optimizer step, and return its row of metrics, the same on every rank.

        Raises:
            NonFiniteError: the third step in a row whose update is left out because its loss,
                its entropy or its gradient is not finite.
        """
        place = f"iteration {self._iteration}, step {minibatch.step}"
        self.mesh.at(f"{place}, forward and backward")
        started = time.perf_counter()
        seen = self.accumulate(minibatch)
        self.mesh.at(f"{place}, optimizer")
        rate = learning_rate(
            self._train, iteration=self._iteration, step=minibatch.step, steps=self._steps
        )
        faulty = seen.not_finite() if seen else None
        result = self.optimizer.step(
            rate, loss_is_finite=faulty is None, wanted=minibatch.has_gradient
        )
        row = self._row(minibatch, seen, started) | {
            "skipped": not result.applied,
            "grad_norm": result.grad_norm,
            "learning_rate": rate,
        }
        self.rows.append(row)
        if minibatch.has_gradient and not result.applied:
            self._tell_skipped(place, minibatch, faulty)
        elif minibatch.step == 0 and minibatch.has_gradient:
            self._warn_of_first_ratio(row)
        return row

    def accumulate(self, minibatch: Minibatch) -> LossRecorder | None:
        """Add up the gradients of this replica's part of a minibatch.

        Returns:
            What the loss recorded, on the last pipeline stage; None on the others.
        """
        batch = make_replica_batch(
            minibatch,
            self._objective,
            replica=self.mesh.dp_rank,
            replicas=self.mesh.dp_degree,
            tokens_per_pack=self._train.tokens_per_pack,
            share_prompts=self._train.share_prompts,
            packing=self.pipeline.packing(self._train.microbatches),
            max_completion_tokens=self._max_completion_tokens,
            dtype=torch.promote_types(self.pipeline.part.dtype, torch.float32),
        )
        on_device = ReplicaBatch(batch.samples, batch.packs, batch.tokens.to(self.mesh.device))
        loss = LossRecorder(on_device, self._objective, self._own_term)
        self.pipeline.run_step(batch.packs, self._train.microbatches, loss)
        return loss if self.mesh.is_last else None

    def _row(self, minibatch: Minibatch, seen: LossRecorder | None, started: float) -> StepRow:
        """Return the metrics over all replicas, merged in rank order to be equal on all ranks."""
        sums = seen.sums if seen else None
        mine = None if sums is None else {name: float(value) for name, value in sums.items()}
        seconds = time.perf_counter() - started
        total: dict[str, Tensor] | None = None
        everyone = self.mesh.gather_objects((mine, seconds, _peak_memory(self.mesh.device)))
        for part, _, _ in everyone:
            if part is not None:
                total = merge_sums(total, {name: torch.tensor(v) for name, v in part.items()})
        assert total is not None
        slowest = max(seconds for _, seconds, _ in everyone)
        facts = minibatch.facts()
        return {
            "iteration": self._iteration,
            "epoch": minibatch.epoch,
            "step": minibatch.step,
            "computed": minibatch.has_gradient,
            **metrics(total),
            **facts,
            "tokens_per_second": facts["completion_tokens"] / slowest,
            "peak_memory_bytes": max(memory for _, _, memory in everyone),
            "step_seconds": slowest,
        }

    def _tell_skipped(self, place: str, minibatch: Minibatch, faulty: list[str] | None) -> None:
        """Warn that a step was left out, naming the completions that are not finite.

        Raises:
            NonFiniteError: this is the third such step in a row.
        """
        found = [ids for ids in self.mesh.gather_objects(faulty) if ids]
        ids = sorted({rollout_id for part in found for rollout_id in part})
        named = ids or [sample.rollout_id for sample in minibatch.samples]
        what = "the loss of" if ids else "no loss, but the gradient of a step with"
        more = f" and {len(named) - _SAMPLES_NAMED} more" if len(named) > _SAMPLES_NAMED else ""
        message = f"{place}: not finite: {what} {', '.join(named[:_SAMPLES_NAMED])}{more}"
        recent = [row for row in self.rows if row["computed"]][-_SKIPS_ALLOWED - 1 :]
        if len(recent) > _SKIPS_ALLOWED and all(row["skipped"] for row in recent):
            raise NonFiniteError(
                f"{message}; {len(recent)} steps in a row, so training stops and the policy stays "
                "as it was. Lower train.learning_rate or train.max_grad_norm"
            )
        if self.mesh.is_main:
            warn(f"{message}; the update was left out")

    def _warn_of_first_ratio(self, row: StepRow) -> None:
        """Warn if the first step's ratio shows that old_logprobs are of another policy."""
        off = max(abs(row["ratio_mean"] - 1), row["approx_kl"])
        if self.mesh.is_main and off > _FIRST_BOUND:
            warn(
                f"iteration {self._iteration}: before the first update the mean ratio to the old "
                f"policy is {row['ratio_mean']:.4f}, not 1, approx_kl {row['approx_kl']:.2g}, not "
                "0: old_logprobs are not of this policy as it is computed here (another dtype or "
                'machine?); make logprobs again, with logprobs.old_logprobs_from = "policy"'
            )


@dataclass
class LossRecorder:
    """Loss of each microbatch, on the last pipeline stage of one replica.

    It keeps the sums that become metrics, and what it takes to name completions whose numbers are
    not finite.
    """

    batch: ReplicaBatch
    objective: ObjectiveConfig
    own_term: PolicyTerm | None = None
    """See `grpo_loss`."""
    sums: dict[str, Tensor] | None = None
    finite: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    """Per microbatch: indices of packs [B], whether each target is finite [B, T], and whether the
    loss is finite."""

    def __call__(self, outputs: Tensor, packs: Tensor) -> Tensor:
        """Return the loss of a microbatch.

        Args:
            outputs: [B, T, 2] logprob and entropy of each target.
            packs: [B] indices of the microbatch's packs.
        """
        batch = self.batch.tokens.select(packs)
        loss, sums = grpo_loss(
            outputs[..., 0], outputs[..., 1], batch, self.objective, self.own_term
        )
        self.sums = merge_sums(self.sums, sums)
        fine = (outputs.detach().isfinite().all(-1) & _finite(batch)) | ~batch.mask
        # Only stored: reading it here would synchronise with the device once per microbatch.
        self.finite.append((packs, fine, loss.detach().isfinite()))
        return loss

    def not_finite(self) -> list[str] | None:
        """Return the ids of the completions whose numbers are not finite; None if all are."""
        return list(self._faulty()) or None

    def _faulty(self) -> Iterator[str]:
        for packs, fine, loss_is_fine in self.finite:
            if not bool(fine.all()):
                targets = torch.zeros_like(self.batch.packs.target_mask)
                targets[packs.cpu()] = ~fine.cpu()
                yield from self.batch.rollout_ids(targets)
            elif not bool(loss_is_fine):
                yield from self.batch.rollout_ids(packs)


def step_line(rows: list[StepRow], steps: int) -> str:
    """Return one line about the last step, for the terminal, with the time that others will take.

    Args:
        rows: of all steps so far.
        steps: how many there will be.
    """
    row = rows[-1]
    left = (steps - len(rows)) * sum(row["step_seconds"] for row in rows) / len(rows)
    end = f"  {duration_text(left)} left" if left >= WORTH_SAYING else ""
    if row["skipped"]:
        return f"step {row['step'] + 1}/{steps}: left out{end}"
    shown = {
        "loss": f"{row['loss']:+.4f}",
        "reward": f"{row['reward_mean']:.3f}",
        "kl": f"{row['kl']:.2g}",
        "entropy": f"{row['entropy']:.3f}",
        "ratio": f"{row['ratio_mean']:.4f}",
        "grad": f"{row['grad_norm']:.3g}",
        "lr": f"{row['learning_rate']:.2g}",
        "tokens/s": f"{row['tokens_per_second']:.0f}",
    }
    numbers = "  ".join(f"{name} {value}" for name, value in shown.items())
    return f"step {row['step'] + 1}/{steps}  {numbers}{end}"


def _finite(batch: TokenBatch) -> Tensor:
    """Return [B, T] bool: whether all numbers that the batch has for a target are finite."""
    given = [batch.old_logprobs, batch.advantages, batch.sampler_weights]
    given += [batch.ref_logprobs] if batch.ref_logprobs is not None else []
    return torch.stack([values.isfinite() for values in given]).all(0)


def _peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes, of the accelerator if there is one, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_memory_bytes()
