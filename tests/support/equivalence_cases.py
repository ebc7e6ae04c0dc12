"""One optimizer batch, divided in many ways: run under torchrun by test_equivalence.py.

`python tests/support/equivalence_cases.py FOLDER` runs every case of FOLDER/cases.json. Each rank
writes the gradients that it owns, by parameter, and its part of the loss.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from common.config import MeshConfig, ObjectiveConfig, TrainConfig
from common.parallel.mesh import Mesh
from common.parallel.pipeline import Pipeline
from common.training.loop import Trainer
from common.training.minibatches import plan_minibatches
from common.training.optimizer import MasterWeights, Optimizer
from common.training.policy_term import load_policy_term
from common.training.samples import TrainingSample, group_samples
from support.tiny_models import KeepFloat64, random_completions

TEMPERATURE = 0.8
MAX_TOKENS = 12
BASE: dict[str, Any] = {"clip_low": 0.15}
REGULARISED: dict[str, Any] = {"kl_coef": 0.1, "entropy_coef": 0.02, "mask_truncated": True}
"""With KL and entropy. Without them, completions with advantage 0 would not be computed at all."""


@dataclass(frozen=True)
class Case:
    """A way to divide the work; `name` is also the file that its results go to."""

    name: str
    model: str
    dtype: str = "float64"
    dp: int = 1
    schedule: str = "1f1b"
    microbatches: int | str = 4
    tokens_per_pack: int = 48
    share_prompts: bool = True
    activation_checkpointing: bool = False
    settings: dict[str, Any] = field(default_factory=lambda: REGULARISED)
    """Settings of the objective."""

    def objective(self) -> ObjectiveConfig:
        return ObjectiveConfig(**(BASE | self.settings))


def samples() -> list[TrainingSample]:
    """Return five groups of four; the second has equal rewards, some completions are truncated.

    One completion of another group has advantage 0. Old and reference logprobs are so far from any
    policy that tokens are clipped. The sampler's logprobs are so far from the old ones that some
    weights are beyond their bounds.
    """
    random = np.random.default_rng(3)
    found = []
    for index, row in enumerate(random_completions(7, groups=5, group_size=4)):
        length = len(row.completion_ids)
        old = random.normal(-5.5, 1.5, length).astype(np.float32)
        sampler = (old + random.normal(0, 0.3, length)).astype(np.float32)
        found.append(
            TrainingSample(
                rollout_id=f"r{index}",
                group=row.group,
                prompt_ids=row.prompt_ids,
                completion_ids=row.completion_ids,
                old_logprobs=old,
                ref_logprobs=random.normal(-5.5, 1.0, length).astype(np.float32),
                entropy=random.uniform(0, 4, length).astype(np.float32),
                sampler_logprobs=sampler,
                advantage=0.0 if row.group == 1 or index == 9 else float(random.normal()),
                reward=0.5 if row.group == 1 else float(random.normal()),
                truncated=index % 5 == 2,
            )
        )
    return found


def run_case(case: Case, mesh: Mesh, folder: Path) -> tuple[float, dict[str, Tensor]]:
    """Return this rank's part of the loss, and the gradients it owns, summed over the mesh."""
    pipeline = Pipeline(
        folder / case.model,
        mesh,
        dtype=getattr(torch, case.dtype),
        temperature=TEMPERATURE,
        schedule=case.schedule,
        train=True,
        activation_checkpointing=case.activation_checkpointing,
    )
    masters = MasterWeights(pipeline.part, mesh)
    train = TrainConfig(
        microbatches=case.microbatches,
        tokens_per_pack=case.tokens_per_pack,
        share_prompts=case.share_prompts,
    )
    objective = case.objective()
    trainer = Trainer(
        pipeline,
        Optimizer(masters, train),
        train=train,
        objective=objective,
        own_term=load_policy_term(objective),
        iteration=1,
        steps=1,
        max_completion_tokens=MAX_TOKENS,
    )
    (minibatch,) = plan_minibatches(
        group_samples(samples()), objective, epochs=1, prompts_per_step=None, seed=0, iteration=1
    )
    with KeepFloat64():
        seen = trainer.accumulate(minibatch)
    masters.reduce_gradients()
    loss = float(seen.sums["loss"]) if seen and seen.sums else 0.0
    # Only the first replica returns gradients; the others have the same.
    names = masters.owned if mesh.dp_rank == 0 else []
    return loss, {name: masters.masters[name].grad for name in names}


def write_results(cases: list[Case], folder: Path) -> None:
    for dp in sorted({case.dp for case in cases}):
        config = MeshConfig(dp_degree=dp, timeout_seconds=60)
        with Mesh.from_environment(config) as mesh:
            for case in [case for case in cases if case.dp == dp]:
                loss, gradients = run_case(case, mesh, folder)
                gradients["loss"] = torch.tensor(loss, dtype=torch.float64)
                save_file(gradients, folder / f"{case.name}.{mesh.rank}.safetensors")


def read_results(case: Case, folder: Path) -> tuple[float, dict[str, Tensor]]:
    """Read loss and gradients of a case from all its ranks; a parameter found twice is an error."""
    loss, gradients = 0.0, {}
    for path in sorted(folder.glob(f"{case.name}.*.safetensors")):
        part = load_file(path)
        loss += float(part.pop("loss"))
        assert not gradients.keys() & part.keys()
        gradients |= part
    return loss, gradients


def store_cases(cases: list[Case], folder: Path) -> None:
    (folder / "cases.json").write_text(json.dumps([asdict(case) for case in cases]))


if __name__ == "__main__":
    place = Path(sys.argv[1])
    every = [Case(**entry) for entry in json.loads((place / "cases.json").read_text())]
    write_results([c for c in every if c.name.startswith(f"{os.environ['WORLD_SIZE']}-")], place)
