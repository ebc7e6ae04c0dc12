"""The sampler against transformers' own `generate`, the model's own distribution, and itself."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sampling import assert_distributed, reference_probabilities
from tiny_models import VOCABULARY, tiny_model

from common.errors import NonFiniteError, UserError
from common.generation.cache import RowCache, check_cacheable
from common.generation.drawing import Sample
from common.generation.sampler import Request, Sampler, beyond_context
from common.generation.sampling import Sampling
from common.generation.seeds import sample_seed
from common.modeling.load import load_causal_lm

FAMILIES = ["qwen2", "qwen2_sliding", "qwen3", "llama", "mistral", "gemma2"]
STOPS = [1, 7, 11, 23]


def prompts_of(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def seeds_of(prompt: int, count: int) -> list[int]:
    return [sample_seed(0, 1, f"prompt-{prompt}", index) for index in range(count)]


def requests_of(prompts: list[list[int]], samples: int) -> list[Request]:
    return [Request(ids, seeds_of(n, samples)) for n, ids in enumerate(prompts)]


@torch.inference_mode()
def own_logits(model: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """[T, V] what the model says before each token of a completion: a plain forward, no cache."""
    logits = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0]
    return logits[len(prompt) - 1 : -1]


def ids_of(groups: list[list[Sample]]) -> list[list[list[int]]]:
    return [[sample.completion_ids for sample in group] for group in groups]


@contextmanager
def batches_seen(model: Any) -> Iterator[list[tuple[int, int]]]:
    """Shapes (rows, tokens a row) of every forward of the model."""
    shapes: list[tuple[int, int]] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        shapes.append(tuple(kwargs["input_ids"].shape))

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield shapes
    finally:
        handle.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_generate_token_for_token(family: str) -> None:
    """Prompts of many lengths, short sliding windows, few rows: padding, refill and moved rows all
    happen, and any wrong position, mask or slot changes tokens of a random model at once."""
    model = tiny_model(family)
    prompts = prompts_of([1, 3, 9, 30, 2, 17, 5, 24, 8, 12, 40, 6])
    sampler = Sampler(model, STOPS, max_concurrent=5, prefill_tokens=60)
    groups = sampler.generate([Request(ids, [None]) for ids in prompts], max_completion_tokens=24)
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
    "sampling", [Sampling(0.8), Sampling(1.3, top_p=0.9, top_k=20)], ids=["whole", "truncated"]
)
def test_logprobs_are_those_of_a_plain_forward(family: str, sampling: Sampling) -> None:
    model = tiny_model(family)
    prompts = prompts_of([2, 19, 7, 33, 11])
    groups = Sampler(model, STOPS, max_concurrent=6).generate(
        requests_of(prompts, 4),
        max_completion_tokens=20,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
    )
    for prompt, group in zip(prompts, groups, strict=True):
        for sample in group:
            logits = own_logits(model, prompt, sample.completion_ids).double()
            ids = torch.tensor(sample.completion_ids)[:, None]
            full = torch.log_softmax(logits / sampling.temperature, -1).gather(-1, ids)[:, 0]
            np.testing.assert_allclose(sample.sampler_full_logprobs, full, atol=1e-4)
            drawn_from = [
                np.log(reference_probabilities(row.numpy(), sampling)[token])
                for row, token in zip(logits, sample.completion_ids, strict=True)
            ]
            np.testing.assert_allclose(sample.sampler_logprobs, drawn_from, atol=1e-4)


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(0.7, top_p=0.95, top_k=12)], ids=["whole", "truncated"]
)
def test_samples_follow_the_models_own_distribution(sampling: Sampling) -> None:
    """First tokens against the softmax after the prompt, second tokens against the softmax after
    the commonest first one: the second kind comes from the cache."""
    model = tiny_model("qwen2")
    [prompt] = prompts_of([9])
    [group] = Sampler(model, [], max_concurrent=512).generate(
        [Request(prompt, seeds_of(0, 6000))],
        max_completion_tokens=2,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
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
        Sampler(model, STOPS, **arrangement).generate(requests, max_completion_tokens=18)
        for arrangement in arrangements
    ]
    alone = [
        Sampler(model, STOPS).generate([request], max_completion_tokens=18)[0]
        for request in requests
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
    first = sampler.generate(requests, max_completion_tokens=15)
    sampler.generate(requests_of(prompts_of([50], seed=3), 9), max_completion_tokens=30)
    assert sampler.generate(requests, max_completion_tokens=15) == first


@given(
    shapes=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 5)), min_size=1, max_size=7),
    max_concurrent=st.integers(1, 9),
    prefill_tokens=st.sampled_from([1, 20, 4096]),
    look_every=st.integers(1, 4),
    max_tokens=st.integers(1, 9),
    stops=st.sampled_from([[], STOPS, list(range(0, VOCABULARY, 2))]),
)
@settings(max_examples=25, deadline=None)
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
        max_completion_tokens=max_tokens,
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
            [Request(prompt, [seed])], max_completion_tokens=max_tokens
        )
        _ALONE[key] = sample.completion_ids
    return _ALONE[key]


def test_a_group_computes_its_prompt_once_and_no_row_in_vain() -> None:
    """Prefill shapes are those of the prompts alone, and decoding feeds every token but the last of
    each completion exactly once: ended rows leave the batch at once."""
    model = tiny_model("llama")
    prompts = prompts_of([10, 25, 3])
    sampler = Sampler(model, STOPS, max_concurrent=6)
    with batches_seen(model) as shapes:
        groups = sampler.generate(requests_of(prompts, 8), max_completion_tokens=30)
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
        requests_of(prompts_of([6, 9]), group_size), max_completion_tokens=6
    )
    assert [len(group) for group in groups] == [group_size, group_size]
    assert all(sample.completion_ids for group in groups for sample in group)


def test_every_stop_id_ends_a_completion_and_stays_in_it() -> None:
    model = tiny_model("qwen2")
    requests = requests_of(prompts_of([4, 7, 10, 2]), 64)
    groups = Sampler(model, STOPS).generate(requests, max_completion_tokens=64)
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
        Sampler(model, STOPS).generate(requests, max_completion_tokens=limit) for limit in (1, 20)
    )
    for mine, longer in zip(chain(*short), chain(*long), strict=True):
        assert mine.completion_ids == longer.completion_ids[:1]
        assert mine.finish_reason == ("stop" if mine.completion_ids[0] in STOPS else "length")


def test_greedy_and_sampled_completions_share_a_call() -> None:
    model = tiny_model("qwen2")
    [prompt] = prompts_of([6])
    [[greedy, sampled]] = Sampler(model, STOPS).generate(
        [Request(prompt, [None, 5])], max_completion_tokens=12, temperature=1.5
    )
    [[alone]] = Sampler(model, STOPS).generate([Request(prompt, [None])], max_completion_tokens=12)
    assert greedy.completion_ids == alone.completion_ids
    assert set(greedy.sampler_logprobs) == {0.0}
    assert sampled.completion_ids != greedy.completion_ids


def test_prompts_that_do_not_fit_are_refused() -> None:
    model = tiny_model("qwen2")  # a context of 128
    sampler = Sampler(model, STOPS)
    fits, beyond = prompts_of([108, 109])
    sampler.generate([Request(fits, [1])], max_completion_tokens=20)
    with pytest.raises(UserError, match=r"prompt 1 has 109 tokens.*= 20 .*context of 128.*on_long"):
        sampler.generate([Request(fits, [1]), Request(beyond, [1])], max_completion_tokens=20)
    assert beyond_context(108, 20, model.config) is None
    sentence = beyond_context(109, 20, model.config)
    with pytest.raises(UserError, match=f"^{re.escape(f'prompt 0 {sentence}')}$"):
        sampler.generate([Request(beyond, [1])], max_completion_tokens=20)
    assert beyond_context(10**6, 20, SimpleNamespace()) is None
    with pytest.raises(UserError, match="prompt 0 has no token"):
        sampler.generate([Request([], [1])], max_completion_tokens=20)
    assert sampler.generate([], max_completion_tokens=20) == []


def test_damaged_weights_are_said_and_not_sampled(tmp_path: Path) -> None:
    made = tiny_model("qwen2")
    with torch.no_grad():
        made.get_output_embeddings().weight[3] = float("nan")
    made.save_pretrained(tmp_path)
    model = load_causal_lm(tmp_path, torch.float32)
    with pytest.raises(NonFiniteError, match=f"{tmp_path}: the logits .* model.dtype"):
        Sampler(model, STOPS).generate([Request([4, 5], [1, 2])], max_completion_tokens=4)


@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_what_memory_held_before_changes_nothing(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slots not yet written are masked, but 0 times nan would pass the mask."""
    model = tiny_model(family)
    requests = requests_of(prompts_of([3, 40, 8]), 4)
    clean = Sampler(model, STOPS, max_concurrent=5).generate(requests, max_completion_tokens=30)
    allocate = RowCache._allocate
    monkeypatch.setattr(
        RowCache, "_allocate", lambda self, like: allocate(self, like).fill_(float("nan"))
    )
    dirty = Sampler(model, STOPS, max_concurrent=5).generate(requests, max_completion_tokens=30)
    assert dirty == clean


def test_decoders_with_other_states_are_refused() -> None:
    def config(**fields: Any) -> SimpleNamespace:
        return SimpleNamespace(**{"model_type": "m", "_attn_implementation": "sdpa"} | fields)

    check_cacheable(config(layer_types=["full_attention", "sliding_attention"]))
    with pytest.raises(UserError, match="'linear_attention'"):
        check_cacheable(config(layer_types=["full_attention", "linear_attention"]))
    with pytest.raises(UserError, match="'flash_attention_2'"):
        check_cacheable(config(_attn_implementation="flash_attention_2"))
