"""The mesh: degrees, places, and what is said when a rank raises, dies or hangs."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from support.multirank import torchrun

from common.config import MeshConfig
from common.errors import UserError
from common.parallel.mesh import Mesh, degrees

HANG_SECONDS = 8


@pytest.mark.parametrize(
    ("pp", "dp", "world", "expected"),
    [
        ("auto", 1, 1, (1, 1)),
        ("auto", 1, 4, (4, 1)),
        ("auto", 2, 4, (2, 2)),
        (2, 2, 4, (2, 2)),
        (1, 3, 3, (1, 3)),
    ],
)
def test_degrees(pp: int | str, dp: int, world: int, expected: tuple[int, int]) -> None:
    assert degrees(MeshConfig(pp_degree=pp, dp_degree=dp), world) == expected


@pytest.mark.parametrize(
    ("pp", "dp", "world", "message"),
    [
        (4, 1, 2, "NPROC=4"),
        (2, 2, 2, "NPROC=4"),
        ("auto", 2, 3, "multiple of 2"),
        ("auto", 2, 1, "multiple of 2"),
        (1, 1, 2, "NPROC=1"),
    ],
)
def test_processes_that_do_not_fit(pp: int | str, dp: int, world: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        degrees(MeshConfig(pp_degree=pp, dp_degree=dp), world)


def test_places_are_a_grid_with_neighbouring_pipeline_stages() -> None:
    places = [Mesh(rank=r, world_size=8, pp_degree=4, dp_degree=2) for r in range(8)]
    assert [(m.dp_rank, m.pp_rank) for m in places] == [(r // 4, r % 4) for r in range(8)]
    assert [m.is_first for m in places] == [True, False, False, False] * 2
    assert [m.is_last for m in places] == [False, False, False, True] * 2
    assert sum(m.is_main for m in places) == 1


def test_one_process_needs_no_group() -> None:
    with Mesh.from_environment(MeshConfig()) as mesh:
        mesh.at("alone")
        mesh.barrier()
        assert mesh.is_first and mesh.is_last and mesh.is_main
        assert mesh.gather_objects("x") == ["x"]
        assert mesh.all_reduce(torch.tensor([2.0]), "world").item() == 2
        assert not torch.distributed.is_initialized()


def failing_ranks(how: str, *, expect: int = 1) -> tuple[str, float]:
    """What two ranks said while rank 1 failed at `step 3`, and how long it took after that."""
    text = torchrun(2, "test_mesh.py", how, expect=expect).stderr
    (begun,) = (float(line.split()[1]) for line in text.splitlines() if line.startswith("BEGUN"))
    return text, time.time() - begun


def test_a_rank_that_raises_is_named_first_with_its_step() -> None:
    text, _ = failing_ranks("raise")
    line = "rank 1 (pipeline stage 1 of 2, replica 0) failed first, at step 3: ValueError: boom"
    assert f"rank 1: {line}" in text
    assert f"rank 0: {line}" in text
    assert "[rank0]: Traceback" not in text


def test_a_rank_that_is_killed_is_named_by_the_other() -> None:
    text, seconds = failing_ranks("kill")
    assert "rank 0: rank 1 (pipeline stage 1 of 2, replica 0) failed first, at step 3: " in text
    assert "the process is gone" in text
    assert seconds < 20


def test_a_rank_that_hangs_ends_all_after_the_timeout() -> None:
    text, seconds = failing_ranks("hang")
    assert "no answer from its peer" in text
    assert "rank 1 was at step 3" in text
    assert seconds < HANG_SECONDS + 35


def fail(how: str) -> None:
    """The ranks of the tests above."""
    seconds = HANG_SECONDS if how == "hang" else 60
    with Mesh.from_environment(MeshConfig(timeout_seconds=seconds)) as mesh:
        mesh.all_reduce(torch.ones(1), "world")
        mesh.at("step 3")
        if mesh.rank == 1:
            print(f"BEGUN {time.time()}", file=sys.stderr, flush=True)
            if how == "raise":
                raise ValueError("boom")
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(300)
        mesh.all_reduce(torch.ones(1), "world")


if __name__ == "__main__":
    assert Path(sys.argv[0]).name == "test_mesh.py"
    fail(sys.argv[1])
