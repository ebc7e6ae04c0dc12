"""The parameters that the optimizer steps, and their gradients over the mesh.

A float32 model is its own master copy. Of a bfloat16 model each parameter has a float32 master
beside it: gradients of microbatches are summed there, for in bfloat16 a sum of sixty would lose
its last ones, and after a step the master is rounded into the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from common.mesh.mesh import Mesh
from common.modeling.load import tied_embeddings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BUCKET_NUMBERS = 1 << 24
"""Gradients summed over dp in one message."""


class Masters:
    """This rank's parameters by their names in the whole model, in float32 or wider."""

    def __init__(self, part: PreTrainedModel, mesh: Mesh) -> None:
        """Take the parameters of `part`, which requires gradients, and their content."""
        self.mesh = mesh
        self.model = dict(part.named_parameters())
        self.masters: dict[str, nn.Parameter] = {}
        for name, parameter in self.model.items():
            if parameter.dtype in (torch.float32, torch.float64):
                self.masters[name] = parameter
                continue
            master = nn.Parameter(parameter.detach().to(torch.float32, copy=True))
            parameter.register_post_accumulate_grad_hook(_sum_into(master))
            self.masters[name] = master
        self._tied = _tied_name(part, mesh)

    @property
    def separate(self) -> bool:
        """Whether any master is another tensor than the model's parameter."""
        return any(self.masters[name] is not self.model[name] for name in self.masters)

    @property
    def owned(self) -> list[str]:
        """Names that count here: all but the last stage's copy of a tied embedding."""
        copy = self._tied if not self.mesh.is_first else None
        return [name for name in self.masters if name != copy]

    def reduce_gradients(self) -> None:
        """Sum gradients over replicas and over the two copies of a tied embedding.

        Afterwards every holder of a parameter has the same bits. Losses are normalised over the
        whole batch already, so nothing is averaged.
        """
        for master in self.masters.values():
            if master.grad is None:
                master.grad = torch.zeros_like(master)
        if self.mesh.group("dp") is not None:
            self._sum_over_replicas()
        if self._tied is not None:
            self.mesh.all_reduce(_gradient(self.masters[self._tied]), "ties")

    def squared_gradient_norm(self) -> Tensor:
        """Float64 scalar over the whole mesh, each parameter counted once."""
        norms = [_gradient(self.masters[name]).norm(dtype=torch.float64) for name in self.owned]
        return self.mesh.all_reduce(torch.stack(norms).square().sum(), "pp")

    @torch.no_grad()
    def fill(self, values: Mapping[str, Tensor]) -> None:
        """Put other content into the masters, rounded into the model too."""
        for name, master in self.masters.items():
            master.copy_(values[name])
        self.publish()

    @torch.no_grad()
    def publish(self) -> None:
        """Round separate masters into the model."""
        for name, master in self.masters.items():
            if master is not self.model[name]:
                self.model[name].copy_(master)

    def all_finite(self) -> bool:
        """Whether no weight on any rank is infinite or nan."""
        bad = [~master.detach().isfinite().all() for master in self.masters.values()]
        count = torch.stack(bad).sum().float()
        return not bool(self.mesh.all_reduce(count, "world"))

    def zero_gradients(self) -> None:
        for master in self.masters.values():
            master.grad = None

    def _sum_over_replicas(self) -> None:
        for bucket in _buckets([_gradient(master) for master in self.masters.values()]):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            self.mesh.all_reduce(flat, "dp")
            parts = flat.split([gradient.numel() for gradient in bucket])
            for gradient, summed in zip(bucket, parts, strict=True):
                gradient.copy_(summed.view_as(gradient))


def _buckets(gradients: list[Tensor]) -> list[list[Tensor]]:
    """Neighbours together up to a bucket's size; all are of one type, float32 or float64."""
    buckets: list[list[Tensor]] = []
    room = 0
    for gradient in gradients:
        if gradient.numel() > room:
            buckets.append([])
            room = max(_BUCKET_NUMBERS, gradient.numel())
        buckets[-1].append(gradient)
        room -= gradient.numel()
    return buckets


def _gradient(master: nn.Parameter) -> Tensor:
    assert master.grad is not None, "reduce_gradients gives every master a gradient"
    return master.grad


def _sum_into(master: nn.Parameter) -> Callable[[Tensor], None]:
    def hook(parameter: Tensor) -> None:
        assert parameter.grad is not None
        if master.grad is None:
            master.grad = parameter.grad.to(master.dtype)
        else:
            master.grad += parameter.grad
        parameter.grad = None

    return hook


def _tied_name(part: PreTrainedModel, mesh: Mesh) -> str | None:
    """Name of the matrix that first and last pipeline stage both hold, if this rank is one."""
    if mesh.pp_degree == 1 or not (mesh.is_first or mesh.is_last):
        return None
    if not tied_embeddings(part.config):
        return None
    weight = part.get_input_embeddings().weight
    return next(name for name, parameter in part.named_parameters() if parameter is weight)
