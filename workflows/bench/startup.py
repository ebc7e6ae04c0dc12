"""How long a stage takes to begin its work, score to judge rows, and the default recipe to iterate.

A stage's work begins with the first call of the function that does it: drawing, judging, the first
forward. Before that, it has imported, read the recipe, verified its inputs and loaded weights.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from functools import partial
from statistics import median

import pyarrow as pa

from common.config import RewardsConfig
from common.rewards.scorer import Scorer, judge_table
from common.tasks.registry import TASKS
from workflows.bench.measure import Bench, Measurement, rounds
from workflows.bench.process import run_command
from workflows.bench.stage import STARTED, WORK
from workflows.chain.launch import Command

AFTER_IMPORTS_SECONDS = 1.0
"""Longest time that a stage may take before its work, without its imports."""
DEFAULT_ITERATION_SECONDS = 12.0
RUN = "startup"
SMALL_RUN = (
    *("--set", "rollout.prompts_per_iteration=2", "--set", "rollout.group_size=2"),
    *("--set", "rollout.max_completion_tokens=4", "--set", "train.on_no_signal=keep"),
    *("--set", "evaluate.every=0", "--set", "rewards.length.weight=1"),
)


def measure(bench: Bench) -> list[Measurement]:
    """Measure by stage the seconds from its command to its work, with and without imports."""
    runs = bench.scratch / "startup"
    runs.mkdir()
    place = {"STAGED_GRPO_RUNS": str(runs)}
    model = ["--set", f"model.path={bench.default_model.resolve()}"]
    prepare = Command("stages.prepare", ["--run", RUN, *SMALL_RUN, *model])
    run_command(prepare, 1, bench.device, place)
    at = ["--run", RUN, "--iteration", "1"]
    for stage in WORK:
        run_command(Command(f"stages.{stage}", at), bench.threads, bench.device, place)
    found = []
    for stage in WORK:
        imports: list[float] = []

        def begin(stage: str = stage, imports: list[float] = imports) -> float:
            arguments = ["until-work", stage, *at, "--overwrite"]
            command = Command("workflows.bench.stage", arguments)
            started = place | {STARTED: repr(time.time())}
            said = run_command(command, bench.threads, bench.device, started)
            facts = json.loads(said.splitlines()[-1])
            imports.append(facts["imports"])
            return float(facts["seconds"])

        total = rounds({stage: begin}, bench.pairs)[stage]
        rest = [t - i for t, i in zip(total, imports[1:], strict=True)]
        limit = [AFTER_IMPORTS_SECONDS] * len(rest)
        found += [
            Measurement("startup", f"{stage}: until its work begins", "", "s", total, []),
            Measurement(
                "startup", f"{stage}: the same without imports", "1 s", "s", rest, limit, 1.0
            ),
        ]
    return found


def measure_score(bench: Bench) -> list[Measurement]:
    """Measure the judging of rows of the default recipe's tasks, then of MATH rows.

    Half of the rows are right, and `format` is judged too.
    """
    count, found = bench.sizes.scored_rows, []
    for name, table in (("built-in tasks", task_rows(count)), ("MATH", math_rows(count))):
        with Scorer(RewardsConfig.model_validate({"format": {"weight": 0.1}})) as scorer:
            judge = bench.clock(partial(judge_table, table, scorer, ["format"]))
            taken = rounds({"score": judge}, bench.pairs)["score"]
        note = f"{count / median(taken):.0f} rows/s"
        label = f"score: {count} rows, {name}"
        found.append(Measurement("score", label, "", "s", taken, [], note=note))
    return found


def task_rows(count: int) -> pa.Table:
    """Return completions of the three built-in tasks."""
    per_task = [task.generate(100, split="train", seed=0) for task in TASKS.values()]
    questions = [per_task[i % len(per_task)][i // len(per_task) % 100] for i in range(count)]
    return _rows([(question.answer, question.verify_type) for question in questions])


def math_rows(count: int) -> pa.Table:
    """Return completions whose answers are formulas."""
    return _rows(
        [(rf"\frac{{{index} \sqrt{{2}}}}{{{index + 1}}}", "MATH") for index in range(count)]
    )


def _rows(golds: Sequence[tuple[str, str]]) -> pa.Table:
    """Return one row for each gold; every other row answers with it."""
    return pa.Table.from_pylist(
        [
            {
                "completion_text": "Let us see.</think>"
                f"<answer>{answer if index % 2 else 17}</answer>",
                "assistant_prefix": "<think>",
                "answer": answer,
                "verify_type": verify_type,
            }
            for index, (answer, verify_type) in enumerate(golds)
        ]
    )


def measure_default(bench: Bench) -> list[Measurement]:
    """Measure iterations of the default recipe, as `make iteration` chains them, not evaluated.

    The figure is the mean of ten (of two if sizes are small), start-up included.
    """
    runs = bench.scratch / "default"
    runs.mkdir()
    count = 10 if bench.sizes.default_tokens >= 128 else 2
    place = {"STAGED_GRPO_RUNS": str(runs)}

    def run(*options: str) -> None:
        chain = Command("workflows.chain", ["iteration", "--run", RUN, *options])
        run_command(chain, bench.threads, bench.device, place)

    run("--to", "0", "--set", "evaluate.every=0")
    started = time.perf_counter()
    run("--to", str(count))
    mean = (time.perf_counter() - started) / count
    limit = DEFAULT_ITERATION_SECONDS
    name = f"default recipe: an iteration by make, mean of {count}, {os.cpu_count()} cores"
    return [Measurement("default", name, f"{limit:.0f} s", "s", [mean], [limit], 1.0)]
