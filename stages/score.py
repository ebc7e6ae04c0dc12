"""score: judge completions and take group-relative advantages.

Reads   iterations/N/rollout
Writes  iterations/N/score: rewards, verdicts and advantages by `rollout_id`

Each completion is judged by its row's verify type and by the recipe's auxiliary rewards, shard by
shard; if the process is killed, the next one keeps the shards that are judged. Once all are, the
advantages are computed in one pass over the whole iteration. No tensor library is loaded, so trying
another reward takes seconds.

    python -m stages.score --run demo --iteration 3
    python -m stages.score --run demo --iteration 3 --set rewards.format.weight=0.2 --overwrite
    python -m stages.score --input any.parquet --output scored.parquet
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import typer

from common.command import (
    AcceptEdits,
    Debug,
    Json,
    Overrides,
    Overwrite,
    Quiet,
    RecipePath,
    Shards,
    chosen_shards,
    launch,
)
from common.config import Recipe
from common.config.recipe_file import load_recipe
from common.console import bar, print_json, say, set_quiet, warn
from common.errors import UserError
from common.objective.advantages import compute_advantages
from common.rewards.completion_files import (
    former_scores,
    group_numbers,
    kept_rows,
    read_completions,
)
from common.rewards.registry import function_versions, package_versions
from common.rewards.scorer import (
    ROLLOUT_COLUMNS,
    Scorer,
    check_columns,
    check_golds,
    columns_in,
    judge_table,
    refuse_infra_errors,
    reward_facts,
    summary,
    types_in,
    usage_lines,
    with_columns,
    with_metadata,
)
from common.rewards.unanswered import FACT, explain, refuse_unanswered, unanswered_facts
from common.runs.freshness import require_fresh
from common.runs.layout import DEFAULT_RECIPE, Run
from common.runs.manifest import read_manifest, write_atomically
from common.runs.recipe import look_beside_recipe, recipe_around
from common.runs.schemas import KEY
from common.runs.shards import OutputWriter, encode_parquet, prompts_metadata, read_shard
from common.seeds import shuffle_seed
from common.stage import StageRun, run_stage

RunOption = Annotated[str, typer.Option("--run", help="Name of the run under data/runs.")]
IterationOption = Annotated[int, typer.Option("--iteration", help="Which iteration, from 1.")]
InputPath = Annotated[
    Path | None, typer.Option("--input", help="Score this file or folder, of no run.")
]
OutputPath = Annotated[Path | None, typer.Option("--output", help="Where --input's scores go.")]

USAGE = "give either --run and --iteration, or --input and --output without options of a run"


def main(
    run: RunOption = "",
    iteration: IterationOption = 0,
    input_path: InputPath = None,
    output_path: OutputPath = None,
    recipe: RecipePath = None,
    overrides: Overrides = None,
    shards: Shards = "",
    overwrite: Overwrite = False,
    accept_edits: AcceptEdits = False,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Judge the completions of an iteration, or of any file, and compute advantages."""
    if input_path or output_path:
        if not (input_path and output_path) or run or iteration or shards or accept_edits:
            raise UserError(USAGE)
        set_quiet(quiet or as_json)
        own = recipe or recipe_around(input_path) or DEFAULT_RECIPE
        settings = load_recipe(own, overrides)
        look_beside_recipe(Run(own.parent), recipe)
        facts = score_file(input_path, output_path, settings, overwrite=overwrite)
        say(summary(str(output_path), facts))
        if as_json:
            print_json(facts)
        return
    if not run or not iteration:
        raise UserError(USAGE)
    run_stage(
        "score",
        score,
        run=run,
        iteration=iteration,
        recipe=recipe,
        overrides=overrides,
        overwrite=overwrite,
        accept_edits=accept_edits,
        quiet=quiet,
        as_json=as_json,
        shards=shards,
    )


def score(stage: StageRun, shards: str) -> None:
    """Judge the missing shards that are asked for; once all exist, compute advantages and commit.

    Raises:
        UserError: the rollout is missing or stale, a gold answer cannot be read, or the rules
            failed on more than 1 % of the completions.
        NoLearningSignalError: hardly a completion has an answer, see `refuse_unanswered`. The
            scores are complete, so that they can be looked at.
    """
    recipe, source = stage.recipe, stage.run.rollout(stage.iteration)
    rollout = read_manifest(source)
    require_fresh(stage.run, source)
    completions = {
        r.name: read_shard(source, r).select([*ROLLOUT_COLUMNS, "kept"]) for r in rollout.shards
    }
    if recipe.rewards.functions:
        completions = {n: with_data(rows, stage.run) for n, rows in completions.items()}
    chosen = [list(completions)[i] for i in chosen_shards(shards, len(completions))]
    rewards = recipe.rewards.with_limit(rollout.recipe["rollout"]["max_completion_tokens"])
    rewards = rewards.with_judge_cache(stage.run.judge)
    with Scorer(rewards) as scorer:
        tables = {str(source.path / name): table for name, table in completions.items()}
        make_ready(scorer, tables)
        versions = package_versions(types_in(completions.values())) | function_versions(rewards)
        writer = stage.writer(list(completions), made_by=versions).open()
        reasons = judge_shards(writer, completions, chosen, scorer, list(rewards.aux_weights()))
        for line in usage_lines([scorer.usage()]):
            say(line)
        used = scorer.usage_facts()
    if missing := writer.pending():
        say(f"{writer.output.name}: {len(missing)} of {len(completions)} shards are still missing")
        return
    settings = advantage_settings(recipe, stage.iteration)
    facts = take_advantages(writer, completions, settings, reasons)
    facts |= unanswered_facts(
        pa.concat_tables(completions.values()),
        writer.read_all(["verdict"])["verdict"],
        rewards,
        rollout.recipe["rollout"]["max_completion_tokens"],
    )
    stage.commit(writer, facts, summary(writer.output.name, facts), used)
    tell_faults(facts, reasons)
    refuse_unanswered(writer.output, recipe.train.on_no_signal)
    if FACT in facts:
        warn(explain(facts[FACT], writer.output))


def with_data(completions: pa.Table, run: Run) -> pa.Table:
    """Return completions of a run with what functions see of its data, unless they have it."""
    if "metadata" in completions.column_names or "prompt_id" not in completions.column_names:
        return completions
    return with_metadata(completions, prompts_metadata(run))


def make_ready(scorer: Scorer, tables: Mapping[str, pa.Table]) -> None:
    """Check the gold answers and open the rules, before anything is judged.

    Raises:
        UserError: a gold answer cannot be read, a rule cannot be opened, or a function needs a
            column that is not there.
        MissingToolError: a program or package is not installed.
    """
    check_golds(tables, scorer)
    scorer.open(types_in(tables.values()))
    if scorer.has_functions:
        scorer.check_columns(columns_in(tables.values()), next(iter(tables)))


def judge_shards(
    writer: OutputWriter,
    completions: dict[str, pa.Table],
    chosen: list[str],
    scorer: Scorer,
    aux_rewards: list[str],
) -> list[str]:
    """Judge and write the chosen shards that are missing, with advantages still 0.

    All shards with infra errors are judged again, since their cause may have been mended.

    Returns:
        The reasons of the infra errors.
    """
    missing = set(writer.pending())
    failed = [n for n in completions if n not in missing and writer.read(n)["reward"].null_count]
    todo = [name for name in completions if name in failed or (name in missing and name in chosen)]
    if kept := len(set(chosen) - set(todo)):
        say(f"{writer.output.name}: {kept} of {len(completions)} shards were judged already")
    reasons: list[str] = []
    with bar("score", sum(completions[name].num_rows for name in todo)) as shown:
        for name in todo:
            rows = completions[name]
            judged, faults = judge_table(rows, scorer, aux_rewards, shown.advance)
            reasons += faults
            unknown = pa.nulls(rows.num_rows, pa.float64())
            advantages = {
                "advantage": pa.array(np.zeros(rows.num_rows)),
                "group_reward_mean": unknown,
                "group_reward_std": unknown,
            }
            writer.write(name, with_columns(judged, {KEY: rows[KEY], **advantages}))
    return reasons


def take_advantages(
    writer: OutputWriter,
    completions: dict[str, pa.Table],
    settings: dict[str, Any],
    reasons: list[str],
) -> dict[str, Any]:
    """Compute the advantages over the whole iteration, and write them into every shard.

    A process killed on the way can simply start again, for the rewards stay as they are.

    Returns:
        Facts about rewards and groups, for the manifest.

    Raises:
        UserError: the rules failed on more than 1 % of the completions.
    """
    judged = {name: writer.read(name) for name in completions}
    rows = pa.concat_tables(completions.values())
    scored = with_columns(pa.concat_tables(judged.values()), {"task": rows["task"]})
    refuse_infra_errors(scored, reasons)
    advantages, groups = advantage_columns(
        rows["group_id"].to_pylist(), scored["reward"], settings, rows["kept"].to_pylist()
    )
    start = 0
    for name, table in judged.items():
        part = {key: column.slice(start, table.num_rows) for key, column in advantages.items()}
        writer.write(name, with_columns(table, part))
        start += table.num_rows
    return reward_facts(scored) | groups


def score_file(source: Path, target: Path, recipe: Recipe, *, overwrite: bool) -> dict[str, Any]:
    """Score completions that belong to no run.

    The output has the file's columns, but new scores in place of former ones.

    Returns:
        Facts about rewards and, if the file has groups, about these.

    Raises:
        UserError: the file cannot be scored, or the output exists already.
    """
    if target.suffix != ".parquet" or not target.parent.is_dir():
        raise UserError(f"--output {target}: name a .parquet file in a folder that exists")
    if target.exists() and not overwrite:
        raise UserError(f"--output {target} is there already; --overwrite replaces it")
    completions = read_completions(source)
    rewards = recipe.rewards.with_judge_cache(target.parent / "judge")
    completions = completions.drop_columns(former_scores(completions.column_names))
    check_columns(completions, rewards, str(source))
    groups = group_numbers(completions)
    kept = kept_rows(completions, groups, str(source))
    around = recipe_around(source) if rewards.functions else None
    seen = with_data(completions, Run(around.parent)) if around else completions
    with Scorer(rewards) as scorer:
        make_ready(scorer, {str(source): seen})
        with bar("score", seen.num_rows) as shown:
            judged, reasons = judge_table(seen, scorer, list(rewards.aux_weights()), shown.advance)
        for line in usage_lines([scorer.usage()]):
            say(line)
        used = scorer.usage_facts()
    scored = with_columns(completions, dict(zip(judged.column_names, judged.columns, strict=True)))
    refuse_infra_errors(scored, reasons)
    facts = reward_facts(scored)
    if groups:
        settings = advantage_settings(recipe, 0)
        columns, counts = advantage_columns(groups, scored["reward"], settings, kept)
        scored, facts = with_columns(scored, columns), facts | counts
    write_atomically(target, encode_parquet(scored))
    tell_faults(facts, reasons)
    return facts | used


def advantage_settings(recipe: Recipe, iteration: int) -> dict[str, Any]:
    """Return the recipe's settings for `compute_advantages`; the seed differs by iteration."""
    wanted = recipe.advantages
    chance = shuffle_seed(recipe.run.seed, iteration) if wanted.shuffle else None
    return {"kind": wanted.kind, "ddof": wanted.ddof, "shuffle_seed": chance}


def advantage_columns(
    group_ids: list[int], rewards: pa.ChunkedArray, settings: dict[str, Any], kept: list[bool]
) -> tuple[dict[str, pa.Array], dict[str, int]]:
    """Return the columns of advantages, and counts of the kept and the rejected groups."""
    found = compute_advantages(group_ids, rewards.to_pylist(), kept=kept, **settings)
    columns = {
        "advantage": pa.array(found.advantage),
        "group_reward_mean": pa.array(found.group_mean, from_pandas=True),  # NaN becomes null
        "group_reward_std": pa.array(found.group_std, from_pandas=True),
    }
    counts = {"groups": found.groups, "zero_variance_groups": found.zero_variance_groups}
    if found.rejected_groups:
        counts["rejected_groups"] = found.rejected_groups
        counts["rejected_zero_variance_groups"] = found.rejected_zero_variance_groups
    return columns, counts


def tell_faults(facts: dict[str, Any], reasons: list[str]) -> None:
    """Warn of failed rules, of timeouts, and of an iteration that nothing can be learned from."""
    if failed := facts["verdicts"]["infra_error"]:
        first = "; ".join(list(dict.fromkeys(reasons))[:3])
        warn(f"the reward rules failed on {failed} completions, which have no reward: {first}")
    if late := facts["verdicts"]["timeout"]:
        warn(f"{late} completions took a rule longer than it may (rewards.<rule>.seconds)")
    if facts.get("groups") and facts["groups"] == facts["zero_variance_groups"]:
        warn("no group has two different rewards: nothing to learn from (train.on_no_signal)")


if __name__ == "__main__":
    launch(main)
