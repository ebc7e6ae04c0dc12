"""The filter of system calls, as an array of instructions and as the kernel reads it."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path

import pytest
from support.needs_sandbox import needs_sandbox

from common.errors import MissingToolError
from common.rewards.sandbox.bubblewrap import Limits
from common.rewards.sandbox.run import run_program
from common.rewards.sandbox.seccomp import DENIED, build_filter


def test_filter_knows_the_numbers_of_the_kernel() -> None:
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.exists():
        pytest.skip("no kernel headers")
    numbers = {m[1]: int(m[2]) for m in re.finditer(r"__NR_(\w+) (\d+)", header.read_text())}
    assert {name: number for name, (number, _) in DENIED.items()} == {
        name: numbers[name] for name in DENIED
    }


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_filter_is_well_formed(machine: str) -> None:
    """Every jump lands within, and no way leads past the last instruction."""
    code = build_filter(machine)
    program = list(struct.iter_unpack("<HBBI", code))
    assert len(program) < 4096
    for at, (kind, when_true, when_false, _) in enumerate(program):
        if kind in (0x15, 0x35, 0x45):
            assert at + 1 + max(when_true, when_false) < len(program)
    assert program[-1][0] == 0x06
    with pytest.raises(MissingToolError, match="mips"):
        build_filter("mips")


SYSTEM_CALLS = [
    ("libc.socket(2, 1, 0)", -errno.EPERM),
    ("libc.socketpair(1, 1, 0, page)", 0),
    ("libc.socketpair(2, 1, 0, page)", -errno.EPERM),
    ("libc.syscall(435, page, 88)", -errno.ENOSYS),
    ("libc.syscall(425, 1, page)", -errno.ENOSYS),
    ("libc.syscall(9999)", -errno.ENOSYS),
    ("libc.unshare(0x10000000)", -errno.EPERM),
    ("libc.fork()", -errno.EPERM),
    ("libc.ptrace(0, 0, 0, 0)", -errno.EPERM),
]


@needs_sandbox
@pytest.mark.parametrize(("system_call", "result"), SYSTEM_CALLS)
def test_filter_as_the_kernel_reads_it(system_call: str, result: int) -> None:
    program = f"""\
import ctypes
libc = ctypes.CDLL(None, use_errno=True); page = ctypes.create_string_buffer(4096)
result = {system_call}
print(-ctypes.get_errno() if result < 0 else result)"""
    finished = run_program(program, "", Limits(seconds=20.0))
    assert finished.output.decode() == f"{result}\n"
