"""The chain: a forked stage is the stage that one would start by hand, and nothing outlives it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support import REPOSITORY
from support.processes import is_gone, wait_until
from support.trained_runs import made

from common.runs.layout import Run
from common.runs.manifest import has_manifest
from workflows.chain import launch
from workflows.chain.launch import Command, start, stop

TRAIN = ("--run", "a", "--iteration", "1")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="no process is forked here")

PROBE = """\
import os, sys
already = "torch" in sys.modules and "transformers" in sys.modules
threads = len(os.listdir(f"/proc/{os.getppid()}/task"))
import numpy, polars, pyarrow, pyarrow.parquet, torch
from transformers import AutoTokenizer

weights = torch.randn(600, 600, requires_grad=True)
(weights @ torch.randn(600, 600)).relu().sum().backward()
torch.randn(1_000_000).exp().sum()
rows = polars.LazyFrame({"a": range(50_000)}).group_by(polars.col("a") % 7).agg(polars.len())
assert rows.collect()["len"].sum() == 50_000
table = pyarrow.table({f"c{i}": range(20_000) for i in range(8)})
pyarrow.parquet.write_table(table, sys.argv[2])
assert pyarrow.parquet.read_table(sys.argv[2]) == table
AutoTokenizer.from_pretrained(sys.argv[1])(["What is 12 * 3?"] * 2000)
print(already, threads, torch.get_num_threads(), numpy.random.rand())
"""


class Stages:
    """Runs modules as stages; what they say goes to a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"

    def run(
        self,
        module: str,
        *arguments: object,
        processes: int = 1,
        fork: bool = True,
        **variables: str,
    ) -> tuple[int, str]:
        """Exit code and what was said."""
        self.log.unlink(missing_ok=True)
        command = Command(module, tuple(map(str, arguments)), processes)
        path = os.pathsep.join([str(REPOSITORY / "tests"), str(self.folder)])
        variables = {"PYTHONPATH": path} | variables
        code = launch.run(command, fork=fork, environment=variables, log=self.log)
        return code, self.log.read_text()

    def stub(self, *arguments: object, **options: Any) -> tuple[int, str]:
        return self.run("support.chain_stub", *arguments, **options)

    def facts(self, **options: Any) -> dict[str, Any]:
        path = self.folder / "facts.json"
        code, said = self.stub("facts", path, **options)
        assert code == 0, said
        assert sorted(said.split()) == ["err", "out"]
        return json.loads(path.read_text())


@pytest.fixture
def stages(tmp_path: Path) -> Stages:
    return Stages(tmp_path)


def test_a_stage_finds_itself_as_if_started_by_hand(stages: Stages) -> None:
    forked, by_hand = stages.facts(MORE="x y"), stages.facts(MORE="x y", fork=False)
    assert forked == by_hand
    assert forked["environment"]["MORE"] == "x y"


@pytest.mark.parametrize("fork", [True, False])
@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("code 0", 0, ""),
        ("code 2", 2, ""),
        ("message", 1, "that is why\n"),
        ("raise", 1, "ValueError: boom\n"),
        ("kill 9", 137, ""),
        ("kill 15", 143, ""),
    ],
)
def test_an_end_is_passed_on(stages: Stages, end: str, code: int, said: str, fork: bool) -> None:
    found, text = stages.stub(*end.split(), fork=fork)
    assert found == code
    assert said in text


def test_an_edit_takes_effect_in_the_next_stage(stages: Stages) -> None:
    module = stages.folder / "edited.py"
    module.write_text("WORD = 'old'")
    assert "word: old" in stages.stub("word", stages.folder)[1]
    stages.stub("edit", module, "newer")
    assert "word: newer" in stages.stub("word", stages.folder)[1]


def test_a_fork_runs_what_has_threads_of_its_own(
    stages: Stages, tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stages.folder / "probe.py").write_text(PROBE)
    monkeypatch.chdir(stages.folder)
    numbers = set()
    for threads in ("1", "2", "2", "2"):
        table = stages.folder / "table.parquet"
        code, said = stages.run("probe", tiny_tokenizer, table, OMP_NUM_THREADS=threads)
        assert code == 0, said
        *facts, number = said.split()
        assert facts == ["True", "1", threads], "imported already; the parent's threads; torch's"
        numbers.add(number)
    assert len(numbers) == 4, "random numbers differ"


def test_no_stage_is_forked_from_a_process_with_threads() -> None:
    code = (
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
        "from workflows.chain import preload\n"
        "assert preload.PROBLEM"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert "2 threads are running after the imports, so every stage imports" in done.stderr


def test_packages_that_start_threads_are_not_imported() -> None:
    """Some versions of transformers import sklearn, and with it pandas and pyarrow."""
    code = (
        "import sys\n"
        "from workflows.chain import preload\n"
        "print([name for name in ('sklearn', 'pandas', 'pyarrow') if name in sys.modules])\n"
        "import pandas"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_forked_training_makes_the_same_bytes(
    stages: Stages, untrained: Path, trained: Path, at: Callable[[Path], Run]
) -> None:
    run = at(untrained)
    assert stages.run("stages.train", *TRAIN)[0] == 0
    assert made(run) == made(Run(trained / "a"))
    assert "nothing to do" in stages.run("stages.train", *TRAIN)[1]


def test_forked_ranks_make_the_bytes_of_torchrun(
    stages: Stages, untrained: Path, at: Callable[[Path], Run], stage: Callable[..., Any]
) -> None:
    run = at(untrained)
    code, said = stages.run("stages.train", *TRAIN, processes=2)
    assert code == 0, said
    forked = made(run)
    stage("train", *TRAIN, "--overwrite", ranks=2)
    assert made(run) == forked


def test_ranks_end_with_the_code_of_the_first_that_failed(stages: Stages, runs: Path) -> None:
    code, said = stages.run("stages.train", "--run", "no", "--iteration", "1", processes=2)
    assert (code, "no: no such run" in said) == (2, True)
    assert said.count("ended with exit code 2, so all end") == 1
    assert "Traceback" not in said and "torch" not in said


def test_a_killed_rank_ends_the_others(stages: Stages) -> None:
    pids = stages.folder / "pids"
    stage = start(
        Command("support.chain_stub", ("hang", str(pids)), 2),
        environment={"OMP_NUM_THREADS": "1"},
        log=stages.log,
    )
    wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    first, second = map(int, pids.read_text().split())
    os.kill(first, signal.SIGKILL)
    stage.join(20)
    assert launch.exit_code(stage) == 137
    assert is_gone(second)
    assert "ended with exit code 137, so all end" in stages.log.read_text()


@pytest.mark.parametrize("deaf", [False, True])
def test_ranks_end_with_their_stage(
    stages: Stages, deaf: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "SECONDS_TO_END", 0.5)
    pids = stages.folder / "pids"
    how = ("hang", str(pids), *(["deaf"] if deaf else []))
    stage = start(Command("support.chain_stub", how, 2), log=stages.log)
    wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    stop([stage])
    assert stage.exitcode is not None
    wait_until(lambda: all(map(is_gone, pids.read_text().split())))
    assert "Traceback" not in stages.log.read_text() or not deaf


def test_training_goes_on_after_it_was_killed(
    stages: Stages, untrained: Path, trained: Path, at: Callable[[Path], Run]
) -> None:
    for _ in range(5):  # on a busy machine the kill may come when all is done
        run = at(untrained)
        stage = start(Command("stages.train", TRAIN), log=stages.log)
        deadline = time.monotonic() + 60
        while not run.train(1).partial.exists():
            assert stage.is_alive() and time.monotonic() < deadline
            time.sleep(0.002)
        stage.kill()
        stage.join()
        if not has_manifest(run.policy(1)):
            break
        shutil.rmtree(run.root.parent)
    else:
        pytest.fail("all was done before each of five kills")
    assert stages.run("stages.train", *TRAIN)[0] == 0
    assert made(run) == made(Run(trained / "a"))


class Chain:
    """`make iteration` whose stages are stubs, and all of its processes."""

    def __init__(self, folder: Path) -> None:
        self.pids = folder / "pids"
        python = folder / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} tests/support/small_chain.py "$@"\n')
        python.chmod(0o755)
        self.make = ["make", "iteration", "N=1", "RUN=stubs", f"PYTHON={python}"]
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")]),
            "STAGED_GRPO_RUNS": str(folder / "runs"),
        }
        self.process: subprocess.Popen[str] | None = None

    def start(self, stub: str, *options: str) -> subprocess.Popen[str]:
        self.process = subprocess.Popen(
            [*self.make, *options],
            cwd=REPOSITORY,
            env=self.environment | {"STUB": stub},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        return self.process

    def run(self, stub: str, *options: str) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        process = self.start(stub, *options)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def hang(self, *how: str) -> tuple[subprocess.Popen[str], dict[str, int]]:
        """Make with a stage that hangs, and its processes by what they are."""
        process = self.start(" ".join(["hang", str(self.pids), *how]))
        wait_until(lambda: self.pids.exists() and bool(self.pids.read_text()))
        (stage,) = map(int, self.pids.read_text().split())
        (chain,) = children(process.pid)
        (server,) = (pid for pid in children(chain) if stage in children(pid))
        return process, {"make": process.pid, "chain": chain, "server": server, "stage": stage}

    def is_gone(self, family: dict[str, int]) -> bool:
        return all(map(is_gone, family.values()))


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    chain = Chain(tmp_path)
    yield chain
    if chain.process is not None:
        with suppress(ProcessLookupError):
            os.killpg(chain.process.pid, signal.SIGKILL)
        chain.process.communicate()


def test_after_a_stage_that_fails_no_other_begins(chain: Chain) -> None:
    code, out, err = chain.run("code 4")
    assert (code, out.count("support.chain_stub code 4")) == (2, 1)
    assert "iteration] Error 4\n" in err


def test_all_that_is_missing_is_run_in_order(chain: Chain) -> None:
    code, out, err = chain.run("code 0")
    assert (code, err) == (0, "")
    *commands, last = out.splitlines()
    assert last == "run stubs is complete up to iteration 1"
    assert len(commands) == 6, "prepare, evaluate, rollout, score, logprobs, train"


@pytest.mark.parametrize("killed", ["make", "chain", "server", "stage"])
def test_a_kill_anywhere_leaves_no_process(chain: Chain, killed: str) -> None:
    process, family = chain.hang()
    os.kill(family[killed], signal.SIGKILL)
    assert process.wait(20) == (-signal.SIGKILL if killed == "make" else 2)
    wait_until(lambda: chain.is_gone(family))


@pytest.mark.parametrize("how", ["", "deaf"])
def test_ctrl_c_reaches_a_stage_once_and_ends_all(chain: Chain, how: str) -> None:
    process, family = chain.hang(*how.split())
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert out.count("interrupted") == (0 if how else 1)
    assert "Traceback" not in err or not how
    wait_until(lambda: chain.is_gone(family))


def test_ctrl_c_while_the_server_imports(tmp_path: Path) -> None:
    begun = subprocess.Popen(
        [sys.executable, "-m", "workflows.chain", "iteration", "--run", "a", "--to", "1"],
        cwd=REPOSITORY,
        env=os.environ | {"STAGED_GRPO_RUNS": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert begun.stdout is not None
    assert "stages.prepare" in begun.stdout.readline()
    time.sleep(0.5)
    family = children(begun.pid)
    os.killpg(begun.pid, signal.SIGINT)
    _, err = begun.communicate(timeout=20)
    assert (begun.returncode, err) == (130, "")
    wait_until(lambda: all(map(is_gone, family)))


def test_two_stages_of_an_iteration_at_once(chain: Chain, tmp_path: Path) -> None:
    """Each waits for the other; those before them wait for nobody."""
    code, _, err = chain.run(f"meet {tmp_path} {{stage}}", "-j2")
    assert (code, err) == (0, "")
