"""prepare: questions become prompts, and the model becomes policy 0.

Reads   the recipe's [data] (generators, files, folders, hub data sets) and [model]
Writes  prompts/train-*.parquet, prompts/eval-*.parquet, policies/0000

Everything is checked before the first byte is written: each row's columns and gold answer, the
model's files, and each prompt as the model will see it. No training prompt is an evaluation prompt.
Policy 0 consists of hard links where the file system allows them; only safetensors are accepted.

    python -m stages.prepare --run demo --recipe workflows/recipes/arithmetic.toml
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa

from common.command import launch
from common.config import ObjectiveConfig, Recipe
from common.console import say, warn
from common.errors import MissingToolError, UserError
from common.modeling.install import Model, find_model, install
from common.rewards.scorer import ROLLOUT_COLUMNS, Scorer
from common.runs.manifest import FileRecord, Manifest
from common.runs.policies import commit_policy
from common.stage import StageRun, stage_command
from common.tasks.outside import changed_files, data_files, outside_records, what_to_do
from common.tasks.prompts import Prompt, to_table
from common.tasks.records import Faults
from common.tasks.sources import Prompts, read_sources

PROMPTS_PER_FILE = 20_000


def prepare(stage: StageRun) -> None:
    """Make prompts from the recipe's questions, and policy 0 from its model.

    All inputs are checked first.
    Policy 0 is written before the prompts, whose manifest completes both.

    Raises:
        UserError: data or model have faults; it lists all of them, before anything is written.
    """
    recipe = stage.recipe
    prompts, model = check_inputs(recipe)
    for notice in prompts.notices:
        say(notice)
    policy = stage.run.policy(0)
    install(model, policy.partial)
    parameters = {"parameters": model.parameters}
    installed = commit_policy(
        policy,
        inputs={},
        recipe=stage.stage.recorded(recipe),
        seed=recipe.run.seed,
        facts=parameters,
    )
    counts = {"train": count_tasks(prompts.train), "eval": count_tasks(prompts.eval)}
    files = data_files(recipe.data)
    if Path(recipe.model.path).expanduser().is_dir():  # the hub's cache never changes
        files += model.files
    hashed = {str((model.folder / file.name).absolute()): file.sha256 for file in installed.files}
    outside = outside_records(files, hashed)
    write_prompts(stage, prompts, counts, installed, outside)
    tasks = ", ".join(
        f"{task} {counts['train'].get(task, 0)} + {counts['eval'].get(task, 0)}"
        for task in recipe.data
    )
    stage.tell(
        counts | parameters,
        f"prompts: {len(prompts.train)} for training + {len(prompts.eval)} for evaluation "
        f"({tasks}); policy 0: {recipe.model.path}, {model.parameters / 1e6:.1f} M parameters",
    )


def check_inputs(recipe: Recipe) -> tuple[Prompts, Model]:
    """Read the data, find the model, render all prompts, and try the recipe's own policy term.

    Raises:
        UserError: they have faults; it lists all of them at once.
        MissingToolError: a program or package that judges the questions is not installed.
    """
    from common.rollout.prompt_checks import check_prompts
    from common.rollout.prompts import SamplingPolicy

    faults = Faults()
    prompts = model = None
    rewards = recipe.rewards.with_limit(recipe.rollout.max_completion_tokens)
    try:
        with Scorer(rewards) as scorer:
            prompts = read_sources(recipe.data, scorer.unreadable_golds)
            every = [*prompts.train, *prompts.eval]
            scorer.open({prompt.verify_type for prompt in every})
            named = {column for prompt in every for column in prompt.metadata}
            scorer.check_columns({*ROLLOUT_COLUMNS, "completion_tokens", *named}, "the data")
        check_counts(recipe, prompts)
    except MissingToolError:
        raise
    except UserError as error:
        faults.lines += str(error).splitlines()
    try:
        check_policy_term(recipe.objective)
    except UserError as error:
        faults.lines += str(error).splitlines()
    try:
        model = find_model(recipe.model.path)
    except UserError as error:
        faults.lines += str(error).splitlines()
    faults.raise_any()
    assert prompts and model
    policy = SamplingPolicy(model.folder, recipe.prompt)
    prompts.notices += check_prompts(policy, recipe, prompts)
    return prompts, model


def check_policy_term(objective: ObjectiveConfig) -> None:
    """Try the recipe's own policy term now, since `train` would only after a long rollout."""
    if objective.has_own_term:
        from common.training.policy_term import load_policy_term

        load_policy_term(objective)


def check_counts(recipe: Recipe, prompts: Prompts) -> None:
    """Check that each later stage has questions; tell if there are few.

    Raises:
        UserError: there is no training question, or no evaluation question though some are needed.
    """
    if not prompts.train:
        raise UserError(
            "data: no training question is left; raise train of a source, or lower its eval where "
            "the same questions would be in both"
        )
    if recipe.evaluate.every and not prompts.eval:
        raise UserError(
            f"evaluate.every = {recipe.evaluate.every}, but there are no evaluation questions; "
            "raise eval of a source in [data], or set evaluate.every = 0"
        )
    groups = recipe.rollout.prompts_per_iteration
    if len(prompts.train) < groups:
        prompts.notices.append(
            f"{len(prompts.train)} training prompts fill the {groups} groups of an iteration, so "
            "prompts are drawn more than once; add data, or lower rollout.prompts_per_iteration"
        )


def tell_changed(stage: StageRun) -> None:
    """Warn if files that the prompts or policy 0 were made from have another content by now."""
    if changed := changed_files(stage.run, stage.recipe.data):
        warn(what_to_do(stage.run, changed))


def write_prompts(
    stage: StageRun,
    prompts: Prompts,
    counts: dict[str, dict[str, int]],
    policy: Manifest,
    outside: dict[str, FileRecord],
) -> None:
    """Write both splits, a bounded number of prompts per file.

    Args:
        stage: the stage at work.
        prompts: both splits.
        counts: number of prompts by split and task.
        policy: manifest of policy 0, which the manifest of the prompts completes.
        outside: records of the files that both were made from.
    """
    shards = {**cut("train", prompts.train), **cut("eval", prompts.eval)}
    writer = stage.writer(list(shards)).open()
    for name, table in shards.items():
        writer.write(name, table)
    facts = counts | {stage.run.policy(0).name: policy.content_hash}
    writer.commit(facts, outside=outside)


def cut(split: str, prompts: Sequence[Prompt]) -> dict[str, pa.Table]:
    """Return the tables of a split by the name of their file."""
    return {
        f"{split}-{index:05d}.parquet": to_table(
            prompts[index * PROMPTS_PER_FILE : (index + 1) * PROMPTS_PER_FILE]
        )
        for index in range(math.ceil(len(prompts) / PROMPTS_PER_FILE))
    }


def count_tasks(prompts: Iterable[Prompt]) -> dict[str, int]:
    """Return how many prompts each task has."""
    return dict(Counter(prompt.task for prompt in prompts))


main = stage_command("prepare", prepare, afterwards=tell_changed)

if __name__ == "__main__":
    launch(main)
