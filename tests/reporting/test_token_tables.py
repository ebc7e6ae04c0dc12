"""show tokens: which tokens of which prompts are clipped, in JSON and on a terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from support.token_runs import make_trained_run

from common.errors import UserError
from common.runs.edits import accept_edits
from common.runs.layout import Run
from common.runs.manifest import read_manifest
from common.runs.schemas import KEY, TOKEN_RECORDS
from common.runs.shards import read_output
from stages import show, tokens


@pytest.fixture
def make_run(runs: Path, tiny_policy: Path, recipe_file: Path) -> Callable[..., Run]:
    """`token_runs.make_trained_run` of the tiny policy."""
    return lambda name, *overrides, **changes: make_trained_run(
        name, tiny_policy, recipe_file, *overrides, **changes
    )


def test_show_tokens_says_which_tokens_of_which_prompt(make_run, capsys):
    """The counts, the tokens and their context are those of the records, row by row."""
    run = make_run("a")
    tokens.main("a", 1, quiet=True)
    records, rollout = read_output(run.tokens(1)), read_output(run.rollout(1))
    show.tokens("a", iteration=1, limit=1, as_json=True)
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
    show.tokens("a", iteration=1, prompt=prompt, every=True, as_json=True)
    one = json.loads(capsys.readouterr().out)
    assert {row["prompt_id"] for row in one["prompts"]} == {prompt}
    assert len(one["tokens"]) == shown["prompts"][0]["tokens"]
    with pytest.raises(UserError, match="no such prompt_id among the 6"):
        show.tokens("a", iteration=1, prompt="nobody")


def test_the_terminal_shows_what_80_columns_hold(make_run, capsys, monkeypatch):
    """Three lines in words, then tables whose ids and last columns are whole."""
    run = make_run("a")
    tokens.main("a", 1, quiet=True)
    monkeypatch.setenv("COLUMNS", "80")
    show.tokens("a", iteration=1, limit=2)
    shown = capsys.readouterr().out
    facts = read_manifest(run.tokens(1)).facts
    low, high = facts["clipped_low"], facts["clipped_high"]
    assert shown.splitlines()[:3] == [
        "policy 1 after its last step, against policy 0 that sampled: "
        f"{facts['tokens']} tokens in the loss",
        "clipped are token ratios below 0.8 (advantage < 0) and above 1.2 (> 0)",
        f"one more epoch would clip {low} tokens from below "
        f"({100 * facts['clip_fraction_low']:.2f} %) and {high} from above "
        f"({100 * facts['clip_fraction_high']:.2f} %)",
    ]
    assert f"\nclipped tokens: 2 of {low + high} (--limit 0 shows all)\n" in shown
    heads = [
        line.split() for line in shown.splitlines() if re.match(r" ?(prompt|rollout) id", line)
    ]
    assert heads == [
        ["prompt", "id", "question", "tokens", "low", "high", "advantage"],
        ["rollout", "id", "position", "text", "clipped", "ratio", "advantage"],
    ]
    assert len(re.findall(r"^ ?1-\d-\d ", shown, re.M)) == 2


def test_whole_completions_are_clipped_at_sequence_level(make_run, capsys):
    settings = ("ratio_level=sequence", "aggregation=sequence_mean", "dual_clip=3")
    make_run("a", *(f"objective.{setting}" for setting in settings))
    tokens.main("a", 1, quiet=True)
    show.tokens("a", iteration=1)
    bounds = "below 0.8 (advantage < 0) and above 1.2 (> 0) and above 3 (< 0)\n"
    assert f"clipped are sequence ratios {bounds}" in capsys.readouterr().out
    show.tokens("a", iteration=1, as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert {row["position"] for row in shown["tokens"]} == {0}
    assert "texts" not in shown


def test_nothing_clipped_is_said_in_words(make_run, capsys):
    make_run("a", "train.learning_rate=1e-6")
    tokens.main("a", 1, quiet=True)
    show.tokens("a", iteration=1)
    said = capsys.readouterr().out
    assert "one more epoch would clip none; the largest ratio is 1" in said
    assert "clipped tokens" not in said


def test_hostile_token_text_cannot_rewrite_the_terminal(make_run, capsys):
    run = make_run("a")
    tokens.main("a", 1, quiet=True)
    (first, *_) = read_manifest(run.tokens(1)).shards
    path = run.tokens(1).path / first.name
    frame = pl.read_parquet(path)
    evil = pl.col("token_text").list.eval(pl.lit("\x1b[2J\u202e[red]", pl.String))
    frame.with_columns(evil).write_parquet(path)
    accept_edits(run.tokens(1), TOKEN_RECORDS)
    show.tokens("a", iteration=1)
    printed = capsys.readouterr().out
    assert "[2J[red]" in printed
    assert "\x1b[2J" not in printed and "\u202e" not in printed


@pytest.mark.parametrize("command", ["iteration", "completions", "gap", "tokens"])
def test_the_run_is_demo_unless_named(runs: Path, command: str) -> None:
    with pytest.raises(UserError, match="demo: no such run"):
        getattr(show, command)(iteration=1)


def test_of_a_term_of_the_recipe_s_own_nothing_counts_as_clipped(make_run, capsys):
    run = make_run("a", "objective.policy_term=support.own_terms:soft_gate")
    tokens.main("a", 1, quiet=True)
    facts = read_manifest(run.tokens(1)).facts
    assert facts["clipped_low"] == facts["clipped_high"] == 0 and facts["ratio_max"] > 1.2
    show.tokens("a", iteration=1, limit=2)
    shown = capsys.readouterr().out
    assert "no token counts as clipped by support.own_terms:soft_gate" in shown
    assert "one more epoch would clip none; the largest ratio is" in shown
