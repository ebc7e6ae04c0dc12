"""Activation checkpointing: the same gradients, to the bit, from a fraction of the memory.

That it is so on several ranks and against the plain model is test_equivalence's matter.
"""

from __future__ import annotations

import gc

import pytest
import torch
from support.tiny_models import random_completions, tiny_model
from torch.profiler import ProfilerActivity, profile

from common.errors import UserError
from common.modeling.packing import pack
from common.parallel.stage_module import StageModule, recompute_layers, stage_arguments

LAYERS = 8


def peak_and_gradients(model) -> tuple[int, list[torch.Tensor]]:
    """Most bytes that forward and backward of a pack hold at once, and the gradients they leave."""
    packs = pack(random_completions(0, groups=8, group_size=8), tokens_per_pack=256)
    first = slice(0, 1)
    inputs = {name: value[first] for name, value in stage_arguments(packs).items()}
    module = StageModule(model.requires_grad_(True), first=True, last=True, temperature=1.0)
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        module(packs.input_ids[first], **inputs).square().sum().backward()
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    held = peak = 0
    for event in events:
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak, [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "gemma2", "mistral"])
def test_the_same_gradients_from_a_fraction_of_the_memory(family: str, record_property) -> None:
    """In eval mode, where Hugging Face's own switch would do nothing."""
    whole, recomputed = (tiny_model(family, tied=True, num_hidden_layers=LAYERS) for _ in range(2))
    recompute_layers(recomputed)
    assert not recomputed.training
    peak, gradients = peak_and_gradients(whole)
    less, found = peak_and_gradients(recomputed)
    for gradient, again in zip(gradients, found, strict=True):
        assert gradient.abs().max() > 0
        assert torch.equal(gradient, again)
    record_property("peak_ratio", less / peak)
    print(f"{family}: {less / peak:.2f} of the memory")
    # One layer's activations of eight, the inputs of all of them, and the head.
    assert less < 0.35 * peak


def test_nothing_is_kept_without_gradient() -> None:
    """The wrapped layers are as good for a forward alone."""
    model = tiny_model("qwen2", num_hidden_layers=2)
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        before = model(ids).logits
        recompute_layers(model)
        assert torch.equal(model(ids).logits, before)


def test_a_model_without_layers_by_that_name_is_refused() -> None:
    from transformers import AutoModelForCausalLM, GPT2Config

    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20, n_positions=16)
    with pytest.raises(UserError, match=r"'gpt2' has no `layers`.*activation_checkpointing"):
        recompute_layers(AutoModelForCausalLM.from_config(config))
