"""What a process changes about libraries: large allocations cost no new pages, pandas no import."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from common.process import _SETTINGS, WAITING, wait_briefly
from common.runs.layout import REPOSITORY

PROGRAM = """
import ctypes, resource, sys
from common.process import keep_freed_memory
told = keep_freed_memory() if sys.argv[1] == "keep" else False
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype = ctypes.c_void_p
libc.prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: pages are counted, and must be of one size
def use():
    memory = ctypes.c_void_p(libc.malloc(64 << 20))
    ctypes.memset(memory, 1, 64 << 20)
    libc.free(memory)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    use()
print(told, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str, **environment: str) -> tuple[str, int]:
    """Whether the C library was told, and new pages while 64 MiB come and go four times."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
        cwd=REPOSITORY,
        env={k: v for k, v in os.environ.items() if k not in _SETTINGS} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    told, pages = done.stdout.split()
    return told, int(pages)


@pytest.mark.skipif(sys.platform != "linux", reason="other C libraries are not told")
def test_large_allocations_reuse_pages() -> None:
    told, kept = faults("keep")
    _, returned = faults("default")
    assert told == "True"
    assert kept < 100 < 4 * 1000 < returned


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MALLOC_TRIM_THRESHOLD_", "1000000"),
        ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=1000000"),
    ],
)
def test_settings_of_the_environment_are_left_alone(name: str, value: str) -> None:
    assert faults("keep", **{name: value})[0] == "False"


PANDAS = """
import sys
from common.process import leave_pandas_out
import pyarrow as pa
import pyarrow.parquet as pq
leave_pandas_out()
table = pa.table({"numbers": [1, 2]})
sink = pa.BufferOutputStream()
pq.write_table(table, sink)
pq.read_table(pa.BufferReader(sink.getvalue()))
print("pandas" in sys.modules)
frame = table.to_pandas()
print(pa.Table.from_pandas(frame) == table, pa.array(frame["numbers"]).to_pylist())
"""


def test_pyarrow_works_without_pandas_and_with_it_afterwards() -> None:
    pytest.importorskip("pandas")
    done = subprocess.run(
        [sys.executable, "-c", PANDAS], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["False", "True [1, 2]"]


def test_a_word_about_waiting_in_the_environment_wins() -> None:
    silent: dict[str, str] = {}
    wait_briefly(silent)
    assert silent == WAITING
    for name in WAITING:
        spoken = {name: "0"}
        wait_briefly(spoken)
        assert spoken == {name: "0"}
