"""Real stages forked from a parent that has imported: the same bytes, threads and exit codes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.trained_runs import made

from common.runs.layout import Run
from common.runs.manifest import has_manifest
from workflows.chain import client
from workflows.chain.client import ADDRESS
from workflows.chain.parent import can_serve, start_parent

TRAIN = "stages.train --run a --iteration 1"

pytestmark = pytest.mark.skipif(not can_serve(), reason="no process is forked here")

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
pyarrow.parquet.write_table(table, "table.parquet")
assert pyarrow.parquet.read_table("table.parquet") == table
AutoTokenizer.from_pretrained(sys.argv[1])(["What is 12 * 3?"] * 2000)
print(already, threads, torch.get_num_threads(), numpy.random.rand())
"""


class Chain:
    """A parent that has imported, and the environment that it did it in."""

    def __init__(self) -> None:
        self.environment = dict(os.environ)
        parent = start_parent()
        assert parent is not None
        self.requests = parent

    def start(self, call: str, *, ranks: int = 1, **variables: str | None) -> subprocess.Popen:
        """A client, as make starts one; a variable that is None is not set."""
        launcher = f"torchrun --standalone --nproc-per-node {ranks} -m --"
        line = f"{Path(sys.executable).parent}/{'python -m' if ranks == 1 else launcher} {call}"
        address = {ADDRESS: str(self.requests.fileno())}
        runs = {"STAGED_GRPO_RUNS": os.environ.get("STAGED_GRPO_RUNS")}
        wanted = self.environment | address | runs | variables
        return subprocess.Popen(
            [sys.executable, "-IS", client.__file__, line],
            env={name: value for name, value in wanted.items() if value is not None},
            pass_fds=[self.requests.fileno()],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, call: str, **options: Any) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        process = self.start(call, **options)
        out, err = process.communicate(timeout=120)
        assert "chain: imports are not taken" not in err
        return process.returncode, out, err


@pytest.fixture(scope="module")
def chain() -> Iterator[Chain]:
    chain = Chain()
    yield chain
    chain.requests.close()


def test_a_fork_runs_what_has_threads_of_its_own(
    chain: Chain, tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "probe.py").write_text(PROBE)
    monkeypatch.chdir(tmp_path)
    drawn = set()
    for threads in ("1", "2", "2", "2"):
        code, out, err = chain.run(f"probe {tiny_tokenizer}", OMP_NUM_THREADS=threads)
        assert code == 0, err
        *facts, number = out.split()
        assert facts == ["True", "1", threads], "imported already; the parent's threads; torch's"
        drawn.add(number)
    assert len(drawn) == 4, "random numbers differ"


def test_forked_training_makes_the_same_bytes(
    chain: Chain, prepared: Path, finished: Path, at: Callable[[Path], Run]
) -> None:
    run = at(prepared)
    assert chain.run(TRAIN)[0] == 0
    assert made(run) == made(Run(finished / "a"))
    assert "nothing to do" in chain.run(TRAIN)[1]


def test_forked_ranks_make_the_bytes_of_torchrun(
    chain: Chain, prepared: Path, at: Callable[[Path], Run], stage: Callable[..., Any]
) -> None:
    run = at(prepared)
    assert chain.run(TRAIN, ranks=2)[0] == 0
    forked = made(run)
    stage("train", *TRAIN.split()[1:], "--overwrite", ranks=2)
    assert made(run) == forked


def test_ranks_end_with_the_code_of_the_first_that_failed(chain: Chain, runs: Path) -> None:
    code, _, err = chain.run("stages.train --run nowhere --iteration 1", ranks=2)
    assert (code, "nowhere: no such run" in err) == (2, True)
    assert err.count("ended with exit code 2, so all end") == 1


def test_training_goes_on_after_its_client_was_killed(
    chain: Chain, prepared: Path, finished: Path, at: Callable[[Path], Run]
) -> None:
    for _ in range(5):  # on a busy machine the kill may come when all is done
        run = at(prepared)
        begun = chain.start(TRAIN)
        deadline = time.monotonic() + 60
        while not run.train(1).partial.exists():
            assert begun.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        begun.kill()
        begun.communicate()  # until the stage has ended too: it has the same pipes
        if not has_manifest(run.policy(1)):
            break
        shutil.rmtree(run.root.parent)
    else:
        pytest.fail("all was done before each of five kills")
    assert chain.run(TRAIN)[0] == 0
    assert made(run) == made(Run(finished / "a"))
