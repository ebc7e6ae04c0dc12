"""The tokens stage after real training of tiny models, against plain forwards and formulas."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.interrupted import killed_at_second_shard
from support.logprobs_runs import flat
from support.tiny_runs import start_run, write_iteration
from support.token_runs import TEMPERATURE, make_trained_run

from common.errors import UserError
from common.runs.layout import Run
from common.runs.manifest import read_manifest
from common.runs.recipe import recipe_in_force
from common.runs.schemas import KEY, TOKEN_RECORDS
from common.runs.shards import read_output
from stages import show, tokens, train


@pytest.fixture
def make_run(runs: Path, tiny_policy: Path, recipe_file: Path) -> Callable[..., Run]:
    """`token_runs.make_trained_run` of the tiny policy."""
    return lambda name, *overrides, **changes: make_trained_run(
        name, tiny_policy, recipe_file, *overrides, **changes
    )


def plain(run: Run, policy: int) -> tuple[np.ndarray, np.ndarray]:
    """Logprobs and entropies of all completion tokens by one padded forward per row."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(run.policy(policy).path).double().eval()
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for row in read_output(run.rollout(1)).to_pylist():
        ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
        with torch.no_grad():
            logits = model(ids).logits[0, len(row["prompt_ids"]) - 1 : -1]
        log_p = (logits / TEMPERATURE).log_softmax(-1)
        chosen = log_p[range(len(row["completion_ids"])), row["completion_ids"]]
        found.append((chosen.numpy(), -(log_p.exp() * log_p).sum(-1).numpy()))
    return np.concatenate([a for a, _ in found]), np.concatenate([b for _, b in found])


LEVELS = {
    "token": lambda d: d,
    "sequence": lambda d: np.full_like(d, d.mean()),
    "sequence_sum": lambda d: np.full_like(d, d.sum()),
}


@pytest.mark.parametrize("level", LEVELS)
def test_records_equal_plain_forwards_and_the_formulas(make_run, level):
    """Clipping is wide enough that some tokens are within it and some beyond, on both sides."""
    run = make_run("a", f"objective.ratio_level={level}", "objective.aggregation=sequence_mean")
    tokens.main("a", 1, quiet=True)
    found, rollout = read_output(run.tokens(1)), read_output(run.rollout(1))
    assert found.schema.equals(TOKEN_RECORDS)
    assert found[KEY].equals(rollout[KEY])
    names = [[f.name for f in read_manifest(o).shards] for o in (run.tokens(1), run.rollout(1))]
    assert names[0] == names[1] and len(names[0]) == 3

    new, entropy = plain(run, 1)
    old, _ = plain(run, 0)
    np.testing.assert_allclose(flat(found, "new_logprobs"), new, rtol=0, atol=1e-4)
    np.testing.assert_allclose(flat(found, "entropy"), entropy, rtol=0, atol=1e-4)
    lengths = [len(row) for row in rollout["completion_ids"].to_pylist()]
    by_row = np.split(new - old, np.cumsum(lengths)[:-1])
    ratio = np.exp(np.concatenate([LEVELS[level](d) for d in by_row]))
    np.testing.assert_allclose(flat(found, "ratio"), ratio, rtol=2e-3)
    assert ratio.max() > 1.3 and ratio.min() < 0.7

    advantage = np.repeat(read_output(run.score(1))["advantage"].to_numpy(), lengths)
    clipped = 1 * ((ratio > 1.2) & (advantage > 0)) - 1 * ((ratio < 0.8) & (advantage < 0))
    assert {-1, 0, 1} == set(clipped.tolist())
    edge = np.minimum(abs(ratio - 1.2), abs(ratio - 0.8)) < 3e-3
    np.testing.assert_array_equal(flat(found, "clipped")[~edge], clipped[~edge])
    d = old - new  # the reference is policy 0, which is the old policy
    np.testing.assert_allclose(flat(found, "kl"), np.exp(d) - d - 1, rtol=5e-3, atol=1e-5)
    assert (flat(found, "weight") == 1).all()

    facts = read_manifest(run.tokens(1)).facts
    assert facts["tokens"] == len(ratio)
    assert facts["clipped_low"] == (flat(found, "clipped") == -1).sum()
    assert facts["clip_fraction_high"] == (flat(found, "clipped") == 1).mean()
    assert facts["ratio_max"] == flat(found, "ratio").max()


def test_the_objective_is_the_one_that_trained(make_run):
    """A recipe edited since changes nothing; what was trained with is read from its manifest."""
    run = make_run("a")
    edited = ["objective.clip_low=0.9", "objective.kl_coef=0", "train.epochs=1"]
    recipe_in_force(run, None, edited, write=True)
    tokens.main("a", 1, quiet=True)
    manifest = read_manifest(run.tokens(1))
    assert manifest.recipe["objective"]["clip_low"] == 0.2
    assert manifest.facts["clipped_low"] > 0
    assert set(manifest.inputs) == {
        "policies/0001",
        *(f"iterations/0001/{stage}" for stage in ("rollout", "score", "logprobs", "train")),
    }


def test_without_reference_there_is_no_kl(make_run):
    run = make_run("a", "objective.kl_coef=0")
    tokens.main("a", 1, quiet=True)
    found = read_output(run.tokens(1))
    assert found["kl"].null_count == len(found)


def test_two_ranks_give_the_records_of_one(make_run, stage):
    """The last shard has only rejected groups, so no rank has anything to compute there."""
    alone = make_run("alone", rejected=(4, 5))
    shutil.copytree(alone.root, alone.root.with_name("cut"))
    cut = Run.named("cut")
    tokens.main("alone", 1, quiet=True)
    stage("tokens", "--run", "cut", "--iteration", "1", "--quiet", ranks=2)
    one, two = read_output(alone.tokens(1)), read_output(cut.tokens(1))
    assert one.select([KEY, "token_text"]).equals(two.select([KEY, "token_text"]))
    for column in ("new_logprobs", "ratio", "entropy", "kl", "weight"):
        np.testing.assert_allclose(flat(one, column), flat(two, column), rtol=1e-4, atol=1e-5)
    assert (flat(one, "clipped") == flat(two, "clipped")).mean() > 0.99


def test_rejected_groups_have_no_records_and_change_none(make_run, capsys):
    """Of six groups two are not kept, both of the last shard: train, tokens and the tables go on
    with the others, whose records are those of the same training without the rejected."""
    run = make_run("a", rejected=(4, 5))
    tokens.main("a", 1, quiet=True)
    found, rollout = read_output(run.tokens(1)), read_output(run.rollout(1))
    kept = rollout["kept"].to_pylist()
    lengths = [len(ids) if k else 0 for ids, k in zip(rollout["completion_ids"], kept, strict=True)]
    for column in ("token_text", "new_logprobs", "ratio", "clipped", "entropy", "kl", "weight"):
        assert [len(row) for row in found[column].to_pylist()] == lengths
    assert read_manifest(run.tokens(1)).facts["tokens"] == sum(lengths)
    new, entropy = plain(run, 1)
    chosen = np.repeat(kept, [len(ids) for ids in rollout["completion_ids"]])
    np.testing.assert_allclose(flat(found, "new_logprobs"), new[chosen], rtol=0, atol=1e-4)
    np.testing.assert_allclose(flat(found, "entropy"), entropy[chosen], rtol=0, atol=1e-4)

    show.tokens("a", iteration=1, as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert {row["prompt_id"] for row in shown["prompts"]} <= {"p0", "p1", "p2", "p3"}
    show.gap("a", iteration=1, as_json=True)
    assert json.loads(capsys.readouterr().out)["overall"][0]["tokens"] == sum(lengths)
    with pytest.raises(UserError, match="dynamic sampling left its groups out of iteration 1"):
        show.tokens("a", iteration=1, prompt="p4")


def test_what_was_killed_goes_on_at_the_missing_shard(make_run):
    run = make_run("a")
    tokens.main("a", 1, quiet=True)
    whole = read_manifest(run.tokens(1)).content_hash
    shutil.rmtree(run.tokens(1).path)
    with killed_at_second_shard():
        tokens.main("a", 1, quiet=True)
    tokens.main("a", 1, shards="2", quiet=True)
    assert not run.tokens(1).path.exists()
    tokens.main("a", 1, quiet=True)
    assert read_manifest(run.tokens(1)).content_hash == whole


def test_a_policy_trained_anew_makes_them_stale_and_a_pruned_one_impossible(make_run, capsys):
    run = make_run("a")
    tokens.main("a", 1, quiet=True)
    tokens.main("a", 1)
    assert "fresh; nothing to do" in capsys.readouterr().out
    train.main("a", 1, overwrite=True, overrides=["train.epochs=1"], quiet=True)
    with pytest.raises(UserError, match=r"stale \(.* changed\).*stages\.tokens"):
        show.tokens("a", iteration=1)
    tokens.main("a", 1)
    assert "making it again" in capsys.readouterr().out

    policy = run.policy(1)
    manifest = json.loads(policy.manifest.read_text()) | {"pruned": True}
    policy.manifest.write_text(json.dumps(manifest))
    show.tokens("a", iteration=1, as_json=True)
    with pytest.raises(UserError, match=r"policies/0001: its files were pruned.*FROM=1"):
        tokens.main("a", 1, overwrite=True, quiet=True)


def test_without_training_there_is_nothing_to_record(runs, tiny_policy, recipe_file):
    run = Run.named("a")
    start_run(run, tiny_policy, recipe_file)
    write_iteration(run, 1)
    with pytest.raises(UserError, match="train is missing; make it with: make iteration N=1"):
        tokens.main("a", 1, quiet=True)
    with pytest.raises(UserError, match=r"tokens is missing; .* && make tokens N=1 RUN=a"):
        show.tokens("a", iteration=1)
