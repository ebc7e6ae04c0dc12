"""How a model's numbers were computed, where that decides whether two of them may be compared."""

from __future__ import annotations

from typing import Literal

import torch

from common.errors import UserError
from common.modeling.load import compute_dtype
from common.runs.layout import Output, Run
from common.runs.manifest import read_manifest


def precision(dtype: Literal["auto", "float32", "bfloat16"], device: torch.device) -> str:
    """Type and kind of device of the recipe's `model.dtype` here, as `float32 on cpu`."""
    return f"{compute_dtype(dtype, device)} on {device.type}".removeprefix("torch.")


def require_precision(rollout: Output, here: str) -> None:
    """Refuse a rollout whose sampler computed otherwise than the trainer does here.

    Args:
        here: `precision` of the trainer.

    Raises:
        UserError: its manifest says so, or says nothing.
    """
    sampled = read_manifest(rollout).facts.get("precision")
    logprobs = Run(rollout.run).logprobs(rollout.iteration)
    if sampled != here:
        raise UserError(
            f'{rollout.path}: logprobs.old_from = "sampler" takes its logprobs for the trainer\'s, '
            f"but they were sampled in {sampled or 'a type that its manifest does not name'} and "
            f"training is in {here}; set model.dtype and sample again ({rollout.command}), or make "
            f'logprobs with logprobs.old_from = "policy": {logprobs.command}'
        )
