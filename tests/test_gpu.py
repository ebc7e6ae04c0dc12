"""A GPU computes what the CPU does. `make gpu` runs these; `make test` does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch
from support.sampler_requests import STOPS, ids_of, own_logits, params_of, prompts_of, requests_of
from support.tiny_models import FAMILIES, VOCABULARY, random_completions, tiny_model
from support.trained_runs import steps
from support.two_ranks import TEMPERATURE, open_training, take_step
from torch import Tensor

from common.engines.engine import Request, SamplingParams
from common.engines.native.sampler import Sampler
from common.modeling import pack_attention
from common.modeling.linear import linear
from common.modeling.packing import Completion, PackBatch, pack
from common.modeling.token_logprobs import Head, token_logprobs
from common.parallel.mesh import Mesh
from common.parallel.pipeline import Pipeline
from common.runs.layout import Run

CPU, CARD = torch.device("cpu"), torch.device("cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
EXACT = 2e-4
"""Nats between two devices that compute in float32 with sums of other orders."""
ROUNDED = 0.1
"""Nats between float32 and bfloat16 for these models, whose logits are wide."""


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[str], Path]:
    """Write a tiny model of a family and return its folder."""

    def save(family: str) -> Path:
        tiny_model(family, tied=family == "qwen2").save_pretrained(tmp_path / family)
        return tmp_path / family

    return save


def outputs_of(
    policy: Path, packs: PackBatch, device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Logprob and entropy [tokens, 2] of the targets, on the CPU."""
    pipeline = Pipeline(policy, Mesh(device=device), dtype=dtype, temperature=TEMPERATURE)
    outputs = pipeline.run_forward(packs)
    assert outputs is not None and outputs.device.type == device.type
    return outputs.cpu()[packs.target_mask]


@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_of_packs(family: str, saved: Callable[[str], Path]) -> None:
    policy = saved(family)
    packs = pack(random_completions(0, groups=4), tokens_per_pack=60)
    expected = outputs_of(policy, packs, CPU)
    torch.testing.assert_close(outputs_of(policy, packs, CARD), expected, rtol=0, atol=EXACT)
    rounded = outputs_of(policy, packs, CARD, torch.bfloat16)
    assert (rounded - outputs_of(policy, packs, CPU, torch.bfloat16)).abs().mean() < ROUNDED


@pytest.mark.parametrize("family", ["qwen2", "qwen2_sliding", "mistral"])
def test_flex_attention_of_long_packs(
    family: str, saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows, and prompts with several completions, cross its blocks of 128 tokens."""
    policy = saved(family)
    rows = random_completions(0, groups=3, longest_prompt=60, longest_completion=60)
    packs = pack(rows, tokens_per_pack=512)
    expected = outputs_of(policy, packs, CPU)
    monkeypatch.setattr(pack_attention, "FLEX_TOKENS", 1)
    torch.testing.assert_close(outputs_of(policy, packs, CARD), expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize("flex", [False, True], ids=["dense", "flex"])
def test_updates_of_the_policy(
    flex: bool, saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if flex:
        monkeypatch.setattr(pack_attention, "FLEX_TOKENS", 1)
    policy, norms, masters = saved("qwen2"), [], []
    for device in (CPU, CARD):
        pipeline, optimizer = open_training(policy, Mesh(device=device))
        norms.append([take_step(pipeline, optimizer, seed) for seed in range(3)])
        weights = optimizer.weights.masters
        masters.append({name: master.detach().cpu() for name, master in weights.items()})
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)
    for name, expected in masters[0].items():
        # AdamW's first steps are as long as the learning rate, whatever the gradient's size.
        assert (masters[1][name] - expected).abs().mean() < 1e-4, name


def test_masters_of_a_bfloat16_policy_are_float32(saved: Callable[[str], Path]) -> None:
    pipeline, optimizer = open_training(saved("qwen2"), Mesh(device=CARD), torch.bfloat16)
    norms = [take_step(pipeline, optimizer, seed) for seed in range(3)]
    assert all(0 < norm < float("inf") for norm in norms)
    assert {master.dtype for master in optimizer.weights.masters.values()} == {torch.float32}
    assert all(master.device.type == CARD.type for master in optimizer.weights.masters.values())
    assert next(pipeline.part.parameters()).dtype == torch.bfloat16


def test_gradients_of_the_chunked_head() -> None:
    """Vocabulary and tokens that no chunk divides."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(700, 32, generator=generator)
    weight = torch.randn(5003, 32, generator=generator) * 0.2
    targets = torch.randint(5003, (700,), generator=generator)
    found = []
    for device in (CPU, CARD):
        h, w = hidden.to(device).requires_grad_(), weight.to(device).requires_grad_()
        logprobs, entropy = token_logprobs(h, targets.to(device), Head(w), temperature=0.7)
        (logprobs.sum() + 0.1 * entropy.sum()).backward()
        assert h.grad is not None and w.grad is not None
        found.append([x.detach().cpu() for x in (logprobs, entropy, h.grad, w.grad)])
    for card, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(card, expected, rtol=1e-3, atol=1e-3)


def test_linear_is_the_models_own_on_a_card() -> None:
    x, weight, bias = (torch.randn(shape, device=CARD) for shape in ((5, 8), (3, 8), (3,)))
    assert torch.equal(linear(x, weight, bias), torch.nn.functional.linear(x, weight, bias))


@pytest.mark.parametrize("family", ["qwen2", "qwen2_sliding", "qwen3", "llama", "gemma2"])
def test_greedy_samples(family: str) -> None:
    """The same tokens until two words are equally likely to rounding."""
    model, prompts = tiny_model(family), prompts_of([1, 3, 9, 30, 2, 17, 5, 24])
    requests = [Request(ids, [None]) for ids in prompts]
    made = []
    for device in (CPU, CARD):
        sampler = Sampler(model.to(device), STOPS, max_concurrent=5, prefill_tokens=60)
        made.append(ids_of(sampler.generate(requests, SamplingParams(24))))
    model.to(CPU)
    for prompt, [expected], [found] in zip(prompts, *made, strict=True):
        step = next(
            (i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), None
        )
        if step is None:
            assert found == expected
            continue
        logits = own_logits(model, prompt, expected)[step]
        assert abs(logits[found[step]] - logits[expected[step]]) < EXACT, f"token {step} differs"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_logprobs_of_samples_are_those_of_packs(
    dtype: torch.dtype, saved: Callable[[str], Path]
) -> None:
    """More rows than fit at once: rows are moved, prompts released, the cache grows."""
    policy = saved("qwen2")
    model = tiny_model("qwen2", tied=True).to(CARD, dtype)
    prompts = prompts_of([2, 19, 7, 33, 11, 50])
    sampling = params_of(TEMPERATURE, tokens=40)
    groups = Sampler(model, STOPS, max_concurrent=8).generate(requests_of(prompts, 5), sampling)
    rows = [
        Completion(prompt, sample.completion_ids, group=n)
        for n, (prompt, group) in enumerate(zip(prompts, groups, strict=True))
        for sample in group
    ]
    assert len({len(row.completion_ids) for row in rows}) > 5, "all ended alike"
    assert all(0 <= token < VOCABULARY for row in rows for token in row.completion_ids)
    one_each = [pack([row], tokens_per_pack=128) for row in rows]
    expected = torch.cat([outputs_of(policy, packs, CARD, dtype)[:, 0] for packs in one_each])
    sampled = torch.tensor([x for group in groups for one in group for x in one.sampler_logprobs])
    gap = (sampled - expected).abs()
    assert gap.mean() < (EXACT if dtype is torch.float32 else ROUNDED)


def test_samples_do_not_depend_on_who_is_sampled_beside_them() -> None:
    """Their random numbers are their own; only rounding may make two runs differ."""
    model, prompts = tiny_model("qwen2").to(CARD), prompts_of([4, 9, 17, 6])
    requests, sampling = requests_of(prompts, 6), params_of(1.0, tokens=16)
    together, few = (
        ids_of(Sampler(model, STOPS, max_concurrent=rows).generate(requests, sampling))
        for rows in (24, 3)
    )
    pairs = [
        (a, b)
        for left, right in zip(together, few, strict=True)
        for a, b in zip(left, right, strict=True)
    ]
    assert sum(a == b for a, b in pairs) >= 0.9 * len(pairs)


def test_an_iteration_by_the_stages(
    prepared: Callable[..., Path], at: Callable[[Path], Run], stage: Callable[..., object]
) -> None:
    """The real commands, which find the device themselves and compute in bfloat16 there."""
    from conftest import RECIPE

    run = at(prepared(RECIPE, "rewards.repetition.weight=1", "rewards.repetition.ngram=1"))
    for name in ("rollout", "score", "logprobs", "train"):
        stage(name, "--run", "a", "--iteration", "1")
    assert (steps(run)["grad_norm"] > 0).all()
    logprobs = pl.read_parquet(run.logprobs(1).path / "*.parquet")
    rollouts = pl.read_parquet(run.rollout(1).path / "*.parquet")
    both = rollouts.join(logprobs, on="rollout_id").explode("sampler_logprobs", "old_logprobs")
    gaps = (both["sampler_logprobs"] - both["old_logprobs"]).abs()
    assert gaps.sum() / len(gaps) < ROUNDED
