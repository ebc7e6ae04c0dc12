"""How long work takes, for tests that would notice a quadratic scanner."""

from __future__ import annotations

import time
from collections.abc import Callable

QUICK = 0.25
"""Seconds allowed for 100 kB, for which a quadratic scanner needs far more."""


def best_seconds(work: Callable[[], object]) -> float:
    """Return the thread's own time in the best of three tries, as the machine may be busy."""
    seconds = []
    for _ in range(3):
        began = time.thread_time()
        work()
        seconds.append(time.thread_time() - began)
        if seconds[-1] < QUICK:
            break
    return min(seconds)
