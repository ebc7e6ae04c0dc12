"""A packed forward equals one plain forward per row, whichever attention a family has."""

from __future__ import annotations

import pytest
import torch
from support.tiny_models import (
    KeepFloat64,
    layout_of,
    packed_outputs,
    plain_logits,
    random_completions,
    tiny_config,
    tiny_model,
)

from common.console import warn_once
from common.errors import UserError
from common.modeling import pack_attention
from common.modeling.pack_attention import PackedDecoder
from common.modeling.pack_layout import Reach, by_layer_type
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
    visible = layout_of(batch).visible(Reach())[0, 0]
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
    visible = layout_of(batch).visible(Reach(window=3))[0, 0]
    assert batch.input_ids[0, 8] == 4
    assert visible[8].nonzero().flatten().tolist() == [0, 1, 8]
    assert visible[7].nonzero().flatten().tolist() == [5, 6, 7]


@pytest.mark.parametrize(
    ("family", "reaches"),
    [
        ("llama", [Reach()] * 3),
        ("mistral", [Reach(window=5)] * 3),
        ("qwen2", [Reach()] * 3),
        ("qwen2_sliding", [Reach(), Reach(window=5), Reach(window=5)]),
        ("gemma2", [Reach(window=5), Reach(), Reach(window=5)]),
    ],
)
def test_each_layer_has_the_reach_of_its_kind(family, reaches):
    config = tiny_config(family)
    assert [Reach.of_layer(layer, config) for layer in range(3)] == reaches
    kinds = by_layer_type(config, lambda kind: Reach.of_kind(kind, config))
    assert (set(kinds.values()) if isinstance(kinds, dict) else {kinds}) == set(reaches)


@pytest.mark.parametrize(("family", "attention", "tied"), CASES)
def test_sdpa_is_computed_from_the_layout_and_eager_by_masks(
    family, attention, tied, monkeypatch, capsys
):
    """Without this, the equality above could come from dense masks alone."""
    calls = []
    monkeypatch.setattr(
        pack_attention,
        "pack_attention",
        lambda *args, compute=pack_attention.pack_attention: calls.append(args) or compute(*args),
    )
    model = tiny_model(family, tied=tied, attn_implementation=attention)
    packed_outputs(model, pack(random_completions(0), tokens_per_pack=40))
    assert len(calls) == (3 if attention == "sdpa" else 0)
    assert capsys.readouterr().err == ""


def test_attention_of_another_kind_gets_dense_masks_and_says_so_once(monkeypatch, capsys):
    """Attention that is capped, sunk or biased is not the one that is computed from the layout."""
    batch = pack(random_completions(0), tokens_per_pack=40)
    logprobs, _ = packed_outputs(tiny_model("mistral"), batch)
    monkeypatch.setattr(pack_attention, "PLAIN", frozenset())
    warn_once.cache_clear()
    model = tiny_model("mistral")
    decoder = PackedDecoder(model)
    first, again = (decoder(layout_of(batch), input_ids=batch.input_ids) for _ in range(2))
    assert torch.equal(first, again)
    assert capsys.readouterr().err.count("each layer reads a dense mask, which is slower") == 1
    assert model.config._attn_implementation == "sdpa"
    dense, _ = packed_outputs(model, batch)
    real = batch.target_mask
    torch.testing.assert_close(dense[real], logprobs[real], rtol=0, atol=1e-5)


def test_a_model_for_packs_refuses_plain_rows():
    """It would see every token of the batch, or none of its padding: never in silence."""
    model = tiny_model("llama")
    PackedDecoder(model)
    with pytest.raises(pack_attention.NotPackedError, match="LlamaAttention"):
        model(input_ids=torch.tensor([[1, 2, 3]]))


def test_layers_with_a_state_are_refused():
    model = tiny_model("qwen2")
    model.config.layer_types = ["linear_attention", "full_attention", "full_attention"]
    with pytest.raises(UserError, match=r"linear_attention.*cannot be packed"):
        PackedDecoder(model)


def test_a_kernel_without_masks_is_refused():
    model = tiny_model("llama")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UserError, match=r"flash_attention_2.*sdpa"):
        PackedDecoder(model)
