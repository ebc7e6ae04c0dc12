"""What a row's newest token sees of its prompt and of its own tokens, by type of layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from common.errors import UserError
from common.modeling.masks import AttentionMasks, by_layer_type


def step_masks(
    config: Any, prompts: Tensor, counts: Tensor, slots: tuple[int, int], dtype: torch.dtype
) -> AttentionMasks:
    """`attention_mask` of one decoding step: of each layer type its own.

    The same rule as for packs (`modeling/masks.py`): distance is counted in positions.

    Args:
        config: the decoder's (text) configuration.
        prompts: int64 [n], tokens of each row's prompt.
        counts: int64 [n], its own tokens, the newest included.
        slots: P and S, that are read of each prompt and of a row's own part.
        dtype: bool for True where it may see, else 0 there and the lowest value elsewhere.

    Returns:
        [n, 1, 1, P + S]; a dict by layer type where the configuration has `layer_types`.
    """
    of_prompt, of_own = (torch.arange(length, device=counts.device) for length in slots)
    # Positions of keys, counted from the end of the prompt; empty slots behind a prompt have none.
    position = torch.cat([of_prompt - prompts[:, None], of_own.expand(len(counts), -1)], dim=1)
    ahead = counts[:, None] - position  # [n, P + S], 1 for the newest token itself
    seen = ahead > 0
    seen[:, : slots[0]] &= position[:, : slots[0]] < 0

    def mask(kind: str) -> Tensor:
        within = seen
        if kind == "sliding_attention":
            within = seen & (ahead <= config.sliding_window)
        within = within[:, None, None]
        if dtype == torch.bool:
            return within
        lowest = torch.zeros(within.shape, dtype=dtype, device=within.device)
        return lowest.masked_fill_(~within, torch.finfo(dtype).min)

    return by_layer_type(config, mask)


def check_cacheable(config: Any) -> None:
    """Refuse decoders whose state is more than keys and values by position.

    Raises:
        UserError: naming the layer type or the attention implementation.
    """
    known = {"full_attention", "sliding_attention"}
    unknown = sorted(set(getattr(config, "layer_types", None) or []) - known)
    if unknown or getattr(config, "attention_chunk_size", None) is not None:
        kind = unknown[0] if unknown else "chunked_attention"
        raise UserError(
            f"{config.model_type!r} has layers of type {kind!r}, which the sampler cannot decode; "
            "use a decoder with full or sliding attention"
        )
    if config._attn_implementation not in ("sdpa", "eager"):
        raise UserError(
            f"attention implementation {config._attn_implementation!r} takes no mask by row; "
            "load the model with attn_implementation='sdpa' or 'eager'"
        )
