"""evaluate: a policy answers the held-out questions, greedily and by samples.

Reads   prompts/eval-*, policies/N
Writes  evaluations/N: completions with their verdicts; pass@k, maj@k and lengths in the manifest

Each question gets one greedy completion and `evaluate.samples` sampled ones, judged by its verify
type. The samples' seeds do not depend on N, so that two policies are compared on the same ones.

    python -m stages.evaluate --run demo --iteration 20
    torchrun --standalone --nproc-per-node 2 -m -- stages.evaluate --run demo --iteration 20
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa

from common.accuracy import GREEDY, figures_by_task, greedy_mean_over_tasks
from common.command import Shards, chosen_shards, launch
from common.config import Recipe
from common.console import Bar, python, quiet, say, warn
from common.errors import UserError
from common.reporting.terminal import Shown, print_table
from common.rewards.registry import package_versions
from common.rewards.scorer import Scorer, judge_rows, refuse_infra_errors, usage_lines
from common.runs.columns import polars_frame
from common.runs.layout import shard_name
from common.runs.policies import open_policy
from common.runs.schemas import EVALUATION
from common.runs.shards import OutputWriter, read_split
from common.stage import StageRun, stage_command

if TYPE_CHECKING:
    from common.engines.engine import Engine
    from common.rollout.prompts import RenderedPrompt, SamplingPolicy

QUESTIONS_PER_SHARD = 64


@dataclass(frozen=True)
class Questions:
    """The questions that a policy answers, the same on every rank."""

    policy: SamplingPolicy
    prompts: list[RenderedPrompt]
    dropped: int
    """Number of questions left out because they leave no room for an answer."""
    max_completion_tokens: int

    @property
    def verify_types(self) -> set[str]:
        return {prompt.row["verify_type"] for prompt in self.prompts}


def evaluate(stage: StageRun, shards: Shards = "") -> None:
    """Answer the held-out questions with a policy and judge the answers.

    Shards that are asked for are made, unless they exist already.
    The output is complete once no shard is missing.
    """
    from common.rollout.groups import sample_shards

    recipe, mesh = stage.recipe, stage.mesh
    questions = render_questions(stage)
    if questions.dropped and mesh.is_main:
        warn(f"{questions.dropped} questions leave no room for an answer and were dropped")
    count = math.ceil(len(questions.prompts) / QUESTIONS_PER_SHARD)
    with Scorer(recipe.rewards.with_judge_cache(stage.run.judge)) as scorer:
        scorer.open(questions.verify_types, aux_rewards=False)
        writer = stage.writer(
            [shard_name(index) for index in range(count)],
            made_by=package_versions(questions.verify_types),
        )
        chosen = chosen_shards(shards, len(writer.names))
        reasons = judge_again(writer.open(), scorer) if mesh.is_main else []
        work = Answers(stage, questions, scorer)
        complete = sample_shards(
            writer,
            mesh,
            work.shard,
            chosen=chosen,
            label="evaluate",
            total=QUESTIONS_PER_SHARD * (1 + recipe.evaluate.samples),
        )
        for line in usage_lines(mesh.gather_objects(scorer.usage())):
            say(line)
    reasons = list(chain(*mesh.gather_objects(reasons + work.reasons)))
    if complete:
        commit(stage, questions, writer, reasons)


def render_questions(stage: StageRun) -> Questions:
    """Render the questions on every rank; the first verifies the policy. No weights are loaded.

    Raises:
        UserError: an input is missing, or a question leaves no room for an answer.
    """
    from common.rollout.prompts import SamplingPolicy

    run, recipe = stage.run, stage.recipe
    policy_dir = stage.mesh.broadcast_from_rank0(lambda: open_policy(run, stage.iteration))
    policy = SamplingPolicy(policy_dir, recipe.prompt)
    limit = recipe.evaluate.max_completion_tokens or recipe.rollout.max_completion_tokens
    rendered = [policy.render(row) for row in read_split(run, "eval").to_pylist()]
    on_long = recipe.rollout.on_long
    prompts = [prompt for prompt in rendered if policy.fits(prompt, limit, on_long)]
    if not prompts:
        raise UserError("no evaluation question leaves room for an answer")
    return Questions(policy, prompts, len(rendered) - len(prompts), limit)


def judge_again(writer: OutputWriter, scorer: Scorer) -> list[str]:
    """Judge again, in finished shards, the completions on which rules failed.

    The rules may have been mended since. The completions stay as they were sampled.

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
        reasons += judge_rows(failed, scorer)
        writer.write(name, pa.Table.from_pylist(rows, schema=EVALUATION))
    return reasons


def seeds(recipe: Recipe, prompt_id: str) -> list[int | None]:
    """Return the seeds of a question's completions: None for the greedy one, then the samples'."""
    from common.seeds import sample_seed

    samples = range(recipe.evaluate.samples)
    return [None, *(sample_seed(recipe.run.seed, 0, prompt_id, index) for index in samples)]


class Answers:
    """Answers of one rank: made shard by shard, with the weights loaded before the first."""

    def __init__(self, stage: StageRun, questions: Questions, scorer: Scorer) -> None:
        self.reasons: list[str] = []
        """The reasons of infra errors."""
        self._stage = stage
        self._questions = questions
        self._scorer = scorer
        self._engine: Engine | None = None

    def shard(self, shard: int, shown: Bar) -> pa.Table:
        """Answer and judge the questions of one shard."""
        from common.engines.engine import Request, SamplingParams

        stage, recipe, policy = self._stage, self._stage.recipe, self._questions.policy
        if self._engine is None:
            self._engine = policy.engine(recipe, stage.mesh.device)
        first = shard * QUESTIONS_PER_SHARD
        prompts = self._questions.prompts[first : first + QUESTIONS_PER_SHARD]
        settings = recipe.evaluate
        samples = self._engine.generate(
            [Request(prompt.ids, seeds(recipe, prompt.row["prompt_id"])) for prompt in prompts],
            SamplingParams(
                self._questions.max_completion_tokens,
                settings.temperature,
                settings.top_p,
                settings.top_k,
            ),
            on_ended=shown.advance,
        )
        rows = [
            {
                "rollout_id": f"{stage.iteration:04d}-{question:05d}-"
                f"{'greedy' if index == GREEDY else f'{index:04d}'}",
                "sample_index": index,
                **policy.columns(prompt, sample),
            }
            for question, (prompt, answers) in enumerate(zip(prompts, samples, strict=True), first)
            for index, sample in enumerate(answers, GREEDY)
        ]
        self.reasons += judge_rows(rows, self._scorer)
        return pa.Table.from_pylist(rows, schema=EVALUATION)


def commit(stage: StageRun, questions: Questions, writer: OutputWriter, reasons: list[str]) -> None:
    """Write the manifest with the figures, and print those of each task.

    Args:
        stage: the stage at work.
        questions: the questions that were answered.
        writer: holds all shards.
        reasons: the reasons of infra errors.

    Raises:
        UserError: more than 1 % of the completions could not be judged.
    """
    columns = ["task", "prompt_id", "sample_index", "completion_ids", "finish_reason"]
    answers = writer.read_all([*columns, "extracted_answer", "verdict"])
    refuse_infra_errors(answers, reasons)
    frame, settings = polars_frame(answers), stage.recipe.evaluate
    facts: dict[str, Any] = {
        "policy_version": stage.iteration,
        "samples": settings.samples,
        "temperature": settings.temperature,
        "max_completion_tokens": questions.max_completion_tokens,
        "tasks": figures_by_task(frame),
        "mean_over_tasks": greedy_mean_over_tasks(frame),
    }
    mean = facts["mean_over_tasks"]
    line = (
        f"{writer.output.name}: greedy {mean['greedy']:.3f} "
        f"[{mean['greedy_low']:.3f}, {mean['greedy_high']:.3f}] as the mean over "
        f"{len(facts['tasks'])} tasks, {mean['questions']} questions"
    )
    stage.commit(writer, facts, line)
    if not quiet():
        figures = [{"task": task} | figures for task, figures in facts["tasks"].items()]
        more = f"all: {python()} -m stages.show evaluations --run {stage.run.name} --columns all"
        title = f"policy {stage.iteration}"
        print_table(pl.DataFrame(figures), title=title, shown=Shown(more=more))


main = stage_command("evaluate", evaluate)

if __name__ == "__main__":
    launch(main)
