"""Computation of one pipeline stage: packs or hidden states in, hidden states or logprobs out.

`recompute_layers` switches on activation checkpointing: decoder layers keep only their inputs and
are computed again in backward (arXiv 1604.06174). Memory then holds the input of every layer and
the activations of one layer at a time, instead of the activations of all layers. The price is
another forward of the layers. Hugging Face's own switch acts only in training mode, where dropout
would be on, whereas models here stay in eval mode.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from common.errors import UserError
from common.modeling.pack_attention import PackedDecoder
from common.modeling.pack_layout import PackLayout
from common.modeling.packing import PackBatch
from common.modeling.token_logprobs import Head, token_logprobs

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class StageModule(nn.Module):
    """The model's own forward over the layers of this stage.

    Every rank has read the packs and knows their layout, so only hidden states travel. The head is
    part of the last stage, so that logits are never an output. From construction on, the model's
    attention works only on packs.
    """

    def __init__(
        self, part: PreTrainedModel, *, first: bool, last: bool, temperature: float
    ) -> None:
        super().__init__()
        self.part = part
        self._decoder = PackedDecoder(part)
        self.first = first
        self.last = last
        self.temperature = temperature

    def forward(
        self,
        inputs: Tensor,
        *,
        position_ids: Tensor,
        group_ids: Tensor,
        completion_ids: Tensor,
        predict_from: Tensor,
        target_ids: Tensor,
    ) -> Tensor:
        """Run this stage on B packs.

        Args:
            inputs: input_ids [B, S] int64 on the first stage, else hidden states [B, S, H].
            position_ids, group_ids, completion_ids: [B, S]; predict_from, target_ids: [B, T].

        Returns:
            Hidden states [B, S, H]; on the last stage [B, T, 2], logprob and entropy in nats.
        """
        layout = PackLayout(position_ids, group_ids, completion_ids)
        hidden = self._decoder(layout, **{"input_ids" if self.first else "inputs_embeds": inputs})
        return self._logprobs(hidden, predict_from, target_ids) if self.last else hidden

    def _logprobs(self, hidden: Tensor, predict_from: Tensor, target_ids: Tensor) -> Tensor:
        """Compute logprob and entropy [B, T, 2] from hidden states [B, S, H]."""
        index = predict_from.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
        predicting = hidden.gather(1, index).flatten(0, 1)  # [B·T, H]
        head = Head.from_model(self.part)
        logprobs, entropy = token_logprobs(
            predicting, target_ids.flatten(), head, temperature=self.temperature
        )
        # Stacked last: a pipeline stage's output must own its memory.
        return torch.stack((logprobs.view_as(target_ids), entropy.view_as(target_ids)), dim=-1)


def stage_arguments(packs: PackBatch) -> dict[str, Any]:
    """Return the keyword arguments of `StageModule.forward`, all [P, …]."""
    return {
        "position_ids": packs.position_ids,
        "group_ids": packs.group_ids,
        "completion_ids": packs.completion_ids,
        "predict_from": packs.predict_from,
        "target_ids": packs.target_ids,
    }


def recompute_layers(part: PreTrainedModel) -> None:
    """Make the decoder layers of a model, or of a part of one, be computed again in backward.

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
        # Layers draw no random numbers, so no generator state has to be preserved.
        layer.forward = partial(
            checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False
        )
