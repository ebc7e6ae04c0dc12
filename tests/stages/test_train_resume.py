"""Training that was killed, a commit that was damaged, a rank that died."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from support.multirank import torchrun
from support.trained_runs import made, steps, without_entropy

from common.errors import NonFiniteError
from common.runs.layout import Run
from common.runs.manifest import has_manifest
from common.training.loop import Trainer
from stages.train import main as train


@pytest.mark.parametrize("stop", [3, 5])
def test_killed_and_continued_is_as_never_killed(
    untrained: Path, trained: Path, at, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """Commits every two steps; killed in step `stop`; the content of an uninterrupted run."""
    run = at(untrained)
    options = ["train.checkpoint_every_steps=2"]
    taken = stop_in_step(monkeypatch, stop)
    with pytest.raises(KeyboardInterrupt):
        train("a", 1, overrides=options)
    assert not has_manifest(run.train(1)) and not has_manifest(run.policy(1))
    monkeypatch.undo()
    monkeypatch.setenv("STAGED_GRPO_RUNS", str(run.root.parent))
    taken = stop_in_step(monkeypatch, None)
    train("a", 1)
    assert taken == list(range(stop - stop % 2, 6))
    assert made(run) == made(Run(trained / "a"))
    assert not list(run.root.rglob("checkpoint*"))


def stop_in_step(monkeypatch: pytest.MonkeyPatch, stop: int | None) -> list[int]:
    """Note the steps that are taken; break off in the middle of one."""
    taken: list[int] = []
    original = Trainer.accumulate

    def accumulate(self, minibatch):
        taken.append(minibatch.step)
        if minibatch.step == stop:
            raise KeyboardInterrupt
        return original(self, minibatch)

    monkeypatch.setattr(Trainer, "accumulate", accumulate)
    return taken


def test_a_damaged_commit_is_not_used(
    untrained: Path, trained: Path, at, monkeypatch, capsys
) -> None:
    run = at(untrained)
    stop_in_step(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        train("a", 1, overrides=["train.checkpoint_every_steps=2"])
    monkeypatch.undo()
    monkeypatch.setenv("STAGED_GRPO_RUNS", str(run.root.parent))
    (path,) = run.train(1).partial.glob("checkpoint-*/*.safetensors")
    data = bytearray(path.read_bytes())
    data[-20] ^= 4
    path.write_bytes(data)
    taken = stop_in_step(monkeypatch, None)
    train("a", 1)
    assert taken == list(range(6))
    assert "damaged" in capsys.readouterr().err
    assert made(run) == made(Run(trained / "a"))


def test_a_rank_that_dies_and_another_mesh_that_goes_on(
    untrained: Path, trained: Path, at, capsys
) -> None:
    """Rank 1 of 2 is killed in step 3; the other names it; one process continues from step 2."""
    run = at(untrained)
    text = torchrun(2, "test_train_resume.py", "a", expect=1).stderr
    first = "rank 0: rank 1 (pipeline stage 1 of 2, replica 0) failed first, at iteration 1, step 3"
    assert f"{first}, forward and backward" in text
    assert not has_manifest(run.train(1)) and not has_manifest(run.policy(1))
    train("a", 1)
    assert "continuing after step 2" in capsys.readouterr().out
    reference = Run(trained / "a")
    for name in ("loss", "grad_norm", "kl"):
        np.testing.assert_allclose(steps(run)[name], steps(reference)[name], rtol=2e-3, atol=1e-5)


def dying_rank(name: str) -> None:
    """Train, and on rank 1 be killed in step 3."""
    original = Trainer.accumulate

    def accumulate(self, minibatch):
        if minibatch.step == 3 and self.mesh.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, minibatch)

    Trainer.accumulate = accumulate  # type: ignore[method-assign]
    train(name, 1, overrides=["train.checkpoint_every_steps=2"])


def test_left_out_steps_count_across_an_interruption(
    untrained: Path, at, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = at(untrained)
    without_entropy(monkeypatch)
    stop_in_step(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        train("a", 1, overrides=["train.checkpoint_every_steps=1"])
    monkeypatch.undo()
    monkeypatch.setenv("STAGED_GRPO_RUNS", str(run.root.parent))
    without_entropy(monkeypatch)
    taken = stop_in_step(monkeypatch, None)
    with pytest.raises(NonFiniteError, match=r"step 2: .*3 steps in a row"):
        train("a", 1)
    assert taken == [2]


if __name__ == "__main__":
    dying_rank(sys.argv[1])
