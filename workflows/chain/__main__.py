"""Run a command, such as make, whose stages are forked from one parent: this process."""

from __future__ import annotations

import sys

from workflows.chain.parent import run_with_parent, serve

match sys.argv[1:]:
    case ["--serve", number]:
        serve(int(number))
    case [*command] if command:
        run_with_parent(command)
    case _:
        sys.exit("usage: python -m workflows.chain COMMAND…")
