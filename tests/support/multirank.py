"""Ranks, started by torchrun as a user does."""

from __future__ import annotations

import os
import subprocess
import sys

from support import REPOSITORY

TESTS = REPOSITORY / "tests"


def torchrun(
    ranks: int, script: str, *arguments: object, expect: int = 0, timeout: int = 200
) -> subprocess.CompletedProcess[str]:
    """Run the file `script` below `tests/` in so many processes; it must exit with `expect`."""
    (path,) = TESTS.rglob(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}", str(path), *map(str, arguments)]
    paths = os.pathsep.join([str(REPOSITORY), str(TESTS), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == expect, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done
