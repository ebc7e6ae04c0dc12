"""show: a run in the terminal. It reads everything and loads no model.

It writes nothing but a picture (`--svg`), except that files which were linked or copied get their
new stat in the manifest. A table shows the columns that fit; `--columns all` shows the others too.

python -m stages.show runs
python -m stages.show run --run demo --legend
python -m stages.show run --run demo --svg demo.svg
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
from common.console import clean, command_line, print_json
from common.errors import UserError
from common.modeling.token_texts import TokenTexts
from common.objective.sampler_gap import WORST
from common.reporting import plotting, reward_tables, run_plot, run_tables
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
    Shown,
    Table,
    bytes_text,
    chosen_columns,
    finite,
    first_rows,
    of_task,
    print_completion,
    print_table,
    print_tables,
    shortened,
)
from common.reporting.token_tables import for_terminal, token_summary, token_tables
from common.runs.layout import Run, default_runs_directory, no_such_run
from common.tasks.outside import changed_files, what_to_do

COMPLETION_COLUMNS = (
    *("rollout_id", "task", "question", "answer", "verify_type", "assistant_prefix"),
    *("completion_text", "finish_reason", "reward", "advantage", "verdict", "extracted_answer"),
)
"""What is printed of a completion as JSON."""

Svg = Annotated[
    Path | None, typer.Option("--svg", help="Draw accuracy and length by iteration into this file.")
]
Columns = Annotated[
    str, typer.Option("--columns", help="Only these, with commas; all: even if too wide.")
]
Legend = Annotated[bool, typer.Option("--legend", help="Also say what each column means.")]
Task = Annotated[str, typer.Option("--task", help="Only this source of questions.")]
Limit = Annotated[int, typer.Option("--limit", min=0, help="Rows of each table; 0 for all.")]


def runs(
    columns: Columns = "", legend: Legend = False, as_json: Json = False, debug: Debug = False
) -> None:
    """List the runs: how far each is, and how good."""
    folder = default_runs_directory()
    found = run_tables.runs_table(folder)
    if not as_json:
        minutes = pl.col("changed").cast(pl.String).str.slice(0, 16).str.replace("T", " ")
        found = found.with_columns(minutes)
    _print(Table("runs", f"runs in {folder}", found), as_json, _shown(columns, legend))


def run(
    run: RunName = "demo",
    svg: Svg = None,
    columns: Columns = "",
    legend: Legend = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show one line per iteration: reward, loss, KL, entropy, lengths."""
    plotting.check_file("--svg", svg, ".svg")
    place = _open(run)
    table = Table("run", f"run {run}", run_tables.run_table(place))
    if svg is not None:
        run_plot.draw(place, svg)
    _print(table, as_json, _shown(columns, legend))


def iteration(
    run: RunName = "demo",
    *,
    iteration: Iteration,
    limit: Limit = 20,
    columns: Columns = "",
    legend: Legend = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the groups of an iteration: question, rewards, lengths."""
    groups = run_tables.groups_table(_open(run), iteration)
    table = Table("groups", f"iteration {iteration}", groups)
    _print(table, as_json, _shown(columns, legend), limit=limit or None)


def completions(
    run: RunName = "demo",
    *,
    iteration: Iteration,
    best: Annotated[int, typer.Option("--best", min=0, help="How many of the best.")] = 0,
    worst: Annotated[int, typer.Option("--worst", min=0, help="How many of the worst.")] = 0,
    task: Task = "",
    as_json: Json = False,
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
    chosen = pl.concat([ranked.head(best), ranked.tail(worst)])
    if as_json:
        print_json(finite(chosen.select(COMPLETION_COLUMNS)).to_dicts())
        return
    for row in chosen.to_dicts():
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
    columns: Columns = "",
    legend: Legend = False,
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
    print_tables(found, as_json=as_json, shown=_shown(columns, legend))


def openings(
    run: RunName = "demo",
    task: Task = "",
    columns: Columns = "",
    legend: Legend = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show how completions begin, how often that is right, and how much of the gain is choice."""
    found = opening_tables(_open(run), task)
    print_tables(found, as_json=as_json, shown=_shown(columns, legend))


def gap(
    run: RunName = "demo",
    *,
    iteration: Iteration,
    limit: Limit = 10,
    columns: Columns = "",
    legend: Legend = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show where sampler and trainer disagree: by position, by token id, and the worst tokens."""
    place = _open(run)
    shown = None if as_json else limit or None
    found = gap_of_iteration(place, iteration, worst=None if shown is None else max(shown, WORST))
    text = TokenTexts(place.policy(0).path)
    tables = gap_tables(found, text, limit=shown, quoted=not as_json)
    print_tables(tables, as_json=as_json, shown=_shown(columns, legend))
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
    columns: Columns = "",
    legend: Legend = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show which tokens of which prompts the objective clips, with the text around them."""
    place = _open(run)
    said = token_summary(place, iteration)
    shown = None if as_json else limit or None
    overall, *found = token_tables(place, iteration, prompt=prompt, every=every, limit=shown)
    view = _shown(columns, legend)
    if as_json:
        print_tables([overall, *found], as_json=as_json, shown=view)
        return
    print(clean(said))
    print_tables([for_terminal(table) for table in found], as_json=as_json, shown=view)


def ledger(
    run: RunName = "demo",
    task: Task = "",
    limit: Limit = 20,
    columns: Columns = "",
    legend: Legend = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show how often the prompts were solved, and which never were."""
    book = read_ledger(_open(run), task)
    view = _shown(columns, legend)
    if as_json:
        print_tables(book.tables(attempts=True), as_json=as_json, shown=view)
        return
    print_tables(book.tables(limit or None), as_json=as_json, shown=view)
    if book.never_solved().is_empty() and not book.attempts.is_empty():
        print("every prompt that was drawn has been solved")


def status(
    run: RunName = "demo",
    columns: Columns = "",
    legend: Legend = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what is complete, what is stale and why, and what was made with another recipe."""
    place, recipe = _open_with_recipe(run)
    table = Table("status", f"run {run}", run_tables.status_table(place))
    _print(table, as_json, _shown(columns, legend))
    changes = run_tables.recipe_changes(place, recipe)
    if not changes.is_empty() and not as_json:
        title = "made with other values than those now in force"
        print_table(changes, title=title, key="changes", shown=Shown(legend=legend))
    if (changed := changed_files(place, recipe.data)) and not as_json:
        print(clean(what_to_do(place, changed)))


def evaluations(
    run: RunName = "demo",
    columns: Columns = "",
    legend: Legend = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
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
    print_tables(found, as_json=as_json, shown=_shown(columns, legend))


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
    columns: Columns = "",
    legend: Legend = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show held-out questions, and what the first and the last evaluated policy answered."""
    place = _open(run)
    first, last = first_and_last(place)
    found = selected(answers_table(place, first, last, sample), task, change)
    found = found if as_json else shortened(found, keep_end=["question"])
    table = Table("answers", f"policy {first} before, policy {last} after", found)
    _print(table, as_json, _shown(columns, legend), limit=limit or None)


def disk(
    run: RunName = "demo",
    columns: Columns = "",
    legend: Legend = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the size on disk of each part of the run."""
    frame = run_tables.disk_table(_open(run))
    if not as_json:
        size = pl.col("bytes").map_elements(bytes_text, return_dtype=pl.String).alias("size")
        frame = frame.select("part", size)
    _print(Table("disk", f"disk of {run}", frame), as_json, _shown(columns, legend))


def recipe(run: RunName = "demo", as_json: Json = False, debug: Debug = False) -> None:
    """Print the recipe in force as JSON, every key with its value."""
    in_force = _open_with_recipe(run)[1].model_dump(mode="json")
    if as_json:
        print_json(in_force)
    else:
        print(json.dumps(in_force, indent=2))


def _open(name: str) -> Run:
    return _open_with_recipe(name)[0]


def _open_with_recipe(name: str) -> tuple[Run, Recipe]:
    run, recipe = open_run(name)
    if run.last_policy() < 0:
        raise no_such_run(run)
    return run, recipe


def _shown(columns: str, legend: bool) -> Shown:
    return Shown.of(columns, legend, command_line())


def _print(table: Table, as_json: bool, shown: Shown, *, limit: int | None = None) -> None:
    """Print the only table of a command, or its rows as JSON."""
    (table,) = chosen_columns([table], shown, as_json=as_json)
    if as_json:
        print_json(finite(table.frame).to_dicts())
        return
    table = first_rows(table, limit)
    print_table(table.frame, title=table.title, key=table.key, shown=shown)


if __name__ == "__main__":
    launch(
        *(runs, run, iteration, completions, rewards, ledger, openings, gap, tokens),
        *(status, evaluations, answers, disk, recipe),
        about="A run in tables: what was drawn, judged and trained, and what lies on the disk.",
    )
