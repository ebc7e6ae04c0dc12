"""Judge all honest and hostile programs as the user who runs this, and print the verdicts.

This is a program of its own, so that a test can start it as an ordinary user with a copy of
`common`.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common.rewards.code import judge
from common.rewards.sandbox.bubblewrap import Limits
from common.rewards.sandbox.check import self_test
from support.honest_programs import HONEST
from support.hostile_programs import BOMBS, HOSTILE, SECRET

PATIENT = Limits(seconds=60.0, cpu_seconds=30)
QUICK = Limits(seconds=1.0, cpu_seconds=1)

CALL = f"assert answer(7) == {SECRET}"
STDIO = json.dumps({"kind": "stdio", "stdin": "7\n", "stdout": f"{SECRET}\n"})


def jobs() -> dict[str, tuple[str, str, Limits]]:
    """Return (program, gold, limits) by name.

    Hostile programs run twice, as a call and with stdio; bombs that do not print run only once.
    """
    made = {
        f"honest: {name}": (program, json.dumps(tests), PATIENT)
        for name, (program, tests) in HONEST.items()
    }
    for name, program in HOSTILE.items():
        made[f"hostile: {name}"] = (program, CALL, QUICK)
        if name not in BOMBS or SECRET in BOMBS[name]:
            made[f"hostile: {name} (stdio)"] = (program, STDIO, QUICK)
    return made


def verdict(job: tuple[str, str, Limits]) -> tuple[float | None, str]:
    program, gold, limits = job
    text = f"```python\n{program}\n```"
    said = judge(text, {"answer": gold}, limits=limits, partial=False)
    return said.reward, said.verdict


def world(bait: Path) -> list[Any]:
    """Return the state of the things that hostile programs would like to change or to find."""
    facts = bait.stat()
    return [
        bait.read_text(),
        (facts.st_mtime_ns, facts.st_mode, facts.st_uid),
        Path("/proc/sys/kernel/core_pattern").read_text(),
        socket.gethostname(),
        sorted(
            path.name for folder in ("/", "/etc", "/var/tmp") for path in Path(folder).iterdir()
        ),
        [Path(path).stat().st_mtime_ns for path in (os.__file__, "/", "/etc", sys.executable)],
    ]


def main() -> None:
    self_test()
    bait = Path(tempfile.mkdtemp(), "bait")
    bait.write_text(SECRET)
    bait.chmod(0o666)
    bait.parent.chmod(0o777)
    before = world(bait)
    # Bubblewrap ends with the thread that started it, so these threads live until all is judged.
    with ThreadPoolExecutor(3) as pool:
        verdicts = dict(zip(jobs(), pool.map(verdict, jobs().values()), strict=True))
    try:
        left = os.waitpid(-1, os.WNOHANG)[0] == 0
    except ChildProcessError:
        left = False
    unchanged = world(bait) == before
    shutil.rmtree(bait.parent)
    json.dump({"left": left, "unchanged": unchanged, "verdicts": verdicts}, sys.stdout)


if __name__ == "__main__":
    main()
