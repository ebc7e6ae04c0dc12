"""SQL: which query is judged, what counts as the same rows, and that nothing gets out."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.measured import QUICK, best_seconds
from support.needs_sandbox import needs_sandbox

from common.config import RewardsConfig
from common.config.rewards import SandboxLimits
from common.rewards import sql
from common.rewards.rule import GoldError, Verdict
from common.rewards.sandbox.bubblewrap import Limits
from common.rewards.sandbox.query import ask

pytestmark = needs_sandbox

PETS = """\
CREATE TABLE pets (id INTEGER PRIMARY KEY, name TEXT, kilos REAL, chip BLOB);
INSERT INTO pets VALUES (1, 'Ada', 4.5, x'00ff'), (2, 'Bo', 30.0, NULL), (3, 'Bo', NULL, NULL);
"""
OTHER_PETS = PETS + "INSERT INTO pets VALUES (4, 'Cy', 1.5, NULL);"

judge = partial(sql.judge, limits=Limits(seconds=8, cpu_seconds=1))


def gold(query: str = "SELECT id, name FROM pets", schema: Any = PETS, **more: Any) -> str:
    return json.dumps({"schema": schema, "query": query} | more)


def expecting(rows: Any, **more: Any) -> str:
    return json.dumps({"schema": PETS, "rows": rows} | more)


def verdict(text: str, answer: str) -> Verdict:
    return judge(text, {"answer": answer, "verify_type": "SQL"})


NAMES = "SELECT name FROM pets ORDER BY id DESC"


@pytest.mark.parametrize(
    ("text", "answer", "reward"),
    [
        ("SELECT id, name FROM pets", gold(), 1),
        ("So:\n```sql\nSELECT id, name\nFROM pets;\n```\nIt lists them.", gold(), 1),
        ("```\nSELECT id, name FROM pets\n```", gold(), 1),
        ("```sql\nSELECT 1\n```\nbetter:\n```sql\nSELECT id, name FROM pets\n```", gold(), 1),
        ("<answer>SELECT id, name FROM pets</answer>", gold(), 1),
        ("<think>SELECT 1</think>SELECT p.id, p.name FROM pets AS p -- all", gold(), 1),
        ("SELECT id, name FROM pets ORDER BY name DESC", gold(), 1),
        ("WITH p AS (SELECT * FROM pets) SELECT id AS a, name AS b FROM p", gold(), 1),
        ("SELECT name, id FROM pets", gold(), 0),
        ("SELECT id, name FROM pets WHERE id < 3", gold(), 0),
        ("SELECT id, name FROM pets UNION ALL SELECT 1, 'Ada'", gold(), 0),
        ("SELECT DISTINCT name FROM pets", gold("SELECT name FROM pets"), 0),
        ("SELECT id, kilos, chip FROM pets", gold("SELECT id, kilos, chip FROM pets"), 1),
        ("SELECT name FROM pets", gold(NAMES), 0),
        ("SELECT name FROM pets ORDER BY -id", gold(NAMES), 1),
        ("SELECT count(*) FROM pets", expecting([[3]]), 1),
        ("SELECT 3.0", expecting([[3]]), 1),
        ("SELECT '3'", expecting([[3]]), 0),
        ("SELECT 0.1 + 0.2", expecting([[0.3]]), 1),
        ("SELECT 0.30001", expecting([[0.3]]), 0),
        ("SELECT 9007199254740993", expecting([[9007199254740993]]), 1),
        ("SELECT 9007199254740992", expecting([[9007199254740993]]), 0),
        ("SELECT NULL", expecting([[None]]), 1),
        ("SELECT ''", expecting([[None]]), 0),
        ("SELECT 'ü水'", expecting([["ü水"]]), 1),
        ("SELECT id FROM pets", expecting([[3], [1], [2]]), 1),
        ("SELECT id FROM pets", expecting([[3], [1], [2]], ordered=True), 0),
        ("<answer>SELECT 1</answer><answer>SELECT 1</answer>", expecting([[1]]), 0),
        ("SELECT a FROM nothing", gold(), 0),
        ("the pets of all", gold(), 0),
    ],
)
def test_the_same_rows_are_right(text: str, answer: str, reward: float) -> None:
    assert verdict(text, answer).reward == reward


@pytest.mark.parametrize("text", ["", " ", "<think>SELECT 1", "```sql\n```", "<answer>SELECT 1"])
def test_without_a_query_there_is_no_answer(text: str) -> None:
    assert verdict(text, gold()).verdict == "no_answer"


def test_a_constant_is_found_out_by_a_second_database() -> None:
    count = "SELECT count(*) FROM pets"
    assert verdict("SELECT 3", gold(count)).reward == 1
    both = gold(count, schema=[PETS, OTHER_PETS])
    assert verdict("SELECT 3", both).reward == 0
    assert verdict("SELECT sum(1) FROM pets", both).reward == 1


@pytest.mark.parametrize(
    "query",
    [
        "ATTACH '{file}' AS other",
        "VACUUM INTO '{file}'",
        "DELETE FROM pets",
        "CREATE TABLE t (a)",
        "CREATE TEMP TABLE t (a)",
        "PRAGMA table_info(pets)",
        "PRAGMA journal_mode = DELETE",
        "SELECT load_extension('{file}')",
        "SELECT readfile('/etc/passwd')",
        "SELECT writefile('{file}', 'a')",
        "SELECT id, name FROM pets; DELETE FROM pets",
        "BEGIN",
        "SELECT zeroblob(999999999)",
        "SELECT hex(zeroblob(900000))",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n",
        "SELECT '\ud800'",
        "SELECT 1 \x00 FROM pets",
        "(" * 10_000,
        "SELECT " + "1+" * 100_000 + "1",
    ],
)
def test_what_a_query_may_not_do_is_wrong_and_does_nothing(query: str, tmp_path: Path) -> None:
    file = tmp_path / "made.db"
    assert verdict(f"```sql\n{query.replace('{file}', str(file))}\n```", gold()).verdict == "wrong"
    assert not file.exists()


@pytest.mark.parametrize("action", ["ATTACH '{}' AS other", "VACUUM INTO '{}'"])
def test_the_authorizer_forbids_files_also_outside_the_sandbox(action: str, tmp_path: Path) -> None:
    """The sandbox is the second wall: run without it, neither query nor schema opens a file."""
    file = tmp_path / "made.db"
    assert ask("", action.format(file))["fault"] == "query"
    assert ask(action.format(file), "SELECT 1")["fault"] == "schema"
    assert ask("SELECT load_extension('x')", "SELECT 1")["fault"] == "schema"
    assert not file.exists()


def test_a_query_without_end_is_a_timeout() -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    found = verdict(endless, gold())
    assert (found.reward, found.verdict) == (0, "timeout")
    assert found.reason == "SQL: CPU time beyond 1 s"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("SELECT 1", "is not JSON"),
        ("[]", "is to be an object of"),
        ('{"schema": "", "query": "SELECT 1", "rows": [[1]]}', "is to be an object of"),
        (gold(schema=1), 'as "schema"'),
        (gold(schema=[]), 'as "schema"'),
        (gold(schema="CREATE TABL"), "has a schema that SQLite refuses: near"),
        (gold(schema="ATTACH 'a' AS b"), "has a schema that SQLite refuses: not authorized"),
        (gold("SELECT a FROM pets"), "has a query that SQLite refuses: no such column: a"),
        (gold("DELETE FROM pets"), "has a query that SQLite refuses: not authorized"),
        (gold("SELECT id FROM pets WHERE id > 9"), "expects no rows"),
        (expecting([]), "expects no rows"),
        (expecting([1]), 'as "rows"'),
        (expecting([[[1]]]), 'as "rows"'),
        (expecting([[1]], ordered=1), 'as "ordered"'),
    ],
)
def test_golds_that_cannot_be_read(answer: str, why: str) -> None:
    with pytest.raises(GoldError, match=why):
        sql.read_gold(answer)


def test_what_sqlites_own_dump_writes_is_a_schema() -> None:
    import sqlite3

    connection = sqlite3.connect(":memory:")
    connection.executescript(PETS)
    dumped = "PRAGMA foreign_keys=OFF;\n" + "\n".join(connection.iterdump())
    assert verdict("SELECT id, name FROM pets", gold(schema=dumped)).reward == 1


@pytest.mark.parametrize(
    ("query", "ordered"),
    [
        ("SELECT 1 ORDER BY 1", True),
        ("select a from t order\n by a", True),
        ("SELECT (SELECT a FROM t ORDER BY a LIMIT 1)", False),
        ("SELECT row_number() OVER (ORDER BY a) FROM t", False),
        ("SELECT 'it''s ORDER BY'", False),
        ('SELECT "order by" FROM t', False),
        ("SELECT 1 -- ORDER BY 1", False),
        ("SELECT 1 /* ORDER BY 1 */", False),
        ("SELECT ')' FROM t ORDER BY a", True),
    ],
)
def test_order_counts_where_the_outer_query_has_one(query: str, ordered: bool) -> None:
    assert sql.is_ordered(query) == ordered


@given(st.lists(st.sampled_from(["'", '"', "`", "[", "]", "(", ")", "--", "/*", "*/", "ORDER BY"])))
def test_no_query_breaks_the_search_for_its_order(pieces: list[str]) -> None:
    sql.is_ordered(" ".join(pieces))
    assert best_seconds(lambda: sql.is_ordered(" ".join(pieces) * 1000)) < QUICK


def test_the_recipes_limits_hold() -> None:
    rule = sql.open_rule(RewardsConfig(sql=SandboxLimits(seconds=0.5, cpu_seconds=30)))
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    found = rule(endless, {"answer": gold(), "verify_type": "SQL"})
    assert found.reason.startswith("SQL: wall time beyond 0.")
