"""What is said about faulty data sets."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.question_files import (
    ORIGINAL_ROWS,
    faults,
    pairs,
    read,
    unreadable_golds,
    write_kind,
    write_lines,
)

from common.config import ColumnMap, DatasetSource, GeneratorSource
from common.errors import UserError
from common.rewards.registry import VERIFY
from common.tasks.sources import read_sources


def line(**changes: Any) -> str:
    return json.dumps(ORIGINAL_ROWS[0] | changes)


BAD_LINES = {
    "not JSON": ("{'question': 1}", ":2:2: not JSON: Expecting property name"),
    "cut": ('{"question": "a', ":2:14: not JSON: Unterminated string"),
    "a list": ("[1]", ":2: expected an object such as"),
    "null": ("null", ":2: expected an object such as"),
    "NaN": (line(answer=float("nan")), ":2: no value in column 'answer'; give it one, or leave"),
    "too deep": ("[" * 100_000, ":2: not readable JSON: it is nested too deep; leave the part"),
    "nested deep": (line(note=0)[:-2] + "[" * 500 + "]" * 500 + "}", ":2: is nested too deep; "),
    "a long number": (line(answer=0).replace("0", "9" * 5000), ":2: answer '9999999999"),
    "empty question": (line(question=" "), ":2: column 'question' is empty"),
    "empty answer": (line(answer=""), ":2: column 'answer' is empty"),
    "no answer": (line(answer=None), ":2: no value in column 'answer'"),
    "question no text": (line(question=5), ":2: column 'question' holds 5, not text"),
    "answer no text": (line(answer=[[5]]), ":2: column 'answer' holds [5], not text"),
    "no answer in a list": (line(answer=[]), ":2: column 'answer' holds an empty list"),
    "several tests": (
        line(answer=["a", "b"], verify_type="JUDGE"),
        ":2: column 'answer' holds 2 gold answers, and JUDGE takes one",
    ),
    "answer true": (line(answer=True), ":2: column 'answer' holds True, not text"),
    "unknown verify type": (
        line(verify_type="LAST_NUMER"),
        f":2: unknown verify_type 'LAST_NUMER'; there are {', '.join(VERIFY)}; did you mean "
        "'LAST_NUMBER'?",
    ),
    "unreadable gold": (
        line(answer="nan"),
        ":2: answer 'nan' cannot be read as LAST_NUMBER: it is no number",
    ),
    "half a character": (
        '{"question": "\\ud800", "answer": "1", "verify_type": "EXACT"}',
        ":2: column 'question' has half a character",
    ),
    "messages": (line(messages=[{"role": "user", "content": ""}]), ":2: column 'messages' is to"),
    "last message": (
        line(messages=[{"role": "assistant", "content": "a"}]),
        ":2: column 'messages' is to",
    ),
    "id": (line(prompt_id=[1]), ":2: column 'prompt_id' holds [1], which is no id"),
}


@pytest.mark.parametrize(("bad", "message"), BAD_LINES.values(), ids=BAD_LINES)
def test_faults_of_a_line_name_file_and_line(bad: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"{line()}\n{bad}\n{line(question='other')}\n")
    text = faults(path)
    assert f"{path}{message}" in text
    assert text.count("\n") == 0, text


def test_several_faults_come_at_once_and_many_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"{line()}\nno\n{line(answer='x')}\n{line(verify_type='MATHS')}\n")
    text = faults(path).splitlines()
    assert [entry[len(str(path)) :][:3] for entry in text] == [":2:", ":3:", ":4:"]
    path.write_text("no\n" * 100)
    text = faults(path).splitlines()
    assert len(text) == 11
    assert text[-1] == "... and 90 more faults of the data"


def test_faults_of_all_sources_come_at_once(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [ORIGINAL_ROWS[0] | {"answer": "x"}])
    sources = {
        "one": DatasetSource(path=str(tmp_path / "a.jsonl"), eval=0),
        "two": DatasetSource(path=str(tmp_path / "b.jsonl"), eval=0),
        "three": GeneratorSource(generator="counting", difficulty={"min_lenght": 2}),
    }
    with pytest.raises(UserError) as raised:
        read_sources(sources, unreadable_golds)
    first, second, third = str(raised.value).splitlines()
    assert "a.jsonl:1: answer 'x' cannot be read" in first
    assert "b.jsonl does not exist; did you mean 'a.jsonl'?" in second
    assert "min_lenght" in third


def test_text_that_is_not_utf_8_is_told_by_row_and_byte(tmp_path: Path) -> None:
    bad = b'{"question": "caf\xe9"}'
    lines = tmp_path / "a.jsonl"
    lines.write_bytes(line().encode() + b"\n" + bad + b"\n")
    assert f"{lines}:2: not UTF-8 at byte 17 of the line (0xe9)" in faults(lines)
    table = tmp_path / "a.csv"
    table.write_bytes(b"question,answer,verify_type\na,1,EXACT\ncaf\xe9,1,EXACT\n")
    assert f"{table}:3: not UTF-8 at byte 3 of the line (0xe9)" in faults(table)
    utf_16 = tmp_path / "b.csv"
    utf_16.write_bytes("question,answer\na,1\n".encode("utf-16") + b"\x00")
    assert faults(utf_16).endswith("(0x00); save it as UTF-8")
    parquet = tmp_path / "a.parquet"
    text = pa.array([b"a", b"caf\xe9"]).cast(pa.string(), safe=False)
    columns = {"question": text, "answer": ["1", "1"], "verify_type": ["EXACT"] * 2}
    pq.write_table(pa.table(columns), parquet)
    assert f"{parquet} row 1: column 'question' is not UTF-8 at byte 3" in faults(parquet)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "question,answer,verify_type\na,1,EXACT\nWhat, then?,1,EXACT\n",
            ":3: 4 values, but the header names 3 columns; put double quotes around values that "
            "contain commas",
        ),
        (
            'question,answer,verify_type\n"a,1,EXACT\nb,1,EXACT\n',
            ":2: not CSV: unexpected end of data, in the row that begins here; a double quote",
        ),
        ('question,answer,verify_type\n"a"b,1,EXACT\n', ":2: not CSV: "),
        (
            "question,question\na,b\n",
            "several columns are called 'question'; they are read as 'question.1', 'question.2'",
        ),
        ('question,answer,verify_type\n"a\nb",1,EXACT\nc,x,LAST_NUMBER\n', ":4: answer 'x'"),
    ],
)
def test_faults_of_csv_name_the_line(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(content)
    text = faults(path)
    assert str(path) in text
    assert message in text


def test_the_remedy_for_another_encoding_works_as_it_is_printed(tmp_path: Path) -> None:
    path = tmp_path / "it's mine.csv"
    path.write_text("question,answer,verify_type\ncafé – 5 €?,1,EXACT\n", encoding="cp1252")
    remedy = faults(path).partition("Latin-1: ")[2]
    subprocess.run(["sh", "-c", remedy], check=True)
    (prompt,) = read(tmp_path / "it's mine-utf8.csv").train
    assert prompt.question == "café – 5 €?"


@pytest.mark.parametrize("kind", ["under a key", "columns of lists", "columns of pandas"])
def test_the_remedy_for_rows_inside_an_object_works_as_it_is_printed(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    frame = {name: [row[name] for row in ORIGINAL_ROWS] for name in ORIGINAL_ROWS[0]}
    content = {
        "under a key": {"version": 1, "data": ORIGINAL_ROWS},
        "columns of lists": frame,
        "columns of pandas": {n: {str(i): v for i, v in enumerate(frame[n])} for n in frame},
    }[kind]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content, indent=2))
    remedy = faults(path).partition("file of their own: python ")[2]
    subprocess.run(["sh", "-c", f"{sys.executable} {remedy}"], check=True)
    expected = [(row["question"], row["answer"]) for row in ORIGINAL_ROWS]
    assert pairs(read(tmp_path / "rows.jsonl").train) == expected


def test_golds_that_are_whole_solutions_are_told_with_the_key_that_reads_them(
    tmp_path: Path,
) -> None:
    rows = [row | {"answer": f"So\n#### {row['answer']}"} for row in ORIGINAL_ROWS]
    path = write_lines(tmp_path / "a.jsonl", rows)
    hint = 'if the answer is what follows ####, set data.mine.answer_after = "####"'
    assert hint in faults(path)
    answered = read(path, answer_after="####")
    assert pairs(answered.train) == [(row["question"], row["answer"]) for row in ORIGINAL_ROWS]
    assert answered.notices == []
    # EXACT can read them, but no answer would ever be right.
    exact = write_lines(tmp_path / "b.jsonl", [row | {"verify_type": "EXACT"} for row in rows])
    assert read(exact).notices == [
        f"data.mine: gold answers contain #### (40, the first at {exact}:1); {hint}"
    ]


def test_the_answer_stands_after_the_last_mark(tmp_path: Path) -> None:
    rows = [ORIGINAL_ROWS[0] | {"answer": "#### 3 of them\n\n#### 1,000\n"}]
    (prompt,) = read(write_lines(tmp_path / "a.jsonl", rows), answer_after="####").train
    assert prompt.answer == "1,000"
    rows = [ORIGINAL_ROWS[0] | {"answer": f"4{mark}"} for mark in ("", " ####")]
    text = faults(write_lines(tmp_path / "b.jsonl", rows), answer_after="####").splitlines()
    assert [entry.partition(":2: ")[2] or entry.partition(":1: ")[2] for entry in text] == [
        "answer_after '####' finds no answer in '4'",
        "answer_after '####' finds no answer in '4 ####'",
    ]
    with pytest.raises(ValueError, match=r"answer_after = '#' and answer_pattern = .* both say"):
        DatasetSource(path="a.jsonl", answer_after="#", answer_pattern="(.)")


@pytest.mark.parametrize("content", [b"", b"hello", b"PAR1" + bytes(40) + b"PAR1"])
def test_a_file_that_is_not_parquet(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    assert f"{path}: not a readable Parquet file" in faults(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_a_file_without_rows(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    content = {"a.json": "[]", "a.csv": "question,answer\n"}.get(name, "")
    path.write_text(content)
    if name == "a.parquet":
        pq.write_table(pa.table({"question": pa.array([], pa.string())}), path)
    assert faults(path) == f"{path}: is empty: no rows"


def test_a_saved_data_set_that_cannot_be_loaded(tmp_path: Path) -> None:
    path = write_kind("dataset", tmp_path)
    next(path.glob("*.arrow")).write_bytes(b"cut")
    assert f"{path}: cannot be loaded by `datasets`: " in faults(path)


def test_missing_columns_are_told_once_with_a_suggestion(tmp_path: Path) -> None:
    rows = [{"questoin": "a?", "gold": "1"}] * 50
    text = faults(write_lines(tmp_path / "a.jsonl", rows)).splitlines()
    assert len(text) == 3
    assert "no column 'question' among 'gold', 'questoin'; did you mean 'questoin'?" in text[0]
    assert "name it in data.mine.columns.question" in text[0]
    assert "no column 'answer' among" in text[1]
    assert "or set data.mine.verify_type" in text[2]


def test_verify_type_is_said_once(original_file: Path) -> None:
    assert "both say the verify type" in faults(original_file, verify_type="EXACT")
    ignored = read(original_file, verify_type="EXACT", columns=ColumnMap(verify_type=""))
    assert {prompt.verify_type for prompt in ignored.train} == {"EXACT"}


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("####(", "missing ), unterminated subpattern"),
        ("####", "has no group"),
        ("####(.+)", "finds no answer in '1'"),
    ],
)
def test_answer_pattern(pattern: str, message: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", ORIGINAL_ROWS[:1])
    text = faults(path, answer_pattern=pattern)
    assert message in text
    assert "answer_pattern" in text


def test_many_columns_are_counted(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{f"c{i:03}": 1 for i in range(500)}])
    assert "'c018', 'c019' and 480 others; name it in" in faults(path).splitlines()[0]


def test_given_ids_come_once(tmp_path: Path) -> None:
    rows = [row | {"prompt_id": f"id-{i % 39}"} for i, row in enumerate(ORIGINAL_ROWS)]
    path = write_lines(tmp_path / "a.jsonl", rows)
    assert faults(path) == f"{path}:40: prompt_id 'id-0' is also at {path}:1"


def test_more_than_there_is(original_file: Path) -> None:
    assert "eval = 40 of them are held out: none is left" in faults(original_file, eval=40)
    text = faults(original_file, eval=10, train=31)
    assert f"data.mine.train = 31, but {original_file} has 30 questions for training" in text


def test_paths_that_are_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "notes.txt").write_text("hello")
    text = faults(tmp_path / "notes.txt")
    assert "files of this kind are not read; known are .jsonl, " in text
    assert text.endswith("unpack it or convert it first")
    assert "no data in this folder" in faults(tmp_path)
    assert "does not exist" in faults("no_such_file.jsonl")
    assert "does not exist" in faults("../no/such/folder")


def test_a_file_has_no_splits(original_file: Path) -> None:
    assert "is one file and has no splits" in faults(original_file, eval_split="test")
