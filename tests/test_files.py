"""Data sets of every kind read into prompts, and what is said about faulty ones."""

import json
import random
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.config import ColumnMap, DatasetSource, GeneratorSource, RewardsConfig
from common.errors import UserError
from common.rewards.judging import Judging
from common.rewards.registry import check_gold
from common.runs.schemas import PROMPTS
from common.tasks.prompts import Prompt, to_table
from common.tasks.sources import Prompts, read_sources

unreadable_golds = Judging(RewardsConfig()).unreadable_golds

SEED_ROWS = [
    {
        "question": f"Task A takes {i} days. What is the smallest total number of days required?",
        "answer": str(i),
        "verify_type": "LAST_NUMBER",
    }
    for i in range(1, 41)
]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path | str, **settings: Any) -> Prompts:
    source = DatasetSource(path=str(path), **({"eval": 0} | settings))
    return read_sources({"mine": source}, unreadable_golds)


def faults(path: Path | str, **settings: Any) -> str:
    with pytest.raises(UserError) as raised:
        read(path, **settings)
    return str(raised.value)


def pairs(prompts: list[Prompt]) -> list[tuple[str, str]]:
    return [(prompt.question, prompt.answer) for prompt in prompts]


@pytest.fixture
def seed_file(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "seed.jsonl", SEED_ROWS)


# What is read


def test_rows_of_the_seed_load_unchanged(seed_file: Path) -> None:
    prompts = read(seed_file).train
    assert pairs(prompts) == [(row["question"], row["answer"]) for row in SEED_ROWS]
    assert {prompt.verify_type for prompt in prompts} == {"LAST_NUMBER"}
    table = to_table(prompts)
    assert table.schema.names == PROMPTS.names
    assert table.column("messages")[0].as_py() == [
        {"role": "user", "content": SEED_ROWS[0]["question"]}
    ]
    assert table.column("metadata")[0].as_py() == "{}"


def write_kind(kind: str, tmp_path: Path) -> Path:
    """The seed's rows as a file or folder of this kind."""
    path = tmp_path / f"rows.{kind}"
    frame = pl.DataFrame(SEED_ROWS)
    if kind == "jsonl":
        write_lines(path, SEED_ROWS)
    elif kind == "json":
        path.write_text(json.dumps(SEED_ROWS, indent=2))
    elif kind == "parquet":
        frame.write_parquet(path)
    elif kind == "csv":
        frame.write_csv(path)
    elif kind == "folder":
        path.mkdir()
        write_lines(path / "a.jsonl", SEED_ROWS[:10])
        frame[10:25].write_parquet(path / "b.parquet")
        frame[25:].write_csv(path / "c.csv")
        (path / "README.md").write_text("about the data")
    elif kind in ("dataset", "splits"):
        from datasets import Dataset, DatasetDict

        rows = Dataset.from_list(SEED_ROWS)
        (DatasetDict(train=rows, test=rows) if kind == "splits" else rows).save_to_disk(path)
    return path


@pytest.mark.parametrize("kind", ["json", "parquet", "csv", "folder", "dataset", "splits"])
def test_every_kind_of_file_says_the_same(kind: str, tmp_path: Path, seed_file: Path) -> None:
    """Also the same ids and metadata, so that a converted file does not change a run."""
    got = to_table(read(write_kind(kind, tmp_path)).train)
    assert got.equals(to_table(read(seed_file).train))


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_line_ends_and_byte_order_marks(mark: str, end: str, tmp_path: Path) -> None:
    lines = tmp_path / "a.jsonl"
    lines.write_bytes((mark + end.join(json.dumps(row) for row in SEED_ROWS)).encode())
    assert len(read(lines).train) == len(SEED_ROWS)
    table = tmp_path / "a.csv"
    rows = [f'"{r["question"]}",{r["answer"]},LAST_NUMBER' for r in SEED_ROWS]
    table.write_bytes((mark + end.join(["question,answer,verify_type", *rows])).encode())
    assert len(read(table).train) == len(SEED_ROWS)


def test_columns_by_other_names_and_an_answer_in_a_solution(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "gsm.jsonl",
        [
            {"problem": "Twice 9?", "solution": "2 * 9 = 18\n#### 18", "level": 3},
            {"problem": "Price?", "solution": "So $1,000 #### 1,000", "level": None},
        ],
    )
    prompts = read(
        path,
        columns=ColumnMap(question="problem", answer="solution"),
        answer_pattern=r"####\s*(.+)",
        verify_type="LAST_NUMBER",
    ).train
    assert pairs(prompts) == [("Twice 9?", "18"), ("Price?", "1,000")]
    assert [prompt.metadata for prompt in prompts] == [{"level": 3}, {"level": None}]


def test_messages_ids_and_metadata(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "And 2 + 2?"},
    ]
    row = {
        "messages": messages,
        "answer": 4,
        "verify_type": "EXACT",
        "prompt_id": 17,
        "metadata": '{"source": "book"}',
        "page": 3,
    }
    (prompt,) = read(write_lines(tmp_path / "a.jsonl", [row])).train
    assert prompt.messages == messages
    assert prompt.question == "And 2 + 2?"
    assert (prompt.answer, prompt.prompt_id) == ("4", "17")
    assert prompt.metadata == {"page": 3, "source": "book"}


def test_numbers_and_binary_columns_of_parquet(tmp_path: Path) -> None:
    table = {
        "question": ["a?", "b?"],
        "answer": [7, 8],
        "verify_type": ["LAST_NUMBER"] * 2,
        "image": [b"\xff\xd8", b"\xff\xd8"],
        "score": [0.5, float("nan")],
    }
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    prompts = read(tmp_path / "a.parquet").train
    assert [prompt.answer for prompt in prompts] == ["7", "8"]
    assert [json.loads(m) for m in to_table(prompts).column("metadata").to_pylist()] == [
        {"image": None, "score": 0.5},
        {"image": None, "score": None},
    ]


# Splitting


def test_held_out_questions_depend_on_nothing_but_their_text(tmp_path: Path) -> None:
    rows = list(SEED_ROWS)
    first = read(write_lines(tmp_path / "a.jsonl", rows), eval=10)
    random.Random(1).shuffle(rows)
    second = read(write_lines(tmp_path / "b.jsonl", rows), eval=10)
    assert len(first.eval) == 10
    assert len(first.train) == 30
    assert not set(pairs(first.train)) & set(pairs(first.eval))
    assert set(pairs(first.eval)) == set(pairs(second.eval))
    assert set(pairs(first.train)) == set(pairs(second.train))


def test_more_of_the_same_keeps_what_was_taken(seed_file: Path) -> None:
    few, more = read(seed_file, eval=5, train=10), read(seed_file, eval=8, train=20)
    assert set(pairs(few.eval)) < set(pairs(more.eval))
    assert (len(few.train), len(more.train)) == (10, 20)
    places = [int(prompt.answer) for prompt in few.train]
    assert places == sorted(places)


def test_a_question_with_two_answers_is_not_split(tmp_path: Path) -> None:
    rows = [row | {"answer": answer} for row in SEED_ROWS for answer in (row["answer"], "0")]
    prompts = read(write_lines(tmp_path / "a.jsonl", rows), eval=11)
    assert len(prompts.eval) == 11
    assert not {p.question for p in prompts.train} & {p.question for p in prompts.eval}
    assert any("left out 1 training rows" in line for line in prompts.notices)


def test_evaluation_questions_leave_training(seed_file: Path, tmp_path: Path) -> None:
    evaluation = write_lines(tmp_path / "eval.jsonl", SEED_ROWS[:4])
    prompts = read(seed_file, eval_path=str(evaluation), eval=200)
    assert pairs(prompts.eval) == [(row["question"], row["answer"]) for row in SEED_ROWS[:4]]
    assert len(prompts.train) == 36
    assert prompts.notices == [
        f"data.mine: eval = 200, but {evaluation} has 4; took all",
        "data.mine: left out 4 training rows that ask an evaluation question",
    ]


def test_evaluation_questions_leave_training_of_other_sources(seed_file: Path) -> None:
    sources = {
        "one": DatasetSource(path=str(seed_file), eval=10),
        "two": DatasetSource(path=str(seed_file), eval=0),
    }
    prompts = read_sources(sources, unreadable_golds)
    assert len(prompts.train) == 60
    assert not {p.question for p in prompts.train} & {p.question for p in prompts.eval}
    assert "data.two: left out 10 training rows that ask an evaluation question" in prompts.notices


def test_a_folder_has_splits_by_name(tmp_path: Path) -> None:
    write_lines(tmp_path / "train-0.jsonl", SEED_ROWS[:10])
    write_lines(tmp_path / "train-1.jsonl", SEED_ROWS[10:20])
    write_lines(tmp_path / "test.jsonl", SEED_ROWS[20:])
    prompts = read(tmp_path, eval_split="test", eval=5)
    assert (len(prompts.train), len(prompts.eval)) == (20, 5)
    assert prompts.notices[0] == f"data.mine: train is train-0.jsonl, train-1.jsonl of {tmp_path}"
    assert "no file name begins with 'validation'" in faults(
        tmp_path, eval_split="validation", eval=5
    )


def test_splits_of_a_saved_data_set(tmp_path: Path) -> None:
    path = write_kind("splits", tmp_path)
    prompts = read(path, eval_split="test", eval=6)
    assert (len(prompts.train), len(prompts.eval)) == (34, 6)
    text = faults(path, eval_split="tset", eval=6)
    assert "no split 'tset'; there are train, test; did you mean 'test'?" in text


def test_repeated_rows_are_left_out_and_told(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", SEED_ROWS + SEED_ROWS[:3])
    prompts = read(path)
    assert len(prompts.train) == 40
    assert prompts.notices == [f"data.mine: left out 3 repeated rows of {path}"]


def test_generators_are_sources_too() -> None:
    source = GeneratorSource(generator="multiplication", train=30, eval=10)
    prompts = read_sources({"times": source}, unreadable_golds)
    assert (len(prompts.train), len(prompts.eval)) == (30, 10)
    assert {p.task for p in prompts.train} == {"times"}
    again = read_sources({"times": source}, unreadable_golds)
    assert to_table(again.train).equals(to_table(prompts.train))
    for prompt in prompts.train + prompts.eval:
        check_gold(prompt.verify_type, prompt.answer)


# What is refused


def line(**changes: Any) -> str:
    return json.dumps(SEED_ROWS[0] | changes)


BAD_LINES = {
    "not JSON": ("{'question': 1}", ":2:2: not JSON: Expecting property name"),
    "cut": ('{"question": "a', ":2:14: not JSON: Unterminated string"),
    "a list": ("[1]", ":2: expected an object such as"),
    "NaN": ('{"answer": NaN}', ":2: not readable JSON: NaN is no JSON value"),
    "too deep": ("[" * 100_000, ":2: not readable JSON"),
    "a long number": ('{"answer": ' + "9" * 5000 + "}", ":2: not readable JSON"),
    "empty question": (line(question=" "), ":2: column 'question' is empty"),
    "empty answer": (line(answer=""), ":2: column 'answer' is empty"),
    "no answer": (line(answer=None), ":2: no value in column 'answer'"),
    "question no text": (line(question=5), ":2: column 'question' holds 5, not text"),
    "answer no text": (line(answer=[5]), ":2: column 'answer' holds [5], not text"),
    "answer true": (line(answer=True), ":2: column 'answer' holds True, not text"),
    "unknown verify type": (
        line(verify_type="LAST_NUMER"),
        ":2: unknown verify_type 'LAST_NUMER'; there are LAST_NUMBER, BOXED_NUMERICAL, "
        "ANSWER_TAG, EXACT, MULTIPLE_CHOICE, MATH, CODE, SIMILARITY, REASONING_GYM; did you mean "
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
    write_lines(tmp_path / "a.jsonl", [SEED_ROWS[0] | {"answer": "x"}])
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
    parquet = tmp_path / "a.parquet"
    text = pa.array([b"a", b"caf\xe9"]).cast(pa.string(), safe=False)
    columns = {"question": text, "answer": ["1", "1"], "verify_type": ["EXACT"] * 2}
    pq.write_table(pa.table(columns), parquet)
    assert f"{parquet} row 1: column 'question' is not UTF-8 at byte 3" in faults(parquet)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("question,answer,verify_type\na,1,EXACT\nb,1\n", ":3: 2 values, but the header names 3"),
        ('question,answer,verify_type\n"a,1,EXACT\n', ": not CSV: "),
        ('question,answer,verify_type\n"a"b,1,EXACT\n', ":2: not CSV: "),
        ("question,question\na,b\n", ":1: two columns are called 'question'"),
        ('question,answer,verify_type\n"a\nb",1,EXACT\nc,x,LAST_NUMBER\n', ":4: answer 'x'"),
    ],
)
def test_faults_of_csv_name_the_line(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(content)
    text = faults(path)
    assert str(path) in text
    assert message in text


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


def test_verify_type_is_said_once(seed_file: Path) -> None:
    assert "both say the verify type" in faults(seed_file, verify_type="EXACT")
    ignored = read(seed_file, verify_type="EXACT", columns=ColumnMap(verify_type=""))
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
    path = write_lines(tmp_path / "a.jsonl", SEED_ROWS[:1])
    text = faults(path, answer_pattern=pattern)
    assert message in text
    assert "answer_pattern" in text


def test_given_ids_come_once(tmp_path: Path) -> None:
    rows = [row | {"prompt_id": f"id-{i % 39}"} for i, row in enumerate(SEED_ROWS)]
    path = write_lines(tmp_path / "a.jsonl", rows)
    assert faults(path) == f"{path}:40: prompt_id 'id-0' is also at {path}:1"


def test_more_than_there_is(seed_file: Path) -> None:
    assert "eval = 40 of them are held out: none is left" in faults(seed_file, eval=40)
    text = faults(seed_file, eval=10, train=31)
    assert f"data.mine.train = 31, but {seed_file} has 30 questions for training" in text


def test_paths_that_are_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "notes.txt").write_text("hello")
    assert "files of this kind are not read" in faults(tmp_path / "notes.txt")
    assert "no data in this folder" in faults(tmp_path)
    assert "does not exist" in faults("no_such_file.jsonl")
    assert "does not exist" in faults("../no/such/folder")


def test_a_file_has_no_splits(seed_file: Path) -> None:
    assert "is one file and has no splits" in faults(seed_file, eval_split="test")
