"""GRPO on one screen: what the stages compute, in one process and without files.

This is for reading. It trains a base model by the default recipe with our own sampler, rules,
advantages, loss and optimizer, and its policies are those of `make iteration`. The stages add the
rest: files that can be looked at, several processes, several updates per iteration, checks.

    python -m workflows.minimal --iterations 2
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from common.command import launch
from common.config import Recipe
from common.config.recipe_file import load_recipe
from common.engines.engine import Request, SamplingParams
from common.engines.native.sampler import Sampler
from common.modeling.chat import completion_text, load_tokenizer, render, stop_ids
from common.modeling.load import load_causal_lm
from common.modeling.packing import Completion, PackBatch, pack, spread_to_packs
from common.objective.advantages import compute_advantages
from common.objective.loss import TokenBatch, grpo_loss
from common.parallel.mesh import Mesh
from common.parallel.stage_module import StageModule, stage_arguments
from common.rewards.scorer import Scorer
from common.rollout.prompt_order import turns
from common.seeds import sample_seed
from common.tasks.prompts import to_table
from common.tasks.sources import read_sources
from common.training.minibatches import completions_in_pack
from common.training.optimizer import MasterWeights, Optimizer, learning_rate


def train(recipe: Recipe, iterations: int) -> PreTrainedModel:
    """Return the policy after `iterations` of GRPO (arXiv 2402.03300), with one update in each."""
    seed, rollout, folder = recipe.run.seed, recipe.rollout, Path(recipe.model.path)
    tokenizer, policy = load_tokenizer(folder), load_causal_lm(folder, torch.float32, "cpu")
    stops = stop_ids(folder, tokenizer)
    reference = copy.deepcopy(policy)
    sampler = Sampler(policy, stops, max_concurrent=rollout.max_concurrent)
    optimizer = Optimizer(MasterWeights(policy, Mesh()), recipe.train)
    scorer = Scorer(recipe.rewards)
    questions = to_table(read_sources(recipe.data, scorer.unreadable_golds).train).to_pylist()
    order = turns(0, len(questions), seed)  # (epoch, index), shuffled anew in each epoch
    for iteration in range(1, iterations + 1):
        # 1. Rollout: the policy answers the next questions, each `group_size` times.
        rows = [questions[next(order)[1]] for _ in range(rollout.prompts_per_iteration)]
        prompts = [render(row["messages"], tokenizer, recipe.prompt) for row in rows]
        requests = []
        for row, (prompt_ids, _) in zip(rows, prompts, strict=True):
            places = [(seed, iteration, row["prompt_id"], i) for i in range(rollout.group_size)]
            requests.append(Request(prompt_ids, [sample_seed(*place) for place in places]))
        limits = SamplingParams(rollout.max_completion_tokens, rollout.temperature)
        groups = []
        for first in range(0, len(rows), rollout.groups_per_shard):
            groups += sampler.generate(requests[first : first + rollout.groups_per_shard], limits)
        samples = [(n, sample.completion_ids) for n, group in enumerate(groups) for sample in group]
        # 2. Score: rules judge the completions; advantages compare each reward with its group's.
        texts = [prompts[n][1] + completion_text(ids, tokenizer, stops) for n, ids in samples]
        asked = [rows[n] for n, _ in samples]
        rewards = [judged.reward for judged in scorer.judge(list(zip(texts, asked, strict=True)))]
        found = compute_advantages([n for n, _ in samples], rewards, recipe.advantages.kind)
        # 3. Logprobs of each completion token by the policy that sampled and by the reference.
        completions = [Completion(prompts[n][0], ids, group=n) for n, ids in samples]
        packs = pack(completions, tokens_per_pack=recipe.train.tokens_per_pack)
        with torch.no_grad():
            old = torch.cat(list(forward(policy, packs, rollout.temperature)))[..., 0]
            ref = torch.cat(list(forward(reference, packs, rollout.temperature)))[..., 0]
        # 4. Train: the gradient of the clipped objective with its KL, and one step of AdamW.
        batch = token_batch(packs, torch.tensor(found.advantage).float(), old, ref)
        for i, out in enumerate(forward(policy, packs, rollout.temperature)):
            part = batch.select(slice(i, i + 1))
            grpo_loss(out[..., 0], out[..., 1], part, recipe.objective)[0].backward()
        rate = learning_rate(recipe.train, iteration=iteration, step=0, steps=1)
        optimizer.step(rate, loss_is_finite=True)
        print(f"iteration {iteration}: {rewards.count(1.0)} of {len(rewards)} answers are right")
    return policy


def forward(model: PreTrainedModel, packs: PackBatch, temperature: float) -> Iterator[Tensor]:
    """Yield logprob and entropy [1, T, 2] of the completion tokens of each pack."""
    module = StageModule(model, first=True, last=True, temperature=temperature)
    for one in packs.microbatches(packs.num_packs):
        yield module(one.input_ids, **stage_arguments(one))


def token_batch(packs: PackBatch, advantages: Tensor, old: Tensor, ref: Tensor) -> TokenBatch:
    """Return what the loss needs, from advantages [C] by completion and logprobs [P, T] by token.

    Every token of the batch has the same weight (DAPO, arXiv 2503.14476).
    """
    ones = torch.ones_like(old)
    return TokenBatch(
        mask=packs.target_mask,
        completion=completions_in_pack(packs),
        old_logprobs=old,
        ref_logprobs=ref,
        advantages=spread_to_packs(advantages, packs, 0.0),
        weights=ones / packs.num_targets,
        token_mean_weights=ones / packs.num_targets,
        sampler_weights=ones,
        in_policy_term=packs.target_mask,
        sampler_gap=0 * ones,
    )


def main(iterations: int = 2) -> None:
    """Train the base model of the default recipe."""
    train(load_recipe(Path("workflows/recipes/arithmetic.toml")), iterations)


if __name__ == "__main__":
    launch(main)
