"""Arrow columns of every type as Python values, and what Python itself cannot hold."""

import json
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.question_files import ORIGINAL_ROWS, read

from common.tasks.arrow_values import distinct_names, python_values, repeated_names
from common.tasks.prompts import to_table


def stored(numbers: list[int | None], kind: pa.DataType) -> pa.Array:
    """Return values by the integers that stand for them, also those that Python cannot make."""
    bits = pa.int32() if kind.bit_width == 32 else pa.int64()
    return pa.array(numbers, bits).view(kind)


MOMENT = 1_700_000_000_000_000_001

COLUMNS: dict[str, tuple[pa.Array, list[Any]]] = {
    "milliseconds": (
        stored([1_700_000_000_001, None], pa.timestamp("ms")),
        ["2023-11-14T22:13:20.001", None],
    ),
    "nanoseconds": (
        stored([MOMENT, None], pa.timestamp("ns")),
        ["2023-11-14T22:13:20.000000001", None],
    ),
    "far years": (
        stored([2**61, -(2**62)], pa.timestamp("us")),
        ["75039-04-04T19:00:13.693952", "-144169-06-28T09:59:32.612096"],
    ),
    "a zone": (
        stored([1_700_000_000_001, None], pa.timestamp("ms", "Europe/Berlin")),
        ["2023-11-14T22:13:20.001Z", None],
    ),
    "an unknown zone": (
        stored([1_700_000_000_001, None], pa.timestamp("ms", "Mars/Olympus")),
        ["2023-11-14T22:13:20.001Z", None],
    ),
    "no zone at all": (
        stored([1_700_000_000_001], pa.timestamp("ms", "+25:00")),
        ["2023-11-14T22:13:20.001Z"],
    ),
    "far dates": (
        stored([2**31 - 1, None, 19_000], pa.date32()),
        ["5881580-07-11", None, "2022-01-08"],
    ),
    "dates of 64 bits": (
        stored([86_400_000 * 10**9, None], pa.date64()),
        ["2739877-01-03", None],
    ),
    "times": (stored([1, None], pa.time64("ns")), ["00:00:00.000000001", None]),
    "durations": (
        stored([2**62 + 1, None], pa.duration("s")),
        ["4611686018427387905 seconds", None],
    ),
    "small floats": (pa.array([0.1, None], pa.float32()), [0.1, None]),
    "half floats": (pa.array([0.1, None], pa.float16()), [0.1, None]),
    "decimals": (pa.array([Decimal("1.50"), None], pa.decimal256(70, 2)), [Decimal("1.50"), None]),
    "dictionaries": (
        stored([MOMENT, None, MOMENT], pa.timestamp("ns")).dictionary_encode(),
        ["2023-11-14T22:13:20.000000001", None, "2023-11-14T22:13:20.000000001"],
    ),
    "lists": (
        pa.array([[MOMENT], None, []], pa.list_(pa.timestamp("ns"))),
        [["2023-11-14T22:13:20.000000001"], None, []],
    ),
    "fixed lists": (pa.array([[0.1, 2], None], pa.list_(pa.float32(), 2)), [[0.1, 2.0], None]),
    "objects": (
        pa.array([{"a": 0, "b": "x"}, None], pa.struct({"a": pa.date32(), "b": pa.string()})),
        [{"a": "1970-01-01", "b": "x"}, None],
    ),
    "empty objects": (pa.array([{}, None], pa.struct([])), [{}, None]),
    "objects with a name twice": (
        pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"]),
        [{"a.1": 1, "a.2": 2}],
    ),
    "maps": (
        pa.array([[("k", 0)], None], pa.map_(pa.string(), pa.date32())),
        [[["k", "1970-01-01"]], None],
    ),
    "text that is not UTF-8": (
        pa.array([b"caf\xe9", b"a", None]).cast(pa.string(), safe=False),
        [b"caf\xe9", "a", None],
    ),
    "uuids": (
        pa.ExtensionArray.from_storage(
            pa.uuid(), pa.array([uuid.UUID(int=5).bytes, None], pa.binary(16))
        ),
        ["00000000-0000-0000-0000-000000000005", None],
    ),
    "tensors": (
        pa.ExtensionArray.from_storage(
            pa.fixed_shape_tensor(pa.int8(), [2]), pa.array([[1, 2]], pa.list_(pa.int8(), 2))
        ),
        [[1, 2]],
    ),
}


@pytest.mark.parametrize(("column", "expected"), COLUMNS.values(), ids=COLUMNS)
def test_values_of_every_type(column: pa.Array, expected: list[Any]) -> None:
    assert python_values(column) == expected
    parts = pa.chunked_array([column.slice(1), column.slice(0, 1), column.slice(0, 0)])
    assert python_values(parts) == expected[1:] + expected[:1]


@pytest.mark.parametrize("name", [n for n in COLUMNS if n not in ("empty objects",)])
def test_no_column_that_nobody_uses_stops_a_run(name: str, tmp_path: Path) -> None:
    column, expected = COLUMNS[name]
    count = len(column)
    table = pa.table({k: [row[k] for row in ORIGINAL_ROWS[:count]] for k in ORIGINAL_ROWS[0]})
    pq.write_table(table.append_column("extra", column), tmp_path / "a.parquet")
    metadata = to_table(read(tmp_path / "a.parquet").train)["metadata"].to_pylist()
    plain = [None if isinstance(value, bytes) else value for value in expected]
    found = [json.loads(text)["extra"] for text in metadata]
    assert found == json.loads(json.dumps(plain, default=str))


@pytest.mark.parametrize(
    ("column", "answers"),
    [
        (stored([0, 2**31 - 1], pa.date32()), ["1970-01-01", "5881580-07-11"]),
        (stored([MOMENT], pa.timestamp("ns")), ["2023-11-14T22:13:20.000000001"]),
        (pa.array([b"a", b"b"]), ["a", "b"]),
        (pa.array([0.1, 2.5], pa.float32()), ["0.1", "2.5"]),
        (pa.array([Decimal(10) ** 70], pa.decimal256(76, 2)), ["1" + "0" * 70 + ".00"]),
        (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
    ],
)
def test_answers_of_other_types_are_text(
    column: pa.Array, answers: list[str], tmp_path: Path
) -> None:
    questions = [row["question"] for row in ORIGINAL_ROWS[: len(column)]]
    table = pa.table({"question": questions, "answer": column})
    pq.write_table(table, tmp_path / "a.parquet")
    prompts = read(tmp_path / "a.parquet", verify_type="EXACT").train
    assert [prompt.answer for prompt in prompts] == answers


def test_names_that_come_twice_are_numbered() -> None:
    assert distinct_names(["a", "b", "a", "a.1"]) == ["a.2", "b", "a.3", "a.1"]
    assert repeated_names(["a", "b"]) == ""
    assert repeated_names(["a", "b", "a"]).startswith("several columns are called 'a'; they are ")
