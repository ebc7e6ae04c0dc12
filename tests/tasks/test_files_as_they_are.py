"""Files as other programs write them: separators, encodings, spread JSON, long and exact values."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.question_files import ORIGINAL_ROWS, faults, pairs, read, write_kind, write_lines

from common.config import ColumnMap

EXPECTED = [(row["question"], row["answer"]) for row in ORIGINAL_ROWS]


def write_table(path: Path, separator: str, encoding: str = "utf-8") -> Path:
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(ORIGINAL_ROWS[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(ORIGINAL_ROWS)
    return path


@pytest.mark.parametrize(
    ("separator", "told"), [(";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars"), (",", "")]
)
def test_csv_with_other_separators_is_read_and_told(
    separator: str, told: str, tmp_path: Path
) -> None:
    path = write_table(tmp_path / "a.csv", separator)
    prompts = read(path)
    assert pairs(prompts.train) == EXPECTED
    assert prompts.notices == [f"{path}: its columns are separated by {told}"] * bool(told)


def test_tabs_are_what_tsv_says(tmp_path: Path) -> None:
    prompts = read(write_table(tmp_path / "a.tsv", "\t"))
    assert pairs(prompts.train) == EXPECTED
    assert prompts.notices == []


def test_a_separator_inside_a_value_separates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('question;answer;verify_type\n"a; b, c";"1,5";EXACT\n')
    (prompt,) = read(path).train
    assert (prompt.question, prompt.answer) == ("a; b, c", "1,5")


def test_fields_of_any_length(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"question,answer,verify_type\n{'x' * 500_000},1,EXACT\n")
    (prompt,) = read(path).train
    assert len(prompt.question) == 500_000


def test_columns_without_a_name_are_left_out(tmp_path: Path) -> None:
    """pandas writes its index so, and spreadsheets write empty columns."""
    path = tmp_path / "a.csv"
    path.write_text(",question,answer,verify_type,,\n0,a,1,EXACT,,\n")
    (prompt,) = read(path).train
    assert prompt.metadata == {}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "json"])
def test_utf_16_is_read_and_named(kind: str, encoding: str, tmp_path: Path) -> None:
    path = write_kind(kind, tmp_path)
    path.write_bytes(path.read_text().replace("days", "jours d'été").encode(encoding))
    prompts = read(path)
    assert [prompt.answer for prompt in prompts.train] == [answer for _, answer in EXPECTED]
    assert all("jours d'été" in prompt.question for prompt in prompts.train)
    (notice,) = prompts.notices
    assert notice == f"{path}: is {encoding.upper()} and is read as such"


SPREAD = {
    "a list": json.dumps(ORIGINAL_ROWS),
    "a list over several lines": json.dumps(ORIGINAL_ROWS, indent=2),
    "objects over several lines": "\n".join(json.dumps(row, indent=2) for row in ORIGINAL_ROWS),
    "several lists": json.dumps(ORIGINAL_ROWS[:5]) + "\n\n" + json.dumps(ORIGINAL_ROWS[5:]),
    "objects without line ends": "".join(json.dumps(row) for row in ORIGINAL_ROWS),
    "line ends of one kind": "\r".join(json.dumps(row) for row in ORIGINAL_ROWS),
}


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".ndjson"])
@pytest.mark.parametrize("content", SPREAD.values(), ids=SPREAD)
def test_json_is_read_however_it_is_spread(content: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"\n" + content.encode())
    assert pairs(read(path).train) == EXPECTED


def test_a_fault_in_spread_json_is_told_once_with_its_line(tmp_path: Path) -> None:
    lines = SPREAD["objects over several lines"].splitlines()
    lines[11] = '"question": "a" "b",'
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    assert faults(path) == f"{path}:12:17: not JSON: Expecting ',' delimiter"


@pytest.mark.parametrize(
    ("written", "gold"),
    [
        (str(10**400), str(10**400)),
        ("-" + "9" * 25, "-" + "9" * 25),
        ("0.12345678901234567890123", "0.12345678901234567890123"),
        ("12345678901234567890.5", "12345678901234567890.5"),
        ("1e400", "1e400"),
        ("2.50", "2.5"),
        ("3.0", "3.0"),
    ],
)
def test_numbers_of_any_length_are_golds(written: str, gold: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"question": "a", "answer": {written}, "x": [{written}]}}')
    (prompt,) = read(path, verify_type="LAST_NUMBER").train
    assert prompt.answer == gold


def test_an_integer_that_python_cannot_write_is_kept_as_text(tmp_path: Path) -> None:
    digits = "7" * 10_000
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"question": "a", "answer": {digits}, "x": {digits}}}')
    (prompt,) = read(path, verify_type="EXACT").train
    assert prompt.answer == digits
    assert prompt.metadata == {"x": digits}


def test_what_is_no_number_in_a_column_that_nobody_uses_is_no_value(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(ORIGINAL_ROWS[0] | {"x": float("nan"), "y": float("-inf")}))
    (prompt,) = read(path).train
    assert prompt.metadata == {"x": None, "y": None}


def test_columns_with_one_name_are_numbered_and_told(tmp_path: Path) -> None:
    names = [*ORIGINAL_ROWS[0], "note", "note"]
    columns = [pa.array([row[name] for row in ORIGINAL_ROWS]) for name in ORIGINAL_ROWS[0]]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table([*columns, pa.array([1] * 40), pa.array([2] * 40)], names=names), path)
    prompts = read(path)
    assert prompts.train[0].metadata == {"note.1": 1, "note.2": 2}
    told = "several columns are called 'note'; they are read as 'note.1', 'note.2' and so on"
    assert prompts.notices == [f"{path}: {told}"]
    twice = tmp_path / "b.parquet"
    names[-1] = "question"
    pq.write_table(pa.table([*columns, pa.array([1] * 40), columns[0]], names=names), twice)
    assert "several columns are called 'question'" in faults(twice)
    assert pairs(read(twice, columns=ColumnMap(question="question.2")).train) == EXPECTED


def test_what_is_inside_a_column_has_a_name_with_points(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {
            "task": {"text": row["question"], "gold": {"value": row["answer"]}},
            "turns": [{"kind": row["verify_type"]}],
        }
        for row in ORIGINAL_ROWS
    ]
    names = ColumnMap(question="task.text", answer="task.gold.value", verify_type="turns.0.kind")
    for path in (write_lines(tmp_path / "a.jsonl", rows), tmp_path / "a.parquet"):
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        assert pairs(read(path, columns=names).train) == EXPECTED
    text = faults(path, columns=names.model_copy(update={"question": "task"}))
    assert 'what is inside this one: data.mine.columns.question = "task.text"' in text
    text = faults(path, columns=names.model_copy(update={"question": "text"}))
    assert "no column 'text' among 'task', " in text
    assert "; did you mean 'task.text'?; name it in data.mine.columns.question" in text


def test_a_column_whose_name_has_a_point_comes_first(tmp_path: Path) -> None:
    row = {"a.b": "the column", "a": {"b": "inside"}, "answer": "1", "verify_type": "EXACT"}
    path = write_lines(tmp_path / "a.jsonl", [row])
    (prompt,) = read(path, columns=ColumnMap(question="a.b")).train
    assert prompt.question == "the column"
    row = ORIGINAL_ROWS[0] | {"a": {"b": None}}
    assert "no column 'a.b'" in faults(
        write_lines(tmp_path / "b.jsonl", [row]), columns=ColumnMap(question="a.b")
    )


def test_a_saved_data_set_is_not_decoded(tmp_path: Path) -> None:
    """`datasets` needs further packages for sound, and fails at nanoseconds without pandas."""
    from datasets import Audio, Dataset, Features, Value

    table = pa.table({name: [row[name] for row in ORIGINAL_ROWS] for name in ORIGINAL_ROWS[0]})
    moments = pa.array(range(40), pa.int64()).view(pa.timestamp("ns"))
    sounds = pa.array([{"bytes": b"no sound", "path": None}] * 40, Audio.pa_type)
    table = table.append_column("when", moments).append_column("sound", sounds)
    texts = {name: Value("string") for name in ORIGINAL_ROWS[0]}
    kinds = Features(texts | {"when": Value("timestamp[ns]"), "sound": Audio()})
    dataset = Dataset(table.cast(kinds.arrow_schema)).select(range(39, -1, -1))
    dataset.save_to_disk(tmp_path / "saved")
    prompts = read(tmp_path / "saved").train
    assert pairs(prompts) == EXPECTED[::-1]
    assert prompts[0].metadata == {
        "when": "1970-01-01T00:00:00.000000039",
        "sound": {"bytes": None, "path": None},
    }


def test_floats_as_golds_of_exact_are_told(tmp_path: Path) -> None:
    rows = [row | {"answer": float(row["answer"]), "verify_type": "EXACT"} for row in ORIGINAL_ROWS]
    path = write_lines(tmp_path / "a.jsonl", rows)
    (notice,) = read(path).notices
    assert notice.startswith(
        f"data.mine: gold answers of EXACT are numbers such as 1.0 (40, the first at {path}:1), so "
        "1 is wrong; "
    )
    assert (
        read(write_lines(path, [row | {"verify_type": "LAST_NUMBER"} for row in rows])).notices
        == []
    )


def test_a_question_with_different_answers_is_told(tmp_path: Path) -> None:
    rows = [*ORIGINAL_ROWS, ORIGINAL_ROWS[3] | {"answer": "5"}, ORIGINAL_ROWS[3]]
    path = write_lines(tmp_path / "a.jsonl", rows)
    repeated, different = read(path).notices
    assert repeated == f"data.mine: left out 1 repeated rows of {path}"
    assert different.startswith(
        f"data.mine: questions of {path} are asked in several rows with different answers (1, the "
        f"first at {path}:4)"
    )
