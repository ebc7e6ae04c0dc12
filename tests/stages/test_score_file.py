"""score: any file with completions, of no run."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.question_files import read
from support.scored_runs import start_scored_run

from common.errors import UserError
from common.objective.advantages import compute_advantages
from common.runs.layout import Run
from common.runs.shards import read_output
from stages import score


@pytest.fixture
def run(runs: Path) -> Run:
    """A run with a rollout of 6 groups of 4 completions in 3 shards."""
    return start_scored_run()


def scores(run: Run) -> pl.DataFrame:
    frame = pl.from_arrow(read_output(run.score(1)))
    assert isinstance(frame, pl.DataFrame)
    return frame


def any_file(tmp_path: Path, **columns: Any) -> Path:
    """Four completions written by polars, as people have them."""
    rows = {
        "completion_text": ["14", "so 1,234", "<think>14", "15"],
        "answer": ["14", "1234", "14", "14"],
        "verify_type": ["LAST_NUMBER"] * 4,
        "note": [1, 2, 3, 4],
    }
    path = tmp_path / "any.parquet"
    pl.DataFrame(rows | columns).write_parquet(path)
    return path


def score_file(source: Path, target: Path, **options: Any) -> pl.DataFrame:
    score.main(input_path=source, output_path=target, **options)
    return pl.read_parquet(target)


def test_any_file_is_scored(
    tmp_path: Path, stage: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    source, target = any_file(tmp_path), tmp_path / "scored.parquet"
    done = stage("score", "--input", str(source), "--output", str(target))
    assert done.stdout == (
        f"{target}: 4 completions, mean reward 0.500, accuracy 0.500 "
        "(2 correct, 1 wrong, 1 no_answer)\n"
    )
    frame = pl.read_parquet(target)
    assert frame["note"].to_list() == [1, 2, 3, 4]
    assert frame["reward"].to_list() == [1, 1, 0, 0]
    assert frame["extracted_answer"].to_list() == ["14", "1,234", None, "15"]
    assert "advantage" not in frame.columns


def test_groups_and_prefixes_of_any_file(tmp_path: Path) -> None:
    source = any_file(
        tmp_path, group_id=["b", "a", "b", "a"], assistant_prefix=[None, "", "</think>", "<think>"]
    )
    frame = score_file(source, tmp_path / "scored.parquet")
    assert frame["verdict"].to_list() == ["correct", "correct", "no_answer", "no_answer"]
    expected = compute_advantages([0, 1, 0, 1], [1.0, 1.0, 0.0, 0.0], "group")
    np.testing.assert_array_equal(frame["advantage"].to_numpy(), expected.advantage)


def test_a_scored_file_can_be_scored_again(tmp_path: Path) -> None:
    source, target = any_file(tmp_path, group_id=[0, 0, 1, 1]), tmp_path / "scored.parquet"
    first = score_file(source, target)
    with pytest.raises(UserError, match="is there already; --overwrite replaces it"):
        score_file(target, target)
    again = score_file(target, target, overwrite=True)
    assert again.equals(first)
    weighted = score_file(
        target,
        target,
        overwrite=True,
        overrides=["rewards.answer.weight=3", "advantages.kind=none"],
    )
    assert weighted["reward"].to_list() == [3, 3, 0, 0]
    assert weighted.columns == first.columns
    with_format = score_file(target, target, overwrite=True, overrides=["rewards.format.weight=1"])
    assert with_format["reward_format"].to_list() == [0, 0, 0, 0]
    assert score_file(target, target, overwrite=True).equals(first)


def test_a_rollout_is_a_file_like_any_other(run: Run, tmp_path: Path) -> None:
    score.main("a", 1)
    frame = score_file(run.rollout(1).path, tmp_path / "scored.parquet", recipe=run.recipe)
    mine = scores(run)
    assert frame.select(mine.columns).equals(mine)


def test_json_lines_are_scored(tmp_path: Path) -> None:
    source = tmp_path / "any.jsonl"
    rows = pl.read_parquet(any_file(tmp_path)).to_dicts()
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert score_file(source, tmp_path / "s.parquet")["reward"].to_list() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"answer": ["14", "x", "14", "14"]}, "row 1: answer 'x' cannot be read as LAST_NUMBER"),
        ({"answer": ["14", None, "14", "14"]}, "row 1: no value in column 'answer'"),
        ({"completion_text": [[1]] * 4}, "column 'completion_text' holds [1], not text; write it"),
        ({"group_id": [0, 0, 0, 1]}, "a single completion (first: row 3)"),
        ({"group_id": [0, 0, None, 1]}, "row 2: no value in column 'group_id'"),
        (
            {"group_id": [[0], [0], [1], [1]]},
            "any.parquet row 0: column 'group_id' holds [0]; name a group by text",
        ),
        ({"task": [["a"]] * 4}, "any.parquet row 0: column 'task' holds ['a'], not text"),
        (
            {"completion_text": [b"1", b"2", b"3\xff", b"4"]},
            "any.parquet row 2: column 'completion_text' is not UTF-8 at byte 1; write it as UTF-8",
        ),
    ],
)
def test_files_that_cannot_be_scored(columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    source, target = any_file(tmp_path, **columns), tmp_path / "scored.parquet"
    with pytest.raises(UserError) as raised:
        score_file(source, target)
    assert message in str(raised.value)
    assert not target.exists()


@pytest.mark.parametrize(
    "column", ["completion_text", "answer", "assistant_prefix", "question", "task", "prompt_id"]
)
def test_parquet_text_that_is_not_utf8_is_told_with_its_row(tmp_path: Path, column: str) -> None:
    table = pl.read_parquet(any_file(tmp_path)).to_arrow()
    texts = pa.array([b"14", b"14", b"1\xff4", b"14"])
    offsets, values = texts.buffers()[1:]
    damaged = pa.StringArray.from_buffers(4, offsets, values)
    pq.write_table(score.with_columns(table, {column: damaged}), tmp_path / "b.parquet")
    with pytest.raises(UserError) as raised:
        score_file(tmp_path / "b.parquet", tmp_path / "scored.parquet")
    place = f"{tmp_path / 'b.parquet'} row 2"
    assert (
        str(raised.value) == f"{place}: column {column!r} is not UTF-8 at byte 1; write it as UTF-8"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"completion_text": "1\ud8004"}, "column 'completion_text' has half a character"),
        ({"answer": True}, "column 'answer' holds True, not text; write it as text"),
        ({"answer": None}, "no value in column 'answer'; give it one, or leave the row out"),
    ],
)
def test_json_lines_that_are_no_table_are_told_with_their_line(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    rows = pl.read_parquet(any_file(tmp_path)).to_dicts()
    rows[2] |= changes
    source = tmp_path / "any.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError) as raised:
        score_file(source, tmp_path / "s.parquet")
    assert str(raised.value).startswith(f"{source}:3: {message}")


def test_json_lines_with_lists_for_groups_or_no_name_for_a_column(tmp_path: Path) -> None:
    rows = pl.read_parquet(any_file(tmp_path)).to_dicts()
    source = tmp_path / "any.jsonl"
    for changes, message in [
        ({"group_id": [1]}, "column 'group_id' holds [1]; name a group by text or a number"),
        ({"\ud800": 1}, "the name of column '\\ud800' has half a character; rename it"),
    ]:
        source.write_text("".join(json.dumps(row | changes) + "\n" for row in rows))
        with pytest.raises(UserError) as raised:
            score_file(source, tmp_path / "s.parquet")
        assert str(raised.value).startswith(f"{source}:1: {message}")


def test_files_of_a_folder_are_named_in_faults(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    any_file(tmp_path).rename(folder / "a.parquet")
    any_file(tmp_path, answer=["1", "2", None, "4"]).rename(folder / "b.parquet")
    with pytest.raises(UserError) as raised:
        score_file(folder, tmp_path / "s.parquet")
    place = f"{folder / 'b.parquet'} row 2"
    assert str(raised.value) == (
        f"{place}: no value in column 'answer'; give it one, or leave the row out"
    )


def test_files_of_a_folder_may_have_different_columns_and_types(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    any_file(tmp_path).rename(folder / "a.parquet")
    any_file(tmp_path, answer=[14, 1234, 14, 14], more=[0.5] * 4).rename(folder / "b.parquet")
    frame = score_file(folder, tmp_path / "s.parquet")
    assert frame["reward"].to_list() == [1, 1, 0, 0] * 2
    assert frame["more"].to_list() == [None] * 4 + [0.5] * 4
    any_file(tmp_path, note=["a"] * 4).rename(folder / "b.parquet")
    with pytest.raises(UserError, match=r"do not fit together: .*note.*; score the files one by"):
        score_file(folder, tmp_path / "other.parquet")
    any_file(tmp_path, group_id=[0, 0, 1, 1]).rename(folder / "b.parquet")
    with pytest.raises(
        UserError, match=r"a\.parquet: no column 'group_id', which other files have"
    ):
        score_file(folder, tmp_path / "other.parquet")


def test_names_of_folders_are_no_columns(tmp_path: Path) -> None:
    (tmp_path / "temperature=3").mkdir()
    source = any_file(tmp_path).rename(tmp_path / "temperature=3" / "a.parquet")
    assert "temperature" not in score_file(source, tmp_path / "s.parquet").columns


def test_values_of_any_type_and_length_are_kept(tmp_path: Path) -> None:
    """They were refused, stopped the command after all was judged, or made a file that no reader
    opens."""
    rows = pl.read_parquet(any_file(tmp_path)).to_dicts()
    rows[0] |= {"note": 2**70, "tags": "a", "empty": {}, "text": "\ud800", "deep": "["}
    rows[1] |= {"note": 1, "tags": ["a"], "empty": {}, "text": None, "deep": "["}
    rows[2] |= {"answer": 14, "note": None}
    source = tmp_path / "any.jsonl"
    deep = "[" * 50 + "]" * 50
    lines = [json.dumps(row).replace('"["', deep) for row in rows]
    source.write_text("\n".join(lines))
    frame = score_file(source, tmp_path / "s.parquet")
    assert frame["reward"].to_list() == [1, 1, 0, 0]
    assert frame["deep"].to_list() == [deep, deep, None, None]
    assert frame["note"].to_list() == [str(2**70), "1", None, "4"]
    assert frame["tags"].to_list() == ['"a"', '["a"]', None, None]
    assert frame["empty"].to_list() == ["{}", "{}", None, None]
    assert frame["text"].to_list() == ['"\\ud800"', None, None, None]


def test_golds_that_are_no_text_are_read_as_in_a_run(tmp_path: Path) -> None:
    texts = {
        "a": (pa.array([2**64 - 1], pa.uint64()), "18446744073709551615"),
        "b": (pa.array([0.1], pa.float32()), "0.1"),
        "c": (pa.array([3.0]), "3.0"),
        "d": (pa.array([10**30], pa.decimal128(38, 1)), "1" + "0" * 30 + ".0"),
        "e": (pa.array([2**31 - 1], pa.int32()).view(pa.date32()), "5881580-07-11"),
        "f": (pa.array([0], pa.int64()).view(pa.timestamp("us", "+25:00")), "1970-01-01T00:00:00"),
    }
    for name, (golds, text) in texts.items():
        zone = ".000000Z" if name == "f" else ""
        columns = {"completion_text": [text + zone], "answer": golds, "verify_type": ["EXACT"]}
        source = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table(columns), source)
        questions = source.with_suffix(".questions.parquet")
        pq.write_table(pa.table(columns).append_column("question", pa.array(["a?"])), questions)
        frame = score_file(source, tmp_path / "s.parquet", overwrite=True)
        assert frame["reward"].to_list() == [1], name
        (prompt,) = read(questions).train
        assert frame["answer"].to_list() == [prompt.answer] == [text + zone]


def test_columns_with_one_name_and_other_separators_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["completion_text", "answer", "verify_type", "note", "note"]
    values = [["14"], ["14"], ["LAST_NUMBER"], [1], [2]]
    source = tmp_path / "a.parquet"
    pq.write_table(pa.table([pa.array(v) for v in values], names=names), source)
    frame = score_file(source, tmp_path / "s.parquet")
    assert frame.select("note.1", "note.2").row(0) == (1, 2)
    assert "several columns are called 'note'; they are read as 'note.1'" in capsys.readouterr().out
    table = tmp_path / "a.csv"
    table.write_text("completion_text;answer;verify_type\n14;14;LAST_NUMBER\n")
    assert score_file(table, tmp_path / "t.parquet")["reward"].to_list() == [1]
    assert f"{table}: its columns are separated by semicolons" in capsys.readouterr().out


def test_columns_that_only_later_json_lines_have_are_kept(tmp_path: Path) -> None:
    rows = pl.read_parquet(any_file(tmp_path)).to_dicts()
    rows[3] |= {"assistant_prefix": "14 and "}
    source = tmp_path / "any.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    frame = score_file(source, tmp_path / "s.parquet")
    assert frame["assistant_prefix"].to_list() == [None, None, None, "14 and "]


def test_files_and_options_that_make_no_sense(tmp_path: Path) -> None:
    source = any_file(tmp_path)
    target = tmp_path / "scored.parquet"
    renamed = tmp_path / "renamed.parquet"
    pl.read_parquet(source).rename({"answer": "gold"}).write_parquet(renamed)
    (tmp_path / "text.parquet").write_text("no Parquet")
    (tmp_path / "empty.jsonl").write_text("")
    for call, message in [
        ({"input_path": source}, "give either --run and --iteration, or --input and --output"),
        ({"run": "a", "input_path": source, "output_path": target}, "give either"),
        ({"input_path": source, "output_path": tmp_path / "a.csv"}, "name a .parquet file"),
        ({"input_path": source, "output_path": tmp_path / "no/a.parquet"}, "a folder that exists"),
        ({"input_path": tmp_path / "no", "output_path": target}, "no such file"),
        ({"input_path": renamed, "output_path": target}, "no column 'answer' among"),
        ({"input_path": tmp_path / "text.parquet", "output_path": target}, "not a readable"),
        ({"input_path": tmp_path / "empty.jsonl", "output_path": target}, "is empty: no rows"),
        ({}, "give either"),
    ]:
        with pytest.raises(UserError) as raised:
            score.main(**call)  # type: ignore[arg-type]
        assert message in str(raised.value)


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_lists_of_golds(kind: str, tmp_path: Path) -> None:
    """Any of several is right, in a worker (MATH) as in this process."""
    rows = {
        "completion_text": ["14", "so 15", r"\boxed{\frac{1}{2}}", "16"],
        "answer": [["14"], ["14", "15"], ["2", "0.5"], ["14", "15"]],
        "verify_type": ["LAST_NUMBER", "LAST_NUMBER", "MATH", "LAST_NUMBER"],
    }
    source = tmp_path / f"any.{kind}"
    frame = pl.DataFrame(rows)
    frame.write_parquet(source) if kind == "parquet" else frame.write_ndjson(source)
    scored = score_file(source, tmp_path / "scored.parquet")
    assert scored["reward"].to_list() == [1, 1, 1, 0]
    assert scored["answer"].to_list()[:2] == ["14", '{"any_of": ["14", "15"]}']


def test_a_list_without_golds_is_told_with_its_row(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"any.parquet row 2: column 'answer' holds an empty list"):
        score_file(any_file(tmp_path, answer=[["14"], ["1"], [], ["2"]]), tmp_path / "s.parquet")


def test_a_number_in_one_row_and_a_list_in_another(tmp_path: Path) -> None:
    source = tmp_path / "any.jsonl"
    row = {"completion_text": "so 14", "verify_type": "LAST_NUMBER"}
    answers = [14, "14", [14], [13, "14"], 10**30]
    source.write_text("".join(json.dumps(row | {"answer": answer}) + "\n" for answer in answers))
    scored = score_file(source, tmp_path / "scored.parquet")
    assert scored["reward"].to_list() == [1, 1, 1, 1, 0]
