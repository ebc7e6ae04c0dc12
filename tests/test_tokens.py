"""The tokens stage after real training of tiny models, against plain forwards and formulas."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from logprobs_runs import flat
from tiny_runs import start_run, write_iteration

from common.errors import UserError
from common.runs.layout import Run
from common.runs.manifest import read_manifest
from common.runs.schemas import KEY, TOKEN_RECORDS
from common.runs.shards import OutputWriter, read_output
from stages import logprobs, show, tokens, train

TEMPERATURE = 0.8
STEEP = [
    *("train.learning_rate=0.03", "train.epochs=2", "objective.kl_coef=0.1"),
    # What tiny_runs notes as the sampler's is of temperature 1.
    *(
        f"rollout.temperature={TEMPERATURE}",
        "logprobs.stop_gap_mean=9",
        "logprobs.alarm_gap_mean=9",
    ),
    "logprobs.alarm_gap_max=9",
]


@pytest.fixture
def make_run(
    runs: Path, tiny_policy: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Run]:
    """A run whose iteration 1 is trained, with steps so large that tokens are clipped."""

    def make(name: str, *overrides: str) -> Run:
        run = Run.named(name)
        start_run(run, tiny_policy, recipe_file, [*STEEP, *overrides])
        write_iteration(run, 1, shards=3)
        logprobs.main(name, 1, overwrite=True, quiet=True)
        train.main(name, 1, quiet=True)
        return run

    return make


def plain(run: Run, policy: int) -> tuple[np.ndarray, np.ndarray]:
    """Logprobs and entropies of all completion tokens by one padded forward a row."""
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
    tokens.main("a", 1, overrides=edited, quiet=True)
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
    alone = make_run("alone")
    shutil.copytree(alone.root, alone.root.with_name("cut"))
    cut = Run.named("cut")
    tokens.main("alone", 1, quiet=True)
    stage("tokens", "--run", "cut", "--iteration", "1", "--quiet", ranks=2)
    one, two = read_output(alone.tokens(1)), read_output(cut.tokens(1))
    assert one.select([KEY, "token_text"]).equals(two.select([KEY, "token_text"]))
    for column in ("new_logprobs", "ratio", "entropy", "kl", "weight"):
        np.testing.assert_allclose(flat(one, column), flat(two, column), rtol=1e-4, atol=1e-5)
    assert (flat(one, "clipped") == flat(two, "clipped")).mean() > 0.99


def test_what_was_killed_goes_on_at_the_missing_shard(make_run, monkeypatch):
    run = make_run("a")
    tokens.main("a", 1, quiet=True)
    whole = read_manifest(run.tokens(1)).content_hash
    shutil.rmtree(run.tokens(1).path)
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
        show.tokens("a", 1)
    tokens.main("a", 1)
    assert "making it again" in capsys.readouterr().out

    policy = run.policy(1)
    manifest = json.loads(policy.manifest.read_text()) | {"pruned": True}
    policy.manifest.write_text(json.dumps(manifest))
    show.tokens("a", 1, as_json=True)
    with pytest.raises(UserError, match=r"policies/0001: its files were pruned.*FROM=1"):
        tokens.main("a", 1, overwrite=True, quiet=True)


def test_without_training_there_is_nothing_to_record(runs, tiny_policy, recipe_file):
    run = Run.named("a")
    start_run(run, tiny_policy, recipe_file)
    write_iteration(run, 1)
    with pytest.raises(UserError, match=r"train is missing.*stages\.train --run a --iteration 1"):
        tokens.main("a", 1, quiet=True)
    with pytest.raises(UserError, match=r"tokens is missing.*stages\.tokens --run a --iteration 1"):
        show.tokens("a", 1)


def test_show_tokens_says_which_tokens_of_which_prompt(make_run, capsys):
    """The counts, the tokens and their context are those of the records, row by row."""
    run = make_run("a")
    tokens.main("a", 1, quiet=True)
    records, rollout = read_output(run.tokens(1)), read_output(run.rollout(1))
    show.tokens("a", 1, limit=0, as_json=True)
    shown = json.loads(capsys.readouterr().out)
    clipped = {
        (row[KEY], position)
        for row in records.to_pylist()
        for position, value in enumerate(row["clipped"])
        if value
    }
    assert {(row[KEY], row["position"]) for row in shown["tokens"]} == clipped
    assert len(shown["tokens"]) == len(clipped) > 5
    far = [abs(np.log(row["ratio"])) for row in shown["tokens"]]
    assert far == sorted(far, reverse=True)
    texts = dict(zip(rollout[KEY].to_pylist(), records["token_text"].to_pylist(), strict=True))
    for row in shown["tokens"]:
        whole = "".join(texts[row[KEY]])
        assert row["before"] + row["token"] + row["after"] in whole
        assert row["token"] == texts[row[KEY]][row["position"]]
    frame = pl.from_arrow(rollout.select([KEY, "prompt_id"])).join(pl.from_arrow(records), on=KEY)
    for row in shown["prompts"]:
        mine = frame.filter(pl.col("prompt_id") == row["prompt_id"])["clipped"].explode()
        assert (row["low"], row["high"]) == ((mine == -1).sum(), (mine == 1).sum())
    assert sum(row["low"] + row["high"] for row in shown["texts"]) == len(clipped)

    prompt = shown["prompts"][0]["prompt_id"]
    show.tokens("a", 1, prompt=prompt, every=True, limit=0, as_json=True)
    one = json.loads(capsys.readouterr().out)
    assert {row["prompt_id"] for row in one["prompts"]} == {prompt}
    assert len(one["tokens"]) == shown["prompts"][0]["tokens"]
    with pytest.raises(UserError, match="no such prompt_id among the 6"):
        show.tokens("a", 1, prompt="nobody")


def test_whole_completions_are_clipped_at_sequence_level(make_run, capsys):
    make_run("a", "objective.ratio_level=sequence", "objective.aggregation=sequence_mean")
    tokens.main("a", 1, quiet=True)
    show.tokens("a", 1, as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert {row["position"] for row in shown["tokens"]} == {0}
    assert "texts" not in shown


def test_nothing_clipped_is_said_in_words(make_run, capsys):
    make_run("a", "train.learning_rate=1e-6")
    tokens.main("a", 1, quiet=True)
    show.tokens("a", 1)
    said = capsys.readouterr().out
    assert "None is clipped; the largest ratio is 1" in said
    assert "clipped tokens" not in said


def test_hostile_token_text_cannot_rewrite_the_terminal(make_run, capsys):
    run = make_run("a")
    tokens.main("a", 1, quiet=True)
    (first, *_) = read_manifest(run.tokens(1)).shards
    path = run.tokens(1).path / first.name
    frame = pl.read_parquet(path)
    evil = pl.col("token_text").list.eval(pl.lit("\x1b[2J\u202e[red]", pl.String))
    frame.with_columns(evil).write_parquet(path)
    tokens.main("a", 1, accept_edits=True, quiet=True)
    show.tokens("a", 1)
    printed = capsys.readouterr().out
    assert "[2J[red]" in printed
    assert "\x1b[2J" not in printed and "\u202e" not in printed
