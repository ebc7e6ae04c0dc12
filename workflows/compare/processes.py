"""How the stages of compared runs are started: each forked from one parent that has imported."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache

from workflows.chain.client import ask
from workflows.chain.parent import start_parent

_parent = cache(start_parent)


def launcher(processes: int) -> list[str]:
    """The beginning of a command line that runs a module in so many processes."""
    if processes == 1:
        return ["python", "-m"]
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    # Without the dashes torchrun takes --run for an abbreviation of its own options.
    return ["python", "-m", *torchrun, "-m", "--"]


def run_module(module: str, arguments: list[str], processes: int) -> int:
    """What `launcher(processes) module arguments…` does.

    Returns:
        Its exit code as a shell has it: 128 and the number of the signal that ended it.
    """
    command = [sys.executable, *launcher(processes)[1:], module, *arguments]
    requests = _parent()
    code = None if requests is None else ask(requests, command)
    if code is None:
        # torchrun's own default, said by us so that it does not warn of it.
        environment = ({"OMP_NUM_THREADS": "1"} if processes > 1 else {}) | dict(os.environ)
        code = subprocess.run(command, env=environment, check=False).returncode
    return code if code >= 0 else 128 - code
