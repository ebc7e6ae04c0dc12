"""Rows in JSON files: an object in each line, or values over as many lines as they like.

Numbers stay what is written. Where Python's integers and floats cannot hold one, it stays text.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from common.tasks.records import Faults, Record

MOST_DIGITS = 4300
"""Digits of the longest integer that Python converts from text and to text."""


def read_json(path: Path, text: str, faults: Faults) -> Iterator[Record]:
    """Yield the objects of a file, whichever way they are written.

    That is one object in a line, or objects over several lines one after another, or lists of them.
    """
    if _is_spread(text):
        rows = _read_json_values(path, text, faults)
    else:
        rows = _read_json_lines(path, text, faults)
    only = next(rows, None)
    if only is None:
        return
    yield only
    second = next(rows, None)
    if second is None:
        faults.notices += _rows_inside(path, only.values)
    else:
        yield second
        yield from rows


def _read_json_lines(path: Path, text: str, faults: Faults) -> Iterator[Record]:
    """Yield the objects of a file that has one in each line."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                value, end = _json_value(line, _after_blanks(line, 0))
                if (rest := _after_blanks(line, end)) < len(line):
                    raise json.JSONDecodeError("Extra data", line, rest)
            except ValueError as error:
                faults.add(*_json_fault(path, error, number))
            else:
                yield from _record(value, f"{path}:{number}", faults)


def _is_spread(text: str) -> bool:
    """Return whether a file is anything but an object in each line, as its first line shows."""
    start = _after_blanks(text, 0)
    end = text.find("\n", start)
    first = text[start : end if end >= 0 else None].rstrip()
    try:
        _, end = _json_value(first, 0)
    except json.JSONDecodeError as error:
        return error.pos >= len(first) or first.startswith("[")
    except ValueError:
        return False
    return end < len(first) or first.startswith("[")


def _read_json_values(path: Path, text: str, faults: Faults) -> Iterator[Record]:
    """Yield the objects of values that follow each other, and those in lists among them."""
    position, number = _after_blanks(text, 0), 0
    while position < len(text):
        try:
            value, end = _json_value(text, position)
        except ValueError as error:
            in_text = isinstance(error, json.JSONDecodeError)  # which counts from the first line
            line = 1 if in_text else 1 + text.count("\n", 0, position)
            faults.add(*_json_fault(path, error, line))
            return
        for item in value if isinstance(value, list) else [value]:
            yield from _record(item, f"{path}[{number}]", faults)
            number += 1
        position = _after_blanks(text, end)


def _rows_inside(path: Path, only: dict[str, Any]) -> list[str]:
    """Return how to get at the rows that may be inside the only object of a file, if there are any.

    That is a list of objects under one of its keys, or lists or objects that are its columns.
    """
    file = json.dumps(str(path))
    lists = {name for name, value in only.items() if isinstance(value, list) and len(value) > 1}
    objects = {name for name, value in only.items() if isinstance(value, dict)}
    of_objects = [n for n in sorted(lists) if all(isinstance(item, dict) for item in only[n])]
    if len(only) > 1 and only.keys() in (lists, objects):
        code = (
            f"import pandas; pandas.read_json({file}, dtype=False)"
            '.to_json("rows.jsonl", orient="records", lines=True)'
        )
    elif of_objects:
        code = (
            f"import json; rows = json.load(open({file}))[{json.dumps(of_objects[0])}]; "
            'open("rows.jsonl", "w").writelines(json.dumps(row) + "\\n" for row in rows)'
        )
    else:
        return []
    return [
        f"{path}: holds a single object. If the rows are inside it, write them to a file of their "
        f"own: python -c {shlex.quote(code)}"
    ]


def _after_blanks(text: str, start: int) -> int:
    while start < len(text) and text[start].isspace():
        start += 1
    return start


def _json_value(text: str, start: int) -> tuple[Any, int]:
    """Return the JSON value that begins at `start`, and where it ends.

    Raises:
        ValueError: there is none, or its lists and objects are nested too deep to be read.
    """
    try:
        return _DECODER.raw_decode(text, start)
    except RecursionError:
        raise ValueError("it is nested too deep; leave the part out that is") from None


def _json_fault(path: Path, error: ValueError, first_line: int) -> tuple[str, str]:
    """Return where a fault is and what it is, in a text that begins at `first_line`."""
    if not isinstance(error, json.JSONDecodeError):
        return f"{path}:{first_line}", f"not readable JSON: {error}"
    line = first_line + error.lineno - 1
    return f"{path}:{line}:{error.colno}", f"not JSON: {error.msg}"


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits) <= MOST_DIGITS else digits


def _real(digits: str) -> float | str:
    """Return a number as a float if that is the same number, else its text."""
    value = float(digits)
    if len(digits) <= 16 and "e" not in digits.lower():  # so short, each has a float of its own
        return value
    try:
        return value if Decimal(repr(value)) == Decimal(digits) else digits
    except InvalidOperation:  # an exponent of more than 18 digits
        return digits


_DECODER = json.JSONDecoder(
    parse_int=_integer,
    parse_float=_real,
    parse_constant=lambda name: None,  # NaN and Infinity, which some libraries write for no value
)


def _record(value: Any, where: str, faults: Faults) -> Iterator[Record]:
    if isinstance(value, dict):
        yield Record(value, where)
    else:
        kind = "null" if value is None else f"a {type(value).__name__}"
        faults.add(where, f'expected an object such as {{"question": "..."}}, found {kind}')
