"""What two ranks do in the tests of pipeline, optimizer and checkpoint, with one launch for all.

For comparison, `work` is also called in the test's own process, as one rank.
"""

from __future__ import annotations

import atexit
import json
import shutil
import sys
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch
from safetensors.torch import save_file
from torch import Tensor

from common.config import MeshConfig, TrainConfig
from common.modeling.packing import PackBatch, pack
from common.parallel.mesh import Mesh
from common.parallel.pipeline import Pipeline
from common.training.checkpoint import load_trainer, save_policy, save_trainer
from common.training.optimizer import MasterWeights, Optimizer
from support.multirank import torchrun
from support.tiny_models import random_completions, tiny_model

TEMPERATURE = 0.7
TRAIN = TrainConfig(learning_rate=1e-2, weight_decay=0.1, max_grad_norm=0.5)
TIED = "model.embed_tokens.weight"


def batch(seed: int = 0) -> PackBatch:
    rows = random_completions(seed, groups=4, group_size=3)
    return pack(rows, tokens_per_pack=40, bucket=8, min_packs=4)


def open_training(policy: Path, mesh: Mesh, dtype: torch.dtype = torch.float32):
    """Return a pipeline and an optimizer on a policy."""
    pipeline = Pipeline(policy, mesh, dtype=dtype, temperature=TEMPERATURE, train=True)
    return pipeline, Optimizer(MasterWeights(pipeline.part, mesh), TRAIN)


def take_step(pipeline: Pipeline, optimizer: Optimizer, seed: int) -> float:
    """Make the tokens of a random batch less likely by one update; return the gradient norm."""
    packs = batch(seed)

    def loss(outputs: Tensor, chosen: Tensor) -> Tensor:
        mask = packs.target_mask[chosen]
        return (outputs[..., 0] * mask).sum() / packs.num_targets

    pipeline.run_step(packs, "auto", loss)
    return optimizer.step(TRAIN.learning_rate, loss_is_finite=True).grad_norm


def save(folder: Path, name: str, optimizer: Optimizer, source: Path) -> None:
    """Save policy and trainer state as folders `policy-<name>` and `trainer-<name>`."""
    mesh = optimizer.weights.mesh
    policy, trainer = folder / f"policy-{name}", folder / f"trainer-{name}"
    if mesh.is_main:
        policy.mkdir()
        trainer.mkdir()
    mesh.barrier()
    save_policy(policy, optimizer.weights, source=source)
    save_trainer(trainer, optimizer, with_masters=optimizer.weights.separate, facts={"name": name})


def work(folder: Path, mesh: Mesh) -> None:
    """Run a forward, three steps, one step that continues two steps of one rank, a faulty step."""
    source, ranks = folder / "source", mesh.world_size
    for model in ("source", "untied"):
        forward = Pipeline(folder / model, mesh, dtype=torch.float32, temperature=TEMPERATURE)
        outputs = forward.run_forward(batch())
        assert (outputs is not None) == mesh.is_last
        if outputs is not None:
            save_file({"outputs": outputs}, folder / f"forward-{model}-{ranks}.safetensors")
    pipeline, optimizer = open_training(source, mesh)
    norms = [take_step(pipeline, optimizer, seed) for seed in range(3)]
    save(folder, f"{ranks}", optimizer, source)
    masters = optimizer.weights.masters
    facts = {"norms": norms, "layers": [len(part) for part in pipeline.layers]}
    facts["tied"] = mesh.gather_objects(masters[TIED].sum().item() if TIED in masters else None)
    if (folder / "trainer-two-steps").exists():
        pipeline, optimizer = open_training(folder / "policy-two-steps", mesh)
        assert load_trainer(folder / "trainer-two-steps", optimizer, as_policy=True)
        take_step(pipeline, optimizer, 2)
        save(folder, f"continued-{ranks}", optimizer, source)
    facts["faulty"] = mesh.gather_objects(faulty_step(optimizer))
    if mesh.is_main:
        (folder / f"facts-{ranks}.json").write_text(json.dumps(facts))


def faulty_step(optimizer: Optimizer) -> tuple[bool, bool]:
    """Step with a NaN gradient on the first rank; return (applied, weights unchanged)."""
    masters = optimizer.weights
    before = {name: master.detach().clone() for name, master in masters.masters.items()}
    for master in masters.masters.values():
        master.grad = torch.ones_like(master)
    if masters.mesh.is_main:
        next(iter(masters.masters.values())).grad[0] = torch.nan
    result = optimizer.step(1.0, loss_is_finite=True)
    same = all(torch.equal(master, before[name]) for name, master in masters.masters.items())
    return result.applied, same


@cache
def outcome() -> Path:
    """Return a folder with what one rank and two ranks made from the same policies."""
    folder = Path(mkdtemp(prefix="two-ranks-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tiny_model("qwen2", tied=True, num_hidden_layers=5).save_pretrained(folder / "source")
    tiny_model("llama", tied=False, num_hidden_layers=5).save_pretrained(folder / "untied")
    alone = Mesh()
    pipeline, optimizer = open_training(folder / "source", alone)
    for seed in range(2):
        take_step(pipeline, optimizer, seed)
    save(folder, "two-steps", optimizer, folder / "source")
    work(folder, alone)
    torchrun(2, "two_ranks.py", folder)
    return folder


def facts(ranks: int) -> dict:
    return json.loads((outcome() / f"facts-{ranks}.json").read_text())


if __name__ == "__main__":
    with Mesh.from_environment(MeshConfig(timeout_seconds=60)) as mesh_of_two:
        work(Path(sys.argv[1]), mesh_of_two)
