"""Data sets of every kind read into prompts, and split."""

import json
import random
from pathlib import Path

import polars as pl
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
from common.rewards.registry import check_gold
from common.runs.schemas import PROMPTS
from common.tasks.prompts import to_table
from common.tasks.sources import read_sources


def test_rows_of_the_seed_load_unchanged(original_file: Path) -> None:
    prompts = read(original_file).train
    assert pairs(prompts) == [(row["question"], row["answer"]) for row in ORIGINAL_ROWS]
    assert {prompt.verify_type for prompt in prompts} == {"LAST_NUMBER"}
    table = to_table(prompts)
    assert table.schema.names == PROMPTS.names
    assert table.column("messages")[0].as_py() == [
        {"role": "user", "content": ORIGINAL_ROWS[0]["question"]}
    ]
    assert table.column("metadata")[0].as_py() == "{}"


@pytest.mark.parametrize("kind", ["json", "parquet", "csv", "folder", "dataset", "splits"])
def test_every_kind_of_file_says_the_same(kind: str, tmp_path: Path, original_file: Path) -> None:
    """Also the same ids and metadata, so that a converted file does not change a run."""
    got = to_table(read(write_kind(kind, tmp_path)).train)
    assert got.equals(to_table(read(original_file).train))


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_line_ends_and_byte_order_marks(mark: str, end: str, tmp_path: Path) -> None:
    lines = tmp_path / "a.jsonl"
    lines.write_bytes((mark + end.join(json.dumps(row) for row in ORIGINAL_ROWS)).encode())
    assert len(read(lines).train) == len(ORIGINAL_ROWS)
    table = tmp_path / "a.csv"
    rows = [f'"{r["question"]}",{r["answer"]},LAST_NUMBER' for r in ORIGINAL_ROWS]
    table.write_bytes((mark + end.join(["question,answer,verify_type", *rows])).encode())
    assert len(read(table).train) == len(ORIGINAL_ROWS)


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
    assert [prompt.metadata for prompt in prompts] == [
        {"problem": "Twice 9?", "solution": "2 * 9 = 18\n#### 18", "level": 3},
        {"problem": "Price?", "solution": "So $1,000 #### 1,000", "level": None},
    ]


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
    assert prompt.metadata == {
        "page": 3,
        "source": "book",
        "messages": messages,
        "metadata": row["metadata"],
    }


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


def test_held_out_questions_depend_on_nothing_but_their_text(tmp_path: Path) -> None:
    rows = list(ORIGINAL_ROWS)
    first = read(write_lines(tmp_path / "a.jsonl", rows), eval=10)
    random.Random(1).shuffle(rows)
    second = read(write_lines(tmp_path / "b.jsonl", rows), eval=10)
    assert len(first.eval) == 10
    assert len(first.train) == 30
    assert not set(pairs(first.train)) & set(pairs(first.eval))
    assert set(pairs(first.eval)) == set(pairs(second.eval))
    assert set(pairs(first.train)) == set(pairs(second.train))


def test_more_of_the_same_keeps_what_was_taken(original_file: Path) -> None:
    few, more = read(original_file, eval=5, train=10), read(original_file, eval=8, train=20)
    assert set(pairs(few.eval)) < set(pairs(more.eval))
    assert (len(few.train), len(more.train)) == (10, 20)
    places = [int(prompt.answer) for prompt in few.train]
    assert places == sorted(places)


def test_a_question_with_two_answers_is_not_split(tmp_path: Path) -> None:
    rows = [row | {"answer": answer} for row in ORIGINAL_ROWS for answer in (row["answer"], "0")]
    prompts = read(write_lines(tmp_path / "a.jsonl", rows), eval=11)
    assert len(prompts.eval) == 11
    assert not {p.question for p in prompts.train} & {p.question for p in prompts.eval}
    assert any("left out 1 training rows" in line for line in prompts.notices)


def test_evaluation_questions_leave_training(original_file: Path, tmp_path: Path) -> None:
    evaluation = write_lines(tmp_path / "eval.jsonl", ORIGINAL_ROWS[:4])
    prompts = read(original_file, eval_path=str(evaluation), eval=200)
    assert pairs(prompts.eval) == [(row["question"], row["answer"]) for row in ORIGINAL_ROWS[:4]]
    assert len(prompts.train) == 36
    assert prompts.notices == [
        f"data.mine: eval = 200, but {evaluation} has 4; took all",
        "data.mine: left out 4 training rows that ask an evaluation question",
    ]


def test_evaluation_questions_leave_training_of_other_sources(original_file: Path) -> None:
    sources = {
        "one": DatasetSource(path=str(original_file), eval=10),
        "two": DatasetSource(path=str(original_file), eval=0),
    }
    prompts = read_sources(sources, unreadable_golds)
    assert len(prompts.train) == 60
    assert not {p.question for p in prompts.train} & {p.question for p in prompts.eval}
    assert "data.two: left out 10 training rows that ask an evaluation question" in prompts.notices


def test_a_folder_has_splits_by_name(tmp_path: Path) -> None:
    write_lines(tmp_path / "train-0.jsonl", ORIGINAL_ROWS[:10])
    write_lines(tmp_path / "train-1.jsonl", ORIGINAL_ROWS[10:20])
    write_lines(tmp_path / "test.jsonl", ORIGINAL_ROWS[20:])
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
    path = write_lines(tmp_path / "a.jsonl", ORIGINAL_ROWS + ORIGINAL_ROWS[:3])
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


CONVERSATION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("columns", [{}, {"question": "prompt"}, {"messages": "prompt"}])
def test_a_prompt_is_found_by_itself(kind: str, columns: dict[str, str], tmp_path: Path) -> None:
    """As data sets for TRL have it: a conversation, which functions find under its own name too."""
    row = {"prompt": CONVERSATION, "answer": "4", "verify_type": "LAST_NUMBER"}
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        write_lines(path, [row])
    else:
        pl.DataFrame([row]).write_parquet(path)
    (prompt,) = read(path, columns=ColumnMap(**columns)).train
    assert prompt.messages == prompt.metadata["prompt"] == CONVERSATION
    assert prompt.question == "2 + 2?"


def test_a_prompt_of_text_is_found_but_never_instead_of_a_question(tmp_path: Path) -> None:
    row = {"prompt": "3 + 3?", "answer": "6", "verify_type": "LAST_NUMBER"}
    (prompt,) = read(write_lines(tmp_path / "a.jsonl", [row])).train
    assert prompt.question == "3 + 3?"
    (prompt,) = read(write_lines(tmp_path / "b.jsonl", [row | {"question": "2 + 4?"}])).train
    assert prompt.question == "2 + 4?"
    assert prompt.metadata["prompt"] == "3 + 3?"
