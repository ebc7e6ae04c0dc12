"""Products by oneDNN are torch's: values, gradients, strides, and everything else left to torch."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from common.compat import onednn_product
from common.modeling.linear import FastLinear, linear, use_fast_products

WITH_ONEDNN = pytest.mark.skipif(onednn_product() is None, reason="torch without oneDNN")


def in_float64(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return nn.functional.linear(
        inputs.double(), weight.double(), None if bias is None else bias.double()
    )


@pytest.mark.parametrize("shape", [(1,), (0,), (7,), (2, 5), (3, 1, 4)])
@pytest.mark.parametrize("biased", [False, True])
def test_values_and_gradients(shape: tuple[int, ...], biased: bool) -> None:
    torch.manual_seed(0)
    leaves = [torch.randn(*shape, 24), torch.randn(40, 24)]
    leaves += [torch.randn(40)] if biased else []
    ours = [leaf.clone().requires_grad_() for leaf in leaves]
    theirs = [leaf.double().requires_grad_() for leaf in leaves]
    out, expected = linear(*ours), nn.functional.linear(*theirs)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(out)
    out.backward(upstream)
    expected.backward(upstream.double())
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.grad is not None and other.grad is not None
        torch.testing.assert_close(mine.grad.double(), other.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wanted", ["inputs", "weight", "bias"])
def test_only_the_gradients_that_are_wanted(wanted: str) -> None:
    leaves = {"inputs": torch.randn(3, 8), "weight": torch.randn(5, 8), "bias": torch.randn(5)}
    leaves[wanted].requires_grad_()
    linear(**leaves).sum().backward()
    assert {name for name, leaf in leaves.items() if leaf.grad is not None} == {wanted}


def test_no_graph_without_gradients() -> None:
    inputs, weight = torch.randn(3, 8), torch.randn(5, 8, requires_grad=True)
    with torch.no_grad():
        assert linear(inputs, weight).grad_fn is None
    with torch.inference_mode():
        assert linear(inputs, weight).is_inference()


@WITH_ONEDNN
@pytest.mark.parametrize("cut", ["rows", "columns", "both", "transposed rows"])
def test_views_of_matrices_are_right_and_not_slow(cut: str) -> None:
    """oneDNN itself takes seconds for a matrix with gaps between its rows."""
    whole = torch.randn(600, 500)
    weight = {
        "rows": whole[::2],
        "columns": whole[:, 20:300],
        "both": whole[100:500, 20:300],
        "transposed rows": whole[:, 20:300].T,
    }[cut]
    inputs = torch.randn(300, 2 * weight.shape[1])[:, ::2]
    started = time.process_time()
    out = linear(inputs, weight)
    assert time.process_time() - started < 1
    torch.testing.assert_close(out.double(), in_float64(inputs, weight, None), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_torch_s_own(dtype: torch.dtype) -> None:
    inputs, weight = torch.randn(4, 16).to(dtype), torch.randn(8, 16).to(dtype)
    assert torch.equal(linear(inputs, weight), nn.functional.linear(inputs, weight))


def test_onednn_can_be_switched_off() -> None:
    inputs, weight = torch.randn(64, 300), torch.randn(100, 300)
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(linear(inputs, weight), nn.functional.linear(inputs, weight))


def test_a_model_keeps_its_parameters() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4, bias=False))
    before = dict(model.state_dict())
    inputs = torch.randn(5, 8)
    expected = model(inputs)
    assert use_fast_products(model) is model
    assert [type(module) for module in model] == [FastLinear, nn.LayerNorm, FastLinear]
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    torch.testing.assert_close(model(inputs), expected, rtol=1e-5, atol=1e-5)


def test_second_derivatives_are_refused() -> None:
    inputs, weight = torch.randn(3, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    upstream = torch.ones(3, 5, requires_grad=True)
    out = linear(inputs, weight)
    (grad,) = torch.autograd.grad(out, inputs, upstream, create_graph=True)
    if onednn_product() is not None:
        with pytest.raises(RuntimeError, match="differentiate twice"):
            grad.sum().backward()
