"""SQL: the answer is a query that gives the expected rows on the row's database.

The gold is JSON: the database as SQL text, and a reference query or the rows that are expected.

    {"schema": "CREATE TABLE t (a INTEGER); INSERT INTO t VALUES (1), (2);",
     "query": "SELECT a FROM t ORDER BY a"}
    {"schema": "…", "rows": [[1], [2]], "ordered": true}

Of one database a wrong query may give the right rows by chance, and `SELECT 3` the right number. So
`schema` may be a list: the query must then give what the reference query gives on each database
(test suites, arXiv 2010.02840).

The query is the last closed block that says it is `sql`, else the last block that says nothing,
else the content of the single `<answer>…</answer>`, else the whole answer part. It is one
statement that reads. SQLite runs it in memory, in the sandbox, on a database of its own; the
expected rows never enter that sandbox.

Rows are compared as a multiset, or in their order if the reference query has ORDER BY at its outer
level (`ordered` says so for given rows). Columns count by their place, not by their name. Numbers
are compared by value, fractions to ten digits; text is never a number, and NULL equals NULL alone.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from common.errors import MissingToolError
from common.rewards.answer_part import answer_part, several_answers
from common.rewards.marked import last_block, marked_or_whole
from common.rewards.rule import NO_ANSWER, GoldError, Row, Verdict, graded
from common.rewards.sandbox import query as query_script
from common.rewards.sandbox import run as sandbox
from common.rewards.sandbox.bubblewrap import MIB, Limits
from common.rewards.sandbox.check import self_test

if TYPE_CHECKING:
    from common.config import RewardsConfig
    from common.rewards.rule import Judge

_PROGRAM = Path(query_script.__file__).read_text(encoding="utf-8")

_KEYS = ({"schema", "query"}, {"schema", "rows"}, {"schema", "rows", "ordered"})

# Strings, quoted names and comments; then what is looked for between them.
_SQL_TOKEN = re.compile(
    r"'(?:[^']|'')*+'?|\"(?:[^\"]|\"\")*+\"?|`[^`]*+`?|\[[^\]]*+\]?"
    r"|--[^\n]*+|/\*.*?(?:\*/|\Z)|([()])|\b(ORDER\s+BY)\b",
    re.IGNORECASE | re.DOTALL,
)

Cell = tuple[str, str]


class Database(NamedTuple):
    """A database, and what a right query gives on it."""

    schema: str
    rows: tuple[tuple[Cell, ...], ...]


class Gold(NamedTuple):
    """All databases of a row, and whether the order of rows counts."""

    databases: tuple[Database, ...]
    ordered: bool


class _FaultError(Exception):
    """A query gave no rows; the message says why."""


def seconds(rewards: RewardsConfig) -> float:
    """Return the time limit of one completion: above those of its two runs, so that these end
    first."""
    return 2 * (rewards.sql.seconds + sandbox.START_SECONDS) + 10


def require(rewards: RewardsConfig) -> None:
    """Check that the sandbox holds, and that its Python has SQLite.

    Raises:
        MissingToolError: one of them is missing.
    """
    self_test()
    try:
        _ask("", "SELECT 1", Limits())
    except _FaultError:
        raise MissingToolError(
            "SQL needs the module sqlite3 of Python's standard library, which this Python was "
            "built without; use another Python"
        ) from None


def open_rule(rewards: RewardsConfig) -> Judge:
    """Return the rule with the recipe's limits."""
    wanted = rewards.sql
    limits = Limits(
        seconds=wanted.seconds,
        cpu_seconds=wanted.cpu_seconds,
        memory_bytes=wanted.memory_mib * MIB,
    )
    return partial(judge, limits=limits)


@lru_cache(256)
def read_gold(answer: str) -> Gold:
    """Return the database and the expected rows, for which a reference query is run.

    Raises:
        GoldError: it is not as described above; the database cannot be made, or the query fails on
            it; or it gives no row at all, so that every query that finds nothing would be right.
        SandboxError: the sandbox failed.
    """
    try:
        content = json.loads(answer)
    except (ValueError, RecursionError) as error:
        raise GoldError(f"is not JSON: {error}") from None
    if not isinstance(content, dict) or set(content) not in _KEYS:
        raise GoldError(
            'is to be an object of "schema" and "query", or of "schema", "rows" and perhaps '
            '"ordered"'
        )
    schemas, ordered = content["schema"], content.get("ordered", False)
    schemas = schemas if isinstance(schemas, list) else [schemas]
    if not schemas or not all(isinstance(schema, str) for schema in schemas):
        raise GoldError('is to have text, or a list of texts, as "schema"')
    if "query" in content:
        query = content["query"]
        if not isinstance(query, str):
            raise GoldError('is to have text as "query"')
        results = [_reference(schema, query) for schema in schemas]
        ordered = is_ordered(query)
    else:
        if len(schemas) > 1 or not isinstance(ordered, bool):
            raise GoldError('is to have one "schema" beside "rows", and true or false as "ordered"')
        _reference(schemas[0], "SELECT 1")
        results = [_read_rows(content["rows"])]
    if not any(results):
        raise GoldError("expects no rows: any query that finds nothing would be right")
    databases = [
        Database(schema, tuple(_cells(row) for row in rows))
        for schema, rows in zip(schemas, results, strict=True)
    ]
    return Gold(tuple(databases), ordered)


def _reference(schema: str, query: str) -> list[list[Any]]:
    """Return the rows that a gold's own query gives; raises `GoldError` where it fails."""
    try:
        return _ask(schema, query, Limits())
    except TimeoutError as error:
        raise GoldError(f"takes too long to run: {error}") from None
    except _FaultError as error:
        raise GoldError(f"has a {error}") from None


def judge(text: str, row: Row, *, limits: Limits) -> Verdict:
    """Run the query in `text` on the row's database, and compare what it gives.

    Raises:
        GoldError: the gold cannot be read.
        SandboxError: the sandbox failed, which is not the query's fault.
    """
    gold = read_gold(row["answer"])
    part = answer_part(text) or ""
    block = last_block(part, ("sql", "sqlite", "sqlite3"))
    if block is None and (several := several_answers(part)) is not None:
        return graded(False, several)
    query = (marked_or_whole(part) if block is None else block).strip()
    if not query:
        return NO_ANSWER
    deadline = time.monotonic() + limits.seconds
    try:
        for database in gold.databases:
            left = replace(limits, seconds=max(deadline - time.monotonic(), 0.01))
            rows = tuple(_cells(found) for found in _ask(database.schema, query, left))
            if not _same(rows, database.rows, gold.ordered):
                return graded(False, query)
    except TimeoutError as error:
        return Verdict(0.0, "timeout", query, f"SQL: {error}")
    except _FaultError:
        return graded(False, query)
    return graded(True, query)


def _same(
    rows: tuple[tuple[Cell, ...], ...], expected: tuple[tuple[Cell, ...], ...], ordered: bool
) -> bool:
    return rows == expected if ordered else Counter(rows) == Counter(expected)


def is_ordered(query: str) -> bool:
    """Return whether a query has ORDER BY at its outer level, not in a subquery or a window."""
    depth, ordered = 0, False
    for token in _SQL_TOKEN.finditer(query):
        if token[1]:
            depth += 1 if token[1] == "(" else -1
        elif token[2] and depth == 0:
            ordered = True
    return ordered


def _ask(schema: str, query: str, limits: Limits) -> list[list[Any]]:
    """Return the rows that `query` gives on a new database.

    Raises:
        _FaultError: there are none, through the fault of schema or query.
        TimeoutError: the limits on time were met.
        SandboxError: the sandbox failed.
    """
    request = json.dumps({"schema": schema, "query": query})
    finished = sandbox.run_program(_PROGRAM, request, limits)
    if finished.status == "timeout":
        most = limits.cpu_seconds if finished.ended_by == "CPU time" else limits.seconds
        raise TimeoutError(f"{finished.ended_by} beyond {most:g} s")
    if finished.status == "output":
        raise _FaultError("query that gives more than is read")
    try:
        answer = json.loads(finished.output)
        if "rows" in answer:
            rows: list[list[Any]] = answer["rows"]
            return rows
        raise _FaultError(f"{answer['fault']} that SQLite refuses: {answer['why']}")
    except (ValueError, TypeError, KeyError, RecursionError):
        raise _FaultError("query that ends SQLite") from None


def _read_rows(rows: Any) -> list[list[Any]]:
    cells = (str, int, float, type(None))
    if not isinstance(rows, list) or not all(
        isinstance(row, list) and row and all(isinstance(cell, cells) for cell in row)
        for row in rows
    ):
        raise GoldError('is to have lists of text, numbers and null as "rows"')
    return rows


def _cells(row: Sequence[Any]) -> tuple[Cell, ...]:
    return tuple(_cell(value) for value in row)


def _cell(value: Any) -> Cell:
    """Return a value in a form whose equality is that of the values."""
    if value is None:
        return "null", ""
    if isinstance(value, (int, float)):
        whole = isinstance(value, int) or value.is_integer()
        return "number", str(int(value)) if whole else f"{value:.10g}"
    return ("text", value) if isinstance(value, str) else ("blob", str(value))
