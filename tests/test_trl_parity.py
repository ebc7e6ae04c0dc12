"""Value and gradient of our loss against the loss code of TRL 1.16 itself, on the same tensors.

`GRPOTrainer._compute_loss` runs unchanged on an object that carries what it reads of a trainer;
its forward is replaced by the given logprobs. TRL's `dapo` is our `token_mean`, `grpo` is
`sequence_mean`, `dr_grpo` is `constant`, `delta` is `dual_clip`, `use_bias_correction_kl` is
`kl_importance_weight`, `beta` is `kl_coef`.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import product
from types import SimpleNamespace

import pytest
import torch

from common.config import ObjectiveConfig
from common.objective.aggregation import token_weights
from common.objective.objective import TokenBatch, grpo_loss

trl = pytest.importorskip("trl", reason="the test extra is not installed")

LOSS_TYPES = {"token_mean": "dapo", "sequence_mean": "grpo", "constant": "dr_grpo"}
MAX_COMPLETION_TOKENS = 10
COMPLETIONS = 6


@pytest.fixture(scope="module")
def tensors() -> SimpleNamespace:
    """[6, 10] float64; lengths 1 to 10, ratios on both sides of every clip."""
    torch.manual_seed(0)
    shape = (COMPLETIONS, MAX_COMPLETION_TOKENS)
    logprobs = -3 * torch.rand(shape, dtype=torch.float64)
    return SimpleNamespace(
        logprobs=logprobs,
        entropy=torch.rand(shape, dtype=torch.float64),
        old=logprobs + 0.6 * torch.randn(shape, dtype=torch.float64),
        ref=logprobs + 0.6 * torch.randn(shape, dtype=torch.float64),
        advantages=torch.randn(COMPLETIONS, dtype=torch.float64),
        mask=torch.arange(MAX_COMPLETION_TOKENS) < torch.tensor([1, 10, 4, 7, 9, 3])[:, None],
    )


def trl_loss(t, config: ObjectiveConfig, logprobs, entropy, microbatches: int):
    """The loss that TRL accumulates over an optimizer batch of equal microbatches."""
    from trl import GRPOTrainer

    total = torch.zeros((), dtype=torch.float64)
    for rows in torch.arange(COMPLETIONS).chunk(microbatches):
        outputs = (logprobs[rows], entropy[rows], None)
        trainer = SimpleNamespace(
            _get_per_token_logps_and_entropies=lambda *_, outputs=outputs, **__: outputs,
            aux_loss_enabled=False,
            top_entropy_quantile=1.0,
            off_policy_mask_threshold=None,
            importance_sampling_level="token",
            beta=config.kl_coef,
            args=SimpleNamespace(
                use_bias_correction_kl=config.kl_importance_weight,
                delta=config.dual_clip,
                steps_per_generation=microbatches,
            ),
            loss_type=LOSS_TYPES[config.aggregation],
            epsilon_low=config.clip_low,
            epsilon_high=config.clip_high,
            use_vllm=False,
            model=SimpleNamespace(training=True),
            current_gradient_accumulation_steps=microbatches,
            max_completion_length=MAX_COMPLETION_TOKENS,
            accelerator=SimpleNamespace(
                num_processes=1,
                sync_gradients=False,
                gather=lambda x: x,
                reduce=lambda x, reduction: x,
            ),
            _entropy_bonus_enabled=config.entropy_coef != 0,
            use_adaptive_entropy=False,
            entropy_coef=config.entropy_coef,
            _metrics={"train": defaultdict(list)},
        )
        ids = torch.zeros((len(rows), MAX_COMPLETION_TOKENS), dtype=torch.int64)
        inputs = {
            "prompt_ids": ids,
            "prompt_mask": ids,
            "completion_ids": ids,
            "completion_mask": t.mask[rows].long(),
            "advantages": t.advantages[rows],
            "old_per_token_logps": t.old[rows],
            "ref_per_token_logps": t.ref[rows],
            "num_items_in_batch": t.mask.sum(),
        }
        total = total + GRPOTrainer._compute_loss(trainer, None, inputs)
    return total


def our_loss(t, config: ObjectiveConfig, logprobs, entropy, microbatches: int):
    counts = t.mask.sum(1)
    tokens = int(counts.sum())
    weights = token_weights(
        config.aggregation,
        counts,
        tokens=tokens,
        completions=COMPLETIONS,
        max_completion_tokens=MAX_COMPLETION_TOKENS,
    )
    shape = torch.ones_like(t.old)
    batch = TokenBatch(
        mask=t.mask,
        old_logprobs=t.old,
        ref_logprobs=t.ref if config.kl_coef else None,
        advantages=shape * t.advantages[:, None],
        weights=shape * weights[:, None],
        token_mean_weights=shape / tokens,
        sampler_gap=torch.zeros_like(t.old),
    )
    return sum(
        grpo_loss(logprobs[rows], entropy[rows], batch.select(rows), config)[0]
        for rows in torch.arange(COMPLETIONS).chunk(microbatches)
    )


@pytest.mark.parametrize("microbatches", [1, 3])
@pytest.mark.parametrize(
    ("aggregation", "kl", "dual_clip"),
    list(
        product(
            LOSS_TYPES,
            [(0.0, False), (0.04, False), (0.04, True)],
            [None, 1.6],
        )
    ),
)
def test_loss_and_gradient_equal_trl(tensors, aggregation, kl, dual_clip, microbatches):
    config = ObjectiveConfig(
        clip_high=0.28,
        dual_clip=dual_clip,
        kl_coef=kl[0],
        kl_importance_weight=kl[1],
        aggregation=aggregation,
    )
    results = []
    for loss_of in (trl_loss, our_loss):
        logprobs = tensors.logprobs.clone().requires_grad_()
        loss = loss_of(tensors, config, logprobs, tensors.entropy, microbatches)
        results.append((loss, *torch.autograd.grad(loss, logprobs)))
    (theirs, their_gradient), (ours, our_gradient) = results
    assert float(theirs.detach().abs()) > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=0, atol=1e-12)


def test_entropy_bonus_equals_trl_in_one_microbatch(tensors):
    """Over several, TRL averages token means of microbatches; ours is the mean over all tokens."""
    config = ObjectiveConfig(entropy_coef=0.1)
    gradients = []
    for loss_of in (trl_loss, our_loss):
        entropy = tensors.entropy.clone().requires_grad_()
        loss = loss_of(tensors, config, tensors.logprobs, entropy, 1)
        gradients.append(torch.autograd.grad(loss, entropy)[0])
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_trl_is_the_version_that_was_read():
    assert trl.__version__.startswith("1.16")
