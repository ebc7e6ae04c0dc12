"""doctor: what it finds on this machine, and that nothing broken breaks it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support import REPOSITORY
from support.processes import is_gone, wait_until

from common.rewards.registry import VERIFY
from workflows import doctor
from workflows.doctor_checks import CHECKS, EXAMPLES, Check, Finding

BY_NAME = {check.name: check for check in CHECKS}
CORE = {"python", "machine", "packages", "torch", "torchrun", "runs"}


def run_doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "workflows.doctor", *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def checks_of(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    return {found["check"]: found for found in json.loads(done.stdout)["checks"]}


def shadow(folder: Path, package: str, code: str) -> str:
    """A folder in which `package` is `code`; for PYTHONPATH."""
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text(code)
    return str(folder)


def test_the_core_works_here_and_every_check_says_what_it_found() -> None:
    done = run_doctor("--json", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stdout
    found = checks_of(done)
    assert list(found) == [check.name for check in CHECKS]
    assert {name for name, check in found.items() if check["core"]} == CORE
    assert json.loads(done.stdout)["core_works"] is True
    for name in CORE:
        assert found[name]["state"] == "ok", found[name]
    import torch

    assert torch.__version__ in found["torch"]["found"]
    assert "2 processes over gloo" in found["torchrun"]["found"]
    assert "HF_HUB_OFFLINE is set" in found["hub"]["found"]
    assert "arithmetic-base" in found["models"]["found"]
    for check in found.values():
        assert check["state"] == "ok" or check["found"], check
        if check["state"] == "missing":
            assert check["fix"], check


def test_every_verify_type_that_needs_more_than_python_is_looked_at() -> None:
    """But not those that ask another machine."""
    local = ("here", "service")
    needing = {name for name, verifier in VERIFY.items() if verifier.place not in local}
    needing |= {name for name, verifier in VERIFY.items() if verifier.packages}
    assert set(EXAMPLES) == needing


def test_a_package_that_crashes_the_interpreter_is_a_line(tmp_path: Path) -> None:
    """A torch that dies by a signal at import: the core is broken, and the rest is still told."""
    path = shadow(tmp_path, "torch", "import os\nos.kill(os.getpid(), 11)\n")
    done = run_doctor("--json", PYTHONPATH=path)
    assert done.returncode == 3
    found = checks_of(done)
    assert json.loads(done.stdout)["core_works"] is False
    assert found["torch"]["state"] == found["torchrun"]["state"] == "broken"
    assert "ended with -11" in found["torch"]["found"]
    assert found["python"]["state"] == found["runs"]["state"] == "ok"


def test_a_package_that_is_missing_or_raises_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = shadow(tmp_path / "a", "pyarrow", "raise ModuleNotFoundError('no pyarrow')")
    raising = shadow(tmp_path / "b", "pyarrow", "raise RuntimeError('built for another Python')")
    for path, state, text in (
        (missing, "missing", "ModuleNotFoundError: no pyarrow"),
        (raising, "broken", "RuntimeError: built for another Python"),
    ):
        monkeypatch.setenv("PYTHONPATH", path)
        finding = doctor.run_check(BY_NAME["runs"])
        assert (finding.state, finding.found) == (state, text)


def test_a_check_that_hangs_is_ended_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ignores being asked to end, and has a child that does too."""
    note = tmp_path / "pids"
    hang = (
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(note)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "time.sleep(600)\n"
    )
    monkeypatch.setenv("PYTHONPATH", shadow(tmp_path, "torch", hang))
    monkeypatch.setattr(doctor, "GRACE_SECONDS", 0.5)
    began = time.monotonic()
    check = dataclasses.replace(BY_NAME["torch"], seconds=6.0)
    assert doctor.run_check(check) == Finding("broken", "no answer within 6 s", "make setup")
    assert time.monotonic() - began < 20
    for pid in note.read_text().split():
        # Killed is not yet gone: a process closes its files a moment before it ends.
        wait_until(lambda pid=pid: is_gone(pid))


def test_the_table_has_a_line_for_each_and_the_remedy_below() -> None:
    found = [Finding("ok", "fine")] * len(CHECKS)
    found[-1] = Finding("missing", "not installed " * 12, "pip install it")
    text = doctor.table(found)
    for check in CHECKS:
        assert f"  {check.name} " in text
    lines = text.splitlines()
    assert max(map(len, lines)) <= 120
    at = next(i for i, line in enumerate(lines) if line.startswith("  missing"))
    indent = lines[at].index("not installed")
    assert lines[at + 1].index("installed") in (indent, indent + len("not "))
    assert lines[-1] == " " * indent + "-> pip install it"
    assert lines.index("core") < lines.index("optional") < at
    assert "\x1b" not in text


def test_checks_are_named_once() -> None:
    assert len(BY_NAME) == len(CHECKS)
    assert all(isinstance(check, Check) and check.seconds <= 120 for check in CHECKS)
