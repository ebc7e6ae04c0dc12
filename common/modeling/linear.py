"""Products with weight matrices, as fast as the processor allows.

On x86, torch hands float32 products to MKL, which runs its AVX2 kernels on processors that are not
from Intel. oneDNN, which comes with torch as well, chooses kernels by what the processor can do;
`make bench` prints both speeds. Torch's own product is used wherever oneDNN does not apply: on
other devices, for other dtypes, and in a torch without oneDNN.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from common.compat import onednn_product

Model = TypeVar("Model", bound=nn.Module)


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute inputs · weightᵀ + bias, differentiable once.

    Args:
        inputs: [..., in]
        weight: [out, in]
        bias: [out]

    Returns:
        [..., out]
    """
    if not _by_onednn(inputs, weight):
        return nn.functional.linear(inputs, weight, bias)
    parts = (inputs, weight, bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in parts):
        return _Linear.apply(inputs, weight, bias)
    return _product(inputs, weight, bias)


def use_fast_products(model: Model) -> Model:
    """Make a model's linear layers compute with `linear`; their parameters stay as they are."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = FastLinear
    return model


class FastLinear(nn.Linear):
    """A linear layer that computes with `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return _product(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        inputs, weight = ctx.saved_tensors
        to_inputs, to_weight, to_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)  # [N, out]
        return (
            _product(grad, weight.T) if to_inputs else None,
            _product(rows.T, inputs.flatten(0, -2).T) if to_weight else None,
            rows.sum(dim=0) if to_bias else None,
        )


def _by_onednn(inputs: Tensor, weight: Tensor) -> bool:
    return bool(
        inputs.dtype == weight.dtype == torch.float32
        and inputs.device.type == weight.device.type == "cpu"
        and inputs.ndim > 1
        and inputs.numel() > 0
        and torch.backends.mkldnn.enabled
        and onednn_product() is not None
    )


def _product(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    # For a strided matrix oneDNN falls back to a loop that is a thousand times slower.
    if not (weight.is_contiguous() or weight.T.is_contiguous()):
        weight = weight.contiguous()
    product = onednn_product()
    assert product is not None, "`_by_onednn` looks for it"
    return product(inputs, weight, bias)
