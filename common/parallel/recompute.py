"""Activation checkpointing: decoder layers keep their inputs and are computed again in backward.

Without it backward needs what every layer has computed; with it the input of each layer, and what
one layer has computed while it is that layer's turn (arXiv 1604.06174). The price is another
forward of the layers. Models stay in eval mode: Hugging Face's own switch acts in training mode
only, where dropout would be on.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from torch.utils.checkpoint import checkpoint

from common.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def recompute_layers(part: PreTrainedModel) -> None:
    """Let the decoder layers of a model, or of a part of it, be computed again in backward.

    Raises:
        UserError: the architecture has no list of decoder layers by the usual name.
    """
    layers = getattr(part.base_model, "layers", None)
    if layers is None:
        raise UserError(
            f"model_type {part.config.model_type!r} has no `layers` to compute again: set "
            "train.activation_checkpointing = false"
        )
    for layer in layers:
        if next(layer.parameters(), None) is None:  # stands for a layer of another rank
            continue
        # Nothing is drawn at random, so there is no generator's state to be kept.
        layer.forward = partial(
            checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False
        )
