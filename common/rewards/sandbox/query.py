"""What runs inside the sandbox for SQL: it makes a database in memory and asks it one query.

It is run as a script with the standard library alone. It reads {"schema": …, "query": …} as JSON
and writes {"rows": [[…], …]}, or {"fault": "schema" or "query", "why": …}. SQLite's authorizer is
asked about every action: a query may read and nothing else, and neither it nor the schema may open
a file or load a library. A blob is written as {"blob": its hexadecimal digits}.
"""

from __future__ import annotations

import json
import sqlite3
import sys

MAX_ROWS = 100_000

_NEVER = ("load_extension", "readfile", "writefile", "edit", "fts3_tokenizer")
"""Functions that reach beyond the database, in SQLite or in its shell."""
_PRAGMAS = ("foreign_keys", "encoding", "user_version", "application_id")
"""What a schema may set: `.dump` writes some of them."""
_READING = (
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
)
_REACHING = (
    sqlite3.SQLITE_ATTACH,
    sqlite3.SQLITE_DETACH,
    sqlite3.SQLITE_CREATE_VTABLE,
    sqlite3.SQLITE_DROP_VTABLE,
)


def allow_building(
    action: int, first: str | None, second: str | None, database: str | None, trigger: str | None
) -> int:
    """Authorize what makes a database."""
    if action in _REACHING or (action == sqlite3.SQLITE_FUNCTION and _is_never(second)):
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_PRAGMA and str(first).lower() not in _PRAGMAS:
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def allow_reading(
    action: int, first: str | None, second: str | None, database: str | None, trigger: str | None
) -> int:
    """Authorize what reads a database."""
    if action not in _READING or (action == sqlite3.SQLITE_FUNCTION and _is_never(second)):
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def _is_never(function: str | None) -> bool:
    return str(function).lower() in _NEVER


def ask(schema: str, query: str) -> dict[str, object]:
    """Return the rows of a query, or whose fault it is that there are none."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    connection.set_authorizer(allow_building)
    try:
        connection.executescript(schema)
    except (sqlite3.Error, sqlite3.Warning, ValueError, MemoryError) as error:
        return {"fault": "schema", "why": str(error)}
    connection.set_authorizer(allow_reading)
    try:
        cursor = connection.execute(query)
        rows = cursor.fetchmany(MAX_ROWS)
        if len(rows) == MAX_ROWS:
            return {"fault": "query", "why": f"gives {MAX_ROWS} rows or more"}
        if cursor.description is None:
            return {"fault": "query", "why": "is no query"}
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError) as error:
        return {"fault": "query", "why": str(error)}
    return {"rows": [[_cell(value) for value in row] for row in rows]}


def _cell(value: object) -> object:
    return {"blob": value.hex()} if isinstance(value, bytes) else value


if __name__ == "__main__":
    request = json.loads(sys.stdin.read())
    print(json.dumps(ask(request["schema"], request["query"])))
