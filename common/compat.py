"""Private interfaces of other packages: every use of one stands here, checked before it is used.

Each is looked for at its first use and, where it computes, tried on a small input. One that is gone
or gives other numbers is left alone from then on: the public way takes its place, which a line on
standard error says once a process. Importing this module imports none of these packages.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from common.console import warn_once

if TYPE_CHECKING:
    from asyncio.subprocess import Process

    from torch import Tensor
    from transformers import PreTrainedModel

    Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]

Found = TypeVar("Found")


@cache
def onednn_product() -> Product | None:
    """oneDNN's product with a weight matrix, which Inductor calls for compiled models.

    Returns:
        A function of inputs [..., in], weight [out, in] and bias [out] or None, float32 on the CPU,
        to inputs · weightᵀ + bias [..., out], without a graph. None where only
        `torch.nn.functional.linear` is to be used: without oneDNN, and on processors other than
        x86, whose products in torch come from a library made for them.
    """
    import torch

    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return None
    return _usable(
        "torch.ops.mkldnn._linear_pointwise",
        "products with weights are torch.nn.functional.linear's, which can be slower",
        _OnednnProduct,
        _multiplies,
    )


@cache
def cpu_flash_attention() -> FlashAttention | None:
    """The kernels of attention on the CPU, whose logsumexp no public function gives.

    Returns:
        None where only `scaled_dot_product_attention` is to be used.
    """
    return _usable(
        "torch.ops.aten._scaled_dot_product_flash_attention_for_cpu",
        "attention over packs is scaled_dot_product_attention's under dense masks, which is slower",
        FlashAttention,
        _attends,
    )


def attention_implementation(model: PreTrainedModel) -> str:
    """By which attention a decoder computes, as `sdpa`.

    `set_attn_implementation` sets it, but no public way asks for it. Where it cannot be read, the
    model is set to `eager`, which every decoder has.
    """
    name = getattr(model.config.get_text_config(), "_attn_implementation", None)
    if isinstance(name, str):
        return name
    warn_once(
        "transformers does not tell the attention of a model (config._attn_implementation): it is "
        "set to 'eager', which is slower"
    )
    model.set_attn_implementation("eager")
    return "eager"


def close_pipes(process: Process) -> None:
    """Close our ends of a process's pipes, which asyncio does when the other ends are closed.

    No public way closes those that are read, and another process may hold their other ends.
    """
    transport = getattr(process, "_transport", None)
    if transport is not None:
        transport.close()
        return
    warn_once(
        "asyncio does not give the transport of a process (Process._transport): what it prints at "
        "the end about a closed loop can be ignored"
    )
    if process.stdin is not None:
        process.stdin.close()


class _OnednnProduct:
    """See `onednn_product`."""

    def __init__(self) -> None:
        import torch

        self._kernel = torch.ops.mkldnn._linear_pointwise

    def __call__(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._kernel(inputs, weight, bias, "none", [], "")


class FlashAttention:
    """The flash kernel that `scaled_dot_product_attention` calls on the CPU, and its backward.

    Queries are [n, H, L, D], keys and values [n, H, M, D], of one floating type. `mask` is
    additive, [1, 1, L, M], and says itself what is causal; `scale` is 1 / √D when None.
    """

    def __init__(self) -> None:
        import torch

        self._forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        self._backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        mask: Tensor | None,
        causal: bool,
        scale: float | None,
    ) -> tuple[Tensor, Tensor]:
        """Output [n, H, L, D] and the logsumexp of its scores [n, H, L], without a graph."""
        causal = causal and mask is None
        return self._forward(query, key, value, 0.0, causal, attn_mask=mask, scale=scale)

    def backward(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        logsumexp: Tensor,
        *,
        mask: Tensor | None,
        causal: bool,
        scale: float | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of query, key and value: the share that these keys have in `out`."""
        causal = causal and mask is None
        given = (grad, query, key, value, out, logsumexp)
        return self._backward(*given, 0.0, causal, attn_mask=mask, scale=scale)


def _usable(
    name: str, instead: str, find: Callable[[], Found], is_right: Callable[[Found], bool]
) -> Found | None:
    """What `find` gives if it `is_right`; else None, and a line says what is done instead."""
    try:
        found = find()
        if is_right(found):
            return found
        reason = "gives other numbers than its public counterpart"
    except Exception as error:  # whatever another signature leads to
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
    warn_once(f"{name} cannot be used ({reason}): {instead}")
    return None


def _multiplies(product: Product) -> bool:
    import torch
    from torch.nn.functional import linear

    inputs, weight, bias = _waves(3, 8), _waves(5, 8), _waves(5)
    # Backward multiplies by transposed views.
    cases: list[tuple[Tensor, Tensor | None]] = [
        (weight, bias),
        (weight, None),
        (_waves(8, 5).T, None),
    ]
    return all(
        torch.allclose(product(inputs, w, b), linear(inputs, w, b), atol=1e-5) for w, b in cases
    )


def _attends(flash: FlashAttention) -> bool:
    """Values, logsumexp and gradients, causal and under a mask, are those of plain attention."""
    import torch

    scale, causal = 0.5, torch.ones(4, 4, dtype=torch.bool, device="cpu").tril()
    hides_some = (~causal).float()[None, None] * -1e9
    for mask in (None, hides_some):
        with torch.inference_mode(False), torch.enable_grad():
            leaves = [_waves(1, 2, 4, 8).add(shift).requires_grad_() for shift in (0, 1, 2)]
            scores = scale * leaves[0] @ leaves[1].transpose(-1, -2)
            scores = scores.masked_fill(~causal, float("-inf"))
            expected = scores.softmax(-1) @ leaves[2]
            grad = _waves(*expected.shape)
            gradients = torch.autograd.grad(expected, leaves, grad)
        q, k, v = (leaf.detach() for leaf in leaves)
        how: dict[str, Any] = {"mask": mask, "causal": True, "scale": scale}
        out, sums = flash.forward(q, k, v, **how)
        found = (out, sums, *flash.backward(grad, q, k, v, out, sums, **how))
        wanted = (expected, scores.logsumexp(-1), *gradients)
        if not all(torch.allclose(a, b, atol=1e-4) for a, b in zip(found, wanted, strict=True)):
            return False
    return True


def _waves(*shape: int) -> Tensor:
    """float32 numbers of this shape that follow no simple rule, and no random number drawn."""
    import math

    import torch

    steps = torch.arange(math.prod(shape), dtype=torch.float32, device="cpu")
    return (steps * steps).sin().view(shape)
