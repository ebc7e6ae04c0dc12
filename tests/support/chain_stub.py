"""A stand-in for a stage in the tests of the chain: `python -m support.chain_stub hang FILE`."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any


def facts() -> dict[str, Any]:
    """Return what a stage finds around it: arguments, environment, signals and modules."""
    handled = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE)
    return {
        "arguments": sys.argv[1:],
        "name": __name__,
        "cwd": str(Path.cwd()),
        "path": sys.path[0],
        "environment": dict(os.environ),
        "line buffered": sys.stdout.line_buffering,
        "signals": [str(signal.getsignal(number)) for number in handled],
        "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
        "project": sorted(n for n in sys.modules if n.startswith(("workflows", "common"))),
    }


def main(how: str, *rest: str) -> None:
    if how == "facts":
        print("out")
        print("err", file=sys.stderr)
        Path(rest[0]).write_text(json.dumps(facts()))
    elif how == "code":
        sys.exit(int(rest[0]))
    elif how == "message":
        sys.exit("that is why")
    elif how == "raise":
        raise ValueError("boom")
    elif how == "kill":
        os.kill(os.getpid(), int(rest[0]))
    elif how == "edit":
        Path(rest[0]).write_text(f"WORD = {rest[1]!r}")
    elif how == "word":
        sys.path.insert(0, rest[0])
        import edited  # type: ignore[import-not-found]

        print("word:", edited.WORD)
    elif how == "meet":
        folder, stage = rest
        others = {"score": "logprobs", "logprobs": "score"}
        Path(folder, stage).touch()
        while not Path(folder, others.get(stage, stage)).exists():
            time.sleep(0.01)
    elif how == "hang":
        if "deaf" in rest:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with Path(rest[0]).open("a") as file:
                file.write(f"{os.getpid()}\n")
            for _ in range(600):  # a signal between two of Python's steps does not end a sleep
                time.sleep(0.1)
        except KeyboardInterrupt:
            print("interrupted")
            raise


if __name__ == "__main__":
    main(*sys.argv[1:])
