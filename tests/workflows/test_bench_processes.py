"""The parts of the benchmark that start processes: both sides of each do the same work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.tiny_bench import tiny_bench

from workflows.bench import iteration as bench_iteration
from workflows.bench import pipeline as bench_pipeline
from workflows.bench import startup as bench_startup
from workflows.bench.measure import Bench


@pytest.fixture
def bench(tiny_policy: Path, tmp_path: Path) -> Bench:
    return tiny_bench(tiny_policy, tmp_path)


@pytest.mark.slow
def test_two_ranks_and_one_process_come_to_the_same_loss(bench: Bench) -> None:
    (line,) = bench_pipeline.measure(bench)
    assert "layers 1 and 1, 3 microbatches" in line.name
    losses = line.note.removeprefix("losses ").split(" and ")
    assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-5)
    assert len(line.ours) == len(line.baseline) == 1


@pytest.mark.slow
def test_start_up_is_measured_to_the_first_work_of_every_stage(bench: Bench) -> None:
    lines = bench_startup.measure(bench)
    stages = ("rollout", "score", "logprobs", "train")
    assert [line.name.split(":")[0] for line in lines] == [s for s in stages for _ in range(2)]
    for total, rest in zip(lines[::2], lines[1::2], strict=True):
        assert 0 < rest.ours[0] < total.ours[0]


@pytest.mark.slow
def test_iteration_and_trl_compute_as_many_tokens(
    bench: Bench, make_policy: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("trl", reason="the test extra is not installed")
    bench = replace(bench, model=make_policy(max_position_embeddings=1024))
    from common.runs.layout import Run
    from common.runs.shards import read_output

    lines = bench_iteration.measure(bench)
    assert [line.against for line in lines[:2]] == [
        "TRL's step without start-up",
        "TRL's step with start-up",
    ]
    assert lines[1].baseline[0] > lines[0].baseline[0]
    assert "64 tokens expected, TRL computed 64" in capsys.readouterr().out
    run_made = Run(bench.scratch / "runs" / bench_iteration.RUN)
    for iteration in (1, 2):
        ids = read_output(run_made.rollout(iteration), ["completion_ids"])["completion_ids"]
        assert {len(row) for row in ids.to_pylist()} == {8}
