"""Threads that wait for a service, many requests at a time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Result = TypeVar("Result")


def in_threads(count: int, work: Sequence[Callable[[], Result]]) -> Iterator[tuple[int, Result]]:
    """Yield (index, result) of each piece of work as it is done, `count` pieces at a time.

    The threads are daemons: when the process is interrupted, it does not wait for what they wait
    for. An exception is raised here, and what was not begun then is not begun any more.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, Result | None, BaseException | None]] = queue.SimpleQueue()
    stopped = threading.Event()
    for index in range(len(work)):
        waiting.put(index)

    def run() -> None:
        while not stopped.is_set():
            try:
                index = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((index, work[index](), None))
            except BaseException as error:
                done.put((index, None, error))

    for _ in range(min(count, len(work))):
        threading.Thread(target=run, daemon=True).start()
    try:
        for _ in work:
            index, result, error = done.get()
            if error is not None:
                raise error
            yield index, result  # type: ignore[misc]
    finally:
        stopped.set()
