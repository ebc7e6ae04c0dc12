"""AdamW over the mesh: one learning-rate schedule, one norm, one decision on every rank."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from common.config import TrainConfig
from common.parallel.masters import Masters


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did, the same on every rank."""

    grad_norm: float
    """Before clipping, over the whole mesh; not finite when the step was left out for it."""
    applied: bool


class Optimizer:
    """AdamW (arXiv 1711.05101) on the masters; decay on matrices, not on norms and biases."""

    def __init__(self, masters: Masters, config: TrainConfig) -> None:
        self.masters = masters
        self.steps = 0
        """Updates applied since the optimizer was new."""
        self._config = config
        parameters = list(masters.masters.values())
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
        """Reduce, clip and apply the gradients, which are gone afterwards.

        The update is left out on every rank if the loss or a gradient anywhere is not finite.

        Args:
            loss_is_finite: as this rank knows it; ranks without the loss say True.
            wanted: False, the same on all ranks, for an empty batch: without a gradient AdamW
                would still move by its momentum and its decay.
        """
        masters, mesh = self.masters, self.masters.mesh
        masters.reduce_gradients()
        squared_norm = masters.squared_gradient_norm()
        bad = torch.tensor(
            [not loss_is_finite, not bool(squared_norm.isfinite())],
            dtype=torch.float32,
            device=mesh.device,
        )
        applied = wanted and not bool(mesh.all_reduce(bad, "world").any())
        norm = float(squared_norm.sqrt())
        if applied:
            self._apply(norm, learning_rate)
        masters.zero_gradients()
        return StepResult(norm, applied)

    def state(self, name: str) -> dict[str, Tensor]:
        """`exp_avg` and `exp_avg_sq` of a master, empty before the first step."""
        state = self._adamw.state.get(self.masters.masters[name], {})
        return {key: state[key] for key in ("exp_avg", "exp_avg_sq") if key in state}

    def restore(self, steps: int, states: dict[str, dict[str, Tensor]]) -> None:
        """Continue from `steps` applied updates with the given `state` of every master."""
        self.steps = steps
        for name, master in self.masters.masters.items():
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
            for master in self.masters.masters.values():
                assert master.grad is not None
                master.grad.mul_(scale)
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()
        self.masters.publish()
        self.steps += 1


def learning_rate(config: TrainConfig, *, iteration: int, step: int, steps: int) -> float:
    """Learning rate of step `step` (from 0) of the `steps` steps of an iteration (from 1).

    Linear warm-up over `warmup_iterations`, reaching the full rate with their last step; then the
    recipe's decay, at `min_learning_rate` from the end of `total_iterations` on. A function of
    the place in the whole experiment, never of how far a run is meant to go.
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
