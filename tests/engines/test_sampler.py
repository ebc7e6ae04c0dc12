"""The sampler against transformers' own `generate`, the model's own distribution, and itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sampler_requests import (
    FAMILIES,
    STOPS,
    ids_of,
    own_logits,
    params_of,
    prompts_of,
    requests_of,
    seeds_of,
)
from support.tiny_models import VOCABULARY, tiny_model
from test_sampling import assert_distributed, reference_probabilities

from common.engines.engine import Request, SamplingParams
from common.engines.native.sampler import Sampler


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_generate_token_for_token(family: str) -> None:
    """Prompts of many lengths, short sliding windows, few rows: padding, refill and moved rows all
    happen, and any wrong position, mask or slot changes tokens of a random model at once."""
    model = tiny_model(family)
    prompts = prompts_of([1, 3, 9, 30, 2, 17, 5, 24, 8, 12, 40, 6])
    sampler = Sampler(model, STOPS, max_concurrent=5, prefill_tokens=60)
    groups = sampler.generate([Request(ids, [None]) for ids in prompts], SamplingParams(24))
    for prompt, [sample] in zip(prompts, groups, strict=True):
        output = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones((1, len(prompt)), dtype=torch.int64),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=STOPS,
            pad_token_id=2,
        )
        expected = output[0, len(prompt) :].tolist()
        assert_same_but_for_ties(model, prompt, sample.completion_ids, expected)
    assert len({len(group[0].completion_ids) for group in groups}) > 2, "all ended alike"


def assert_same_but_for_ties(
    model: Any, prompt: list[int], found: list[int], expected: list[int]
) -> None:
    for step, (mine, theirs) in enumerate(zip(found, expected, strict=False)):
        if mine != theirs:
            logits = own_logits(model, prompt, expected)[step]
            assert abs(logits[mine] - logits[theirs]) < 1e-5, f"token {step} differs"
            return
    assert found == expected


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "sampling",
    [params_of(0.8, tokens=20), params_of(1.3, top_p=0.9, top_k=20, tokens=20)],
    ids=["whole", "truncated"],
)
def test_logprobs_are_those_of_a_plain_forward(family: str, sampling: SamplingParams) -> None:
    model = tiny_model(family)
    prompts = prompts_of([2, 19, 7, 33, 11])
    groups = Sampler(model, STOPS, max_concurrent=6).generate(requests_of(prompts, 4), sampling)
    for prompt, group in zip(prompts, groups, strict=True):
        for sample in group:
            logits = own_logits(model, prompt, sample.completion_ids).double()
            ids = torch.tensor(sample.completion_ids)[:, None]
            full = torch.log_softmax(logits / sampling.temperature, -1).gather(-1, ids)[:, 0]
            if not sampling.truncated:
                np.testing.assert_allclose(sample.sampler_logprobs, full, atol=1e-4)
            sampled_from = [
                np.log(reference_probabilities(row.numpy(), sampling)[token])
                for row, token in zip(logits, sample.completion_ids, strict=True)
            ]
            np.testing.assert_allclose(sample.sampler_logprobs, sampled_from, atol=1e-4)


@pytest.mark.parametrize(
    "sampling",
    [params_of(tokens=2), params_of(0.7, top_p=0.95, top_k=12, tokens=2)],
    ids=["whole", "truncated"],
)
def test_samples_follow_the_models_own_distribution(sampling: SamplingParams) -> None:
    """First tokens against the softmax after the prompt, second tokens against the softmax after
    the commonest first one: the second kind comes from the cache."""
    model = tiny_model("qwen2")
    [prompt] = prompts_of([9])
    [group] = Sampler(model, [], max_concurrent=512).generate(
        [Request(prompt, seeds_of(0, 6000))], sampling
    )
    tokens = np.array([sample.completion_ids for sample in group])
    first = own_logits(model, prompt, [0])[0].numpy()
    assert_distributed(tokens[:, 0], reference_probabilities(first, sampling))
    commonest = int(np.bincount(tokens[:, 0]).argmax())
    second = own_logits(model, prompt, [commonest, 0])[1].numpy()
    followers = tokens[tokens[:, 0] == commonest, 1]
    assert len(followers) > 200
    assert_distributed(followers, reference_probabilities(second, sampling))


@pytest.mark.parametrize("family", ["qwen2_sliding", "llama"])
def test_the_batch_changes_no_token(family: str) -> None:
    """In float64, where rounding cannot reach a token: rows, prefills, company and how often the
    sampler looks for ended samples may differ, and every sample stays what it was."""
    model = tiny_model(family, dtype=torch.float64)
    prompts = prompts_of([4, 21, 1, 13, 30, 8])
    requests = requests_of(prompts, 5)
    arrangements = [
        {"max_concurrent": 64},
        {"max_concurrent": 4},
        {"max_concurrent": 1, "prefill_tokens": 1},
        {"max_concurrent": 7, "prefill_tokens": 50, "look_every": 5},
        {"max_concurrent": 64, "look_every": 8},
    ]
    results = [
        Sampler(model, STOPS, **arrangement).generate(requests, SamplingParams(18))
        for arrangement in arrangements
    ]
    alone = [
        Sampler(model, STOPS).generate([request], SamplingParams(18))[0] for request in requests
    ]
    for result in [*results[1:], alone]:
        assert ids_of(result) == ids_of(results[0])
        for mine, theirs in zip(chain(*result), chain(*results[0]), strict=True):
            assert mine.finish_reason == theirs.finish_reason
            np.testing.assert_allclose(mine.sampler_logprobs, theirs.sampler_logprobs, atol=1e-6)


def test_one_call_is_repeated_bit_for_bit() -> None:
    """Also after another call: nothing of a call is left in the sampler."""
    model = tiny_model("qwen3")
    requests = requests_of(prompts_of([5, 18, 2]), 6)
    sampler = Sampler(model, STOPS, max_concurrent=4)
    first = sampler.generate(requests, SamplingParams(15))
    sampler.generate(requests_of(prompts_of([50], seed=3), 9), SamplingParams(30))
    assert sampler.generate(requests, SamplingParams(15)) == first


@given(
    shapes=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 5)), min_size=1, max_size=7),
    max_concurrent=st.integers(1, 9),
    prefill_tokens=st.sampled_from([1, 20, 4096]),
    look_every=st.integers(1, 4),
    max_tokens=st.integers(1, 9),
    stops=st.sampled_from([[], STOPS, list(range(0, VOCABULARY, 2))]),
)
@settings(max_examples=25)
def test_every_sample_is_drawn_once_whatever_the_refill(
    shapes: list[tuple[int, int]],
    max_concurrent: int,
    prefill_tokens: int,
    look_every: int,
    max_tokens: int,
    stops: list[int],
) -> None:
    """Each sample must be the one that its own seed draws when it is alone: a row given twice, left
    out, or mixed up with another would hold the tokens of another seed or prompt."""
    model = _double_model()
    prompts = prompts_of([length for length, _ in shapes])
    requests = [
        Request(ids, seeds_of(n, count))
        for n, (ids, (_, count)) in enumerate(zip(prompts, shapes, strict=True))
    ]
    ended = Counter[str]()
    sampler = Sampler(
        model,
        stops,
        max_concurrent=max_concurrent,
        prefill_tokens=prefill_tokens,
        look_every=look_every,
    )
    groups = sampler.generate(
        requests,
        SamplingParams(max_tokens),
        on_ended=lambda count: ended.update(samples=count),
    )
    assert [len(group) for group in groups] == [count for _, count in shapes]
    assert ended["samples"] == sum(count for _, count in shapes)
    for request, group in zip(requests, groups, strict=True):
        for seed, sample in zip(request.seeds, group, strict=True):
            assert sample.completion_ids == _alone(
                model, request.prompt_ids, seed, max_tokens, stops
            )
            stopped = sample.completion_ids[-1] in stops
            assert sample.finish_reason == ("stop" if stopped else "length")
            assert stopped or len(sample.completion_ids) == max_tokens


_MODELS: dict[str, Any] = {}


_ALONE: dict[tuple[Any, ...], list[int]] = {}


def _double_model() -> Any:
    if "double" not in _MODELS:
        _MODELS["double"] = tiny_model("qwen2", dtype=torch.float64, num_hidden_layers=1)
    return _MODELS["double"]


def _alone(
    model: Any, prompt: Sequence[int], seed: int | None, max_tokens: int, stops: list[int]
) -> list[int]:
    key = (tuple(prompt), seed, max_tokens, tuple(stops))
    if key not in _ALONE:
        [[sample]] = Sampler(model, stops).generate(
            [Request(prompt, [seed])], SamplingParams(max_tokens)
        )
        _ALONE[key] = sample.completion_ids
    return _ALONE[key]
