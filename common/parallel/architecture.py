"""Check on a tiny random twin that an architecture can be packed and split, before the real model.

A family may do things in its forward that neither packs nor pipeline stages know about: Granite
multiplies embeddings, a linear-attention layer ignores a mask. Families outside the tested table
are therefore tried first: a small random model of the same class and configuration must give the
same logprobs split and packed as it gives whole and padded.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from common.errors import UserError
from common.modeling.load import (
    load_causal_lm,
    load_part,
    model_class,
    pipeline_plan,
    quiet_transformers,
)
from common.modeling.packing import Completion, gather_to_rows, pack
from common.parallel.stage_module import StageModule, stage_arguments

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

TESTED = frozenset({"llama", "qwen2", "qwen3"})
"""Families whose equivalence tests/parallel/test_equivalence.py proves, gradients included."""

_TOLERANCE = 1e-3
"""In nats. In float32 a correct twin differs by about 1e-6, a wrong one by tenths."""

_VOCABULARY = 96
_WINDOW = 6
"""Window and chunk size of the twin's attention, so small that its short texts exceed it."""


def check_architecture(config: PretrainedConfig, *, split: bool) -> None:
    """Refuse an architecture that would be wrong in packs or, with `split`, in pipeline stages.

    Raises:
        UserError: the twin's logprobs differ, no twin could be tried, or there is no pipeline plan.
    """
    if split:
        pipeline_plan(config)
    if config.model_type in TESTED:
        return
    family = config.model_type
    try:
        with tempfile.TemporaryDirectory() as folder:
            whole, packed, cut = twin_logprobs(config, Path(folder), split=split)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"model_type {family!r} is outside the tested families ({', '.join(sorted(TESTED))}) "
            f"and could not be tried on a small random twin: {type(error).__name__}: {error}"
        ) from error
    if (off := _largest_difference(whole, packed)) > _TOLERANCE:
        raise UserError(
            f"model_type {family!r} cannot be packed: a small random twin of it gives logprobs "
            f"that differ by {off:.2g} from those of padded rows; use another architecture"
        )
    if cut is not None and (off := _largest_difference(whole, cut)) > _TOLERANCE:
        raise UserError(
            f"model_type {family!r} cannot be cut into pipeline stages: a small random twin of it "
            f"gives logprobs that differ by {off:.2g} from those of the whole model; use "
            "mesh.pp_degree = 1"
        )


def twin_logprobs(
    config: PretrainedConfig, folder: Path, *, split: bool
) -> tuple[list[Tensor], list[Tensor], list[Tensor] | None]:
    """Return a twin's logprobs of the same completions: padded, packed, and packed and split.

    The last is None without `split`. The twin is saved to `folder` and loaded from it, so that the
    loader is tried as well.
    """
    with quiet_transformers():
        make_twin(config).save_pretrained(folder)
    rows = _completions()
    model = load_causal_lm(folder, torch.float32)
    layers = model.config.get_text_config().num_hidden_layers
    whole = _padded(model, rows)
    packed = _packed([StageModule(model, first=True, last=True, temperature=1.0)], rows)
    if not split:
        return whole, packed, None
    cuts = (range(1), range(1, layers))
    stages = [
        StageModule(
            load_part(folder, part, first=first, last=not first, dtype=torch.float32),
            first=first,
            last=not first,
            temperature=1.0,
        )
        for part, first in zip(cuts, (True, False), strict=True)
    ]
    return whole, packed, _packed(stages, rows)


def make_twin(config: PretrainedConfig) -> PreTrainedModel:
    """Make a small random model of the same class, with every kind of layer and at least three."""
    shrunk = type(config).from_dict(_shrunk(config.to_dict(), config))
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(shrunk)(shrunk).float()
    with torch.no_grad():
        for parameter in model.parameters():
            # Biases start at 0 and norms at 1: without noise, a forgotten one would go unnoticed.
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.1 * noise)
    return model.eval()


def _shrunk(values: dict[str, Any], config: PretrainedConfig) -> dict[str, Any]:
    """Return a configuration's values with few layers, few heads and a small vocabulary."""
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    kept = _one_layer_of_each_kind(getattr(config, "layer_types", None) or ["any"] * layers)
    for name, value in values.items():
        if isinstance(value, list) and len(value) == layers:
            values[name] = [value[index] for index in kept]
    small: dict[str, Any] = {
        "num_hidden_layers": len(kept),
        "hidden_size": 2 * head_dim,
        "num_attention_heads": 2,
        "num_key_value_heads": 1 if kv_heads < heads else 2,
        "intermediate_size": 32,
        "moe_intermediate_size": 16,
        "vocab_size": _VOCABULARY,
        "sliding_window": _WINDOW,
        "attention_chunk_size": _WINDOW,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    native = {config.attribute_map.get(name, name): value for name, value in small.items()}
    present = {name for name, value in values.items() if value is not None}
    return values | {name: value for name, value in native.items() if name in present}


def _one_layer_of_each_kind(kinds: list[str]) -> list[int]:
    """Choose layer indices: the first of each kind, then more from the front for three in all."""
    first = {kind: kinds.index(kind) for kind in kinds}
    chosen = set(first.values())
    for index in range(len(kinds)):
        if len(chosen) >= 3:
            break
        chosen.add(index)
    return sorted(chosen)


def _completions() -> list[Completion]:
    """Make two groups of completions of unequal lengths; all texts but one exceed the window."""
    generator = torch.Generator().manual_seed(1)

    def ids(count: int) -> list[int]:
        return torch.randint(_VOCABULARY, (count,), generator=generator).tolist()

    prompts = [ids(5), ids(9)]
    lengths = [(0, 12), (0, 1), (0, 7), (1, 4), (1, 15)]
    return [Completion(prompts[group], ids(length), group) for group, length in lengths]


@torch.no_grad()
def _padded(model: PreTrainedModel, rows: list[Completion]) -> list[Tensor]:
    """Compute logprobs by the model's own forward, with one right-padded row per completion."""
    texts = [[*row.prompt_ids, *row.completion_ids] for row in rows]
    length = max(map(len, texts))
    input_ids = torch.tensor([text + [0] * (length - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (length - len(text)) for text in texts])
    logits = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
    logprobs = logits.float().log_softmax(-1)[:, :-1].gather(-1, input_ids[:, 1:, None])[..., 0]
    return [logprobs[i, len(row.prompt_ids) - 1 : len(texts[i]) - 1] for i, row in enumerate(rows)]


@torch.no_grad()
def _packed(stages: list[StageModule], rows: list[Completion]) -> list[Tensor]:
    """Compute logprobs from packs with shared prompts, running one stage after another."""
    packs = pack(rows, tokens_per_pack=40, bucket=8)
    hidden = packs.input_ids
    for stage in stages:
        hidden = stage(hidden, **stage_arguments(packs))
    return gather_to_rows(hidden[..., 0], packs, [len(row.completion_ids) for row in rows])


def _largest_difference(a: list[Tensor], b: list[Tensor]) -> float:
    """Return the largest absolute difference; infinite if any difference is NaN."""
    difference = (torch.cat(a) - torch.cat(b)).abs().max()
    return float(difference) if bool(difference.isfinite()) else float("inf")
