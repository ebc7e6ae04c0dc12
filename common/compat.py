"""Private interfaces of other packages: all are used here only, and checked before they are used.

Each is looked up at its first use and, if it computes something, tried on a small input. If it is
missing or gives different numbers, the public way is used instead, which a line on standard error
says once per process. Importing this module imports none of these packages.
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
    """Return oneDNN's product with a weight matrix, which Inductor calls for compiled models.

    Returns:
        A function that takes inputs [..., in], weight [out, in] and bias [out] or None, all float32
        on the CPU, and returns inputs · weightᵀ + bias [..., out] without recording a graph. None
        where `torch.nn.functional.linear` should be used: where the check fails, without oneDNN,
        and on processors other than x86, for which torch has a library made for them.
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
    """Return the flash attention kernels of the CPU: no public function gives their logsumexp.

    Returns:
        None where `scaled_dot_product_attention` should be used instead.
    """
    return _usable(
        "torch.ops.aten._scaled_dot_product_flash_attention_for_cpu",
        "attention over packs is scaled_dot_product_attention's under dense masks, which is slower",
        FlashAttention,
        _attends,
    )


def attention_implementation(model: PreTrainedModel) -> str:
    """Return the name of the attention implementation that a decoder uses, such as `sdpa`.

    `set_attn_implementation` sets it, but nothing public returns it. Where it cannot be read, the
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
    """Close our ends of a process's pipes; asyncio does so only once the other ends are closed.

    Another process may keep those open, and nothing public closes a pipe that we read from.
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
    """The product that `onednn_product` returns."""

    def __init__(self) -> None:
        import torch

        self._kernel = torch.ops.mkldnn._linear_pointwise

    def __call__(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._kernel(inputs, weight, bias, "none", [], "")


class FlashAttention:
    """The flash kernel that `scaled_dot_product_attention` calls on the CPU, and its backward.

    Queries are [n, H, L, D], keys and values [n, H, M, D], of one floating type. `mask` is
    additive, [1, 1, L, M]. With a mask `causal` is ignored: the mask itself must then hide later
    keys. `scale` is 1 / √D when None.
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
        """Return the output [n, H, L, D] and the scores' logsumexp [n, H, L]; record no graph."""
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
        """Return what these keys contribute to the gradients of query, key and value.

        `out` and `logsumexp` may be those of attention over more keys than these.
        """
        causal = causal and mask is None
        given = (grad, query, key, value, out, logsumexp)
        return self._backward(*given, 0.0, causal, attn_mask=mask, scale=scale)


def _usable(
    name: str, instead: str, find: Callable[[], Found], is_right: Callable[[Found], bool]
) -> Found | None:
    """Return what `find` returns if it `is_right`; else warn what is done instead, return None."""
    try:
        found = find()
        if is_right(found):
            return found
        reason = "gives other numbers than its public counterpart"
    except Exception as error:  # whatever a changed signature may raise
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
    """Return whether output, logsumexp and gradients match plain attention, causal and masked."""
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
    """Return float32 numbers of this shape that follow no simple rule; draw no random numbers."""
    import math

    import torch

    steps = torch.arange(math.prod(shape), dtype=torch.float32, device="cpu")
    return (steps * steps).sin().view(shape)
