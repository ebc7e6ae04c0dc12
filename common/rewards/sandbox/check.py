"""Whether the sandbox holds on this machine: tried before any program of a model runs."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from common.errors import MissingToolError
from common.rewards.sandbox.bubblewrap import Limits, find_bwrap
from common.rewards.sandbox.run import SandboxError, run_program

HONEST = """\
import asyncio, collections, dataclasses, decimal, json, math, random, re, tempfile
from concurrent.futures import ThreadPoolExecutor

with ThreadPoolExecutor(16) as pool:
    total = sum(pool.map(math.factorial, range(5)))
with tempfile.TemporaryFile() as file:
    total += file.write(b"12345")
print(asyncio.run(asyncio.sleep(0, total + int(input()))))
"""
HONEST_SAYS = b"42\n"

HOSTILE = """\
import ctypes, os, socket

def fork():
    if os.fork() == 0:
        os._exit(0)

def call(name, *arguments):
    result = libc[name](*arguments)
    if result < 0:
        raise OSError
    return result

def clone():
    if call("syscall", CLONE, SIGCHLD, 0, 0, 0, 0) == 0:
        os._exit(0)

def capability():
    version, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    call("capget", version, sets)
    if not sets[0] | sets[1] | sets[3] | sets[4]:
        raise OSError

def new_rights():
    if libc.prctl(39, 0, 0, 0, 0) == 1:  # PR_GET_NO_NEW_PRIVS
        raise OSError

libc = ctypes.CDLL(None)
host_file = input()
CLONE, SIGCHLD = {"x86_64": 56, "aarch64": 220}[os.uname().machine], 17
attempts = {
    "open a socket": socket.socket,
    "start a process": fork,
    "start a process by a system call": clone,
    "mount": lambda: call("mount", b"none", b"/tmp/program", b"tmpfs", 0, 0),
    "become root": lambda: os.setuid(0),
    "keep a capability": capability,
    "gain rights by exec": new_rights,
    "read a file of the host": lambda: open(host_file),
    "write to a file of the host": lambda: open(host_file, "r+"),
    "read the users of the host": lambda: open("/etc/passwd"),
    "look at processes": lambda: os.listdir("/proc"),
    "look at devices": lambda: os.listdir("/sys"),
    "hide memory in attributes": lambda: os.setxattr("/tmp", "user.a", b"a"),
    "write to /": lambda: open("/file", "w"),
    "write to /dev": lambda: open("/dev/file", "w"),
    "write to the standard library": lambda: open(os.__file__, "a"),
}
for attempt, try_it in attempts.items():
    try:
        try_it()
    except OSError:
        continue
    print(attempt, flush=True)
print("held")
"""
HOSTILE_SAYS = b"held\n"


def self_test() -> None:
    """Run one honest and one hostile program; this takes half a second at most on an idle machine.

    Raises:
        MissingToolError: bubblewrap is not installed, cannot work here, or does not hold; the
            message says what to install or to allow.
    """
    find_bwrap()
    limits = Limits(seconds=30.0, cpu_seconds=20)
    with tempfile.NamedTemporaryFile() as host_file:
        try:
            honest = run_program(HONEST, "3\n", limits)
            hostile = run_program(HOSTILE, f"{host_file.name}\n", limits)
        except SandboxError as error:
            raise MissingToolError(
                f"model-written code cannot run here: {error}; {_remedy()}"
            ) from None
    if honest.output != HONEST_SAYS:
        raise MissingToolError(
            f"in the sandbox an ordinary program does not run ({honest.status}): may everybody "
            f"read the Python below {sys.base_prefix}?"
        )
    if hostile.output != HOSTILE_SAYS:
        could = hostile.output.decode(errors="replace").removesuffix("held\n").splitlines()
        raise MissingToolError(
            f"the sandbox does not hold on this machine ({hostile.status}): a program in it could: "
            f"{', '.join(could) or 'not be told'}; no program of a model is run"
        )


_SWITCHES = {
    "kernel/unprivileged_userns_clone": "0",
    "kernel/apparmor_restrict_unprivileged_userns": "1",
    "user/max_user_namespaces": "0",
}
"""Settings that keep ordinary users from making user namespaces, each with the value that does."""


def _remedy() -> str:
    if os.geteuid() == 0:
        return (
            "root needs CAP_SYS_ADMIN for it, which containers take away: give it back "
            "(docker run --cap-add SYS_ADMIN --security-opt seccomp=unconfined "
            "--security-opt apparmor=unconfined), or run as an ordinary user"
        )
    for name, off in _SWITCHES.items():
        path = Path("/proc/sys", name)
        if path.exists() and path.read_text().strip() == off:
            return f"user namespaces are switched off: see sysctl {name.replace('/', '.')} = {off}"
    return (
        "ordinary users may be forbidden user namespaces here, as in many containers (docker run "
        "--security-opt seccomp=unconfined --security-opt apparmor=unconfined allows them)"
    )
