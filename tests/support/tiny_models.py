"""Tiny random decoders of several families, and what exact comparisons with them need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from common.modeling.pack_attention import PackedDecoder
from common.modeling.pack_layout import PackLayout
from common.modeling.packing import Completion, PackBatch
from common.modeling.token_logprobs import Head, token_logprobs

VOCABULARY = 97

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}

# What each family adds. Windows are short enough to cut the texts of the tests.
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen2_sliding": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen3": {},
    "llama": {},
    "gemma2": {
        "sliding_window": 5,
        "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "attn_implementation": "eager",
    },
    "mistral": {"sliding_window": 5},
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 3.0},
    "cohere": {"logit_scale": 0.25},
    "phi": {},
}


def tiny_config(family: str, *, tied: bool = False, **changes: Any) -> Any:
    """Return a configuration of `family` with 3 layers, hidden size 32 and 97 tokens."""
    from transformers import AutoConfig

    extra = {**_COMMON, "tie_word_embeddings": tied, **FAMILIES.get(family, {}), **changes}
    attention = extra.pop("attn_implementation", "sdpa")
    config = AutoConfig.for_model(family.split("_")[0], **extra)
    config._attn_implementation = attention
    return config


def tiny_model(
    family: str,
    *,
    tied: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **changes: Any,
) -> Any:
    """Return a random model of `family` in eval mode, with biases and norms that have an effect."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = tiny_config(family, tied=tied, **changes)
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation=config._attn_implementation
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.to(dtype).eval()


class KeepFloat64(TorchFunctionMode):
    """A mode in which a model's own casts to float32 (norms, rotary, eager softmax) keep float64.

    Hugging Face decoders compute those parts in float32 whatever the model's type. Two float64 runs
    would then agree only to 1e-7 wherever a cast rounds to the other side.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            if func is Tensor.float:
                return args[0]
            if func is Tensor.to:
                args = tuple(torch.float64 if a is torch.float32 else a for a in args)
            if kwargs.get("dtype") is torch.float32:
                kwargs["dtype"] = torch.float64
        if func is Tensor.matmul and args[0].dtype != args[1].dtype:
            # Rotary frequencies and positions, in versions that multiply them by `matmul`.
            args = tuple(a.double() for a in args)
        return func(*args, **kwargs)


def random_completions(
    seed: int = 0,
    *,
    groups: int = 3,
    group_size: int = 3,
    longest_prompt: int = 9,
    longest_completion: int = 11,
) -> list[Completion]:
    """Return groups of completions of random lengths and tokens."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(longest: int) -> list[int]:
        length = int(torch.randint(1, longest + 1, (), generator=generator))
        return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()

    prompts = [tokens(longest_prompt) for _ in range(groups)]
    return [
        Completion(prompt, tokens(longest_completion), group)
        for group, prompt in enumerate(prompts)
        for _ in range(group_size)
    ]


def plain_logits(model: Any, completion: Completion) -> Tensor:
    """Return the model's own logits [L, V] for one completion's tokens: one row, no padding."""
    ids = torch.tensor([[*completion.prompt_ids, *completion.completion_ids]])
    logits = model(input_ids=ids, use_cache=False).logits[0]
    return logits[len(completion.prompt_ids) - 1 : -1]


def layout_of(batch: PackBatch) -> PackLayout:
    return PackLayout(batch.position_ids, batch.group_ids, batch.completion_ids)


def packed_outputs(model: Any, batch: PackBatch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return logprobs [P, T] and entropy [P, T] through packs and the chunked head.

    Afterwards the model can be used only with packs.
    """
    hidden = PackedDecoder(model)(layout_of(batch), input_ids=batch.input_ids)
    index = batch.predict_from[:, :, None].expand(-1, -1, hidden.shape[-1])
    targets = hidden.gather(1, index).flatten(0, 1)
    logprobs, entropy = token_logprobs(
        targets,
        batch.target_ids.flatten(),
        Head.from_model(model),
        temperature=temperature,
        chunk_tokens=16,
    )
    return logprobs.view_as(batch.row), entropy.view_as(batch.row)
