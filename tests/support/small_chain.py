"""The chain that make starts, but with stub stages and a fork server that preloads nothing.

STUB='hang FILE' python tests/support/small_chain.py -m workflows.chain iteration --run a --to 1
"""

from __future__ import annotations

import os
import sys

from workflows.chain import __main__ as chain
from workflows.chain import launch


def stub(name: str, options: list[str], processes: int) -> launch.Command:
    return launch.Command(
        "support.chain_stub", os.environ["STUB"].format(stage=name).split(), processes
    )


if __name__ == "__main__":
    chain.command_of = stub
    launch.PRELOADED[:] = ["support.small_preload"]
    launch.SECONDS_TO_END = 1.0
    sys.argv = sys.argv[2:]
    chain.launch_commands(chain.iteration, chain.stage)
