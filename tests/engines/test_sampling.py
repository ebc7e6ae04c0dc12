"""Tokens from logits: exact distribution, exact logprobs, one uniform per token."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from support.sampler_requests import params_of

from common.engines.engine import SamplingParams
from common.engines.native.sampling import kept, sample_tokens
from common.seeds import permutation, sample_seed, uniforms


def reference_probabilities(logits: np.ndarray, sampling: SamplingParams) -> np.ndarray:
    """Softmax at the temperature, then top-k, then top-p, token by token in plain Python."""
    scaled = logits.astype(np.float64) / sampling.temperature
    weights = np.exp(scaled - scaled.max())
    probabilities = weights / weights.sum()
    order = sorted(range(len(logits)), key=lambda token: -probabilities[token])
    if sampling.top_k:
        order = order[: sampling.top_k]
    total = sum(probabilities[token] for token in order)
    nucleus, mass = [], 0.0
    for token in order:
        if mass >= sampling.top_p * total:
            break
        nucleus.append(token)
        mass += probabilities[token]
    remaining = np.zeros_like(probabilities)
    remaining[nucleus] = probabilities[nucleus]
    return remaining / remaining.sum()


def assert_distributed(tokens: np.ndarray, probabilities: np.ndarray) -> None:
    """Chi-square of sampled tokens against probabilities; rare tokens are put into one bin."""
    observed = np.bincount(tokens, minlength=len(probabilities)).astype(float)
    assert not observed[probabilities == 0].any(), "a token outside the distribution was sampled"
    expected = probabilities * len(tokens)
    rare = expected < 8
    merged_observed, merged_expected = observed[~rare], expected[~rare]
    if expected[rare].sum() > 0:
        merged_observed = np.append(merged_observed, observed[rare].sum())
        merged_expected = np.append(merged_expected, expected[rare].sum())
    assert chisquare(merged_observed, merged_expected, sum_check=False).pvalue > 1e-3


@pytest.mark.parametrize("vocabulary", [5, 97, 256, 300])
@pytest.mark.parametrize(
    "sampling",
    [
        params_of(),
        params_of(temperature=0.6),
        params_of(temperature=2.5),
        params_of(top_k=7),
        params_of(top_p=0.8),
        params_of(temperature=0.8, top_k=40, top_p=0.9),
    ],
    ids=str,
)
def test_tokens_follow_the_distribution(vocabulary: int, sampling: SamplingParams) -> None:
    """40,000 samples of one row; one off by one token, or from the wrong set, is far outside."""
    rng = np.random.default_rng(vocabulary)
    logits = rng.normal(0, 2, vocabulary).astype(np.float32)
    probabilities = reference_probabilities(logits, sampling)
    rows = torch.from_numpy(logits).expand(40_000, -1)
    sampled = sample_tokens(rows, torch.from_numpy(rng.random(40_000)), None, sampling)
    tokens = sampled.tokens.numpy()
    assert_distributed(tokens, probabilities)
    np.testing.assert_allclose(sampled.logprobs, np.log(probabilities[tokens]), atol=2e-6)


@given(
    seed=st.integers(0, 10_000),
    vocabulary=st.integers(1, 700),
    spread=st.sampled_from([0.0, 1.0, 8.0, 60.0]),
    uniform=st.sampled_from([0.0, 1e-12, 0.5, 1 - 1e-9, 1 - 2**-53]) | st.floats(0, 1 - 2**-53),
)
@settings(max_examples=200)
def test_the_token_is_where_the_distribution_function_passes_the_uniform(
    seed: int, vocabulary: int, spread: float, uniform: float
) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1, vocabulary) * spread
    logits[rng.random(vocabulary) < 0.3] = -np.inf
    logits[rng.integers(vocabulary)] = 0.0
    sampled = sample_tokens(
        torch.from_numpy(logits)[None],
        torch.tensor([uniform], dtype=torch.float64),
        None,
        params_of(),
    )
    token = int(sampled.tokens)
    weights = np.exp(logits - logits.max())
    ends = np.cumsum(weights) / weights.sum()
    assert weights[token] > 0, "a token of probability 0 was sampled"
    assert ends[token] - weights[token] / weights.sum() - 1e-12 <= uniform <= ends[token] + 1e-12


def test_a_large_vocabulary_is_reached_to_its_end_in_float32() -> None:
    """With Qwen2.5's 151,936 equally likely tokens, u must give token u · V, also the last ones."""
    vocabulary = 151_936
    rng = np.random.default_rng(0)
    numbers = np.concatenate([rng.random(60), [0, 1 - 2**-53, 1 - 1e-6]])
    logits = torch.zeros((1, vocabulary)).expand(len(numbers), -1)
    tokens = sample_tokens(logits, torch.from_numpy(numbers), None, params_of()).tokens.numpy()
    assert np.abs(tokens - np.floor(numbers * vocabulary)).max() <= 1
    assert tokens[-2] == vocabulary - 1


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((32, 333), generator=generator) * 3
    numbers = torch.rand(32, generator=generator).double()
    together = sample_tokens(logits, numbers, None, params_of(temperature=0.7))
    for row in range(32):
        alone = sample_tokens(logits[row : row + 1], numbers[row : row + 1], None, params_of(0.7))
        assert alone.tokens.item() == together.tokens[row].item()
        assert alone.logprobs.item() == pytest.approx(together.logprobs[row].item(), abs=1e-6)


def test_greedy_rows_take_the_maximum_and_the_others_are_sampled() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0]]).expand(4, -1)
    greedy = torch.tensor([True, False, True, False])
    sampled = sample_tokens(
        logits, torch.tensor([0.0, 0.0, 0.999, 0.999]).double(), greedy, params_of()
    )
    assert sampled.tokens.tolist() == [1, 0, 1, 2]
    expected = torch.log_softmax(logits[0], -1)[sampled.tokens]
    assert sampled.logprobs[greedy].tolist() == [0.0, 0.0], (
        "a single possible outcome has logprob 0"
    )
    torch.testing.assert_close(sampled.logprobs[~greedy], expected[~greedy])


def test_bfloat16_logits_are_normalised_in_float32() -> None:
    logits = torch.linspace(-4, 4, 1000).to(torch.bfloat16)[None]
    sampled = sample_tokens(logits, torch.tensor([0.37]).double(), None, params_of())
    exact = torch.log_softmax(logits.double(), -1)[0, sampled.tokens]
    assert sampled.logprobs.item() == pytest.approx(exact.item(), abs=1e-5)


def test_truncation_keeps_the_heaviest_and_what_ties_with_the_last() -> None:
    weights = torch.tensor([[1.0, 4.0, 2.0, 2.0, 1.0]])
    assert kept(weights, params_of(top_k=1)).tolist() == [[False, True, False, False, False]]
    assert kept(weights, params_of(top_k=2)).tolist() == [[False, True, True, True, False]]
    assert kept(weights, params_of(top_p=0.4)).tolist() == [[False, True, False, False, False]]
    assert kept(weights, params_of(top_p=0.5)).tolist() == [[False, True, True, True, False]]
    assert kept(weights, params_of(top_p=1e-9)).sum() == 1
    assert kept(weights, params_of(top_k=99)).all()


def test_seeds_differ_by_every_part_and_streams_share_their_beginning() -> None:
    parts = [(r, i, p, s) for r in (0, 1) for i in (1, 2) for p in ("a", "b") for s in (0, 1)]
    seeds = {sample_seed(*part) for part in parts}
    assert len(seeds) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    # Written down once: a change would silently give every run other samples.
    assert sample_seed(0, 1, "a", 0) == 1846526520578940409
    assert uniforms(7, 100)[:10].tolist() == uniforms(7, 10).tolist()
    assert uniforms(7, 10).tolist() != uniforms(8, 10).tolist()


def test_an_epoch_is_a_shuffle_of_its_own() -> None:
    first, second = permutation(0, 0, 50), permutation(0, 1, 50)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(50))
    assert first.tolist() != second.tolist() != list(range(50))
    assert first.tolist() == permutation(0, 0, 50).tolist() != permutation(1, 0, 50).tolist()
