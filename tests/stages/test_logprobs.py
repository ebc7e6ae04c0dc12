"""The logprobs stage on runs whose rollouts are written here, against plain forwards."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from support import logprobs_runs
from support.interrupted import killed_at_second_shard
from support.logprobs_runs import TEMPERATURE, flat, install, plain, write_rollout

from common.errors import UserError
from common.runs.freshness import status_of
from common.runs.layout import Run
from common.runs.manifest import read_manifest
from common.runs.schemas import KEY
from common.runs.shards import OutputWriter, read_output, read_shard
from stages import logprobs, rollout


@pytest.fixture
def policies(make_policy: Callable[..., Path]) -> tuple[Path, Path]:
    """The reference, with tied embeddings, and another policy, of 3 layers."""
    return make_policy(), make_policy("qwen2", layers=3, tied=False)


@pytest.fixture
def make_run(runs: Path, policies: tuple[Path, Path]) -> Callable[..., Run]:
    """`logprobs_runs.make_run` of the two policies, in an empty runs directory."""
    return lambda name="a", **changes: logprobs_runs.make_run(name, policies, **changes)


def expected_columns(run: Run, iteration: int, policy: Path) -> tuple[list[float], list[float]]:
    rows = read_output(run.rollout(iteration)).to_pylist()
    pairs = [plain(policy, row["prompt_ids"], row["completion_ids"]) for row in rows]
    return [x for pair in pairs for x in pair[0]], [x for pair in pairs for x in pair[1]]


def test_every_number_equals_a_plain_forward(make_run, policies):
    """Old policy, reference and entropy, in the rollout's shards and order."""
    run = make_run()
    logprobs.main("a", 2, quiet=True)
    found = read_output(run.logprobs(2))
    sampled = read_output(run.rollout(2))
    assert found[KEY].equals(sampled[KEY])
    names = [
        [record.name for record in read_manifest(o).shards]
        for o in (run.logprobs(2), run.rollout(2))
    ]
    assert names[0] == names[1] == ["shard-00000.parquet", "shard-00001.parquet"]
    old, entropy = expected_columns(run, 2, policies[1])
    reference, _ = expected_columns(run, 2, policies[0])
    for column, expected in (
        ("old_logprobs", old),
        ("ref_logprobs", reference),
        ("entropy", entropy),
    ):
        np.testing.assert_allclose(flat(found, column), expected, rtol=0, atol=2e-5)
        lengths = [len(row) for row in found[column].to_pylist()]
        assert lengths == [len(row) for row in sampled["completion_ids"].to_pylist()]
    facts = read_manifest(run.logprobs(2)).facts
    assert facts["gap_mean"] < facts["gap_max"] < 2e-5
    assert (facts["policy_version"], facts["reference"]) == (1, "policies/0000")
    assert facts["temperature"] == TEMPERATURE


def test_rejected_groups_cost_no_forward(make_run, policies, monkeypatch):
    """Group 1 of the first shard and all of the second are not kept: their lists are empty, only
    the others' tokens go through a model, and the numbers of those are what they were."""
    from common.parallel.pipeline import Pipeline

    whole, run = make_run("whole"), make_run("a", rejected=(1, 2, 3))
    logprobs.main("whole", 2, quiet=True)
    targets: list[int] = []
    forward = Pipeline.run_forward

    def counted(self, packs, *args):
        targets.append(packs.num_targets)
        return forward(self, packs, *args)

    monkeypatch.setattr(Pipeline, "run_forward", counted)
    logprobs.main("a", 2, quiet=True)
    before, found = read_output(whole.logprobs(2)), read_output(run.logprobs(2))
    assert found[KEY].equals(before[KEY])
    kept = read_output(run.rollout(2), ["kept"])["kept"].to_pylist()
    assert kept == [True] * 3 + [False] * 9
    for column in ("old_logprobs", "ref_logprobs", "entropy"):
        rows = zip(found[column].to_pylist(), before[column].to_pylist(), kept, strict=True)
        for row, former, stays in rows:
            assert row == pytest.approx(former if stays else [], rel=0, abs=1e-6)
    tokens = len(flat(found, "entropy"))
    assert targets == [tokens, tokens], "reference and policy, one shard each"
    assert read_manifest(run.logprobs(2)).facts["tokens"] == tokens


def test_an_edited_kept_makes_the_logprobs_stale(make_run):
    """They have no numbers of rows that are kept since."""
    run = make_run(rejected=(1,))
    logprobs.main("a", 2, quiet=True)
    path = run.rollout(2).path / "shard-00000.parquet"
    pl.read_parquet(path).with_columns(kept=pl.lit(True)).write_parquet(path)
    rollout.main("a", 2, accept_edits=True, quiet=True)
    assert status_of(run, run.logprobs(2)).reason == "iterations/0002/rollout changed"
    logprobs.main("a", 2, quiet=True)
    assert all(read_output(run.logprobs(2))["entropy"].to_pylist())


def test_without_kl_the_reference_is_not_even_there(make_run):
    run = make_run(kl_coef=0.0)
    shutil.rmtree(run.policy(0).path)
    logprobs.main("a", 2, quiet=True)
    found = read_output(run.logprobs(2))
    assert found["ref_logprobs"].null_count == len(found)
    manifest = read_manifest(run.logprobs(2))
    assert manifest.facts["reference"] is None
    assert run.policy(0).name not in manifest.inputs


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the policies that were loaded, each after the one before had left memory."""
    from common.parallel import pipeline

    names: list[str] = []
    alive: list[weakref.ref] = []
    original = pipeline.Pipeline.__init__

    def watched(self, policy_dir, *args, **kwargs):
        assert not any(ref() for ref in alive), "two models in memory"
        names.append(policy_dir.name)
        original(self, policy_dir, *args, **kwargs)
        alive.append(weakref.ref(self.module))

    monkeypatch.setattr(pipeline.Pipeline, "__init__", watched)
    return names


def test_the_reference_has_left_memory_when_the_policy_comes(make_run, loads):
    make_run()
    logprobs.main("a", 2, quiet=True)
    assert loads == ["0000", "0001"]


def test_a_policy_that_is_its_own_reference_is_computed_once(runs, policies, make_run, loads):
    run = make_run()
    write_rollout(run, 1, policies[0])
    logprobs.main("a", 1, quiet=True)
    assert loads == ["0000"]
    found = read_output(run.logprobs(1))
    assert found["ref_logprobs"].equals(found["old_logprobs"])


def test_what_was_killed_goes_on_at_the_missing_shard(make_run, monkeypatch):
    """The same content as without the kill, one shard computed in the second attempt."""
    whole, cut = make_run("whole"), make_run("cut")
    logprobs.main("whole", 2, quiet=True)
    with killed_at_second_shard() as written:
        logprobs.main("cut", 2, quiet=True)
    write = OutputWriter.write
    monkeypatch.setattr(
        OutputWriter, "write", lambda self, name, t: (written.append(name), write(self, name, t))
    )
    logprobs.main("cut", 2, quiet=True)
    assert written == ["shard-00000.parquet", "shard-00001.parquet"]
    hashes = [read_manifest(run.logprobs(2)).content_hash for run in (whole, cut)]
    assert hashes[0] == hashes[1]


def test_a_complete_output_is_left_alone(make_run, capsys, loads):
    make_run()
    logprobs.main("a", 2)
    loads.clear()
    logprobs.main("a", 2)
    assert "complete and fresh; nothing to do" in capsys.readouterr().out
    assert loads == []


def test_a_rollout_of_another_policy_is_refused(make_run, policies):
    """Policy 1 was trained again after the rollout: its logprobs would be of other weights."""
    run = make_run()
    shutil.rmtree(run.policy(1).path)
    install(run, 1, policies[0])
    with pytest.raises(UserError, match=r"is stale \(policies/0001 changed\).*stages\.rollout"):
        logprobs.main("a", 2, quiet=True)


def test_a_missing_rollout_is_named_with_its_command(make_run):
    make_run()
    with pytest.raises(UserError, match=r"rollout is missing; make it with: make iteration N=3"):
        logprobs.main("a", 3, quiet=True)


def test_four_ranks_give_the_numbers_of_one(make_run, stage):
    """Two replicas with a shard each, of two pipeline stages that share three layers."""
    alone, divided = make_run("alone"), make_run("divided")
    logprobs.main("alone", 2, quiet=True)
    stage(
        "logprobs",
        *("--run", "divided", "--iteration", "2", "--set", "mesh.dp_degree=2", "--json"),
        ranks=4,
    )
    manifests = [read_manifest(run.logprobs(2)) for run in (alone, divided)]
    for records in zip(*(manifest.shards for manifest in manifests), strict=True):
        assert records[0].name == records[1].name
        tables = [
            read_shard(r.logprobs(2), f) for r, f in zip((alone, divided), records, strict=True)
        ]
        assert tables[0][KEY].equals(tables[1][KEY])
        for column in ("old_logprobs", "ref_logprobs", "entropy"):
            np.testing.assert_allclose(
                flat(tables[0], column), flat(tables[1], column), rtol=0, atol=1e-5
            )
