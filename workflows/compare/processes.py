"""How the stages of compared runs are started: by torchrun, or forked where one process will do.

Loading torch and transformers takes longer than a small iteration's training. So a server process
loads them once, and each stage is forked from it: a process of its own, with its own memory, exit
code and end, as if it had been started by hand.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from importlib import import_module

from common.command import launch

# What takes seconds to import and starts no thread: a fork leaves threads behind, and the locks
# that they hold for ever locked. For the same reason not on macOS, whose own libraries start some.
_PRELOADED = ["torch.distributed.pipelining", "transformers.modeling_utils"]

_SERVER = multiprocessing.get_context("forkserver")
if sys.platform == "linux":
    _SERVER.set_forkserver_preload(_PRELOADED)


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
    if processes == 1:
        code = _forked(module, arguments)
    else:
        command = [sys.executable, *launcher(processes)[1:], module, *arguments]
        # torchrun's own default, said by us so that it does not warn of it.
        environment = {"OMP_NUM_THREADS": "1"} | dict(os.environ)
        code = subprocess.run(command, env=environment, check=False).returncode
    return code if code >= 0 else 128 - code


def _forked(module: str, arguments: list[str]) -> int:
    process = _SERVER.Process(target=_command, args=(module, arguments))
    process.start()
    try:
        process.join()
    finally:
        process.kill()  # does nothing unless we were interrupted
    assert process.exitcode is not None
    return process.exitcode


def _command(module: str, arguments: list[str]) -> None:
    sys.argv = [f"python -m {module}", *arguments]
    launch(import_module(module).main)
