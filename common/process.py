"""What a process changes about libraries before it works: memory it keeps, imports it spares, and
how its threads wait. And how many cores it has for them."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import MutableMapping
from typing import Any

WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "700"}
"""How threads of a parallel operation wait for the next one; OpenMP reads it when torch is loaded.

Those that spin for long, as they do by themselves, starve each other as soon as another process
wants the same cores. Those that sleep at once must be woken for every operation. 700 turns are some
20 microseconds: 512 samples of the default model took 0.86 s on two idle cores where sleepers took
1.66, and 1.84 s beside a busy process where sleepers took 1.43.
"""

KEPT_BYTES = (256 << 20, 32 << 20)
"""Largest allocation whose memory is kept: the first that glibc accepts, before 2.35 the second.
Keeping larger ones gained nothing for a training step of a model of 135 million parameters, and
these did not raise its peak."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""Of the environment; what is preloaded may be an allocator of its own."""


def usable_cores() -> int:
    """Cores that this process may use; a container or `taskset` leaves it fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def wait_briefly(environment: MutableMapping[str, str]) -> None:
    """Let threads wait as `WAITING` says, unless the environment says something of it."""
    if not WAITING.keys() & environment.keys():
        environment.update(WAITING)


def keep_freed_memory() -> bool:
    """Keep freed memory in the process, so that large tensors are not cleared page by page again.

    glibc gives an allocation of some megabytes back to the kernel when it is freed, and the next
    one of that size comes as new pages, each cleared at its first touch. A loss whose chunks of
    logits come and go spent a quarter of its time on that. Settings in the environment win.

    Returns:
        Whether it was told: no other C library is.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _SETTINGS):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    return any(mallopt(_MMAP_THRESHOLD, size) for size in KEPT_BYTES)


def leave_pandas_out() -> None:
    """Let pyarrow take lists and arrays without importing pandas first, where it is installed.

    pyarrow looks for pandas once, at the first conversion, to know its types if it meets them; that
    import takes half a second and nothing here uses it. A library that does use it still can.
    """
    import pyarrow as pa

    if "pandas" in sys.modules:
        return
    finder: Any = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(finder)


class _NoPandas:
    """A finder to which pandas is not installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)
