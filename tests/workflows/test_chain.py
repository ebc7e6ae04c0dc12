"""A chain of stub stages: what reaches them, what comes back, and that nothing stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support import REPOSITORY
from support.processes import is_gone, wait_until

from workflows.chain.client import ADDRESS, words
from workflows.chain.parent import can_serve

TESTS = REPOSITORY / "tests"
PYTHON = sys.executable

pytestmark = pytest.mark.skipif(not can_serve(), reason="no process is forked here")

MAKEFILE = """\
SHELL := {python}
.SHELLFLAGS := -IS workflows/chain/client.py
first second:
	{python} -m chain_stub $(ARGS_$@)
all: first second
plain:
	@echo "a $$(echo shell)" | tr a-z A-Z
ignored:
	@grep SigIgn /proc/self/status
outer:
	@+{python} tests/support/small_chain.py $(MAKE) -f {makefile} first
.PHONY: first second plain ignored all
"""

Family = dict[str, int]


class Bench:
    """A folder with a Makefile whose lines are stub stages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.makefile = folder / "Makefile"
        self.makefile.write_text(MAKEFILE.format(python=PYTHON, makefile=self.makefile))
        path = os.pathsep.join(map(str, (TESTS.parent, TESTS / "support", folder)))
        self.environment = os.environ | {"PYTHONPATH": path}

    def start(
        self, *targets: str, chained: bool = True, stdin: int = subprocess.DEVNULL, **variables: str
    ) -> subprocess.Popen:
        """Make's variables come from its environment, as in a make that make has started."""
        chain = [PYTHON, "tests/support/small_chain.py"] if chained else []
        return subprocess.Popen(
            [*chain, "make", "-f", str(self.makefile), *targets],
            cwd=TESTS.parent,
            env=self.environment | variables,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def make(self, *targets: str, said: str = "", **options: Any) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        process = self.start(*targets, stdin=subprocess.PIPE, **options)
        out, err = process.communicate(said, timeout=60)
        return process.returncode, out, err

    def facts(self, **options: Any) -> tuple[dict[str, Any], str]:
        """What a stage found around it, and standard error."""
        path = self.folder / "facts.json"
        code, out, err = self.make("first", ARGS_first=f"facts {path}", **options)
        assert (code, out.splitlines()[-1]) == (0, "out"), err
        return json.loads(path.read_text()), err


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_stage_finds_itself_as_if_started_by_bash(bench: Bench) -> None:
    chained, said = bench.facts(said="typed", MORE="x y")
    plain, _ = bench.facts(said="typed", MORE="x y", chained=False)
    assert (chained.pop("process"), plain.pop("process")) == ("tests/support/small_chain.py", "-m")
    assert chained == plain
    assert (chained["stdin"], chained["environment"]["MORE"], said) == ("typed", "x y", "err\n")


@pytest.mark.parametrize("why", ["thread", "variable", "threads of OpenMP", "program", "address"])
def test_what_a_fork_would_not_do_alike_python_does(bench: Bench, why: str) -> None:
    text = bench.makefile.read_text()
    if why == "thread":
        bench.environment["THREAD"] = "1"
    if why == "variable":
        text = f"export HF_HOME = elsewhere\n{text}"
    if why == "threads of OpenMP":
        bench.environment["OMP_NUM_THREADS"] = "1"
        text = f"unexport OMP_NUM_THREADS\n{text}"
    if why == "program":
        (bench.folder / "python").symlink_to(PYTHON)
        text = text.replace(f"\t{PYTHON} -m", f"\t{bench.folder}/python -m")
    if why == "address":
        text = f"export {ADDRESS} = 0\n{text}"
    bench.makefile.write_text(text)
    facts, said = bench.facts()
    assert facts["process"] == "-m"
    reason = {
        "thread": "2 threads are running",
        "variable": "another HF_HOME",
        "threads of OpenMP": "another OMP_NUM_THREADS",
        "program": "is not its Python",
    }.get(why, "")
    assert reason in said


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("code 0", 0, ""),
        ("code 2", 2, ""),
        ("code 4", 4, ""),
        ("message", 1, "that is why\n"),
        ("raise", 1, "ValueError: boom\n"),
        ("kill 9", 137, ""),
        ("kill 15", 143, ""),
    ],
)
def test_an_end_is_passed_on(bench: Bench, end: str, code: int, said: str) -> None:
    made, _, err = bench.make("first", ARGS_first=end)
    assert made == (2 if code else 0)
    assert (f"first] Error {code}\n" in err) == bool(code)
    assert said in err


def test_a_line_of_another_kind_is_for_bash(bench: Bench) -> None:
    assert bench.make("plain") == (0, "A SHELL\n", "")


def test_bash_does_not_ignore_what_python_does(bench: Bench) -> None:
    code, out, err = bench.make("ignored")
    assert code == 0, err
    ignored = int(out.split()[1], base=16)
    assert not any(ignored >> number - 1 & 1 for number in (signal.SIGPIPE, signal.SIGXFSZ))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a/python -m s --set 'x=$(y) z' --set 'it'\\''s'", ["--set", "it's"]),
        ("a/torchrun --standalone --nproc-per-node 2 -m -- s --run r", ["--run", "r"]),
        ("a/torchrun --standalone --nproc-per-node x -m -- s", None),
        ("X=1 a/python -m s", None),
        ("a/python -m s > file", None),
        ("a/python -m s $HOME", None),
        ("a/python -m s; ls", None),
        ("a/python -m s\nls", None),
        ("a/python -m s *", None),
    ],
)
def test_lines_that_are_understood(line: str, expected: list[str] | None) -> None:
    found = words(line)
    assert (found and found[-2:]) == expected


def test_two_stages_at_once(bench: Bench) -> None:
    a, b = bench.folder / "a", bench.folder / "b"
    code, _, err = bench.make("-j2", "all", ARGS_first=f"meet {a} {b}", ARGS_second=f"meet {b} {a}")
    assert (code, err) == (0, "")


def test_an_edit_takes_effect_in_the_next_stage(bench: Bench) -> None:
    module = bench.folder / "edited.py"
    module.write_text("WORD = 'old'")
    assert "word: old" in bench.make("all", ARGS_first="word", ARGS_second="word")[1]
    edit = f"edit {module} newer"
    assert "word: newer" in bench.make("all", ARGS_first=edit, ARGS_second="word")[1]


def test_the_parent_imports_only_when_asked_and_its_socket_has_no_name() -> None:
    look = f"cat /proc/$PPID/maps; ls -l /proc/self/fd; cat /proc/net/unix; echo =${ADDRESS}"
    command = [PYTHON, "-m", "workflows.chain", "bash", "-c", look]
    out = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, check=True)
    lines = out.stdout.splitlines()
    number = lines[-1].removeprefix("=")
    (link,) = (line for line in lines if f" {number} -> socket:" in line)
    inode = link.rpartition("[")[2].rstrip("]")
    (entry,) = (line for line in lines if inode in line.split() and line is not link)
    assert entry.split()[-1] == inode, "a path would follow"
    assert "libc" in out.stdout and "libtorch" not in out.stdout


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def hang(bench: Bench) -> Iterator[Callable[..., tuple[subprocess.Popen, Family]]]:
    """Starts a make whose child is a chain whose stage hangs; its processes by what they are."""
    begun: list[subprocess.Popen] = []

    def start(*how: str) -> tuple[subprocess.Popen, Family]:
        path = bench.folder / "pid"
        process = bench.start("outer", ARGS_first=f"hang {path} {' '.join(how)}", chained=False)
        begun.append(process)
        wait_until(lambda: path.exists() and bool(path.read_text()))
        family = {"outer": process.pid, "stage": int(path.read_text())}
        (family["parent"],) = children(process.pid)
        (family["make"],) = (p for p in children(family["parent"]) if p != family["stage"])
        (family["client"],) = children(family["make"])
        return process, family

    yield start
    for process in begun:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize("killed", ["outer", "parent", "make", "client", "stage"])
def test_a_kill_anywhere_leaves_no_process(hang: Callable[..., Any], killed: str) -> None:
    process, family = hang()
    os.kill(family[killed], signal.SIGKILL)
    assert process.wait(20) == (-signal.SIGKILL if killed == "outer" else 2)
    wait_until(lambda: all(map(is_gone, family.values())), seconds=20)


def test_a_stage_that_is_deaf_to_the_end_of_its_client_is_killed(hang: Callable[..., Any]) -> None:
    process, family = hang("deaf")
    os.kill(family["client"], signal.SIGKILL)
    assert process.wait(20) == 2
    wait_until(lambda: all(map(is_gone, family.values())), seconds=20)


def test_ctrl_c_reaches_a_stage_once_and_ends_all(hang: Callable[..., Any]) -> None:
    process, family = hang()
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert out.count("interrupted") == 1
    # Make 4.3 may find that its child has been waited for already.
    assert "first] Error 130" in err or "No child processes" in err
    assert all(map(is_gone, family.values()))
