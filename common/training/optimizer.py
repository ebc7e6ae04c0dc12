"""AdamW over the mesh: float32 master weights, and the same norm and decision on every rank.

The weights of a float32 model are their own masters. Each parameter of a bfloat16 model has a
separate float32 master. The gradients of microbatches are summed there, since summing sixty of them
in bfloat16 would lose the last; after a step the master is rounded into the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from common.config import TrainConfig
from common.modeling.load import tied_embeddings
from common.parallel.mesh import Mesh

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BUCKET_NUMBERS = 1 << 24
"""How many numbers of gradients are summed over dp in one message."""


class MasterWeights:
    """This rank's master weights in float32 or wider, by their names in the whole model."""

    def __init__(self, part: PreTrainedModel, mesh: Mesh) -> None:
        """Make masters of the parameters of `part`, with their content.

        Args:
            part: this rank's part of the model; its parameters require gradients.
            mesh: the processes that train.
        """
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
        """Whether any master is a tensor of its own, beside the model's parameter."""
        return any(self.masters[name] is not self.model[name] for name in self.masters)

    @property
    def owned(self) -> list[str]:
        """Return the names that this stage saves and counts: not the copy of a tied embedding.

        First and last pipeline stage both hold a tied embedding; it belongs to the first.
        """
        copy = self._tied if not self.mesh.is_first else None
        return [name for name in self.masters if name != copy]

    def reduce_gradients(self) -> None:
        """Sum gradients over replicas and over the two copies of a tied embedding.

        Afterwards all ranks that hold a parameter have bitwise the same gradient. Nothing is
        averaged, since losses are normalised over the whole batch already.
        """
        for master in self.masters.values():
            if master.grad is None:
                master.grad = torch.zeros_like(master)
        if self.mesh.group("dp") is not None:
            self._sum_over_replicas()
        if self._tied is not None:
            self.mesh.all_reduce(_gradient(self.masters[self._tied]), "embedding")

    def squared_gradient_norm(self) -> Tensor:
        """Return the float64 scalar over the whole mesh, each parameter counted once."""
        norms = [_gradient(self.masters[name]).norm(dtype=torch.float64) for name in self.owned]
        return self.mesh.all_reduce(torch.stack(norms).square().sum(), "pp")

    @torch.no_grad()
    def fill(self, values: Mapping[str, Tensor]) -> None:
        """Copy values into the masters, and round them into the model."""
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
        """Return whether no weight on any rank is infinite or nan."""
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
    """Group neighbours up to a bucket's size; all are of one dtype, float32 or float64."""
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
    """Return the name of a tied embedding that this and another pipeline stage hold, else None.

    It is held by the first and the last stage.
    """
    if mesh.pp_degree == 1 or not (mesh.is_first or mesh.is_last):
        return None
    if not tied_embeddings(part.config):
        return None
    weight = part.get_input_embeddings().weight
    return next(name for name, parameter in part.named_parameters() if parameter is weight)


@dataclass(frozen=True)
class StepResult:
    """Result of one optimizer step, the same on every rank."""

    grad_norm: float
    """Norm before clipping, over the whole mesh; not finite if a gradient was not finite."""
    applied: bool
    """Whether the weights were updated."""


class Optimizer:
    """AdamW (arXiv 1711.05101) on the masters; only matrices decay, not norms and biases."""

    def __init__(self, weights: MasterWeights, config: TrainConfig) -> None:
        self.weights = weights
        self.steps = 0
        """How many updates were applied since the optimizer was new."""
        self._config = config
        parameters = list(weights.masters.values())
        self._adamw = torch.optim.AdamW(
            [
                {
                    "params": [p for p in parameters if p.ndim >= 2],
                    "weight_decay": config.weight_decay,
                },
                {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=True,
        )

    def step(
        self, learning_rate: float, *, loss_is_finite: bool, wanted: bool = True
    ) -> StepResult:
        """Reduce, clip and apply the gradients, then delete them.

        If the loss or a gradient is not finite on any rank, no rank applies the update.

        Args:
            learning_rate: the rate of this step.
            loss_is_finite: whether this rank's loss is finite; True on ranks that have none.
            wanted: whether to apply an update at all, the same on all ranks. It is False for an
                empty batch: AdamW would move by momentum and decay even without a gradient.
        """
        weights, mesh = self.weights, self.weights.mesh
        weights.reduce_gradients()
        squared_norm = weights.squared_gradient_norm()
        bad = torch.tensor(
            [not loss_is_finite, not bool(squared_norm.isfinite())],
            dtype=torch.float32,
            device=mesh.device,
        )
        applied = wanted and not bool(mesh.all_reduce(bad, "world").any())
        norm = float(squared_norm.sqrt())
        if applied:
            self._apply(norm, learning_rate)
        weights.zero_gradients()
        return StepResult(norm, applied)

    def state(self, name: str) -> dict[str, Tensor]:
        """Return `exp_avg` and `exp_avg_sq` of a master; nothing before the first step."""
        state = self._adamw.state.get(self.weights.masters[name], {})
        return {key: state[key] for key in ("exp_avg", "exp_avg_sq") if key in state}

    def restore(self, steps: int, states: dict[str, dict[str, Tensor]]) -> None:
        """Continue after `steps` applied updates.

        Args:
            steps: how many updates were applied.
            states: by the name of each master, what `state` returned for it then.
        """
        self.steps = steps
        for name, master in self.weights.masters.items():
            self._adamw.state[master] = {
                "step": torch.tensor(float(steps), device=master.device),
                **{
                    key: value.to(master.device, master.dtype, copy=True)
                    for key, value in states[name].items()
                },
            }

    def _apply(self, norm: float, learning_rate: float) -> None:
        scale = min(1.0, self._config.max_grad_norm / (norm + 1e-6))
        if scale < 1.0:
            for master in self.weights.masters.values():
                assert master.grad is not None
                master.grad.mul_(scale)
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()
        self.weights.publish()
        self.steps += 1


def learning_rate(config: TrainConfig, *, iteration: int, step: int, steps: int) -> float:
    """Return the learning rate of a step of an iteration.

    The rate rises linearly over `warmup_iterations` and is full at their last step. Then it decays
    by the recipe's schedule, to `min_learning_rate` at the end of `total_iterations`, and stays
    there; with `constant` it stays full. It depends only on the place in the whole experiment,
    never on how many iterations a run is asked for.

    Args:
        config: the recipe's section.
        iteration: from 1.
        step: from 0, within the iteration.
        steps: how many steps the iteration has.
    """
    begun = iteration - 1 + step / steps
    ended = iteration - 1 + (step + 1) / steps
    if ended <= config.warmup_iterations:
        return config.learning_rate * ended / config.warmup_iterations
    if config.schedule == "constant":
        return config.learning_rate
    span = config.total_iterations - config.warmup_iterations
    progress = (begun - config.warmup_iterations) / span if span > 0 else 1.0
    progress = min(max(progress, 0.0), 1.0)
    remaining = 1 - progress
    if config.schedule == "cosine":
        remaining = (1 + math.cos(math.pi * progress)) / 2
    return config.min_learning_rate + remaining * (config.learning_rate - config.min_learning_rate)
