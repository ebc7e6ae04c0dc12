"""show: a run in the terminal. It reads everything and loads no model.

It writes nothing, except that files which were linked or copied get their new stat in the manifest.

python -m stages.show run --run demo
python -m stages.show completions --run demo --iteration 3 --worst 5
python -m stages.show rewards --run demo --iteration 3
python -m stages.show rewards --run demo --iteration 3 --against rescored.parquet
python -m stages.show ledger --run demo
python -m stages.show openings --run demo
python -m stages.show answers --run demo --change gained
python -m stages.show gap --run demo --iteration 3
python -m stages.show tokens --run demo --iteration 3
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import polars as pl
import typer

from common.accuracy import GREEDY
from common.command import Debug, Iteration, Json, RunName, launch, open_run
from common.config import Recipe
from common.console import clean
from common.errors import UserError
from common.modeling.token_texts import TokenTexts
from common.objective.sampler_gap import WORST
from common.reporting import reward_tables, run_tables
from common.reporting.evaluation_tables import (
    answers_table,
    evaluation_facts,
    first_and_last,
    greedy_difference,
    selected,
)
from common.reporting.gap_tables import gap_of_iteration, gap_tables, hints
from common.reporting.ledger_tables import read_ledger
from common.reporting.opening_tables import opening_tables
from common.reporting.terminal import (
    Table,
    bytes_text,
    first_rows,
    of_task,
    print_completion,
    print_table,
    print_tables,
    shortened,
)
from common.reporting.token_tables import for_terminal, token_summary, token_tables
from common.runs.layout import Run, no_such_run
from common.tasks.outside import changed_files, what_to_do

Svg = Annotated[Path | None, typer.Option("--svg", help="Also draw the table into this file.")]
Task = Annotated[str, typer.Option("--task", help="Only this source of questions.")]
Limit = Annotated[int, typer.Option("--limit", min=0, help="Rows of each table; 0 for all.")]


def run(
    run: RunName = "demo", svg: Svg = None, as_json: Json = False, debug: Debug = False
) -> None:
    """Show one line per iteration: reward, loss, KL, entropy, lengths."""
    _print(run_tables.run_table(_open(run)), f"run {run}", as_json, svg=svg)


def iteration(
    run: RunName = "demo",
    *,
    iteration: Iteration,
    limit: Limit = 20,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the groups of an iteration: question, rewards, lengths."""
    groups = run_tables.groups_table(_open(run), iteration)
    _print(groups, f"iteration {iteration}", as_json, limit=limit or None)


def completions(
    run: RunName = "demo",
    *,
    iteration: Iteration,
    best: Annotated[int, typer.Option("--best", min=0, help="How many of the best.")] = 0,
    worst: Annotated[int, typer.Option("--worst", min=0, help="How many of the worst.")] = 0,
    task: Task = "",
    debug: Debug = False,
) -> None:
    """Print the best and the worst completions of an iteration in full."""
    scored = run_tables.scored_completions(_open(run), iteration)
    frame = scored.filter(pl.col("reward").is_not_null())
    if task:
        known = frame["task"].unique(maintain_order=True).to_list()
        if task not in known:
            raise UserError(f"--task {task!r}: iteration {iteration} has {', '.join(known)}")
        frame = frame.filter(pl.col("task") == task)
    if not best and not worst:
        best = worst = 2
    ranked = frame.sort("reward", "advantage", descending=True, maintain_order=True)
    for row in ranked.head(best).to_dicts() + ranked.tail(worst).to_dicts():
        print_completion(row)


def rewards(
    run: RunName = "demo",
    iteration: Annotated[int, typer.Option("--iteration", help="Which iteration of the run.")] = 0,
    source: Annotated[
        Path | None, typer.Option("--input", help="Instead: a scored Parquet file or folder.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option("--against", help="Another scoring of these completions.")
    ] = None,
    task: Task = "",
    limit: Annotated[
        int, typer.Option("--limit", min=0, help="Completions of each kind to list; 0 for all.")
    ] = 10,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what each rule gave and where rules disagree, or what another scoring changes."""
    if (iteration == 0) == (source is None):
        raise UserError("give either --iteration (and --run), or --input")
    if source is not None:
        scored, name = reward_tables.read_scored(source), str(source)
    else:
        name = f"iteration {iteration} of {run}"
        rows = run_tables.scored_completions(_open(run), iteration)
        scored = reward_tables.scored_rows(rows, name)
    shown = None if as_json else limit or None
    if against is not None:
        other = reward_tables.aligned(
            scored, reward_tables.read_scored(against), (name, str(against))
        )
        chosen = of_task(scored, task)
        found = reward_tables.change_tables(
            scored.filter(chosen), other.filter(chosen), limit=shown
        )
    else:
        rows = scored.filter(of_task(scored, task))
        found = reward_tables.reward_tables(rows, examples=shown)
    print_tables(found, as_json=as_json)


def openings(
    run: RunName = "demo",
    task: Task = "",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show how completions begin, how often that is right, and how much of the gain is choice."""
    print_tables(opening_tables(_open(run), task), as_json=as_json)


def gap(
    run: RunName = "demo",
    *,
    iteration: Iteration,
    limit: Limit = 10,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show where sampler and trainer disagree: by position, by token id, and the worst tokens."""
    place = _open(run)
    shown = None if as_json else limit or None
    found = gap_of_iteration(place, iteration, worst=None if shown is None else max(shown, WORST))
    text = TokenTexts(place.policy(0).path)
    print_tables(gap_tables(found, text, limit=shown, quoted=not as_json), as_json=as_json)
    for hint in () if as_json else hints(found, text):
        print(clean(hint))


def tokens(
    run: RunName = "demo",
    *,
    iteration: Iteration,
    prompt: Annotated[str, typer.Option("--prompt", help="Only this prompt_id.")] = "",
    every: Annotated[
        bool, typer.Option("--all", help="List all tokens, not only clipped.")
    ] = False,
    limit: Limit = 20,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show which tokens of which prompts the objective clips, with the text around them."""
    place = _open(run)
    said = token_summary(place, iteration)
    shown = None if as_json else limit or None
    overall, *found = token_tables(place, iteration, prompt=prompt, every=every, limit=shown)
    if as_json:
        print_tables([overall, *found], as_json=as_json)
        return
    print(clean(said))
    print_tables([for_terminal(table) for table in found], as_json=as_json)


def ledger(
    run: RunName = "demo",
    task: Task = "",
    limit: Limit = 20,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show how often the prompts were solved, and which never were."""
    book = read_ledger(_open(run), task)
    if as_json:
        print_tables(book.tables(attempts=True), as_json=as_json)
        return
    print_tables(book.tables(limit or None), as_json=as_json)
    if book.never_solved().is_empty() and not book.attempts.is_empty():
        print("every prompt that was drawn has been solved")


def status(run: RunName = "demo", as_json: Json = False, debug: Debug = False) -> None:
    """Show what is complete, what is stale and why, and what was made with another recipe."""
    place, recipe = _open_with_recipe(run)
    _print(run_tables.status_table(place), f"run {run}", as_json)
    changes = run_tables.recipe_changes(place, recipe)
    if not changes.is_empty() and not as_json:
        print_table(changes, title="made with other values than those now in force")
    if (changed := changed_files(place, recipe.data)) and not as_json:
        print(clean(what_to_do(place, changed)))


def evaluations(run: RunName = "demo", as_json: Json = False, debug: Debug = False) -> None:
    """Show held-out accuracy by policy and task, and the last policy against the first."""
    place = _open(run)
    facts = evaluation_facts(place)
    numbers = place.evaluations()
    first, last = numbers[0], numbers[-1]
    difference = greedy_difference(place, first, last) if first != last else pl.DataFrame()
    found = [
        Table("evaluations", f"evaluations of {run}", facts),
        Table("difference", f"greedy accuracy, policy {last} minus policy {first}", difference),
    ]
    print_tables(found, as_json=as_json)


def answers(
    run: RunName = "demo",
    task: Task = "",
    change: Annotated[
        str, typer.Option("--change", help="Only gained, lost, kept or missed.")
    ] = "",
    sample: Annotated[
        int, typer.Option("--sample", min=GREEDY, help="Which sampled answer; -1: the greedy one.")
    ] = GREEDY,
    limit: Limit = 20,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show held-out questions, and what the first and the last evaluated policy answered."""
    place = _open(run)
    first, last = first_and_last(place)
    found = selected(answers_table(place, first, last, sample), task, change)
    shown = found if as_json else shortened(found, keep_end=["question"])
    _print(shown, f"policy {first} before, policy {last} after", as_json, limit=limit or None)


def disk(run: RunName = "demo", as_json: Json = False, debug: Debug = False) -> None:
    """Show the size on disk of each part of the run."""
    frame = run_tables.disk_table(_open(run))
    if not as_json:
        size = pl.col("bytes").map_elements(bytes_text, return_dtype=pl.String).alias("size")
        frame = frame.select("part", size)
    _print(frame, f"disk of {run}", as_json)


def recipe(run: RunName = "demo", debug: Debug = False) -> None:
    """Print the recipe in force as JSON, every key with its value."""
    print(json.dumps(_open_with_recipe(run)[1].model_dump(mode="json"), indent=2))


def _open(name: str) -> Run:
    return _open_with_recipe(name)[0]


def _open_with_recipe(name: str) -> tuple[Run, Recipe]:
    run, recipe = open_run(name)
    if run.last_policy() < 0:
        raise no_such_run(run)
    return run, recipe


def _print(
    frame: pl.DataFrame,
    title: str,
    as_json: bool,
    *,
    limit: int | None = None,
    svg: Path | None = None,
) -> None:
    if as_json:
        print(frame.write_json())
        return
    table = first_rows(Table("", title, frame), limit)
    print_table(table.frame, title=table.title, svg=svg)


if __name__ == "__main__":
    launch(
        *(run, iteration, completions, rewards, ledger, openings, gap, tokens),
        *(status, evaluations, answers, disk, recipe),
        about="A run in tables: what was drawn, judged and trained, and what lies on the disk.",
    )
