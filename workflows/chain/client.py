"""The client of a chain: make's shell there, or any process that calls `ask`.

    python -IS workflows/chain/client.py '.venv/bin/python -m stages.score --run demo --iteration 1'

Only what starts in a few hundredths of a second is imported here.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import sys
from contextlib import suppress
from typing import NoReturn

ADDRESS = "STAGED_GRPO_CHAIN"
"""Environment variable with the number of the inherited socket to the parent."""

_BASH = ("bash", "-eu", "-o", "pipefail", "-c")


def run_line(line: str) -> NoReturn:
    """Do what bash does with a line of make's, by the parent where that is possible."""
    command, requests = words(line), inherited()
    if command is not None and requests is not None:
        # Ctrl-C reaches the stage as well: it speaks and ends, and we tell make.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        code = ask(requests, command)
        if code is not None:
            os._exit(code)
        signal.signal(signal.SIGINT, before)
    replace_by("/bin/bash", [*_BASH, line])


def replace_by(program: str, arguments: list[str]) -> NoReturn:
    """Be another program, which does not ignore the signals that Python does."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    os.execvp(program, arguments)


def words(line: str) -> list[str] | None:
    """The words of a line that runs a module and in which bash has nothing to expand, else None."""
    plain = re.fullmatch(r"(?:[\w \t./=:,@%+-]|'[^']*'|\\')*", line, re.ASCII)
    command = shlex.split(line) if plain else []
    return command if parse(command) else None


def parse(command: list[str]) -> tuple[int, str, list[str]] | None:
    """Processes, module and arguments of a command line that runs a module, else None."""
    match command:
        case [torchrun, *options] if torchrun.rpartition("/")[2] == "torchrun":
            pass
        case [_, "-m", "torch.distributed.run", *options]:
            pass
        case [_, "-m", module, *arguments]:
            return 1, module, arguments
        case _:
            return None
    match options:
        case ["--standalone", "--nproc-per-node", count, "-m", "--", module, *arguments]:
            return (int(count), module, arguments) if count.isdecimal() else None
    return None


def inherited() -> socket.socket | None:
    """The socket that `ADDRESS` names, if it does; not passed on to what we start."""
    try:
        found = socket.socket(fileno=int(os.environ.pop(ADDRESS)))
    except (KeyError, ValueError, OSError):
        return None
    if (found.family, found.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
        found.detach()
        return None
    found.set_inheritable(False)
    return found


def ask(requests: socket.socket, command: list[str]) -> int | None:
    """Have the parent at the other end of `requests` run `python -m …` or `torchrun … -m -- …`.

    The stage is interrupted, then killed, when we end before it.

    Returns:
        Its exit code as a shell has it: 128 and the number of the signal that ended it. None if
        there is no parent any more.
    """
    ours, theirs = socket.socketpair()
    with ours:
        try:
            with theirs:
                socket.send_fds(requests, [b"run"], [theirs.fileno(), 0, 1, 2])
        except OSError:
            return None
        place = os.getcwd()  # noqa: PTH109 (pathlib takes as long to import as all of this)
        request = {"command": command, "cwd": place, "environment": dict(os.environ)}
        answer = b""
        with suppress(ConnectionError):
            ours.sendall(json.dumps(request).encode() + b"\n")
            answer = ours.recv(8)
    if not answer:
        print("the chain's parent was ended, and the stage with it", file=sys.stderr)
    return int(answer or b"1")


if __name__ == "__main__":
    run_line(sys.argv[1])
