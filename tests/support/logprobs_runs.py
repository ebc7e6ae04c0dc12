"""Runs with a made-up rollout, ready for `logprobs`; and plain forwards to compare with."""

from __future__ import annotations

import shutil
from collections.abc import Container
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from common.runs.layout import Run, shard_name
from common.runs.manifest import read_manifest
from common.runs.policies import commit_policy
from common.runs.schemas import KEY, ROLLOUT
from common.runs.shards import OutputWriter

RECIPE = """\
[model]
path = "unused"

[data.multiplication]
kind = "generator"
generator = "multiplication"

[objective]
kl_coef = {kl_coef}

[logprobs]
tokens_per_pack = 40
"""

TEMPERATURE = 0.8
GROUPS, GROUP_SIZE, GROUPS_PER_SHARD = 4, 3, 2


def plain(policy: Path, prompt: list[int], tokens: list[int]) -> tuple[list[float], list[float]]:
    """Return logprobs and entropies of one completion by the model's own logits, without packs."""
    from transformers import AutoModelForCausalLM

    model = _MODELS.get(policy)
    if model is None:
        model = _MODELS[policy] = AutoModelForCausalLM.from_pretrained(policy).eval()
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
    log_p = torch.log_softmax(logits.double() / TEMPERATURE, -1)
    chosen = log_p.gather(1, torch.tensor(tokens)[:, None]).squeeze(1)
    return chosen.tolist(), (-(log_p.exp() * log_p).sum(-1)).tolist()


_MODELS: dict[Path, Any] = {}


def install(run: Run, number: int, policy: Path) -> None:
    output = run.policy(number)
    shutil.copytree(policy, output.partial)
    commit_policy(output, inputs={}, recipe={}, seed=0)


def write_rollout(
    run: Run, iteration: int, policy: Path, *, noise: float = 0.0, rejected: Container[int] = ()
) -> None:
    """Write a rollout of random completions with the policy's own logprobs, moved by `noise`.

    Groups that are `rejected` are not kept.
    """
    random = np.random.default_rng(iteration)
    rows: list[dict[str, Any]] = []
    for group in range(GROUPS):
        prompt = random.integers(3, 90, random.integers(2, 12)).tolist()
        for sample in range(GROUP_SIZE):
            tokens = random.integers(3, 90, random.integers(1, 14)).tolist()
            exact, _ = plain(policy, prompt, tokens)
            noted = (np.array(exact) + noise * random.standard_normal(len(exact))).tolist()
            rows.append(
                {field.name: "" for field in ROLLOUT}
                | {
                    KEY: f"{iteration}-{group}-{sample}",
                    "group_id": group,
                    "sample_index": sample,
                    "prompt_ids": prompt,
                    "completion_ids": tokens,
                    "sampler_logprobs": noted,
                    "policy_version": iteration - 1,
                    "seed": 0,
                    "kept": group not in rejected,
                }
            )
    before = run.policy(iteration - 1)
    size = GROUP_SIZE * GROUPS_PER_SHARD
    writer = OutputWriter(
        run.rollout(iteration),
        inputs={before.name: read_manifest(before).content_hash},
        recipe={"rollout": {"temperature": TEMPERATURE}},
        seed=0,
        names=[shard_name(i) for i in range(GROUPS // GROUPS_PER_SHARD)],
        schema=ROLLOUT,
    ).open()
    for index, name in enumerate(writer.names):
        part = rows[index * size : (index + 1) * size]
        writer.write(name, pa.Table.from_pylist(part, schema=ROLLOUT))
    writer.commit()


def make_run(
    name: str, policies: tuple[Path, Path], *, kl_coef: float = 0.1, **changes: Any
) -> Run:
    """Make a run whose iteration 2 has a rollout of policy 1; policy 0 is the reference.

    `changes` are passed on to `write_rollout`.
    """
    run = Run.named(name)
    run.root.mkdir()
    run.recipe.write_text(RECIPE.format(kl_coef=kl_coef))
    for number, policy in enumerate(policies):
        install(run, number, policy)
    write_rollout(run, 2, policies[1], **changes)
    return run


def flat(table: pa.Table, column: str) -> np.ndarray:
    return table[column].combine_chunks().flatten().to_numpy()
