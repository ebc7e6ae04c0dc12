"""The sandbox around a worker of ours whose library evaluates what it is given.

It has the walls of `run.py` and sees, read-only, the installed packages and `common`. Its end and
the time it takes are its caller's to watch; it may be killed at any time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from common.rewards.sandbox.bubblewrap import MIB, Limits, walled

LIMITS = Limits(cpu_seconds=0, memory_bytes=8192 * MIB)
"""Of the whole life of a worker: no bound on CPU time, and room for its libraries."""

_REPOSITORY = Path(__file__).resolve().parents[3]
_PACKAGE_FOLDERS = ("site-packages", "dist-packages")


@contextmanager
def jailed(command: Sequence[str]) -> Iterator[tuple[list[str], tuple[int, ...]]]:
    """(command line, descriptors to pass) of a Python `command` inside.

    The process is to be started within the context, by a thread that lives as long as it:

        with jailed([sys.executable, "-m", "common.rewards.worker"]) as (inside, descriptors):
            process = subprocess.Popen(inside, pass_fds=descriptors, stdin=PIPE, stdout=PIPE)

    Raises:
        MissingToolError: bubblewrap is not installed, or cannot work for this user.
    """
    packages = [Path(entry) for entry in sys.path if Path(entry).name in _PACKAGE_FOLDERS]
    readable = [Path(sys.prefix)] if sys.prefix != sys.base_prefix else []
    environment = {
        "PYTHONPATH": os.pathsep.join(map(str, [_REPOSITORY, *packages])),
        "PYTHONDONTWRITEBYTECODE": "1",
        # Threads would multiply with the workers.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    with walled(
        LIMITS,
        command,
        readable=[*readable, *filter(Path.exists, packages), _REPOSITORY / "common"],
        directory=_REPOSITORY,
        environment=environment,
    ) as started:
        yield started
