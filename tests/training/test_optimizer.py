"""AdamW over the mesh: the formula, the schedule, one decision about what is not finite."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from support.tiny_models import tiny_model
from support.two_ranks import TIED, facts

from common.config import TrainConfig
from common.parallel.mesh import Mesh
from common.training.optimizer import MasterWeights, Optimizer, learning_rate


def new_optimizer(config: TrainConfig, dtype: torch.dtype = torch.float64) -> Optimizer:
    model = tiny_model("qwen2", tied=True, num_hidden_layers=1, dtype=dtype)
    return Optimizer(MasterWeights(model, Mesh()), config)


def put_gradients(optimizer: Optimizer, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    gradients = {}
    for name, master in optimizer.weights.masters.items():
        noise = torch.randn(master.shape, generator=generator, dtype=torch.float64)
        master.grad = noise.to(master.dtype)
        gradients[name] = noise.clone()
    return gradients


def test_steps_are_adamw_as_its_paper_has_it() -> None:
    """Written out: clipped gradient, bias-corrected moments, decay of matrices alone."""
    config = TrainConfig(
        beta1=0.8, beta2=0.95, eps=1e-6, weight_decay=0.1, max_grad_norm=2.0, learning_rate=0.01
    )
    optimizer = new_optimizer(config)
    masters = optimizer.weights.masters
    expected = {name: master.detach().clone() for name, master in masters.items()}
    first = {name: torch.zeros_like(value) for name, value in expected.items()}
    second = {name: torch.zeros_like(value) for name, value in expected.items()}
    for step in range(1, 4):
        gradients = put_gradients(optimizer, step)
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
        result = optimizer.step(0.01 * step, loss_is_finite=True)
        assert result.applied
        assert result.grad_norm == pytest.approx(norm, rel=1e-12)
        for name, gradient in gradients.items():
            g = gradient * min(1.0, 2.0 / (norm + 1e-6))
            first[name] = 0.8 * first[name] + 0.2 * g
            second[name] = 0.95 * second[name] + 0.05 * g * g
            decay = 0.1 if gradient.ndim >= 2 else 0.0
            update = first[name] / (1 - 0.8**step)
            update = update / ((second[name] / (1 - 0.95**step)).sqrt() + 1e-6)
            expected[name] = expected[name] - 0.01 * step * (update + decay * expected[name])
            torch.testing.assert_close(masters[name].detach(), expected[name], atol=1e-12, rtol=0)
    assert all(master.grad is None for master in masters.values())


def test_masters_gather_what_bfloat16_would_lose() -> None:
    """A thousand gradients of which each alone is below bfloat16's resolution of their sum."""
    model = tiny_model("qwen2", num_hidden_layers=1, dtype=torch.bfloat16)
    masters = MasterWeights(model, Mesh())
    assert masters.separate
    name, parameter = next(iter(masters.model.items()))
    for _ in range(1000):
        (parameter.float() * 0.001).sum().backward()
    gradient = masters.masters[name].grad
    assert gradient is not None and gradient.dtype == torch.float32
    torch.testing.assert_close(gradient, torch.ones_like(gradient), atol=2e-3, rtol=0)
    assert parameter.grad is None


def test_steps_too_small_for_bfloat16_still_add_up() -> None:
    """The float32-master trap: with bfloat16 weights alone, these updates would all be lost."""
    optimizer = new_optimizer(TrainConfig(learning_rate=1e-5), torch.bfloat16)
    masters = optimizer.weights
    name = TIED
    before = masters.model[name].detach().clone()
    # Away from the edge between two bfloat16 numbers that a single step could cross.
    large = before.abs() > 0.25
    for step in range(400):
        for master in masters.masters.values():
            master.grad = torch.ones_like(master)
        optimizer.step(1e-5, loss_is_finite=True)
        if step == 0:
            assert torch.equal(masters.model[name][large], before[large])
    moved = before.float() - masters.masters[name].detach()
    torch.testing.assert_close(moved, torch.full_like(moved, 400e-5), atol=2e-4, rtol=0)
    assert not torch.equal(masters.model[name], before)
    assert torch.equal(masters.model[name], masters.masters[name].to(torch.bfloat16))


@pytest.mark.parametrize("fault", ["nan gradient", "infinite gradient", "loss", "empty batch"])
def test_a_step_left_out_changes_nothing(fault: str) -> None:
    optimizer = new_optimizer(TrainConfig(learning_rate=0.1, weight_decay=0.1))
    put_gradients(optimizer, 0)
    optimizer.step(0.1, loss_is_finite=True)
    weights = {n: m.detach().clone() for n, m in optimizer.weights.masters.items()}
    moments = {n: optimizer.state(n)["exp_avg"].clone() for n in weights}
    put_gradients(optimizer, 1)
    victim = next(iter(optimizer.weights.masters.values()))
    if "gradient" in fault:
        victim.grad.view(-1)[0] = torch.nan if "nan" in fault else torch.inf
    result = optimizer.step(0.1, loss_is_finite=fault != "loss", wanted=fault != "empty batch")
    assert not result.applied
    assert optimizer.steps == 1
    for name, weight in weights.items():
        assert torch.equal(optimizer.weights.masters[name], weight)
        assert torch.equal(optimizer.state(name)["exp_avg"], moments[name])


def test_all_ranks_leave_out_a_step_that_is_faulty_on_one() -> None:
    assert facts(1)["faulty"] == [[False, True]]
    assert facts(2)["faulty"] == [[False, True]] * 2


def test_the_norm_counts_tied_embeddings_once_whatever_the_mesh() -> None:
    """Clipping is on in these steps, so a norm that differs would change the weights."""
    assert facts(2)["norms"] == pytest.approx(facts(1)["norms"], rel=1e-5)
    assert min(facts(1)["norms"]) > 0.5


def test_the_copies_of_a_tied_embedding_stay_equal() -> None:
    first, last = facts(2)["tied"]
    assert first == last
    assert first == pytest.approx(facts(1)["tied"][0], abs=1e-4)


def rates(config: TrainConfig, iterations: int, steps: int) -> list[float]:
    return [
        learning_rate(config, iteration=i, step=s, steps=steps)
        for i in range(1, iterations + 1)
        for s in range(steps)
    ]


def test_warm_up_reaches_the_full_rate_with_its_last_step() -> None:
    config = TrainConfig(learning_rate=1.0, warmup_iterations=2)
    assert rates(config, 3, 2) == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("schedule", "middle"), [("linear", 0.55), ("cosine", 0.55), ("constant", 1.0)]
)
def test_decay_ends_at_the_least_rate_at_the_horizon(schedule: str, middle: float) -> None:
    config = TrainConfig(
        learning_rate=1.0,
        min_learning_rate=0.1,
        schedule=schedule,
        warmup_iterations=2,
        total_iterations=10,
    )
    found = rates(config, 14, 1)
    assert found[1] == found[2] == 1.0
    assert found[6] == pytest.approx(middle)
    assert all(a >= b for a, b in pairwise(found[2:]))
    assert found[10:] == pytest.approx([0.1 if schedule != "constant" else 1.0] * 4)


def test_the_rate_knows_nothing_of_how_far_a_run_goes() -> None:
    config = TrainConfig(learning_rate=1.0, schedule="linear", total_iterations=20)
    assert rates(config, 3, 4) == rates(config, 20, 4)[:12]


def test_gradient_norm_is_that_of_torch(tmp_path: Path) -> None:
    optimizer = new_optimizer(TrainConfig())
    put_gradients(optimizer, 5)
    parameters = list(optimizer.weights.masters.values())
    expected = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    norm = optimizer.weights.squared_gradient_norm().sqrt()
    assert float(norm) == pytest.approx(float(expected), rel=1e-12)
