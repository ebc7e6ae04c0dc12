"""Tables on terminals of 80 and 100 columns and in pipes: nothing is lost without a word."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from support import REPOSITORY

from common.console import clean
from common.errors import UserError
from common.reporting import glossary
from common.reporting.terminal import Shown, Table, first_rows, print_table, print_tables
from common.runs.layout import Run
from stages import score, show

MANY = {f"a_number_{index}": [1234.5678 + index] for index in range(12)}
HIDDEN = re.compile(r"^(\d+) of (\d+) columns hidden: (.*); (.*)$", re.M)


def test_ids_and_numbers_stay_whole_and_texts_wrap(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    frame = pl.DataFrame(
        {
            "prompt_id": ["f988a10c78809027de0cb27a"],
            "variant": ["dr_grpo-of-a-long-name"],
            "question": ["How often is there the letter e in banana and in ananas?"],
            "pass_rate": [0.25],
        }
    )
    print_table(frame)
    shown = capsys.readouterr().out
    assert all(len(line) <= 80 for line in shown.splitlines())
    (row,) = [line for line in shown.splitlines() if "f988a10c78809027de0cb27a" in line]
    assert "dr_grpo-of-a-long-name" in row and "0.250" in row
    assert "ananas?" in shown and "ananas?" not in row


def test_a_title_is_as_wide_as_the_terminal_and_says_what_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    whole = Table(
        "x", "tokens that occur 10 times or more, by mean gap", pl.DataFrame({"n": [1, 2]})
    )
    assert first_rows(whole, None) == first_rows(whole, 2) == whole
    cut = first_rows(whole, 1)
    print_table(cut.frame, title=cut.title)
    title = "tokens that occur 10 times or more, by mean gap: 1 of 2 (--limit 0 shows all)"
    assert capsys.readouterr().out.splitlines()[0] == title
    assert first_rows(whole, 2, count=9).title.endswith(": 2 of 9 (--limit 0 shows all)")


@pytest.mark.parametrize("width", [40, 80, 100])
def test_columns_that_do_not_fit_are_named(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    print_table(pl.DataFrame(MANY), shown=Shown(more="see MORE"))
    shown = capsys.readouterr().out
    found = HIDDEN.search(shown)
    assert found
    hidden = found[3].split(", ")
    assert (int(found[1]), int(found[2]), found[4]) == (len(hidden), len(MANY), "see MORE")
    assert hidden == list(MANY)[-len(hidden) :]
    assert all(len(line) <= width for line in shown.splitlines() if line != found[0])
    assert len(re.findall(r"1\d{3}\.\d{3}\b|12\d\d\.\d{3}", shown)) == len(MANY) - len(hidden)


def test_all_columns_are_shown_on_demand_however_wide(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    print_table(pl.DataFrame(MANY), shown=Shown(columns=("all",)))
    shown = capsys.readouterr().out
    assert "hidden" not in shown
    (row,) = [line for line in shown.splitlines() if "1234.568" in line]
    assert len(row.split()) == len(MANY)


def test_columns_are_chosen_by_either_name_and_tables_without_them_go(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tables = [
        Table("a", "first", pl.DataFrame({"learning_rate": [0.5], "loss": [2.0]})),
        Table("b", "second", pl.DataFrame({"loss": [3.0]})),
        Table("c", "third", pl.DataFrame({"^k.*$": [4.0], "kl": [5.0]})),
    ]
    print_tables(tables, as_json=True, shown=Shown(columns=("lr", "^k.*$")))
    assert json.loads(capsys.readouterr().out) == {
        "a": [{"learning_rate": 0.5}],
        "c": [{"^k.*$": 4.0}],
    }
    with pytest.raises(UserError, match=r"--columns 'los': did you mean 'loss'\? there are learn"):
        print_tables(tables, as_json=False, shown=Shown(columns=("los",)))
    with pytest.raises(UserError, match="leave it or --json out"):
        print_tables(tables, as_json=True, shown=Shown(legend=True))


def call(module: str, *arguments: str, width: str = "") -> str:
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=REPOSITORY,
        env=environment | ({"COLUMNS": width} if width else {}),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_a_pipe_is_100_wide_and_the_line_about_hidden_columns_can_be_pasted(
    finished: Path, at: Callable[[Path], Run]
) -> None:
    at(finished)
    shown = call("stages.show", "iteration", "--run", "a", "--iteration", "1")
    assert max(map(len, shown.splitlines())) <= 100
    narrow = call("stages.show", "iteration", "--run", "a", "--iteration", "1", width="60")
    found = HIDDEN.search(narrow)
    assert found
    remedy = found[4].partition("python -m ")[2].split()
    every = call(*remedy, width="60")
    assert not HIDDEN.search(every)
    for name in found[3].split(", "):
        assert glossary.short(name) in every and glossary.short(name) not in narrow.splitlines()[1]


def every_table(
    capsys: pytest.CaptureFixture[str],
) -> list[tuple[str, list[dict[str, object]]]]:
    """Return the key and rows of every table of `stages.show`, of a run with all outputs."""
    single = {"run": "run", "groups": "iteration", "status": "status", "answers": "answers"}
    single |= {"disk": "disk", "runs": "runs"}
    several = ("evaluations", "openings", "ledger", "gap", "rewards", "tokens")
    found = []
    for name in (*single.values(), *several):
        options = {"iteration": 1} if name in ("iteration", "gap", "rewards", "tokens") else {}
        run = () if name == "runs" else ("a",)
        getattr(show, name)(*run, as_json=True, **options)
        printed = json.loads(capsys.readouterr().out)
        if name in several:
            # What `tokens` says of all of them together is printed as sentences.
            found += [item for item in printed.items() if (name, item[0]) != ("tokens", "overall")]
        else:
            found += [(key, printed) for key, command in single.items() if command == name]
    return found


def test_every_column_has_a_meaning_and_no_two_of_a_table_a_header(
    finished: Path, at: Callable[[Path], Run], capsys: pytest.CaptureFixture[str]
) -> None:
    """A column without a meaning would have an empty line in the legend."""
    at(finished)
    tables = every_table(capsys)
    assert len(tables) > 15
    named = 0
    for key, rows in tables:
        columns = list(rows[0]) if rows else []
        for column in columns:
            assert glossary.meaning(column, key), f"{key}: {column}"
        assert len({*map(glossary.short, columns)}) == len(columns), f"{key}: {columns}"
        named += len(columns)
    assert named > 60


def test_a_legend_names_the_columns_that_are_shown(
    finished: Path, at: Callable[[Path], Run], capsys: pytest.CaptureFixture[str]
) -> None:
    at(finished)
    show.run("a", columns="lr,tokens", legend=True)
    shown = capsys.readouterr().out.splitlines()
    legend = [line.rstrip().split(maxsplit=1) for line in shown[-3:-1]]
    assert legend[0] == ["lr", glossary.meaning("learning_rate", "run")]
    assert legend[1] == ["tokens", "mean length of a completion, in tokens"]


def test_a_scoring_against_another_is_explained_too(
    finished: Path, at: Callable[[Path], Run], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = at(finished)
    other = tmp_path / "other.parquet"
    score.main(input_path=run.rollout(1).path, output_path=other, quiet=True)
    capsys.readouterr()
    show.rewards("a", 1, against=other, as_json=True)
    for key, rows in json.loads(capsys.readouterr().out).items():
        for column in rows[0] if rows and key not in ("verdicts", "advantages") else ():
            assert glossary.meaning(column, key), f"{key}: {column}"


def test_runs_are_listed_the_last_one_first(
    finished: Path, at: Callable[[Path], Run], capsys: pytest.CaptureFixture[str]
) -> None:
    run = at(finished)
    begun = run.root.with_name("begun")
    begun.mkdir()
    (begun / "recipe.toml").write_text("not = a recipe")
    (run.root.with_name(".a.making")).mkdir()
    show.runs(as_json=True)
    first, second = json.loads(capsys.readouterr().out)
    assert (first["run"], first["iteration"]) == ("a", 2) and first["reward_mean"] is not None
    assert second == {"run": "begun"} | dict.fromkeys(first.keys() - {"run"})
    show.runs()
    assert re.search(r"^a +2 ", capsys.readouterr().out, re.M)


def test_no_run_says_how_to_make_one(runs: Path) -> None:
    with pytest.raises(UserError, match=r"no run yet; make the first with: make iteration N=20"):
        show.runs()


def test_completions_are_json_on_demand(
    finished: Path, at: Callable[[Path], Run], capsys: pytest.CaptureFixture[str]
) -> None:
    at(finished)
    show.completions("a", iteration=1, best=1, worst=2, as_json=True)
    rows = json.loads(capsys.readouterr().out)
    assert [set(row) for row in rows] == [set(show.COMPLETION_COLUMNS)] * 3
    assert rows[0]["reward"] >= rows[-1]["reward"]
    assert all(clean(row["rollout_id"]) for row in rows)
