"""Random completions for tests of the objective: padded for ours, as lists for the plain one."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from common.config import ObjectiveConfig
from common.functions import find_function
from common.objective.loss import TokenBatch, grpo_loss
from common.objective.weights import (
    entropy_threshold,
    in_policy_term,
    sampler_weights,
    token_weights,
    tokens_in_loss,
)
from support.plain_objective import PlainRow

MAX_COMPLETION_TOKENS = 8
VOCABULARY = 5


@dataclass
class Rows:
    """Completions with everything the loss needs: padded [C, L, …] tensors in float64."""

    logits: Tensor
    targets: Tensor
    old: Tensor
    ref: Tensor
    sampler: Tensor
    entropy: Tensor
    advantages: Tensor
    lengths: list[int]
    truncated: list[bool]

    def plain(self) -> list[PlainRow]:
        """Return the same for the plain implementation; gradients flow back to `logits`."""
        log_p = torch.log_softmax(self.logits, -1)
        return [
            PlainRow(
                log_p[i, :n],
                *(
                    values[i, :n].tolist()
                    for values in (self.targets, self.old, self.ref, self.sampler, self.entropy)
                ),
                advantage=float(self.advantages[i]),
                truncated=self.truncated[i],
            )
            for i, n in enumerate(self.lengths)
        ]


def some_rows(seed: int = 0, lengths: tuple[int, ...] = (3, 6, 1, 4, 8, 2)) -> Rows:
    """Draw rows: ratios from about 0.3 to 3, sampler weights on both sides of their bounds."""
    torch.manual_seed(seed)
    count, longest = len(lengths), max(lengths, default=1)
    shape = (count, longest)
    logits = torch.randn(*shape, VOCABULARY, dtype=torch.float64) * 2
    targets = torch.randint(0, VOCABULARY, shape)
    logprobs = torch.log_softmax(logits, -1).gather(2, targets[..., None]).squeeze(2)

    def near(values: Tensor, scale: float) -> Tensor:
        return values + scale * torch.randn(*shape, dtype=torch.float64)

    old = near(logprobs, 0.5)
    return Rows(
        logits=logits.requires_grad_(),
        targets=targets,
        old=old,
        ref=near(logprobs, 0.7),
        sampler=near(old, 0.3),
        entropy=torch.rand(shape, dtype=torch.float64),
        advantages=torch.randn(count, dtype=torch.float64),
        lengths=list(lengths),
        truncated=[length == MAX_COMPLETION_TOKENS for length in lengths],
    )


def forward(rows: Rows) -> tuple[Tensor, Tensor]:
    """Return logprobs and entropy, each [C, L]."""
    log_p = torch.log_softmax(rows.logits, -1)
    chosen = log_p.gather(2, rows.targets[..., None]).squeeze(2)
    return chosen, -(log_p.exp() * log_p).sum(-1)


def token_batch(rows: Rows, config: ObjectiveConfig) -> TokenBatch:
    """Return the whole optimizer batch, with one completion per row."""
    counts = tokens_in_loss(rows.lengths, rows.truncated, mask_truncated=config.mask_truncated)
    tokens = int(counts.sum())
    weights = token_weights(
        config.aggregation,
        counts,
        tokens=tokens,
        completions=len(counts),
        max_completion_tokens=MAX_COMPLETION_TOKENS,
    )
    positions = torch.arange(rows.old.shape[1])
    present, mask = (positions < n[:, None] for n in (torch.tensor(rows.lengths), counts))
    shape = torch.ones_like(rows.old)
    corrections = shape.clone()
    corrections[present] = torch.from_numpy(
        sampler_weights(
            config, rows.old[present].numpy(), rows.sampler[present].numpy(), rows.lengths
        )
    )
    threshold = entropy_threshold(rows.entropy[mask].numpy(), config.top_entropy_quantile)
    return TokenBatch(
        mask=mask,
        completion=torch.zeros_like(rows.targets),
        old_logprobs=rows.old,
        ref_logprobs=rows.ref if config.kl_coef else None,
        advantages=shape * rows.advantages[:, None],
        weights=shape * weights[:, None],
        token_mean_weights=shape / max(tokens, 1),
        sampler_weights=corrections,
        in_policy_term=torch.from_numpy(in_policy_term(rows.entropy.numpy(), threshold)),
        sampler_gap=(rows.old - rows.sampler).abs(),
    )


def loss_of(
    logprobs: Tensor, entropy: Tensor, batch: TokenBatch, config: ObjectiveConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Call `grpo_loss`, with the recipe's own policy term if it has one."""
    own = config.has_own_term
    own_term = find_function(config.policy_term, "objective.policy_term") if own else None
    return grpo_loss(logprobs, entropy, batch, config, own_term)


def our_loss(rows: Rows, config: ObjectiveConfig, microbatches: int = 1) -> Tensor:
    """Return the loss under test, summed over microbatches of equally many completions."""
    batch, outputs = token_batch(rows, config), forward(rows)
    total = torch.zeros((), dtype=torch.float64)
    for part in torch.arange(len(rows.lengths)).chunk(microbatches):
        total = total + loss_of(*(o[part] for o in outputs), batch.select(part), config)[0]
    return total


TERMS: dict[str, dict[str, Any]] = {
    "clip": {"clip_high": 0.28},
    "dual_clip": {"dual_clip": 1.5},
    "sequence": {"ratio_level": "sequence", "clip_low": 0.05},
    "sequence-dual_clip": {"ratio_level": "sequence", "dual_clip": 1.25},
    "sequence_sum": {"ratio_level": "sequence_sum"},
    "sequence_sum-dual_clip": {"ratio_level": "sequence_sum", "dual_clip": 2.0},
    "cispo": {"policy_term": "cispo", "cispo_cap": 1.2},
    "own": {"policy_term": "support.own_terms:soft_gate"},
    "own-sequence": {"policy_term": "support.own_terms:soft_gate", "ratio_level": "sequence"},
}
"""Policy terms with the ratio levels that they go with."""

AGGREGATIONS = [{"aggregation": name} for name in ("token_mean", "sequence_mean", "constant")]
KLS: list[dict[str, Any]] = [{}] + [
    {"kl_coef": 0.3, "kl_kind": kind, "kl_importance_weight": weighted}
    for kind, weighted in product(("k1", "k2", "k3"), (False, True))
]
CORRECTIONS: list[dict[str, Any]] = [{}] + [
    {
        "sampler_correction": correction,
        "sampler_level": level,
        "sampler_low": 0.7,
        "sampler_high": 1.5,
    }
    for correction, level in product(("truncate", "mask"), ("token", "sequence", "geometric"))
]
SWITCHES = ({"entropy_coef": 0.05}, {"top_entropy_quantile": 0.4}, {"mask_truncated": True})


def all_configs(term: str) -> list[ObjectiveConfig]:
    """Return `TERMS[term]` with each combination of aggregation, KL and sampler correction.

    Each comes twice: with switches drawn at random, and with all the other switches.
    """
    drawn = random.Random(term)
    configs = []
    for parts in product(AGGREGATIONS, KLS, CORRECTIONS):
        on = drawn.randrange(2 ** len(SWITCHES))
        for chosen in (on, ~on):
            switches = [s for bit, s in enumerate(SWITCHES) if chosen >> bit & 1]
            settings = dict(TERMS[term])
            for part in (*parts, *switches):
                settings |= part
            configs.append(ObjectiveConfig(**settings))
    return configs


def some_configs(term: str, count: int) -> list[ObjectiveConfig]:
    """Draw `count` of `all_configs` at random."""
    return random.Random(term).sample(all_configs(term), count)
