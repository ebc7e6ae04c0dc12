"""Settings of a process: the memory it keeps, the imports it skips, and how its threads wait.

They are made before any work. `usable_cores` says how many cores there are for the threads.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import MutableMapping
from typing import Any

WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "700"}
"""How threads of a parallel operation wait for the next one; OpenMP reads it when torch is loaded.

Threads that spin for long, as they do by default, starve each other as soon as another process
wants the same cores. Threads that sleep at once must be woken for every operation. 700 spins are
about 20 microseconds. With them, 512 samples of the default model took 0.86 s on two idle cores,
against 1.66 s with threads that sleep at once; beside a busy process 1.84 s against 1.43 s.
"""

KEPT_BYTES = (256 << 20, 32 << 20)
"""Sizes for the largest allocation whose memory is kept. The first that glibc accepts is used:
before version 2.35 that is the second. In a training step of a model with 135 million parameters,
keeping larger allocations gained nothing, and these sizes did not raise the peak."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""Environment variables that set how memory is allocated, or may preload another allocator."""


def usable_cores() -> int:
    """Return how many cores this process may use; a container or `taskset` may allow only some."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def wait_briefly(environment: MutableMapping[str, str]) -> None:
    """Let threads wait as `WAITING` says, unless the environment sets one of its variables."""
    if not WAITING.keys() & environment.keys():
        environment.update(WAITING)


def keep_freed_memory() -> bool:
    """Keep freed memory in the process, so that large tensors are not cleared page by page again.

    glibc returns an allocation of some megabytes to the kernel when it is freed. The next one of
    that size then gets new pages, each cleared when first touched. A loss that allocates and frees
    chunks of logits spent a quarter of its time on that. Settings in the environment win.

    Returns:
        Whether glibc accepted that; other C libraries are left as they are.
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
    """Keep pyarrow from importing pandas when it converts its first list or array.

    pyarrow looks for pandas once, at that conversion, so that it recognises pandas types later. The
    import takes half a second, and nothing here uses pandas. Other libraries can still import it.
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
    """An import finder that reports pandas as not installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)
