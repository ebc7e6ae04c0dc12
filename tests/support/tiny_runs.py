"""Runs on disk, ready for `train`, made without sampling: seeded completions and rewards."""

from __future__ import annotations

import shutil
from collections.abc import Container
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from common.modeling.load import load_causal_lm
from common.runs.freshness import input_hashes
from common.runs.layout import Output, Run, shard_name
from common.runs.policies import commit_policy
from common.runs.recipe import recipe_in_force
from common.runs.schemas import LOGPROBS, ROLLOUT, score_schema
from common.runs.shards import OutputWriter

Rows = dict[str, list[Any]]

UNUSED = """\
[model]
path = "unused"

[data.multiplication]
kind = "generator"
generator = "multiplication"
"""
"""The part of a recipe that only `prepare` reads."""


def start_run(run: Run, policy: Path, recipe: Path, overrides: list[str] | None = None) -> None:
    """Write the recipe in force and policy 0."""
    recipe_in_force(run, recipe, overrides, write=True)
    output = run.policy(0)
    shutil.copytree(policy, output.partial)
    commit_policy(output, inputs={}, recipe={}, seed=0)


def write_iteration(
    run: Run,
    iteration: int,
    *,
    groups: int = 6,
    group_size: int = 4,
    equal_rewards: bool = False,
    shards: int = 1,
    rejected: Container[int] = (),
) -> None:
    """Write rollout, score and logprobs of an iteration; old logprobs are those of policy N - 1.

    Groups that are `rejected` are not kept; all have logprobs.
    """
    recipe = recipe_in_force(run)
    rollout, reward, logprobs = _rows(run, iteration, groups, group_size, equal_rewards)
    rollout["kept"] = [group not in rejected for group in rollout["group_id"]]
    policy = run.policy(iteration - 1).name
    sampling = recipe.rollout.model_dump(mode="json")
    of_rollout = run.rollout(iteration)
    _write(run, of_rollout, rollout, ROLLOUT, [policy], {"rollout": sampling}, shards)
    _write(run, run.score(iteration), reward, score_schema([]), [of_rollout.name], None, shards)
    inputs = [of_rollout.name, policy]
    _write(run, run.logprobs(iteration), logprobs, LOGPROBS, inputs, None, shards)


def _write(
    run: Run,
    output: Output,
    rows: Rows,
    schema: pa.Schema,
    inputs: list[str],
    recipe: dict[str, Any] | None,
    shards: int,
) -> None:
    writer = OutputWriter(
        output,
        inputs=input_hashes(run, inputs),
        recipe=recipe or {},
        seed=0,
        names=[shard_name(index) for index in range(shards)],
        schema=schema,
    ).open()
    table = pa.table(rows, schema=schema)
    size = len(table) // shards
    for index, name in enumerate(writer.names):
        writer.write(name, table.slice(index * size, size))
    writer.commit()


def _rows(
    run: Run, iteration: int, groups: int, group_size: int, equal_rewards: bool
) -> tuple[Rows, Rows, Rows]:
    random = np.random.default_rng(iteration)
    model = load_causal_lm(run.policy(iteration - 1).path, torch.float32)
    rollout: Rows = {name: [] for name in ROLLOUT.names}
    score: Rows = {name: [] for name in score_schema([]).names}
    logprobs: Rows = {name: [] for name in LOGPROBS.names}
    for group in range(groups):
        prompt = random.integers(3, 97, random.integers(3, 9)).tolist()
        rewards = random.integers(0, 2, group_size).astype(float)
        if equal_rewards or group == 0:
            rewards[:] = 1.0
        spread = rewards.std(ddof=1)
        for sample in range(group_size):
            completion = random.integers(3, 97, random.integers(1, 12)).tolist()
            policy = _logprobs(model, prompt, completion)
            key = f"{iteration}-{group}-{sample}"
            advantage = (rewards[sample] - rewards.mean()) / (spread + 1e-4) if spread else 0.0
            _add(
                rollout,
                rollout_id=key,
                prompt_id=f"p{group}",
                task="test",
                group_id=group,
                sample_index=sample,
                prompt_ids=prompt,
                completion_ids=completion,
                assistant_prefix="",
                completion_text="text",
                finish_reason="length" if len(completion) == 11 else "stop",
                question="?",
                answer="1",
                verify_type="EXACT",
                sampler_logprobs=policy,
                policy_version=iteration - 1,
                seed=0,
                kept=True,
            )
            _add(
                score,
                rollout_id=key,
                reward=rewards[sample],
                reward_answer=rewards[sample],
                extracted_answer=None,
                verdict="correct" if rewards[sample] else "wrong",
                advantage=advantage,
                group_reward_mean=rewards.mean(),
                group_reward_std=spread,
            )
            _add(
                logprobs,
                rollout_id=key,
                old_logprobs=policy,
                ref_logprobs=policy + random.normal(0, 0.2, len(policy)).astype(np.float32),
                entropy=np.ones_like(policy),
            )
    return rollout, score, logprobs


def _add(rows: Rows, **values: Any) -> None:
    for name, value in values.items():
        rows[name].append(value)


@torch.no_grad()
def _logprobs(model: Any, prompt: list[int], completion: list[int]) -> np.ndarray:
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[range(len(completion)), completion].numpy()
