"""Where sampling begins and ends: groups, stop ids, limits, and what is refused."""

from __future__ import annotations

import re
from collections import Counter
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.sampler_requests import (
    STOPS,
    batches_seen,
    prompts_of,
    requests_of,
)
from support.tiny_models import tiny_model

from common.engines.engine import Request, SamplingParams, beyond_context
from common.engines.native.attention import check_cacheable
from common.engines.native.cache import KeysValues
from common.engines.native.sampler import Sampler
from common.errors import NonFiniteError, UserError
from common.modeling.load import load_causal_lm


def test_a_group_computes_its_prompt_once_and_no_row_in_vain() -> None:
    """Prefill shapes are those of the prompts alone, and decoding feeds every token but the last of
    each completion exactly once: ended rows leave the batch at once."""
    model = tiny_model("llama")
    prompts = prompts_of([10, 25, 3])
    sampler = Sampler(model, STOPS, max_concurrent=6)
    with batches_seen(model) as shapes:
        groups = sampler.generate(requests_of(prompts, 8), SamplingParams(30))
    prefills = [shape for shape in shapes if shape[1] > 1]
    rows_in_steps = sum(rows for rows, width in shapes if width == 1)
    assert prefills == [(3, 25)]
    samples = [sample for group in groups for sample in group]
    assert rows_in_steps == sum(len(sample.completion_ids) - 1 for sample in samples)
    assert max(rows for rows, width in shapes if width == 1) == 6
    assert len({tuple(sample.completion_ids) for sample in groups[0]}) > 1, "one sample repeated"


@pytest.mark.parametrize("group_size", [1, 3, 8, 13])
def test_all_samples_of_a_group_are_drawn(group_size: int) -> None:
    """The seed dropped the last group_size mod chunk samples."""
    model = tiny_model("qwen2")
    groups = Sampler(model, STOPS, max_concurrent=4).generate(
        requests_of(prompts_of([6, 9]), group_size), SamplingParams(6)
    )
    assert [len(group) for group in groups] == [group_size, group_size]
    assert all(sample.completion_ids for group in groups for sample in group)


def test_every_stop_id_ends_a_completion_and_stays_in_it() -> None:
    model = tiny_model("qwen2")
    requests = requests_of(prompts_of([4, 7, 10, 2]), 64)
    groups = Sampler(model, STOPS).generate(requests, SamplingParams(64))
    ended_by = Counter()
    for sample in (sample for group in groups for sample in group):
        assert not set(sample.completion_ids[:-1]) & set(STOPS), "went on behind a stop token"
        assert len(sample.completion_ids) == len(sample.sampler_logprobs) <= 64
        if sample.finish_reason == "stop":
            ended_by[sample.completion_ids[-1]] += 1
        else:
            assert len(sample.completion_ids) == 64 and sample.completion_ids[-1] not in STOPS
    assert set(ended_by) == set(STOPS)


def test_the_limit_counts_the_stop_token_and_a_longer_limit_goes_on_the_same() -> None:
    model = tiny_model("qwen2", dtype=torch.float64)
    requests = requests_of(prompts_of([4, 7]), 8)
    short, long = (
        Sampler(model, STOPS).generate(requests, SamplingParams(limit)) for limit in (1, 20)
    )
    for mine, longer in zip(chain(*short), chain(*long), strict=True):
        assert mine.completion_ids == longer.completion_ids[:1]
        assert mine.finish_reason == ("stop" if mine.completion_ids[0] in STOPS else "length")


def test_greedy_and_sampled_completions_share_a_call() -> None:
    model = tiny_model("qwen2")
    [prompt] = prompts_of([6])
    [[greedy, sampled]] = Sampler(model, STOPS).generate(
        [Request(prompt, [None, 5])], SamplingParams(12, temperature=1.5)
    )
    [[alone]] = Sampler(model, STOPS).generate([Request(prompt, [None])], SamplingParams(12))
    assert greedy.completion_ids == alone.completion_ids
    assert set(greedy.sampler_logprobs) == {0.0}
    assert sampled.completion_ids != greedy.completion_ids


def test_prompts_that_do_not_fit_are_refused() -> None:
    model = tiny_model("qwen2")  # a context of 128
    sampler = Sampler(model, STOPS)
    fits, beyond = prompts_of([108, 109])
    sampler.generate([Request(fits, [1])], SamplingParams(20))
    with pytest.raises(UserError, match=r"prompt 1 has 109 tokens.*= 20 .*context of 128.*on_long"):
        sampler.generate([Request(fits, [1]), Request(beyond, [1])], SamplingParams(20))
    assert beyond_context(108, 20, model.config) is None
    sentence = beyond_context(109, 20, model.config)
    with pytest.raises(UserError, match=f"^{re.escape(f'prompt 0 {sentence}')}$"):
        sampler.generate([Request(beyond, [1])], SamplingParams(20))
    assert beyond_context(10**6, 20, SimpleNamespace()) is None
    with pytest.raises(UserError, match="prompt 0 has no token"):
        sampler.generate([Request([], [1])], SamplingParams(20))
    assert sampler.generate([], SamplingParams(20)) == []


def test_damaged_weights_are_said_and_not_sampled(tmp_path: Path) -> None:
    made = tiny_model("qwen2")
    with torch.no_grad():
        made.get_output_embeddings().weight[3] = float("nan")
    made.save_pretrained(tmp_path)
    model = load_causal_lm(tmp_path, torch.float32)
    with pytest.raises(NonFiniteError, match=f"{tmp_path}: the logits .* model.dtype"):
        Sampler(model, STOPS).generate([Request([4, 5], [1, 2])], SamplingParams(4))


@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_what_memory_held_before_changes_nothing(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slots not yet written are masked, but 0 times nan would pass the mask."""
    model = tiny_model(family)
    requests = requests_of(prompts_of([3, 40, 8]), 4)
    clean = Sampler(model, STOPS, max_concurrent=5).generate(requests, SamplingParams(30))
    allocate = KeysValues._allocate
    monkeypatch.setattr(
        KeysValues, "_allocate", lambda self, *shape: allocate(self, *shape).fill_(float("nan"))
    )
    dirty = Sampler(model, STOPS, max_concurrent=5).generate(requests, SamplingParams(30))
    assert dirty == clean


def test_decoders_with_other_states_are_refused() -> None:
    def config(**fields: Any) -> SimpleNamespace:
        return SimpleNamespace(model_type="m", **fields)

    check_cacheable(config(layer_types=["full_attention", "sliding_attention"]), "sdpa")
    with pytest.raises(UserError, match="'linear_attention'"):
        check_cacheable(config(layer_types=["full_attention", "linear_attention"]), "sdpa")
    with pytest.raises(UserError, match="'flash_attention_2'"):
        check_cacheable(config(), "flash_attention_2")
