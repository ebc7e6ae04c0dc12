"""The pipeline as a user runs it: real commands, the embedded base model, small batches."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from support import REPOSITORY

from common.runs.layout import Run
from common.runs.manifest import read_manifest

SMALL = [
    "rollout.prompts_per_iteration=8",
    "rollout.group_size=4",
    "rollout.groups_per_shard=1",
    "train.prompts_per_step=2",
    "evaluate.every=2",
    *(f"data.{task}.eval=4" for task in ("multiplication", "counting", "scheduling")),
]


def environment(runs: Path) -> dict[str, str]:
    return os.environ | {"STAGED_GRPO_RUNS": str(runs), "OMP_NUM_THREADS": "1"}


def make(runs: Path, *arguments: str, expect: int = 0) -> str:
    done = subprocess.run(
        ["make", *arguments],
        cwd=REPOSITORY,
        env=environment(runs),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == expect, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def stages_in(text: str) -> list[str]:
    """The stages whose command lines make printed, as `score 2`."""
    lines = re.findall(r"^\S*bin/(?:python|torchrun)\b.* -m (?:-- )?stages\.(.*)$", text, re.M)
    names = [line.split()[0] for line in lines]
    numbers = [
        line.split("--iteration ")[1].split()[0] if "--iteration " in line else "" for line in lines
    ]
    return [f"{name} {number}".strip() for name, number in zip(names, numbers, strict=True)]


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in files}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A runs directory with a run `whole`, made to iteration 2 by one make."""
    folder = tmp_path_factory.mktemp("runs")
    text = make(folder, "iteration", "N=2", "RUN=whole", f"SET={' '.join(SMALL)}")
    assert stages_in(text) == [
        "prepare",
        "evaluate 0",
        *(f"{stage} {n}" for n in (1, 2) for stage in ("rollout", "score", "logprobs", "train")),
        "evaluate 2",
    ]
    return folder


def test_every_result_lies_there_to_be_read(runs: Path) -> None:
    root = runs / "whole"
    rollout = pl.read_parquet(root / "iterations/0002/rollout/*.parquet")
    assert rollout.height == 32
    assert rollout.group_by("group_id").len()["len"].to_list() == [4] * 8
    both = rollout
    for stage in ("score", "logprobs"):
        frame = pl.read_parquet(root / f"iterations/0002/{stage}/*.parquet")
        assert frame["rollout_id"].to_list() == rollout["rollout_id"].to_list()
        both = both.join(frame, on="rollout_id", how="inner")
    tokens = both["completion_ids"].list.len()
    for column in ("sampler_logprobs", "old_logprobs", "ref_logprobs", "entropy"):
        assert (both[column].list.len() == tokens).all()
    assert both["advantage"].abs().max() > 0
    gap = (both["old_logprobs"].explode() - both["sampler_logprobs"].explode()).abs().max()
    assert gap < 1e-4, "the sampler and the trainer agree about every token"


def test_the_first_step_of_an_iteration_is_on_policy(runs: Path) -> None:
    for iteration in (1, 2):
        steps = pl.read_parquet(runs / f"whole/iterations/{iteration:04d}/train/*.parquet")
        first = steps.row(0, named=True)
        assert steps.height == 4
        assert first["clip_fraction_low"] == first["clip_fraction_high"] == 0
        assert abs(first["ratio_mean"] - 1) < 1e-4
        assert abs(first["ratio_max"] - 1) < 1e-4
        assert abs(first["approx_kl"]) < 1e-6
        assert steps["approx_kl"].to_list()[-1] > first["approx_kl"]


def test_policies_load_in_transformers_and_differ(runs: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    policies = [
        AutoModelForCausalLM.from_pretrained(runs / f"whole/policies/{n:04d}") for n in (0, 1, 2)
    ]
    weights = [policy.get_input_embeddings().weight for policy in policies]
    assert weights[0].shape == weights[2].shape
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    assert policies[2].get_output_embeddings().weight is weights[2]


def test_a_second_make_changes_nothing_in_seconds(runs: Path) -> None:
    before = snapshot(runs / "whole")
    began = time.monotonic()
    text = make(runs, "iteration", "N=2", "RUN=whole")
    assert time.monotonic() - began < 20
    assert "nothing to do" in text
    assert stages_in(text) == []
    assert snapshot(runs / "whole") == before


def test_metrics_lines_are_the_steps(runs: Path) -> None:
    lines = (runs / "whole/metrics.jsonl").read_text().splitlines()
    steps = pl.read_parquet(runs / "whole/iterations/*/train/*.parquet")
    assert [json.loads(line)["loss"] for line in lines] == steps["loss"].to_list()


@pytest.mark.parametrize(
    "command",
    [
        ["run"],
        ["iteration", "--iteration", "2"],
        ["completions", "--iteration", "1", "--best", "1", "--worst", "1"],
        ["status"],
        ["evaluations"],
        ["disk"],
        ["recipe"],
    ],
    ids=lambda c: c[0],
)
def test_show_prints_its_tables(runs: Path, command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stages.show", *command, "--run", "whole"],
        cwd=REPOSITORY,
        env=environment(runs),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = {
        "run": "flat",
        "iteration": "question",
        "completions": "gold",
        "status": "fresh",
        "evaluations": "mean over tasks",
        "disk": "policies",
        "recipe": '"group_size": 4',
    }
    assert expected[command[0]] in done.stdout


def kill_during(runs: Path, run: str, stage: str, mark: str, delay: float = 0) -> None:
    """Run a stage of iteration 1 and kill -9 it once a file like `mark` is there."""
    command = [sys.executable, "-m", f"stages.{stage}", "--run", run, "--iteration", "1"]
    child = subprocess.Popen(
        command, cwd=REPOSITORY, env=environment(runs), stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list((runs / run).glob(mark)):
        assert child.poll() is None, f"{stage} ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(delay)
    assert child.poll() is None, f"{stage} ended before it could be killed"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()


def test_killed_in_rollout_and_in_train_the_policy_is_the_same(runs: Path) -> None:
    settings = f"SET={' '.join(SMALL)}"
    make(runs, "prepare", "RUN=killed", settings)
    kill_during(runs, "killed", "rollout", "iterations/0001/rollout.partial/*.done.json")
    assert not (runs / "killed/iterations/0001/rollout").exists()
    for stage in ("rollout", "score", "logprobs"):
        if stage == "rollout":
            text = make(runs, "iteration", "N=1", "RUN=killed", "-n")
            assert stages_in(text)[-4:] == ["rollout 1", "score 1", "logprobs 1", "train 1"]
        subprocess.run(
            [sys.executable, "-m", f"stages.{stage}", "--run", "killed", "--iteration", "1"],
            cwd=REPOSITORY,
            env=environment(runs),
            check=True,
            capture_output=True,
        )
    kill_during(runs, "killed", "train", "iterations/0001/train.partial")
    assert not (runs / "killed/policies/0001").exists()
    make(runs, "iteration", "N=1", "RUN=killed")
    for name in ("rollout", "score", "logprobs", "train"):
        hashes = [
            read_manifest(getattr(Run(runs / run), name)(1)).content_hash
            for run in ("whole", "killed")
        ]
        assert hashes[0] == hashes[1], name
    policies = [read_manifest(Run(runs / run).policy(1)) for run in ("whole", "killed")]
    assert policies[0].content_hash == policies[1].content_hash


def test_a_new_reward_makes_only_what_depends_on_it(runs: Path) -> None:
    text = make(runs, "score", "N=2", "RUN=whole", "SET=rewards.format.weight=0.5")
    assert stages_in(text) == ["score 2"]
    plan = make(runs, "-n", "iteration", "N=2", "RUN=whole")
    assert stages_in(plan) == ["train 2", "evaluate 2"]
    before = snapshot(runs / "whole/iterations")
    make(runs, "iteration", "N=2", "RUN=whole")
    after = snapshot(runs / "whole/iterations")
    changed = {path for path in after if after[path] != before.get(path)}
    assert changed
    assert all("0002/train" in path for path in changed)


def test_an_edited_completion_is_refused_then_accepted(runs: Path) -> None:
    path = runs / "whole/iterations/0002/rollout/shard-00000.parquet"
    frame = pl.read_parquet(path)
    frame.with_columns(completion_text=pl.lit("</think><answer>1</answer>")).write_parquet(path)
    assert "--accept-edits" in make(runs, "iteration", "N=2", "RUN=whole", expect=2)
    accept = ["--run", "whole", "--iteration", "2", "--accept-edits"]
    subprocess.run(
        [sys.executable, "-m", "stages.rollout", *accept],
        cwd=REPOSITORY,
        env=environment(runs),
        check=True,
        capture_output=True,
    )
    plan = make(runs, "-n", "iteration", "N=2", "RUN=whole")
    assert stages_in(plan) == ["score 2", "logprobs 2", "train 2", "evaluate 2"]


def test_another_model_for_a_started_run_is_refused(runs: Path) -> None:
    before = (runs / "whole/recipe.toml").read_text()
    text = make(runs, "iteration", "N=2", "RUN=whole", "SET=model.path=elsewhere", expect=2)
    assert "began with" in text
    assert (runs / "whole/recipe.toml").read_text() == before
