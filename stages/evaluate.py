"""evaluate: a policy answers the held-out questions, greedily and by samples.

Reads   prompts/eval-*, policies/N
Writes  evaluations/N: completions with their verdicts; pass@k, maj@k and lengths in the manifest

Each question gets one greedy completion and `evaluate.samples` sampled ones, judged by its verify
type. The samples' random numbers do not depend on N, so that two policies meet the same luck.

python -m stages.evaluate --run demo --iteration 20
torchrun --standalone --nproc-per-node 2 -m -- stages.evaluate --run demo --iteration 20
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any

import polars as pl
import pyarrow as pa
import typer

from common.command import (
    AcceptEdits,
    Context,
    Debug,
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
from common.console import Bar, warn
from common.errors import UserError
from common.reporting.accuracy import GREEDY, figures_by_task, greedy_mean_over_tasks
from common.reporting.terminal import print_table
from common.rewards.registry import package_versions
from common.rewards.scorer import Scorer, judge_rows, refuse_infra_errors
from common.runs.freshness import input_hashes
from common.runs.layout import shard_name
from common.runs.policies import open_policy
from common.runs.schemas import EVALUATION
from common.runs.shards import OutputWriter, read_split

if TYPE_CHECKING:
    from common.parallel.mesh import Mesh
    from common.rollout.prompts import RenderedPrompt, SamplingPolicy

Policy = Annotated[int, typer.Option("--iteration", min=0, help="Which policy; 0 is the base.")]

QUESTIONS_PER_SHARD = 64

VERIFY_SETTINGS = {"math", "code", "similarity", "reasoning_gym"}
"""Parts of `[rewards]` that verify types depend on; extras play no part in an evaluation."""


@dataclass(frozen=True)
class Job:
    """The questions that a policy answers, the same on every rank."""

    context: Context
    policy: SamplingPolicy
    prompts: list[RenderedPrompt]
    dropped: int
    """Questions that leave no room for an answer."""
    max_completion_tokens: int

    @classmethod
    def of(cls, context: Context, mesh: Mesh) -> Job:
        """Render the questions; no weights are loaded. Every rank; the first verifies the policy.

        Raises:
            UserError: an input is missing, or a question leaves no room for an answer.
        """
        from common.rollout.prompts import SamplingPolicy

        run, recipe, number = context.run, context.recipe, context.iteration
        policy_dir = mesh.broadcast_from_rank0(lambda: open_policy(run, number))
        policy = SamplingPolicy(policy_dir, recipe.prompt)
        limit = recipe.evaluate.max_completion_tokens or recipe.rollout.max_completion_tokens
        rendered = [policy.render(row) for row in read_split(run, "eval").to_pylist()]
        on_long = recipe.rollout.on_long
        prompts = [prompt for prompt in rendered if policy.fits(prompt, limit, on_long)]
        if not prompts:
            raise UserError("no evaluation question leaves room for an answer")
        return cls(context, policy, prompts, len(rendered) - len(prompts), limit)

    def writer(self) -> OutputWriter:
        """The output, described by what decides its content."""
        run, recipe = self.context.run, self.context.recipe
        count = math.ceil(len(self.prompts) / QUESTIONS_PER_SHARD)
        return OutputWriter(
            run.evaluation(self.context.iteration),
            inputs=input_hashes(
                run, [f"{run.prompts.name}:eval", run.policy(self.context.iteration).name]
            ),
            recipe={
                "model": {"dtype": recipe.model.dtype},
                "prompt": recipe.prompt.model_dump(mode="json"),
                "evaluate": recipe.evaluate.model_dump(mode="json", exclude={"every"}),
                "rollout": {
                    "max_concurrent": recipe.rollout.max_concurrent,
                    "max_completion_tokens": recipe.rollout.max_completion_tokens,
                },
                "rewards": recipe.rewards.model_dump(mode="json", include=VERIFY_SETTINGS),
            },
            seed=recipe.run.seed,
            names=[shard_name(index) for index in range(count)],
            schema=EVALUATION,
            made_by=package_versions(self.verify_types),
        )

    @property
    def verify_types(self) -> set[str]:
        return {prompt.row["verify_type"] for prompt in self.prompts}

    def seeds(self, prompt: RenderedPrompt) -> list[int | None]:
        """Greedy, then the seeds of the samples."""
        from common.seeds import sample_seed

        recipe = self.context.recipe
        return [None] + [
            sample_seed(recipe.run.seed, 0, prompt.row["prompt_id"], index)
            for index in range(recipe.evaluate.samples)
        ]


def main(
    run: RunName,
    iteration: Policy,
    recipe: RecipePath = None,
    overrides: Overrides = None,
    shards: Shards = "",
    overwrite: Overwrite = False,
    accept_edits: AcceptEdits = False,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Answer the held-out questions with a policy and judge the answers."""
    context = open_context(
        run,
        iteration,
        recipe=recipe,
        overrides=overrides,
        overwrite=overwrite,
        quiet=quiet,
        as_json=as_json,
    )
    output = context.run.evaluation(iteration)
    if accept_edits:
        context.accept(output, EVALUATION)
        return
    from common.parallel.mesh import Mesh

    processes = MeshConfig(timeout_seconds=context.recipe.mesh.timeout_seconds)
    with Mesh.from_environment(processes) as mesh:
        if mesh.broadcast_from_rank0(lambda: context.begin(output)):
            figures = make(Job.of(context, mesh), mesh, shards)
            if figures is not None and not (quiet or as_json):
                print_table(figures, title=f"policy {iteration}")


def make(job: Job, mesh: Mesh, shards: str) -> pl.DataFrame | None:
    """Make the missing shards of those asked for; commit once all are there.

    Returns:
        The figures, one row a task, on the rank that committed.
    """
    from common.rollout.groups import sample_shards

    if job.dropped and mesh.is_main:
        warn(f"{job.dropped} questions leave no room for an answer and were dropped")
    with Scorer(job.context.recipe.rewards) as judging:
        judging.open(job.verify_types, extras=False)
        writer = job.writer()
        chosen = chosen_shards(shards, len(writer.names))
        reasons = judge_again(writer.open(), judging) if mesh.is_main else []
        work = Work(job, mesh, judging)
        complete = sample_shards(
            writer,
            mesh,
            work.shard,
            chosen=chosen,
            label="evaluate",
            total=QUESTIONS_PER_SHARD * (1 + job.context.recipe.evaluate.samples),
        )
    reasons = list(chain(*mesh.gather_objects(reasons + work.reasons)))
    return commit(job, writer, reasons) if complete else None


def judge_again(writer: OutputWriter, judging: Scorer) -> list[str]:
    """Judge what rules failed on in shards that are there: the rules may have been mended since.

    The completions stay as they were sampled.

    Returns:
        The reasons of those that failed again.
    """
    reasons: list[str] = []
    missing = set(writer.pending())
    for name in writer.names:
        table = None if name in missing else writer.read(name)
        if table is None or not table["reward_answer"].null_count:
            continue
        rows = table.to_pylist()
        failed = [row for row in rows if row["reward_answer"] is None]
        reasons += judge_rows(failed, judging)
        writer.write(name, pa.Table.from_pylist(rows, schema=EVALUATION))
    return reasons


class Work:
    """What a rank does: shard after shard, the weights loaded before the first one."""

    def __init__(self, job: Job, mesh: Mesh, judging: Scorer) -> None:
        self.reasons: list[str] = []
        """Of infra errors."""
        self._judging = judging
        self._job = job
        self._mesh = mesh
        self._engine: Any = None

    def shard(self, shard: int, shown: Bar) -> pa.Table:
        """Answer and judge the questions of one shard."""
        from common.engines.engine import Request, SamplingParams

        job, recipe = self._job, self._job.context.recipe
        if self._engine is None:
            self._engine = job.policy.engine(recipe, self._mesh.device)
        first = shard * QUESTIONS_PER_SHARD
        prompts = job.prompts[first : first + QUESTIONS_PER_SHARD]
        samples = self._engine.generate(
            [Request(prompt.ids, job.seeds(prompt)) for prompt in prompts],
            SamplingParams(
                job.max_completion_tokens,
                recipe.evaluate.temperature,
                recipe.evaluate.top_p,
                recipe.evaluate.top_k,
            ),
            on_ended=shown.advance,
        )
        rows = [
            {
                "rollout_id": f"{job.context.iteration:04d}-{question:05d}-"
                f"{'greedy' if index == GREEDY else f'{index:04d}'}",
                "sample_index": index,
                **job.policy.columns(prompt, sample),
            }
            for question, (prompt, answers) in enumerate(zip(prompts, samples, strict=True), first)
            for index, sample in enumerate(answers, GREEDY)
        ]
        self.reasons += judge_rows(rows, self._judging)
        return pa.Table.from_pylist(rows, schema=EVALUATION)


def commit(job: Job, writer: OutputWriter, reasons: list[str]) -> pl.DataFrame:
    """Write the manifest with the figures, and return those of each task.

    Args:
        reasons: of infra errors.

    Raises:
        UserError: more than 1 % of the completions could not be judged.
    """
    columns = ["task", "prompt_id", "sample_index", "completion_ids", "finish_reason"]
    answers = writer.read_all([*columns, "extracted_answer", "verdict"])
    refuse_infra_errors(answers, reasons)
    frame = pl.from_arrow(answers)
    assert isinstance(frame, pl.DataFrame)
    facts: dict[str, Any] = {
        "policy_version": job.context.iteration,
        "samples": job.context.recipe.evaluate.samples,
        "temperature": job.context.recipe.evaluate.temperature,
        "max_completion_tokens": job.max_completion_tokens,
        "tasks": figures_by_task(frame),
        "mean_over_tasks": greedy_mean_over_tasks(frame),
    }
    writer.commit(facts, packages=("torch", "transformers"))
    mean = facts["mean_over_tasks"]
    job.context.result(
        facts,
        f"{writer.output.name}: greedy {mean['greedy']:.3f} "
        f"[{mean['greedy_low']:.3f}, {mean['greedy_high']:.3f}] as the mean over "
        f"{len(facts['tasks'])} tasks, {mean['questions']} questions",
    )
    return pl.DataFrame([{"task": task} | figures for task, figures in facts["tasks"].items()])


if __name__ == "__main__":
    launch(main)
