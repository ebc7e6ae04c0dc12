"""Values of Arrow columns as Python objects, for every type that a file may hold.

Arrow has values that Python's types cannot hold: nanoseconds, years beyond 9999, unknown time
zones, text that is not UTF-8. `to_pylist` raises errors for those, or gives objects of pandas where
pandas was imported. Here dates, times and durations become text, as numpy writes them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def python_values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Return the values of a column of any type as Python objects; a null is None.

    - A timestamp is text such as `2026-01-31T12:00:00.000000001`, in UTC with a `Z` at its end
      where the column has a time zone. Dates, times and durations are text too.
    - A number of 16 or 32 bits is the shortest decimal that it stands for: 0.1 and not
      0.10000000149011612.
    - Text that is not UTF-8 stays bytes.
    """
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return [value for chunk in chunks for value in _values(chunk)]


def distinct_names(names: Iterable[str]) -> list[str]:
    """Return the names of a table's columns, with `.1`, `.2`, … after a name that comes twice."""
    names = list(names)
    count, taken, numbers = Counter(names), set(names), Counter[str]()
    distinct = []
    for name in names:
        new = name
        while count[name] > 1 and new in taken:
            numbers[name] += 1
            new = f"{name}.{numbers[name]}"
        taken.add(new)
        distinct.append(new)
    return distinct


def repeated_names(names: Iterable[str]) -> str:
    """Return a sentence about names that come twice among a table's columns; empty if none does."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if not twice:
        return ""
    return (
        f"several columns are called {', '.join(map(repr, twice))}; they are read as "
        f"{twice[0] + '.1'!r}, {twice[0] + '.2'!r} and so on"
    )


def _values(array: pa.Array) -> list[Any]:
    kind = array.type
    for test, convert in _CONVERSIONS:
        if test(kind):
            return convert(array)
    values: list[Any] = array.to_pylist()
    return values


def _of_extension(array: pa.Array) -> list[Any]:
    if array.type.extension_name == "arrow.uuid":
        return [None if value is None else str(value) for value in array.to_pylist()]
    return _values(array.storage)


def _of_texts(array: pa.Array) -> list[Any]:
    try:
        values: list[Any] = array.to_pylist()
    except UnicodeDecodeError:
        values = [_text(value) for value in array.cast(pa.large_binary()).to_pylist()]
    return values


def _text(value: bytes | None) -> str | bytes | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return value


def _of_small_floats(array: pa.Array) -> list[Any]:
    shortest = array.to_numpy(zero_copy_only=False).astype(str)
    return [float(text) if valid else None for text, valid in _with_validity(shortest, array)]


def _of_dates(array: pa.Array) -> list[Any]:
    kind, numbers = array.type, _integers(array)
    if pa.types.is_timestamp(kind):
        moments = numbers.view(f"datetime64[{kind.unit}]")
        texts = np.datetime_as_string(moments, timezone="UTC" if kind.tz else "naive")
    else:
        unit = "D" if pa.types.is_date32(kind) else "ms"
        texts = np.datetime_as_string(numbers.view(f"datetime64[{unit}]"), unit="D")
    return [str(text) if valid else None for text, valid in _with_validity(texts, array)]


def _of_durations(array: pa.Array) -> list[Any]:
    spans = _integers(array).view(f"timedelta64[{array.type.unit}]")
    return [str(span) if valid else None for span, valid in _with_validity(spans, array)]


def _integers(array: pa.Array) -> Any:
    """Return the numbers of 32 or 64 bits that stand for dates or durations as int64; nulls as 0.

    Arrow's own conversion to numpy makes them floats where there are nulls.
    """
    storage = pa.int32() if array.type.bit_width == 32 else pa.int64()
    return pc.fill_null(array.view(storage), 0).to_numpy().astype(np.int64)


def _with_validity(values: np.ndarray, array: pa.Array) -> Iterator[tuple[Any, bool]]:
    return zip(values, array.is_valid().to_pylist(), strict=True)


def _of_times(array: pa.Array) -> list[Any]:
    values: list[Any] = array.cast(pa.string()).to_pylist()
    return values


def _of_lists(array: pa.Array) -> list[Any]:
    items = iter(_values(array.flatten()))
    lengths = pc.list_value_length(array).to_pylist()
    return [None if length is None else list(islice(items, length)) for length in lengths]


def _of_maps(array: pa.Array) -> list[Any]:
    entries = pa.list_(pa.struct([array.type.key_field, array.type.item_field]))
    rows = _of_lists(array.cast(entries))
    return [None if row is None else [list(entry.values()) for entry in row] for row in rows]


def _of_structs(array: pa.Array) -> list[Any]:
    names = distinct_names(field.name for field in array.type)
    columns = [_values(child) for child in array.flatten()]
    rows: Iterable[Any] = zip(*columns, strict=True) if columns else [()] * len(array)
    return [
        dict(zip(names, row, strict=True)) if valid else None
        for row, valid in zip(rows, array.is_valid().to_pylist(), strict=True)
    ]


def _any_of(*tests: Callable[[pa.DataType], bool]) -> Callable[[pa.DataType], bool]:
    return lambda kind: any(test(kind) for test in tests)


_types = pa.types
_CONVERSIONS: list[tuple[Callable[[pa.DataType], bool], Callable[[pa.Array], list[Any]]]] = [
    (lambda kind: isinstance(kind, pa.BaseExtensionType), _of_extension),
    (_types.is_dictionary, lambda array: _values(array.dictionary_decode())),
    (_any_of(_types.is_string, _types.is_large_string, _types.is_string_view), _of_texts),
    (_any_of(_types.is_float16, _types.is_float32), _of_small_floats),
    (_any_of(_types.is_timestamp, _types.is_date), _of_dates),
    (_types.is_duration, _of_durations),
    (_types.is_time, _of_times),
    (_types.is_map, _of_maps),
    (_types.is_struct, _of_structs),
    (
        _any_of(
            *(_types.is_list, _types.is_large_list, _types.is_fixed_size_list),
            *(_types.is_list_view, _types.is_large_list_view),
        ),
        _of_lists,
    ),
]
"""What to_pylist cannot give, or gives as objects of other libraries, by type."""
