"""The sampler gap: its figures against plain loops, what they hint at, and the gate of logprobs."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import logprobs_runs

from common.config import LogprobsConfig
from common.errors import SamplerGapError, UserError
from common.modeling.token_texts import TokenTexts
from common.objective.sampler_gap import SamplerGap, exceeded, sampler_gap
from common.reporting.gap_tables import describe, hints, position_table
from common.runs.layout import Run
from common.runs.manifest import has_manifest, read_manifest
from common.runs.schemas import KEY
from common.runs.shards import read_output
from stages import logprobs, show

NAN = float("nan")


def tables(
    old: list[list[float]], sampler: list[list[float]], ids: list[list[int]] | None = None
) -> tuple[pa.Table, pa.Table]:
    """A rollout and a logprobs shard; token ids count from 10 in each row unless given."""
    keys = [f"r{i}" for i in range(len(old))]
    ids = ids or [list(range(10, 10 + len(row))) for row in sampler]
    rollout = {KEY: keys, "completion_ids": ids, "sampler_logprobs": sampler}
    return pa.table(rollout), pa.table({KEY: keys, "old_logprobs": old})


def gap_of(gaps: np.ndarray, ids: np.ndarray | None = None) -> SamplerGap:
    """Of completions with these gaps [completions, tokens]."""
    zero = np.zeros_like(gaps).tolist()
    return sampler_gap([tables((-gaps).tolist(), zero, None if ids is None else ids.tolist())])


def test_the_gap_is_over_all_tokens_and_names_row_and_position():
    shards = [
        tables([[-1.0], [-2.0, -3.0]], [[-1.5], [-2.0, -2.0]]),
        tables([[-1.0, -4.0]], [[-1.25, -4.0]]),
    ]
    gap = sampler_gap(shards)
    assert (gap.mean, gap.max, gap.tokens) == (1.75 / 5, 1.0, 5)
    worst = [(t.rollout_id, t.position, t.token_id, t.gap) for t in gap.worst[:3]]
    assert worst == [("r1", 1, 11, 1.0), ("r0", 0, 10, 0.5), ("r0", 0, 10, 0.25)]


tokens = st.tuples(st.integers(0, 6), st.floats(-20, 0, width=32), st.floats(-20, 0, width=32))


@settings(max_examples=100)
@given(st.lists(st.lists(st.lists(tokens, max_size=9), min_size=1, max_size=4), max_size=3))
def test_bins_over_shards_equal_plain_loops(shards):
    by_position, by_token, all_gaps = defaultdict(list), defaultdict(list), []
    for rows in shards:
        for row in rows:
            for position, (token_id, old, sampler) in enumerate(row):
                gap = abs(old - sampler)
                label = {0: "0", 1: "1", 2: "2-3", 3: "2-3", 8: "8-15"}.get(position, "4-7")
                by_position[label].append(gap)
                by_token[token_id].append(gap)
                all_gaps.append(gap)
    kinds = pa.list_(pa.float64())
    pairs = []
    for rows in shards:
        ids, old, sampler = ([[token[i] for token in row] for row in rows] for i in range(3))
        keys = [f"r{i}" for i in range(len(rows))]
        rollout = {KEY: keys, "completion_ids": pa.array(ids, pa.list_(pa.int32()))}
        rollout["sampler_logprobs"] = pa.array(sampler, kinds)
        pairs.append((pa.table(rollout), pa.table({"old_logprobs": pa.array(old, kinds)})))
    found = sampler_gap(pairs, worst=4)
    assert [token.gap for token in found.worst] == sorted(all_gaps, reverse=True)[:4]
    for row in position_table(found).to_dicts():
        gaps = by_position.pop(row["positions"])
        assert (row["tokens"], row["max"]) == (len(gaps), max(gaps))
        assert row["mean"] == pytest.approx(math.fsum(gaps) / len(gaps))
    bins = found.by_token
    for token_id, count, mean, largest in zip(
        bins.bins, bins.tokens, bins.mean, bins.max, strict=True
    ):
        gaps = by_token.pop(token_id)
        assert (count, largest) == (len(gaps), max(gaps))
        assert mean == pytest.approx(math.fsum(gaps) / len(gaps))
    assert not by_position and not by_token


def test_the_worst_ids_by_mean_must_occur_often():
    ids = np.array([[5] * 12 + [6] * 12 + [7]])
    gap = gap_of(np.array([[0.1] * 12 + [0.3] * 12 + [9.0]]), ids)
    assert gap.by_token.worst("mean", 5, least_tokens=10).bins.tolist() == [6, 5]
    assert gap.by_token.worst("max", 2).bins.tolist() == [7, 6]


def test_a_gap_that_is_no_number_is_above_every_bound_and_named_first():
    gap = sampler_gap([tables([[-1.0, NAN, -9.0]], [[-3.0, -1.0, -1.0]])])
    bounds = LogprobsConfig(stop_gap_mean=1e9, stop_gap_max=1e9)
    assert len(exceeded(gap, bounds, "stop")) == 2
    assert [token.position for token in gap.worst] == [1, 2, 0]
    assert gap.by_token.worst("mean", 1).bins.tolist() == [11]
    assert "token 1 '#11': trainer nan" in describe(gap, TokenTexts(Path("nowhere")))


def test_alarms_and_bounds_are_told_apart():
    gap = gap_of(np.array([[0.03, 0.03, 0.03]]))
    assert exceeded(gap, LogprobsConfig(), "stop") == {}
    assert exceeded(gap, LogprobsConfig(), "warn") == {
        "logprobs.warn_gap_mean": "mean 0.03 nats, above logprobs.warn_gap_mean = 0.02"
    }
    strict = LogprobsConfig(stop_gap_max=0.02)
    assert exceeded(gap, strict, "stop") == {
        "logprobs.stop_gap_max": "max 0.03 nats, above logprobs.stop_gap_max = 0.02"
    }


def test_a_missing_number_is_an_error_and_not_a_shift():
    with pytest.raises(UserError, match="r0: old_logprobs has 1 numbers, completion_ids 2 tokens"):
        sampler_gap([tables([[-1.0]], [[-1.0, -2.0]])])


ROWS, LENGTH = 20, 32
EVEN = np.full((ROWS, LENGTH), 0.04)
FIRST = np.where(np.arange(LENGTH) == 0, 1.0, 1e-3) * np.ones((ROWS, 1))
GROWING = 1e-3 * (1 + np.arange(LENGTH)) * np.ones((ROWS, 1))
IDS = np.tile(np.arange(100, 100 + LENGTH), (ROWS, 1))
OUTLIER = ["Half of it is that of 1 of the 640 tokens"]
SHUFFLED = np.random.default_rng(0).permuted(IDS, axis=1)


@pytest.mark.parametrize(
    ("gaps", "ids", "said"),
    [
        (EVEN, SHUFFLED, ["about the same at every position"]),
        (FIRST, SHUFFLED, ["sits at the first token (1, later 0.001)"]),
        (GROWING, SHUFFLED, ["grows with the position"]),
        (np.where(SHUFFLED == 117, 1.0, 1e-3), SHUFFLED, ["Half of it is that of '#117', 3.1%"]),
        (EVEN * 1e-5, SHUFFLED, []),
        (np.where(np.arange(ROWS * LENGTH).reshape(ROWS, LENGTH) == 90, 50.0, 1e-3), IDS, OUTLIER),
    ],
    ids=["even", "first", "growing", "one id", "rounding", "one token"],
)
def test_hints_are_of_where_the_gap_sits(gaps, ids, said):
    """A single outlier is called one, and nothing is said of float32's rounding."""
    found = hints(gap_of(gaps, ids), TokenTexts(Path("nowhere")))
    assert len(found) == len(said), found
    for expected, hint in zip(said, found, strict=True):
        assert expected in hint


def test_a_tokens_text_is_what_it_adds_to_a_text(tiny_tokenizer):
    """Byte-level tokens one after another spell the text; torch is not needed for it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    ids = tokenizer.encode("How many times is 12 * 3?\n ok")
    texts = TokenTexts(tiny_tokenizer)
    assert "".join(map(texts, ids)) == "How many times is 12 * 3?\n ok"
    assert texts.column(np.array(ids)).to_pylist() == list(map(texts, ids))
    assert texts(99_999) == "#99999"
    code = "import sys, common.modeling.token_texts as t; t.TokenTexts(__import__('pathlib').Path"
    code += f"({str(tiny_tokenizer)!r}))(5); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.fixture
def make_run(runs: Path, make_policy: Callable[..., Path]) -> Callable[..., Run]:
    policies = (make_policy(), make_policy("qwen2", layers=3, tied=False))
    return lambda name="a", **changes: logprobs_runs.make_run(name, policies, **changes)


def test_a_gap_above_the_bound_stops_and_names_the_worst_tokens(make_run, capsys, monkeypatch):
    """No manifest, so train cannot go on; the shards stay, so that the tables can be looked at and
    another bound costs no second forward."""
    run = make_run(noise=0.5)
    with pytest.raises(SamplerGapError, match=r"above logprobs\.stop_gap_mean = 0\.05") as caught:
        logprobs.main("a", 2, quiet=True)
    assert caught.value.exit_code == 5
    rollout = {row[KEY]: row for row in read_output(run.rollout(2)).to_pylist()}
    found = re.findall(
        r"^  (\S+) token (\d+) .*: trainer (\S+), sampler (\S+), gap (\S+)$",
        str(caught.value),
        re.M,
    )
    assert len(found) == 5
    gaps = [abs(float(old) - float(sampler)) for _, _, old, sampler, _ in found]
    assert gaps == sorted(gaps, reverse=True)
    assert [float(gap) for *_, gap in found] == pytest.approx(gaps, rel=0.06)
    for key, position, _, sampler, _ in found:
        noted = rollout[key]["sampler_logprobs"][int(position)]
        assert float(sampler) == pytest.approx(noted, abs=1e-4)
    assert "Mean gap by position: 0: 0." in str(caught.value)
    assert str(caught.value).endswith("Raise logprobs.stop_gap_mean; the shards are kept")
    assert not has_manifest(run.logprobs(2))
    show.gap("a", iteration=2, limit=3, as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert shown["overall"][0]["max"] == pytest.approx(gaps[0], abs=2e-4)
    assert len(shown["worst"]) == shown["overall"][0]["tokens"], "JSON is never cut"
    assert [row["gap"] for row in shown["worst"][:5]] == pytest.approx(gaps, abs=2e-4)

    monkeypatch.setattr("common.parallel.forward.Pipeline", None)
    logprobs.main("a", 2, overrides=["logprobs.stop_gap_mean=2"])
    assert "2 of 2 shards were complete already" in capsys.readouterr().out
    facts = read_manifest(run.logprobs(2)).facts
    assert facts["gap_mean"] == pytest.approx(0.5 * (2 / np.pi) ** 0.5, rel=0.3)
    assert sum(row["tokens"] for row in facts["gap_by_position"]) == facts["tokens"]
    assert max(row["max"] for row in facts["gap_by_position"]) == facts["gap_max"]


def test_a_gap_above_the_alarm_alone_is_warned_of_and_committed(make_run, capsys):
    run = make_run(noise=0.04)
    logprobs.main("a", 2, quiet=True)
    said = capsys.readouterr().err
    assert "above logprobs.warn_gap_mean = 0.02" in said
    assert "python -m stages.show gap --run a --iteration 2" in said
    assert has_manifest(run.logprobs(2))
    show.gap("a", iteration=2, limit=4)
    printed = capsys.readouterr().out
    assert "by position in the completion" in printed and "8-15" in printed
    tokens = read_manifest(run.logprobs(2)).facts["tokens"]
    assert f"the worst tokens: 4 of {tokens} (--limit 0 shows all)" in printed
    show.gap("a", iteration=2, limit=0)
    printed = capsys.readouterr().out
    assert len(re.findall(r"^ ?2-\d-\d ", printed, re.M)) == tokens > 5
    assert "--limit 0" not in printed


def test_a_single_token_can_stop_it_if_asked_to(make_run):
    make_run(noise=0.02)
    with pytest.raises(SamplerGapError, match=r"max 0\.\d+ nats, above logprobs\.stop_gap_max"):
        logprobs.main("a", 2, overrides=["logprobs.stop_gap_max=0.03"], quiet=True)


def test_tables_of_another_rollout_are_refused(make_run):
    run = make_run()
    logprobs.main("a", 2, quiet=True)
    logprobs_runs.write_rollout(run, 2, run.policy(1).path, noise=0.01)
    with pytest.raises(UserError, match=r"another rollout.*stages\.logprobs"):
        show.gap("a", iteration=2)
