"""A packed forward equals one plain forward per row, for every kind of mask a family takes."""

from __future__ import annotations

import pytest
import torch
from support.tiny_models import (
    KeepFloat64,
    packed_outputs,
    plain_logits,
    random_completions,
    tiny_config,
    tiny_model,
)

from common.errors import UserError
from common.modeling.masks import PackMask, attention_masks
from common.modeling.packing import Completion, gather_to_rows, pack

CASES = [
    ("qwen2", "sdpa", True),
    ("qwen2", "eager", False),
    ("qwen2_sliding", "sdpa", False),
    ("qwen3", "sdpa", True),
    ("llama", "sdpa", False),
    ("llama", "eager", True),
    ("gemma2", "eager", True),
    ("mistral", "sdpa", False),
    ("mistral", "eager", True),
]
TEMPERATURE = 0.7


@pytest.mark.parametrize(("family", "attention", "tied"), CASES)
def test_packs_equal_plain_rows_in_float64(family, attention, tied):
    """Logprobs, entropies and every parameter's gradient, to 1e-10.

    Windows of 5 positions are shorter than the texts, so index distance, full attention in a
    sliding layer or a leak between completions each move the result by far more.
    """
    model = tiny_model(family, tied=tied, dtype=torch.float64, attn_implementation=attention)
    rows = random_completions(3)
    weights = [torch.randn(2, len(r.completion_ids), dtype=torch.float64) for r in rows]
    with KeepFloat64():
        plain = [_plain_outputs(model, row) for row in rows]
        gradients = _gradients(model, plain, weights)
        batch = pack(rows, tokens_per_pack=40, bucket=8, multiple_of=2)
        lengths = [len(r.completion_ids) for r in rows]
        columns = [
            gather_to_rows(values, batch, lengths)
            for values in packed_outputs(model, batch, TEMPERATURE)
        ]
        packed = [torch.stack(pair) for pair in zip(*columns, strict=True)]
        packed_gradients = _gradients(model, packed, weights)
    torch.testing.assert_close(torch.cat(packed, 1), torch.cat(plain, 1), rtol=0, atol=1e-10)
    assert gradients.keys() == packed_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            packed_gradients[name], gradient, rtol=1e-10, atol=1e-10, msg=name
        )


def _plain_outputs(model, row):
    """[2, L] logprobs and entropy of one row by log_softmax of the model's own logits."""
    log_p = torch.log_softmax(plain_logits(model, row) / TEMPERATURE, dim=-1)
    chosen = log_p.gather(1, torch.tensor(row.completion_ids)[:, None]).squeeze(1)
    return torch.stack([chosen, -(log_p.exp() * log_p).sum(-1)])


def _gradients(model, outputs, weights):
    model.zero_grad()
    sum((o * w).sum() for o, w in zip(outputs, weights, strict=True)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def test_a_token_sees_its_prompt_and_its_own_completion_only():
    rows = [
        Completion([1, 2], [3, 4, 5], 0),
        Completion([1, 2], [6, 7], 0),
        Completion([8], [9, 9], 1),
    ]
    batch = pack(rows, tokens_per_pack=16, bucket=8)
    masks = attention_masks(
        tiny_config("llama"),
        batch.position_ids,
        batch.group_ids,
        batch.completion_ids,
        torch.float32,
    )
    visible = masks[0, 0]
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 6, 8, 9, 0]]
    assert [[k for k in range(8) if visible[q, k]] for q in range(8)] == [
        [0],
        [0, 1],
        [0, 1, 2],
        [0, 1, 2, 3],
        [0, 1, 4],
        [5],
        [5, 6],
        [7],
    ]


def test_a_sliding_window_counts_positions():
    """The second completion stands far from its prompt in the pack but next to it in the text."""
    rows = [Completion([1, 2], [3] * 7, 0), Completion([1, 2], [4, 5], 0)]
    batch = pack(rows, tokens_per_pack=16, bucket=1)
    config = tiny_config("mistral", sliding_window=3)
    masks = attention_masks(
        config, batch.position_ids, batch.group_ids, batch.completion_ids, torch.float32
    )
    assert batch.input_ids[0, 8] == 4
    assert masks[0, 0, 8].nonzero().flatten().tolist() == [0, 1, 8]
    assert masks[0, 0, 7].nonzero().flatten().tolist() == [5, 6, 7]


@pytest.mark.parametrize(
    ("family", "kinds"),
    [
        ("llama", None),
        ("mistral", None),
        ("qwen2", ["full_attention"]),
        ("qwen2_sliding", ["full_attention", "sliding_attention"]),
        ("gemma2", ["sliding_attention", "full_attention"]),
    ],
)
def test_the_form_is_the_one_the_forward_takes(family, kinds):
    batch = pack(random_completions(0), tokens_per_pack=40)
    masks = attention_masks(
        tiny_config(family),
        batch.position_ids,
        batch.group_ids,
        batch.completion_ids,
        torch.float32,
    )
    form = torch.float32 if family == "gemma2" else torch.bool
    found = list(masks.values()) if kinds else [masks]
    if kinds:
        assert list(masks) == kinds
    packs, length = batch.input_ids.shape
    assert all(m.shape == (packs, 1, length, length) and m.dtype == form for m in found)
    assert all(isinstance(m, PackMask) == (form == torch.bool) for m in found)
    assert all(
        bool((m != torch.finfo(form).min if m.is_floating_point() else m).any(-1).all())
        for m in found
    )


def test_layers_with_a_state_are_refused():
    config = tiny_config("qwen2")
    config.layer_types = ["linear_attention", "full_attention", "full_attention"]
    ids = torch.zeros((1, 4), dtype=torch.int64)
    with pytest.raises(UserError, match=r"linear_attention.*cannot be packed"):
        attention_masks(config, ids, ids, ids, torch.float32)


def test_a_kernel_without_masks_is_refused():
    config = tiny_config("llama")
    config._attn_implementation = "flash_attention_2"
    ids = torch.zeros((1, 4), dtype=torch.int64)
    with pytest.raises(UserError, match=r"flash_attention_2.*sdpa"):
        attention_masks(config, ids, ids, ids, torch.float32)
