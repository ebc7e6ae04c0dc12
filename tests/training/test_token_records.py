"""Records of hand-made shards: which tokens are in the loss, and their weight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.logprobs_runs import flat
from support.tiny_runs import start_run, write_iteration

from common.config import ObjectiveConfig, TrainConfig
from common.modeling.token_texts import TokenTexts
from common.parallel.forward import TokenStats
from common.runs.columns import without_rejected
from common.runs.edits import accept_edits
from common.runs.layout import Run
from common.runs.schemas import KEY, LOGPROBS, LOGPROBS_OF_TOKENS, TOKEN_RECORDS
from common.runs.shards import read_output
from common.training.minibatches import permutation
from common.training.token_records import Recorder, entropy_thresholds, record_facts

TEXTS = TokenTexts(Path("nowhere"))
NEW = [[-1.0, -2.0], [], [-1.0], [-0.5, -0.5, -3.0]]
OLD = [[-1.5, -2.0], [], [-0.5], [-1.0, -0.5, -1.0]]
SAMPLER = [[-1.5, -3.0], [], [-0.5], [-1.0, -0.25, -1.0]]
ENTROPY = [[0.1, 0.9], [], [0.5], [0.2, 0.3, 0.8]]


def shard(**changes: list) -> pa.Table:
    """Four completions of groups 7 and 8, one of them without tokens."""
    columns = {
        KEY: ["a", "b", "c", "d"],
        "group_id": [7, 7, 8, 8],
        "completion_ids": pa.array([[3, 4], [], [5], [3, 5, 6]], pa.list_(pa.int32())),
        "finish_reason": ["stop", "stop", "stop", "length"],
        "kept": [True] * 4,
        "advantage": [1.0, -1.0, -1.0, 1.0],
        "old_logprobs": pa.array(OLD, LOGPROBS_OF_TOKENS),
        "sampler_logprobs": pa.array(SAMPLER, LOGPROBS_OF_TOKENS),
        "ref_logprobs": pa.array(OLD, LOGPROBS_OF_TOKENS),
        "entropy": pa.array(ENTROPY, LOGPROBS_OF_TOKENS),
    }
    return pa.table(columns | changes)


def records(rows: pa.Table, thresholds: dict[int, float] | None = None, **objective) -> pa.Table:
    numbers = TokenStats(np.concatenate(NEW).astype(np.float32), np.zeros(6, np.float32))
    recorder = Recorder(ObjectiveConfig(**objective), TEXTS, thresholds or {})
    return recorder.table(rows, numbers).cast(TOKEN_RECORDS)


def test_a_completion_without_tokens_shifts_nothing():
    """Its neighbours keep their own sums at sequence level."""
    found = records(shard(), ratio_level="sequence_sum")
    sums = [0.5, None, -0.5, -1.5]
    for row, total in zip(found["ratio"].to_pylist(), sums, strict=True):
        assert row == pytest.approx([np.exp(total)] * len(row) if row else [])
    assert found["token_text"].to_pylist() == [["#3", "#4"], [], ["#5"], ["#3", "#5", "#6"]]
    assert found["clipped"].to_pylist() == [[1, 1], [], [-1], [0, 0, 0]]


def test_more_completions_without_tokens_than_tokens():
    few = shard().take(pa.array([1, 1, 1, 2]))
    numbers = TokenStats(np.array([-1.0], np.float32), np.zeros(1, np.float32))
    found = Recorder(ObjectiveConfig(ratio_level="sequence"), TEXTS).table(few, numbers)
    assert flat(found, "ratio") == pytest.approx(np.exp(-0.5))


def test_under_cispo_the_cap_clips_whatever_the_advantage():
    found = records(shard(), policy_term="cispo", cispo_cap=1.5)
    assert found["clipped"].to_pylist() == [[1, 0], [], [0], [1, 0, 0]]


def test_what_is_not_in_the_loss_has_no_weight_and_is_not_clipped():
    """A masked completion keeps its ratio to be looked at."""
    rows = shard()
    found = records(rows, mask_truncated=True)
    assert found["weight"].to_pylist() == [[1, 1], [], [1], [0, 0, 0]]
    assert found["clipped"].to_pylist() == [[1, 0], [], [-1], [0, 0, 0]]
    np.testing.assert_allclose(flat(found, "ratio"), np.exp([0.5, 0, -0.5, 0.5, 0, -2]), rtol=1e-6)
    in_loss = Recorder(ObjectiveConfig(mask_truncated=True), TEXTS).in_loss(rows)
    facts = record_facts([(in_loss, found), (in_loss, found)])
    assert (facts["tokens"], facts["clipped_low"], facts["clipped_high"]) == (6, 2, 2)
    assert facts["ratio_mean"] == pytest.approx((np.exp(0.5) + 1 + np.exp(-0.5)) / 3)
    assert facts["ratio_max"] == pytest.approx(np.exp(0.5))


def test_the_weight_is_the_samplers_correction_on_the_selected_tokens():
    corrected = {"sampler_correction": "truncate", "sampler_high": 2.0}
    found = records(shard(), **corrected)
    expected = [1, 2, 1, 1, np.exp(-0.25), 1]
    np.testing.assert_allclose(flat(found, "weight"), expected, rtol=1e-6)
    found = records(shard(), {7: 0.5, 8: 0.3}, top_entropy_quantile=0.5, **corrected)
    np.testing.assert_allclose(flat(found, "weight"), [0, 2, 1, 0, np.exp(-0.25), 1], rtol=1e-6)


def test_rejected_rows_have_no_tokens_left():
    """Nor in the lists of the prompt's neighbours; what is null stays null."""
    nothing = pa.nulls(4, LOGPROBS_OF_TOKENS)
    rows = without_rejected(shard(kept=[True, True, False, True], ref_logprobs=nothing))
    assert rows["completion_ids"].to_pylist() == [[3, 4], [], [], [3, 5, 6]]
    assert rows["old_logprobs"].to_pylist() == [OLD[0], [], [], OLD[3]]
    assert rows["ref_logprobs"].null_count == 4
    numbers = TokenStats(
        np.concatenate([NEW[0], NEW[3]]).astype(np.float32), np.zeros(5, np.float32)
    )
    found = Recorder(ObjectiveConfig(), TEXTS).table(rows, numbers)
    assert [len(row) for row in found["ratio"].to_pylist()] == [2, 0, 0, 3]
    assert Recorder(ObjectiveConfig(), TEXTS).in_loss(rows).tolist() == [True, False, False, True]


def test_null_without_reference():
    nothing = shard(ref_logprobs=pa.nulls(4, LOGPROBS_OF_TOKENS))
    assert records(nothing)["kl"].null_count == 4


def test_thresholds_are_those_of_the_last_epochs_batches(runs, tiny_policy, recipe_file):
    """Two groups a step: each pair of the last epoch's permutation has its own quantile."""
    run = Run.named("a")
    start_run(run, tiny_policy, recipe_file)
    write_iteration(run, 1)
    logprobs = read_output(run.logprobs(1))
    lengths = [len(row) for row in logprobs["old_logprobs"].to_pylist()]
    entropy = np.random.default_rng(0).random(sum(lengths)).astype(np.float32)
    by_group = np.split(entropy, np.cumsum(lengths)[3:-1:4])

    path = run.logprobs(1).path / "shard-00000.parquet"
    offsets = pa.array(np.cumsum([0, *lengths]), pa.int32())
    column = pa.ListArray.from_arrays(offsets, pa.array(entropy))
    at = logprobs.schema.get_field_index("entropy")
    pq.write_table(logprobs.set_column(at, "entropy", column), path)
    assert accept_edits(run.logprobs(1), LOGPROBS) == [path.name]

    objective = ObjectiveConfig(top_entropy_quantile=0.25)
    train = TrainConfig(epochs=2, prompts_per_step=2)
    found = entropy_thresholds(run, 1, objective, train, seed=7)
    order = permutation(6, "7/1/1")  # other pairs than the first epoch's
    for pair in (order[:2], order[2:4], order[4:]):
        threshold = np.quantile(np.concatenate([by_group[g] for g in pair]).astype(float), 0.75)
        assert [found[g] for g in pair] == pytest.approx([threshold] * 2)
    assert len(set(found.values())) == 3
    assert entropy_thresholds(run, 1, ObjectiveConfig(), train, seed=7) == {}
