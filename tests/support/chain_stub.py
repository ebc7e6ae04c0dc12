"""A stage of seconds for the tests of the chain: `python -m chain_stub hang FILE`."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

SET_BY_BASH = ("MAKEFLAGS", "OLDPWD", "PS1", "PWD", "SHLVL", "_")


def sockets() -> list[str]:
    """The sockets that a stage holds."""
    links = []
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the listing's own is closed by now
            links.append(str(fd.readlink()))
    return [link for link in links if link.startswith("socket:")]


def facts() -> dict[str, Any]:
    """What a stage finds around it."""
    handled = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE)
    return {
        "process": Path("/proc/self/cmdline").read_text().split("\0")[1],
        "arguments": sys.argv,
        "name": __name__,
        "cwd": str(Path.cwd()),
        "path": sys.path[0],
        "environment": {k: v for k, v in os.environ.items() if k not in SET_BY_BASH},
        "stdin": sys.stdin.read(),
        "sockets": sockets(),
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
        import edited  # type: ignore[import-not-found]

        print("word:", edited.WORD)
    elif how == "meet":
        mine, other = map(Path, rest)
        mine.touch()
        while not other.exists():
            time.sleep(0.01)
    elif how == "hang":
        if "deaf" in rest:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            Path(rest[0]).write_text(str(os.getpid()))
            for _ in range(600):  # a signal between two of Python's steps does not end a sleep
                time.sleep(0.1)
        except KeyboardInterrupt:
            print("interrupted")
            raise


if __name__ == "__main__":
    main(*sys.argv[1:])
