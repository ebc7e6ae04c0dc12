"""Variants trained from one frozen iteration: what they share, what differs, what stays."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
from support import REPOSITORY

from common.runs.child import Frozen
from common.runs.freshness import plan, status_of
from common.runs.hashing import sha256_of_bytes, sha256_of_file
from common.runs.layout import DEFAULT_RECIPE, Run
from common.runs.manifest import read_manifest
from common.runs.policies import prune
from common.runs.recipe import recipe_in_force
from common.runs.stages import BY_NAME
from common.stage import StageRun
from stages import logprobs, prepare, rollout, score, train

SMALL = [
    *("rollout.prompts_per_iteration=8", "rollout.group_size=4", "rollout.groups_per_shard=4"),
    *("train.prompts_per_step=4", "train.epochs=2", "evaluate.every=0"),
    *(f"data.{task}.eval=4" for task in ("multiplication", "counting", "scheduling")),
]
VARIANTS = {
    "as_is": "train.warmup_iterations=5",
    "pp2": "mesh.pp_degree=2",
    "dr": "preset=dr_grpo",
    "again": "preset=dr_grpo",
    "broken": "rewards.functions.mine.function=no_such_module:f,rewards.functions.mine.weight=1.0",
}


@dataclass(frozen=True)
class Compared:
    """What the real command did, once for all tests of this file."""

    parent: Run
    before: dict[str, str]
    """sha256 of the parent's files before."""
    exit_code: int
    facts: dict[str, dict[str, float | str | None]]
    errors: str
    steps: pl.DataFrame

    def child(self, name: str) -> Run:
        return Run(self.parent.root.with_name(f"a.2.{name}"))

    def policy(self, name: str) -> str:
        return read_manifest(self.child(name).policy(2)).content_hash


def content(path: Path) -> str:
    """Hash of a file; of a manifest without the stat of its files, which a link changes."""
    text = path.read_text() if path.name == "manifest.json" else ""
    bare = re.sub(r'"(ctime_ns|mtime_ns|inode)": \d+', "", text)
    return sha256_of_bytes(bare.encode()) if bare else sha256_of_file(path)


def hashes(run: Run) -> dict[str, str]:
    files = (path for path in run.root.rglob("*") if path.is_file())
    return {str(path.relative_to(run.root)): content(path) for path in files}


def run_compare(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "workflows.compare", "--run", "a", "--iteration", "2"]
    return subprocess.run(
        [*command, *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compared]:
    """Run `a`, complete up to the logprobs of iteration 2, and five variants of that iteration."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAGED_GRPO_RUNS", str(folder))
        patch.chdir(REPOSITORY)
        prepare.main("a", DEFAULT_RECIPE, SMALL)
        for n in (1, 2):
            for stage in (rollout, score, logprobs, *((train,) if n == 1 else ())):
                stage.main("a", n)
        parent = Run.named("a")
        before, table = hashes(parent), folder / "steps.parquet"
        options = [f"--variant={name}:{keys}" for name, keys in VARIANTS.items()]
        done = run_compare(*options, "--json", "--output", str(table))
        rows = json.loads(done.stdout)["variants"] if done.stdout else []
        facts = {row["variant"]: row for row in rows}
        steps = pl.read_parquet(table)
        yield Compared(parent, before, done.returncode, facts, done.stderr, steps)


def test_the_same_recipe_gives_the_same_bytes_and_another_objective_others(
    compared: Compared,
) -> None:
    assert compared.policy("dr") == compared.policy("again") != compared.policy("as_is")
    assert compared.facts["dr"]["relative_difference"] != 0
    assert 0 < compared.facts["dr"]["cosine"] < 1  # type: ignore[operator]
    assert compared.facts["dr"]["kl"] is None and compared.facts["as_is"]["kl"] is not None


def test_pipeline_degrees_agree(compared: Compared) -> None:
    files = list(compared.child("pp2").policy(2).path.glob("*.safetensors"))
    assert len(files) == 2
    assert compared.facts["pp2"]["relative_difference"] < 1e-3  # type: ignore[operator]
    assert compared.facts["pp2"]["cosine"] == pytest.approx(1, abs=1e-6)


def test_what_is_alike_is_taken_over_and_nothing_else(compared: Compared) -> None:
    """A manifest tells whose it is by the time of its making."""

    def made(run: Run) -> list[str]:
        outputs = (run.score(2), run.logprobs(2))
        return [f"{o.name} {content(o.manifest)}" for o in outputs]

    parent, dr = made(compared.parent), made(compared.child("dr"))
    assert made(compared.child("as_is")) == made(compared.child("pp2")) == parent
    assert made(compared.child("again")) == dr and not set(dr) & set(parent)


def test_the_parent_stays_and_its_weights_are_not_copied(compared: Compared) -> None:
    assert hashes(compared.parent) == compared.before
    child = compared.child("as_is")
    for name in ("policies/0000", "policies/0001", "trainer/0001"):
        for path in (child.root / name).glob("*.safetensors"):
            assert path.samefile(compared.parent.root / name / path.name)
    assert not (child.root / "prompts/train-00000.parquet").samefile(
        compared.parent.root / "prompts/train-00000.parquet"
    )


def test_a_child_is_an_ordinary_run_that_goes_on(compared: Compared) -> None:
    child = compared.child("dr")
    recipe = recipe_in_force(child)
    assert plan(child, recipe, to=2) == []
    assert [str(s) for s in plan(child, recipe, to=3)] == [
        f"{stage}-3" for stage in ("rollout", "score", "logprobs", "train")
    ]
    rollout.main("a.2.dr", 3)
    assert read_manifest(child.rollout(3)).inputs["policies/0002"] == compared.policy("dr")


def test_a_variant_that_fails_is_named_and_the_others_are_complete(compared: Compared) -> None:
    assert compared.exit_code == 2
    assert "no_such_module" in compared.errors
    assert compared.facts["broken"]["result"] == "score: exit code 2"
    assert compared.facts["broken"]["steps"] is None
    counts = compared.steps.group_by("variant", maintain_order=True).len()
    assert counts.rows() == [(name, 4) for name in VARIANTS if name != "broken"]


def test_again_it_makes_nothing_and_prints_the_tables(compared: Compared) -> None:
    before = hashes(compared.child("dr"))
    done = run_compare("--variant", f"as_is:{VARIANTS['as_is']}", "--variant", "dr:preset=dr_grpo")
    assert done.returncode == 0, done.stderr
    assert "-m stages." not in done.stdout
    assert "against as_is" in done.stdout and "clip_fraction_low" in done.stdout
    assert hashes(compared.child("dr")) == before


def test_pruning_and_hand_edits_in_a_child_do_not_reach_the_parent(compared: Compared) -> None:
    child = compared.child("again")
    shard = child.score(2).path / "shard-00000.parquet"
    pl.read_parquet(shard).with_columns(advantage=-pl.col("advantage")).write_parquet(shard)
    score.main("a.2.again", 2, accept_edits=True)
    assert status_of(child, child.train(2)).reason == "iterations/0002/score changed"
    recipe = recipe_in_force(child, overrides=["train.learning_rate=1.0"], write=True)
    train.tidy(StageRun(BY_NAME["train"], child, 2, BY_NAME["train"].view(recipe)))
    prune(child, newest=3, keep_policies=2, keep_trainer=2)
    assert read_manifest(child.policy(1)).pruned and not list(child.policy(1).path.glob("*.safe*"))
    assert hashes(compared.parent) == compared.before


def test_a_stage_is_what_it_would_be_by_hand(compared: Compared) -> None:
    forked = compared.policy("as_is")
    train.main("a.2.as_is", 2, overwrite=True)
    assert compared.policy("as_is") == forked


def test_without_hard_links_weights_are_copied(
    compared: Compared, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = Frozen(compared.parent, 2)
    elsewhere = frozen.child("elsewhere")
    monkeypatch.setattr(os, "link", lambda *_: Path("/nowhere").stat())
    frozen.make(elsewhere, compared.child("as_is").recipe.read_text())
    weights = next(elsewhere.policy(1).path.glob("*.safetensors"))
    assert weights.stat().st_nlink == 1
    assert status_of(elsewhere, elsewhere.rollout(2)).state == "fresh"
    assert hashes(compared.parent) == compared.before
