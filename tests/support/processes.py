"""Whether processes still run. One that has ended does not, even if nobody has waited for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def is_gone(pid: int | str) -> bool:
    with suppress(OSError):
        return _state_and_group(Path(f"/proc/{pid}/stat"))[0] in "ZX"
    return True


def group_is_gone(group: int) -> bool:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, its_group = _state_and_group(path)
            if its_group == group and state not in "ZX":
                return False
    return True


def wait_until(so: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _state_and_group(stat: Path) -> tuple[str, int]:
    state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
    return state, int(group)
