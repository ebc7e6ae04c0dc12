"""A decoder's output head: the matrix that makes logits, and what its family does to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from common.errors import UserError
from common.modeling.linear import linear


@dataclass(frozen=True)
class Head:
    """logits = softcap(scale · (hidden · weightᵀ + bias)), as the family's own forward has it."""

    weight: Tensor
    """[V, H]"""
    bias: Tensor | None = None
    """[V]"""
    scale: float = 1.0
    softcap: float | None = None
    """c: each logit x becomes c · tanh(x / c)."""

    @classmethod
    def from_config(cls, config: Any, weight: Tensor, bias: Tensor | None = None) -> Head:
        """The head of a decoder with this configuration.

        Raises:
            UserError: the configuration scales logits in a way that is not known here.
        """
        config = config.get_text_config()
        softcap = getattr(config, "final_logit_softcapping", None)
        return cls(weight, bias, scale=_scale(config), softcap=softcap)

    @classmethod
    def from_model(cls, model: Any) -> Head:
        """The head of a Hugging Face causal language model, its parameters shared."""
        linear = model.get_output_embeddings()
        return cls.from_config(model.config, linear.weight, getattr(linear, "bias", None))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [N, V] of hidden states [N, H], float32 or wider, before any temperature."""
        raw = linear(hidden, self.weight, self.bias)
        return self.transform(raw.to(torch.promote_types(raw.dtype, torch.float32)))

    def transform(self, raw: Tensor) -> Tensor:
        """Scale and softcap of raw logits."""
        if self.scale != 1:
            raw = raw * self.scale
        if self.softcap is not None:
            raw = torch.tanh(raw / self.softcap) * self.softcap
        return raw

    def transform_slope(self, logits: Tensor) -> Tensor | float:
        """The transform's derivative, from its result: d tanh(x) = 1 − tanh²(x)."""
        if self.softcap is None:
            return self.scale
        return (1 - (logits / self.softcap).square()) * self.scale


# Fields by which families scale logits, for models that `_scale` does not know by name.
_SCALES = ("logits_scaling", "logit_scale", "lm_head_multiplier", "output_multiplier")


def _scale(config: Any) -> float:
    """The factor on raw logits; the same field divides in one family and multiplies in another."""
    family = config.model_type
    if family.startswith("granite") or family == "minicpm3":
        return 1 / config.logits_scaling
    if family == "hyperclovax":
        return config.logits_scaling
    if family.startswith("cohere"):
        return 1.0 if config.logit_scale is None else config.logit_scale
    if family == "falcon_h1":
        return config.lm_head_multiplier
    for name in _SCALES:
        if getattr(config, name, None) not in (None, 1):
            raise UserError(
                f"{family!r} scales its logits by {name} = {getattr(config, name)} in a way that "
                "is not known here; add the family to common/modeling/head.py with a test"
            )
    return 1.0
