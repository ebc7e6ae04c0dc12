"""How long work takes in tests that would see a quadratic scanner."""

from __future__ import annotations

import time
from collections.abc import Callable

QUICK = 0.25
"""Seconds for 100 kB, where quadratic scanners need many."""


def best_seconds(work: Callable[[], object]) -> float:
    """The thread's own time, the best of three: the machine may be busy."""
    seconds = []
    for _ in range(3):
        began = time.thread_time()
        work()
        seconds.append(time.thread_time() - began)
        if seconds[-1] < QUICK:
            break
    return min(seconds)
