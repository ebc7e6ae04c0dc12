"""Gold answers as data sets hold them: text, numbers, lists of one, and several of which any is
right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from support.needs_sandbox import no_sandbox
from support.question_files import faults, read, write_lines

from common.config import ColumnMap, VerifyType
from common.errors import UserError
from common.rewards.registry import VERIFY, check_gold, judge
from common.rewards.rule import GoldError
from common.tasks.golds import ONE_GOLD, STRUCTURED, gold_text, split_golds

FOUR = ["4", "four"]


def row(answer: Any, verify_type: str = "EXACT") -> dict[str, Any]:
    return {"question": "2 + 2?", "answer": answer, "verify_type": verify_type}


def answer_of(path: Path, **settings: Any) -> str:
    (prompt,) = read(path, **settings).train
    return prompt.answer


@pytest.mark.parametrize("value", ["4", 4, ["4"], [4], ["4", "4"]])
def test_one_gold_is_its_text_however_it_is_given(value: Any, tmp_path: Path) -> None:
    assert answer_of(write_lines(tmp_path / "a.jsonl", [row(value)])) == "4"


def test_a_list_of_one_has_the_id_of_its_element(tmp_path: Path) -> None:
    plain = read(write_lines(tmp_path / "a.jsonl", [row("4")])).train
    listed = read(write_lines(tmp_path / "b.jsonl", [row(["4"])])).train
    assert plain[0].prompt_id == listed[0].prompt_id


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_several_golds_are_read_from_every_kind_of_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    rows = [row(FOUR), row(["5"]) | {"question": "2 + 3?"}]
    if kind == "parquet":
        pl.DataFrame(rows).write_parquet(path)
    elif kind == "json":
        path.write_text(json.dumps(rows))
    else:
        write_lines(path, rows)
    first, second = read(path).train
    assert (split_golds(first.answer, "EXACT"), second.answer) == (FOUR, "5")


def test_several_golds_can_be_written_in_a_column_of_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    pl.DataFrame([row('{"any_of": ["4", "four"]}')]).write_csv(path)
    assert split_golds(answer_of(path), "EXACT") == FOUR


def test_the_pattern_is_looked_for_in_each_gold(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [row(["So #### 4", "#### four"])])
    assert split_golds(answer_of(path, answer_pattern=r"#### (.*)"), "EXACT") == FOUR
    path = write_lines(tmp_path / "b.jsonl", [row(["#### 4", "four"])])
    assert "finds no answer in 'four'" in faults(path, answer_pattern=r"#### (.*)")


@pytest.mark.parametrize("verify_type", STRUCTURED)
def test_a_list_under_a_rule_of_json_is_one_gold(verify_type: str) -> None:
    assert json.loads(gold_text(["a", "b"], verify_type)) == ["a", "b"]


def test_a_gold_that_looks_like_a_list_is_text() -> None:
    """`[0, 1]` is an interval to MATH."""
    for text in ("[0, 1]", "{1, 2}", '{"any_of": []}', '{"any_of": [1]}', '{"any_of": ["1"], "a":'):
        assert split_golds(text, "MATH") == [text]
    assert split_golds('{"any_of": ["1"]}', "CODE") == ['{"any_of": ["1"]}']


@pytest.mark.parametrize("verify_type", [name for name in VERIFY if name not in ONE_GOLD])
def test_each_gold_is_read(verify_type: VerifyType) -> None:
    """Also the second, which no completion may ever be compared with."""
    good = {"MULTIPLE_CHOICE": "B"}.get(verify_type, "5")
    bad = {"MATH": r"\frac{1}", "REGEX": "(", "MULTIPLE_CHOICE": "12", "NUMERIC": "x"}
    bad |= {"LAST_NUMBER": "x", "BOXED_NUMERICAL": "x"}
    check_gold(verify_type, gold_text([good, good + " "], verify_type))
    fault = bad.get(verify_type, "</answer>" if verify_type == "ANSWER_TAG" else " ")
    with pytest.raises(GoldError, match=f"cannot be read as {verify_type}: it has the gold"):
        check_gold(verify_type, json.dumps({"any_of": [good, fault]}))


@pytest.mark.parametrize(
    ("verify_type", "golds", "text", "reward", "verdict"),
    [
        ("EXACT", FOUR, "four", 1, "correct"),
        ("EXACT", FOUR, "4", 1, "correct"),
        ("EXACT", FOUR, "five", 0, "wrong"),
        ("EXACT", FOUR, "", 0, "no_answer"),
        ("EXACT", FOUR, '{"any_of": ["4", "four"]}', 0, "wrong"),
        ("EXACT", FOUR, "4 four", 0, "wrong"),
        ("LAST_NUMBER", ["3", "5"], "3 or 5", 0, "wrong"),
        ("LAST_NUMBER", ["3", "5"], "4", 0, "wrong"),
        ("BOXED_NUMERICAL", ["3", "5"], r"\boxed{3, 5}", 0, "wrong"),
        ("MULTIPLE_CHOICE", ["B", "C"], "The answer is (C).", 1, "correct"),
        ("MULTIPLE_CHOICE", ["B", "C"], "(B) and (C)", 0, "wrong"),
        ("MATH", [r"\frac12", "2"], r"\boxed{0.5}", 1, "correct"),
        ("MATH", [r"\frac12", "2"], r"\boxed{2, 0.5}", 0, "wrong"),
        ("ANSWER_TAG", ["Paris", "Lutetia"], "<answer>lutetia</answer>", 1, "correct"),
    ],
)
def test_any_gold_is_right_and_two_answers_are_not(
    verify_type: str, golds: list[str], text: str, reward: float, verdict: str
) -> None:
    answer = gold_text(golds, verify_type)
    found = judge(text, {"answer": answer, "verify_type": verify_type})
    assert (found.reward, found.verdict) == (reward, verdict)


@pytest.mark.parametrize("value", [[], [None], [True], [float("nan")], [""], [["4"]], {"a": 1}])
def test_what_is_no_gold_is_refused(value: Any) -> None:
    with pytest.raises(UserError):
        gold_text(value, "EXACT")


@pytest.mark.parametrize(
    ("verify_type", "good", "bad", "why"),
    [
        ("NUMERIC", "9.81 ± 1%", "9.81 ± x", "has after ± no number"),
        ("REGEX", "a+", "(?!a)", "is no regular expression of RE2"),
        ("JSON_SCHEMA", {"const": [1]}, {"type": "x"}, "is no schema"),
        ("IFEVAL", [{"id": "punctuation:no_comma"}], [{"id": "a"}], "unknown instruction 'a'"),
        ("SQL", {"schema": "", "query": "SELECT 1"}, {"schema": "", "query": "x"}, "SQLite"),
        ("JUDGE", "Paris", {"a": 1}, "holds {'a': 1}, not text"),
        ("EXACT", ["a", "b"], [" "], "is empty"),
    ],
)
def test_golds_are_refused_with_file_and_row(
    verify_type: str, good: Any, bad: Any, why: str, tmp_path: Path
) -> None:
    """Values of JSON may stand in the column as they are."""
    if verify_type == "SQL" and no_sandbox:
        pytest.skip(no_sandbox)
    rows = [row(good, verify_type), row(bad, verify_type) | {"question": "other"}]
    path = write_lines(tmp_path / "a.jsonl", rows)
    text = faults(path)
    assert text.startswith(f"{path}:2: ")
    assert why in text
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_rows_of_ifeval_are_read_with_the_columns_that_they_have(kind: str, tmp_path: Path) -> None:
    """As google/IFEval is published: no answer column; in Parquet each row has every argument."""
    published = {
        "key": 1,
        "prompt": "Say it in 3 words or more, without commas.",
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [{}, {"relation": "at least", "num_words": 3}],
    }
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pl.DataFrame([published]).write_parquet(path)
    else:
        write_lines(path, [published])
    settings = {"columns": ColumnMap(question="prompt"), "verify_type": "IFEVAL"}
    (prompt,) = read(path, **settings).train
    assert prompt.metadata == {"key": 1, "prompt": published["prompt"]}
    row = {"answer": prompt.answer, "verify_type": "IFEVAL"}
    assert [judge(text, row).reward for text in ("one two three", "one, two, three")] == [1, 0]
    assert "no column 'answer'" in faults(path, **(settings | {"verify_type": "EXACT"}))
