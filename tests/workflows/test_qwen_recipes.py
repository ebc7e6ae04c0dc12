"""The recipes for GPUs that nobody here has: what can be known of them without one."""

from __future__ import annotations

import re

import pytest
import torch
from support import REPOSITORY
from transformers import AutoConfig

from common.config.recipe_file import load_recipe
from common.modeling.load import model_class
from common.parallel.architecture import check_architecture
from common.parallel.pipeline import split_model

RECIPES = REPOSITORY / "workflows" / "recipes"
SHAPES = {
    "qwen2.5-0.5b-1gpu": (896, 4864, 24, 14),
    "qwen2.5-1.5b-4gpu": (1536, 8960, 28, 12),
}
"""Hidden and intermediate size, layers, heads. Both have 2 key-value heads and tied embeddings."""
GB = 10**9
PER_PARAMETER = 2 + 4 + 4 + 8
"""Bytes: bfloat16 weight, float32 master, its gradient, AdamW's two moments."""


@pytest.mark.parametrize("name", SHAPES)
def test_weights_and_optimizer_leave_half_of_24_gb(name: str) -> None:
    """The comment at the top of the recipe says what the largest pipeline stage takes."""
    recipe = load_recipe(RECIPES / f"{name}.toml")
    hidden, intermediate, layers, heads = SHAPES[name]
    config = AutoConfig.for_model(
        "qwen2",
        vocab_size=151_936,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    parts = 1 if recipe.mesh.pp_degree == "auto" else recipe.mesh.pp_degree
    check_architecture(config, split=parts > 1)
    with torch.device("meta"):
        model = model_class(config)(config)
    layer = sum(p.numel() for p in model.get_submodule("model.layers.0").parameters())
    embedding = model.get_input_embeddings().weight.numel()
    split = split_model(config, parts)
    ends = {0, parts - 1}  # first and last stage hold the tied matrix
    largest = max(len(part) * layer + embedding * (i in ends) for i, part in enumerate(split))
    said = re.search(r"takes (\d+) GB", (RECIPES / f"{name}.toml").read_text())
    assert said and int(said[1]) == round(largest * PER_PARAMETER / GB)
    assert largest * PER_PARAMETER < 12 * GB


@pytest.mark.parametrize("name", SHAPES)
def test_they_say_that_they_have_not_run(name: str) -> None:
    assert "Not yet run on a GPU" in (RECIPES / f"{name}.toml").read_text()
