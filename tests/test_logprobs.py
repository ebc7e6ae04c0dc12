"""The logprobs stage on runs whose rollouts are written here, against plain forwards."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from common.errors import SamplerGapError, UserError
from common.modeling.sampler_gap import sampler_gap
from common.runs.folders import commit_policy
from common.runs.layout import Run, shard_name
from common.runs.manifest import has_manifest, read_manifest
from common.runs.schemas import KEY, ROLLOUT
from common.runs.shards import OutputWriter, read_output, read_shard
from stages import logprobs

RECIPE = """\
[model]
path = "unused"

[data.multiplication]
kind = "generator"
generator = "multiplication"

[objective]
kl_coef = {kl_coef}

[logprobs]
tokens_per_pack = 40
"""

TEMPERATURE = 0.8
GROUPS, GROUP_SIZE, GROUPS_PER_SHARD = 4, 3, 2


def plain(policy: Path, prompt: list[int], tokens: list[int]) -> tuple[list[float], list[float]]:
    """Logprobs and entropies of one completion by the model's own logits, one row, no packs."""
    from transformers import AutoModelForCausalLM

    model = _MODELS.get(policy)
    if model is None:
        model = _MODELS[policy] = AutoModelForCausalLM.from_pretrained(policy).eval()
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
    log_p = torch.log_softmax(logits.double() / TEMPERATURE, -1)
    chosen = log_p.gather(1, torch.tensor(tokens)[:, None]).squeeze(1)
    return chosen.tolist(), (-(log_p.exp() * log_p).sum(-1)).tolist()


_MODELS: dict[Path, Any] = {}


def install(run: Run, number: int, policy: Path) -> None:
    output = run.policy(number)
    shutil.copytree(policy, output.partial)
    commit_policy(output, inputs={}, recipe={}, seed=0)


def write_rollout(run: Run, iteration: int, policy: Path, *, noise: float = 0.0) -> None:
    """A rollout of random completions with the policy's own logprobs, moved by `noise`."""
    random = np.random.default_rng(iteration)
    rows: list[dict[str, Any]] = []
    for group in range(GROUPS):
        prompt = random.integers(3, 90, random.integers(2, 12)).tolist()
        for sample in range(GROUP_SIZE):
            tokens = random.integers(3, 90, random.integers(1, 14)).tolist()
            exact, _ = plain(policy, prompt, tokens)
            noted = (np.array(exact) + noise * random.standard_normal(len(exact))).tolist()
            rows.append(
                {field.name: "" for field in ROLLOUT}
                | {
                    KEY: f"{iteration}-{group}-{sample}",
                    "group_id": group,
                    "sample_index": sample,
                    "prompt_ids": prompt,
                    "completion_ids": tokens,
                    "sampler_logprobs": noted,
                    "sampler_full_logprobs": noted,
                    "policy_version": iteration - 1,
                    "seed": 0,
                    "kept": True,
                }
            )
    before = run.policy(iteration - 1)
    size = GROUP_SIZE * GROUPS_PER_SHARD
    writer = OutputWriter(
        run.rollout(iteration),
        inputs={before.name: read_manifest(before).content_hash},
        recipe={"rollout": {"temperature": TEMPERATURE}},
        seed=0,
        names=[shard_name(i) for i in range(GROUPS // GROUPS_PER_SHARD)],
        schema=ROLLOUT,
    ).open()
    for index, name in enumerate(writer.names):
        part = rows[index * size : (index + 1) * size]
        writer.write(name, pa.Table.from_pylist(part, schema=ROLLOUT))
    writer.commit()


@pytest.fixture
def policies(make_policy: Callable[..., Path]) -> tuple[Path, Path]:
    """The reference, with tied embeddings, and another policy, of 3 layers."""
    return make_policy(), make_policy("qwen2", layers=3, tied=False)


@pytest.fixture
def make_run(runs: Path, policies: tuple[Path, Path]) -> Callable[..., Run]:
    """A run whose iteration 2 has a rollout of policy 1; policy 0 is the reference."""

    def make(name: str = "a", *, kl_coef: float = 0.1, noise: float = 0.0) -> Run:
        run = Run.named(name)
        run.root.mkdir()
        run.recipe.write_text(RECIPE.format(kl_coef=kl_coef))
        for number, policy in enumerate(policies):
            install(run, number, policy)
        write_rollout(run, 2, policies[1], noise=noise)
        return run

    return make


def expected_columns(run: Run, iteration: int, policy: Path) -> tuple[list[float], list[float]]:
    rollout = read_output(run.rollout(iteration)).to_pylist()
    pairs = [plain(policy, row["prompt_ids"], row["completion_ids"]) for row in rollout]
    return [x for pair in pairs for x in pair[0]], [x for pair in pairs for x in pair[1]]


def flat(table: pa.Table, column: str) -> np.ndarray:
    return table[column].combine_chunks().flatten().to_numpy()


def test_every_number_equals_a_plain_forward(make_run, policies):
    """Old policy, reference and entropy, in the rollout's shards and order."""
    run = make_run()
    logprobs.main("a", 2, quiet=True)
    found = read_output(run.logprobs(2))
    rollout = read_output(run.rollout(2))
    assert found[KEY].equals(rollout[KEY])
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
        assert lengths == [len(row) for row in rollout["completion_ids"].to_pylist()]
    facts = read_manifest(run.logprobs(2)).facts
    assert facts["gap_mean"] < facts["gap_max"] < 2e-5
    assert (facts["policy_version"], facts["reference_version"]) == (1, 0)
    assert facts["temperature"] == TEMPERATURE


def test_without_kl_the_reference_is_not_even_there(make_run):
    run = make_run(kl_coef=0.0)
    shutil.rmtree(run.policy(0).path)
    logprobs.main("a", 2, quiet=True)
    found = read_output(run.logprobs(2))
    assert found["ref_logprobs"].null_count == len(found)
    manifest = read_manifest(run.logprobs(2))
    assert manifest.facts["reference_version"] is None
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


def test_a_gap_above_the_bound_stops_and_names_the_worst_tokens(make_run, capsys, loads):
    """No manifest, so train cannot go on; the shards stay, so another bound costs nothing."""
    run = make_run(noise=0.5)
    with pytest.raises(SamplerGapError, match=r"max_gap_mean = 0\.05") as caught:
        logprobs.main("a", 2, quiet=True)
    assert caught.value.exit_code == 5
    rollout = {row[KEY]: row for row in read_output(run.rollout(2)).to_pylist()}
    lines = [line.split() for line in str(caught.value).splitlines() if " token " in line]
    assert len(lines) == 5
    gaps = []
    for key, _, position, *text, _, old, _, sampler in lines:
        row = rollout[key]
        noted = row["sampler_full_logprobs"][int(position)]
        assert float(sampler) == pytest.approx(noted, abs=1e-4)
        assert text[-1].endswith(":")
        gaps.append(abs(float(old.rstrip(",")) - noted))
    assert gaps == sorted(gaps, reverse=True)
    assert not has_manifest(run.logprobs(2))
    loads.clear()
    logprobs.main("a", 2, overrides=["logprobs.max_gap_mean=2"])
    assert loads == []
    assert "2 of 2 shards were complete already" in capsys.readouterr().out
    facts = read_manifest(run.logprobs(2)).facts
    assert facts["gap_max"] == pytest.approx(gaps[0], abs=1e-3)
    assert facts["gap_mean"] == pytest.approx(0.5 * (2 / np.pi) ** 0.5, rel=0.3)


def test_what_was_killed_goes_on_at_the_missing_shard(make_run, monkeypatch):
    """The same content as without the kill, one shard computed in the second attempt."""
    whole, cut = make_run("whole"), make_run("cut")
    logprobs.main("whole", 2, quiet=True)
    written: list[str] = []
    write = OutputWriter.write

    def killed_at_second(self, name, table):
        if written:
            raise KeyboardInterrupt
        written.append(name)
        write(self, name, table)

    with monkeypatch.context() as patch:
        patch.setattr(OutputWriter, "write", killed_at_second)
        with pytest.raises(KeyboardInterrupt):
            logprobs.main("cut", 2, quiet=True)
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


@pytest.mark.parametrize(("weighted", "said"), [("false", True), ("true", False)])
def test_a_kl_without_gradient_is_remarked_upon(make_run, capsys, weighted, said):
    make_run()
    overrides = ["objective.kl_kind=k1", f"objective.kl_importance_weight={weighted}"]
    logprobs.main("a", 2, overrides=overrides, quiet=True)
    assert ("gradient vanishes in expectation" in capsys.readouterr().err) == said


def test_a_rollout_of_another_policy_is_refused(make_run, policies):
    """Policy 1 was trained again after the rollout: its logprobs would be of other weights."""
    run = make_run()
    shutil.rmtree(run.policy(1).path)
    install(run, 1, policies[0])
    with pytest.raises(UserError, match=r"is stale \(policies/0001 changed\).*stages\.rollout"):
        logprobs.main("a", 2, quiet=True)


def test_a_missing_rollout_is_named_with_its_command(make_run):
    make_run()
    with pytest.raises(UserError, match=r"rollout is missing.*stages\.rollout .*--iteration 3"):
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


def gap_tables(old: list[list[float]], sampler: list[list[float]]) -> tuple[pa.Table, pa.Table]:
    keys = [f"r{i}" for i in range(len(old))]
    ids = [list(range(10, 10 + len(row))) for row in sampler]
    rollout = {KEY: keys, "completion_ids": ids, "sampler_full_logprobs": sampler}
    return pa.table(rollout), pa.table({KEY: keys, "old_logprobs": old})


def test_the_gap_is_over_all_tokens_and_names_row_and_position():
    shards = [
        gap_tables([[-1.0], [-2.0, -3.0]], [[-1.5], [-2.0, -2.0]]),
        gap_tables([[-1.0, -4.0]], [[-1.25, -4.0]]),
    ]
    gap = sampler_gap(shards)
    assert (gap.mean, gap.max, gap.tokens) == (1.75 / 5, 1.0, 5)
    worst = [(t.rollout_id, t.position, t.token_id, t.gap) for t in gap.worst[:3]]
    assert worst == [("r1", 1, 11, 1.0), ("r0", 0, 10, 0.5), ("r0", 0, 10, 0.25)]
    assert not gap.exceeds(0.35)
    assert gap.exceeds(0.34)


def test_a_gap_that_is_no_number_exceeds_every_bound():
    gap = sampler_gap([gap_tables([[-1.0, float("nan")]], [[-3.0, -1.0]])])
    assert gap.exceeds(1e9)
    assert gap.worst[0].position == 1


def test_a_missing_number_is_an_error_and_not_a_shift():
    with pytest.raises(UserError, match="r0: old_logprobs has 1 numbers, completion_ids 2 tokens"):
        sampler_gap([gap_tables([[-1.0]], [[-1.0, -2.0]])])
