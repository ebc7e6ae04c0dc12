"""Logprob and entropy of given tokens: exact, with exact gradients, and never N × V numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.tiny_models import (
    KeepFloat64,
    plain_logits,
    random_completions,
    tiny_config,
    tiny_model,
)
from torch.profiler import ProfilerActivity, profile

from common.errors import UserError
from common.modeling.token_logprobs import PRODUCT_BYTES, Head, token_logprobs

TRANSFORMS = {
    "plain": {},
    "scaled": {"scale": 0.3},
    "capped": {"softcap": 2.5},
    "scaled and capped": {"scale": 1.7, "softcap": 2.5},
}


def a_head(kind: str = "plain", *, bias: bool = True, size: int = 13, dtype=torch.float64) -> Head:
    torch.manual_seed(1)
    weight = torch.randn(size, 5, dtype=dtype, requires_grad=True)
    offset = torch.randn(size, dtype=dtype, requires_grad=True) if bias else None
    return Head(weight, offset, **TRANSFORMS[kind])


def plain(hidden, targets, head, temperature):
    """The definition, by autograd over the full logits."""
    logits = hidden @ head.weight.T
    if head.bias is not None:
        logits = logits + head.bias
    logits = logits * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    log_p = torch.log_softmax(
        logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature, -1
    )
    return log_p.gather(1, targets[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize("kind", TRANSFORMS)
@pytest.mark.parametrize("chunk_tokens", [1, 3, 1024])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_the_definition(kind, chunk_tokens, bias):
    head = a_head(kind, bias=bias)
    hidden = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 13, (7,))
    weights = torch.randn(2, 7, dtype=torch.float64)
    inputs = [hidden, head.weight, *([head.bias] if bias else [])]
    results = []
    for logprobs, entropy in (
        plain(hidden, targets, head, 0.8),
        token_logprobs(hidden, targets, head, temperature=0.8, chunk_tokens=chunk_tokens),
    ):
        loss = (logprobs * weights[0] + entropy * weights[1]).sum()
        results.append([logprobs, entropy, *torch.autograd.grad(loss, inputs)])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_gradcheck(kind):
    head = a_head(kind)
    hidden = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 13, (5,))

    def function(hidden, weight, bias):
        return token_logprobs(
            hidden,
            targets,
            replace(head, weight=weight, bias=bias),
            temperature=1.3,
            chunk_tokens=2,
        )

    assert torch.autograd.gradcheck(function, (hidden, head.weight, head.bias))


@pytest.mark.parametrize("used", [0, 1])
def test_one_output_alone_has_its_own_gradient(used):
    head = a_head()
    hidden = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 13, (6,))
    expected = torch.autograd.grad(plain(hidden, targets, head, 1.0)[used].sum(), hidden)
    outputs = token_logprobs(hidden, targets, head, temperature=1.0, chunk_tokens=4)
    torch.testing.assert_close(torch.autograd.grad(outputs[used].sum(), hidden), expected)


def test_frozen_inputs_get_no_gradient():
    """A reference model, or a head that is not trained."""
    head = a_head()
    frozen = Head(head.weight.detach(), head.bias.detach())
    hidden = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 13, (6,))
    token_logprobs(hidden, targets, frozen, temperature=1.0)[0].sum().backward()
    assert hidden.grad is not None
    token_logprobs(hidden.detach(), targets, head, temperature=1.0)[0].sum().backward()
    assert head.weight.grad is not None


def test_second_derivatives_are_refused_and_not_wrong():
    head = a_head()
    hidden = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    logprobs, _ = token_logprobs(hidden, torch.tensor([1, 2]), head, temperature=1.0)
    (gradient,) = torch.autograd.grad(logprobs.square().sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_logits_far_from_zero_keep_their_entropy():
    """Softmax ignores an offset; subtracting a float32 logsumexp of 1e6 would lose 0.004."""
    weight = torch.zeros(4, 1)
    head = Head(weight, bias=torch.tensor([1e6, 1e6, 1e6, 1e6]))
    logprobs, entropy = token_logprobs(torch.zeros(1, 1), torch.tensor([2]), head, temperature=1.0)
    torch.testing.assert_close(entropy, torch.tensor([4.0]).log(), rtol=0, atol=1e-6)
    torch.testing.assert_close(logprobs, -torch.tensor([4.0]).log(), rtol=0, atol=1e-6)


def test_a_certain_token_has_entropy_zero():
    head = Head(torch.zeros(3, 1), bias=torch.tensor([200.0, 0.0, -200.0]))
    logprobs, entropy = token_logprobs(torch.zeros(1, 1), torch.tensor([0]), head, temperature=1.0)
    assert (logprobs.item(), entropy.item()) == (0.0, 0.0)


def test_bfloat16_gives_float32_results_and_bfloat16_gradients():
    head = a_head("capped", size=301, dtype=torch.bfloat16)
    hidden = torch.randn(40, 5, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(0, 301, (40,))
    logprobs, entropy = token_logprobs(hidden, targets, head, temperature=1.0, chunk_tokens=8)
    assert (logprobs.dtype, entropy.dtype) == (torch.float32, torch.float32)
    expected = plain(hidden.float(), targets, _as_float(head), 1.0)
    torch.testing.assert_close(logprobs, expected[0], rtol=0, atol=0.05)
    torch.testing.assert_close(entropy, expected[1], rtol=0, atol=0.05)
    gradients = torch.autograd.grad(logprobs.sum(), [hidden, head.weight, head.bias])
    assert {gradient.dtype for gradient in gradients} == {torch.bfloat16}


def _as_float(head: Head) -> Head:
    return replace(head, weight=head.weight.float(), bias=head.bias.float())


def test_no_tokens():
    head = a_head()
    hidden = torch.zeros(0, 5, dtype=torch.float64, requires_grad=True)
    logprobs, entropy = token_logprobs(
        hidden, torch.zeros(0, dtype=torch.int64), head, temperature=1.0
    )
    (logprobs.sum() + entropy.sum()).backward()
    assert logprobs.shape == entropy.shape == (0,)
    assert not head.weight.grad.any()


def test_memory_is_of_a_chunk_and_not_of_all_tokens():
    """Peak of live allocations over forward and backward, from the profiler's own record.

    1024 tokens × 16384 vocabulary are 64 MiB of float32; autograd over them holds four such.
    """
    tokens, vocabulary, width, chunk = 1024, 16384, 16, 16
    whole = tokens * vocabulary * 4
    head = Head(torch.randn(vocabulary, width, requires_grad=True))
    hidden = torch.randn(tokens, width, requires_grad=True)
    targets = torch.randint(0, vocabulary, (tokens,))

    def chunked():
        logprobs, entropy = token_logprobs(
            hidden, targets, head, temperature=1.0, chunk_tokens=chunk
        )
        (logprobs.sum() + entropy.sum()).backward()

    def full():
        logprobs, entropy = plain(hidden, targets, head, 1.0)
        (logprobs.sum() + entropy.sum()).backward()

    assert _peak_bytes(full) > 3 * whole
    of_chunk, of_weight = chunk * vocabulary * 4, vocabulary * width * 4
    bound = 2 * of_chunk + 2 * of_weight + 2 * PRODUCT_BYTES["cpu"]
    assert _peak_bytes(chunked) < bound < whole / 9


def _peak_bytes(function) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        function()
    live = peak = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "granite", "cohere", "phi"])
def test_the_head_is_the_family_s_own(family):
    """Scale, soft cap and bias: logits from hidden states equal those of the model's forward."""
    model = tiny_model(family, dtype=torch.float64)
    row = random_completions(5)[0]
    with KeepFloat64(), torch.no_grad():
        expected = plain_logits(model, row)
        ids = torch.tensor([[*row.prompt_ids, *row.completion_ids]])
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
        found = Head.from_model(model).logits(hidden[len(row.prompt_ids) - 1 : -1])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_an_unknown_scale_is_refused():
    config = tiny_config("llama")
    config.logit_scale = 0.5
    with pytest.raises(UserError, match=r"'llama' scales its logits by logit_scale = 0\.5"):
        Head.from_config(config, torch.zeros(2, 2))
