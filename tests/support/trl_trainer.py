"""The loss code of TRL 1.16 on given tensors: its own methods, run unchanged.

`GRPOTrainer._compute_loss` and `RLOOTrainer._compute_loss` are called on an object that has what
they read from a trainer; the forward is replaced by given logprobs and entropies. The sampler
correction is a block inside a long method, so its source is cut out and executed as it stands.
"""

from __future__ import annotations

import inspect
import math
import textwrap
from collections import defaultdict
from functools import cache, partial
from types import CodeType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from common.config import ObjectiveConfig
from support.objective_rows import MAX_COMPLETION_TOKENS, Rows, forward

GRPO_DEFAULTS: dict[str, Any] = {
    "loss_type": "dapo",
    "importance_sampling_level": "token",
    "epsilon_low": 0.2,
    "epsilon_high": 0.2,
    "delta": None,
    "beta": 0.0,
    "use_bias_correction_kl": False,
    "top_entropy_quantile": 1.0,
    "entropy_coef": 0.0,
    "vllm_importance_sampling_mode": None,
    "vllm_importance_sampling_clip_min": None,
    "vllm_importance_sampling_clip_max": None,
}


def settings_of(config: ObjectiveConfig) -> dict[str, Any]:
    """Return TRL's settings for the same objective."""
    loss_type = {"token_mean": "dapo", "sequence_mean": "grpo", "constant": "dr_grpo"}
    cispo = config.policy_term == "cispo"
    settings = {
        "loss_type": "cispo" if cispo else loss_type[config.aggregation],
        "importance_sampling_level": config.ratio_level,
        "epsilon_low": config.clip_low,
        "epsilon_high": config.cispo_cap if cispo else config.clip_high,
        "delta": config.dual_clip,
        "beta": config.kl_coef,
        "use_bias_correction_kl": config.kl_importance_weight,
        "top_entropy_quantile": config.top_entropy_quantile,
        "entropy_coef": config.entropy_coef,
    }
    if config.sampler_correction != "none":
        masks = config.sampler_correction == "mask"
        settings |= {
            "vllm_importance_sampling_mode": f"{config.sampler_level}_{config.sampler_correction}",
            "vllm_importance_sampling_clip_min": config.sampler_low if masks else None,
            "vllm_importance_sampling_clip_max": config.sampler_high,
        }
    return settings


def grpo_loss_of_trl(
    rows: Rows, mask: Tensor, microbatches: int = 1, **settings: Any
) -> tuple[Tensor, dict[str, list[float]]]:
    """Return the loss that TRL accumulates over a batch of equal microbatches, and its metrics.

    Args:
        mask: [C, L] completion mask, in TRL's sense.
        settings: changes to `GRPO_DEFAULTS`, by TRL's own names.
    """
    from trl import GRPOTrainer

    trainer = _grpo_trainer(microbatches, GRPO_DEFAULTS | settings)
    trainer.get_high_entropy_mask = partial(GRPOTrainer.get_high_entropy_mask, trainer)
    logprobs, entropy = forward(rows)
    total = torch.zeros((), dtype=torch.float64)
    for part in torch.arange(len(rows.lengths)).chunk(microbatches):
        outputs = (logprobs[part], entropy[part], None)
        trainer._get_per_token_logps_and_entropies = _always(outputs)
        inputs = _inputs(rows, mask, part) | {
            "old_per_token_logps": rows.old[part],
            "ref_per_token_logps": rows.ref[part],
            "num_items_in_batch": mask.sum(),
        }
        if trainer.use_vllm:
            inputs["importance_sampling_ratio"] = _sampler_weights(trainer, rows, mask, part)
        total = total + GRPOTrainer._compute_loss(trainer, None, inputs)
    return total, trainer._metrics["train"]


def rloo_loss_of_trl(
    rows: Rows, mask: Tensor, microbatches: int, *, epsilon_low: float, epsilon_high: float
) -> Tensor:
    """Return the mean of RLOOTrainer's losses over microbatches, as Hugging Face's Trainer does."""
    from trl import RLOOTrainer

    logprobs, entropy = forward(rows)
    total = torch.zeros((), dtype=torch.float64)
    for part in torch.arange(len(rows.lengths)).chunk(microbatches):
        trainer = SimpleNamespace(
            _get_per_token_logps_and_entropies=_always((logprobs[part], entropy[part], None)),
            aux_loss_enabled=False,
            epsilon_low=epsilon_low,
            epsilon_high=epsilon_high,
            model=SimpleNamespace(training=True),
            accelerator=_accelerator(),
            _metrics={"train": defaultdict(list)},
        )
        inputs = _inputs(rows, mask, part)
        inputs["old_logps"] = (rows.old * mask)[part].sum(1)
        total = total + RLOOTrainer._compute_loss(trainer, None, inputs) / microbatches
    return total


def assert_same(a: Tensor, b: Tensor, rows: Rows) -> None:
    """Check that two losses have the same value and gradient, and that neither is almost zero."""
    gradients = [torch.autograd.grad(loss, rows.logits)[0] for loss in (a, b)]
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)
    assert abs(b.item()) > 1e-4
    assert gradients[1].abs().max() > 1e-4


@cache
def sampler_correction() -> CodeType:
    """Compile TRL's block that makes `vllm_importance_sampling_ratio`."""
    from trl import GRPOTrainer

    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    condition = "if self.use_vllm and self.vllm_importance_sampling_correction:"
    begin = source.index(f"            {condition}")
    end = source.index("            # Compute the per-token log probabilities for the reference")
    return compile(textwrap.dedent(source[begin:end]), "trl", "exec")


def _sampler_weights(trainer: SimpleNamespace, rows: Rows, mask: Tensor, part: Tensor) -> Tensor:
    names: dict[str, Any] = {
        "self": trainer,
        "torch": torch,
        "math": math,
        "tool_mask": None,
        "completion_mask": mask[part].long(),
        "old_per_token_logps": rows.old[part],
        "sampling_per_token_logps": rows.sampler[part],
    }
    exec(sampler_correction(), names)  # noqa: S102 (the code under comparison)
    return names["vllm_importance_sampling_ratio"]


def _grpo_trainer(microbatches: int, settings: dict[str, Any]) -> SimpleNamespace:
    return SimpleNamespace(
        **settings,
        args=SimpleNamespace(
            use_bias_correction_kl=settings["use_bias_correction_kl"],
            delta=settings["delta"],
            steps_per_generation=microbatches,
            sapo_temperature_pos=1.0,
            sapo_temperature_neg=1.05,
        ),
        aux_loss_enabled=False,
        off_policy_mask_threshold=None,
        use_vllm=settings["vllm_importance_sampling_mode"] is not None,
        vllm_importance_sampling_correction=True,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=microbatches,
        max_completion_length=MAX_COMPLETION_TOKENS,
        accelerator=_accelerator(),
        _entropy_bonus_enabled=settings["entropy_coef"] != 0,
        use_adaptive_entropy=False,
        _metrics={"train": defaultdict(list)},
    )


def _accelerator() -> SimpleNamespace:
    return SimpleNamespace(
        num_processes=1,
        sync_gradients=False,
        gather=lambda x: x,
        reduce=lambda x, reduction: x,
        pad_across_processes=lambda x, dim, pad_index: x,
    )


def _inputs(rows: Rows, mask: Tensor, part: Tensor) -> dict[str, Tensor]:
    ids = torch.zeros((len(part), mask.shape[1]), dtype=torch.int64)
    return {
        "prompt_ids": ids,
        "prompt_mask": ids,
        "completion_ids": ids,
        "completion_mask": mask[part].long(),
        "advantages": rows.advantages[part],
    }


def _always(outputs: tuple) -> Any:
    return lambda *_, **__: outputs
