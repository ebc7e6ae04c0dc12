"""Pipelines forward on one and two ranks, how packs are to be made for them, and who may be cut."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.tiny_models import plain_logits, random_completions, tiny_config, tiny_model
from support.two_ranks import TEMPERATURE, batch, facts, outcome
from test_equivalence import MODELS
from transformers import AutoConfig

from common.errors import UserError
from common.modeling.load import load_causal_lm
from common.modeling.packing import Completion, gather_to_rows, pack
from common.parallel.architecture import TESTED, check_architecture
from common.parallel.mesh import Mesh
from common.parallel.pipeline import Pipeline, split_model


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    tiny_model("qwen2", tied=True).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("model", ["source", "untied"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_forward_gives_the_models_own_logprobs_and_entropies(model: str, ranks: int) -> None:
    """Against the whole model's logits, one row at a time, at the temperature."""
    outputs = load_file(outcome() / f"forward-{model}-{ranks}.safetensors")["outputs"]
    rows = random_completions(0, groups=4, group_size=3)
    lengths = [len(row.completion_ids) for row in rows]
    assert outputs.dtype == torch.float32
    whole = load_causal_lm(outcome() / model, torch.float64)
    logprobs = gather_to_rows(outputs[..., 0], batch(), lengths)
    entropies = gather_to_rows(outputs[..., 1], batch(), lengths)
    for row, logprob, entropy in zip(rows, logprobs, entropies, strict=True):
        log_p = (plain_logits(whole, row) / TEMPERATURE).log_softmax(-1).detach()
        expected = log_p[range(len(row.completion_ids)), row.completion_ids]
        torch.testing.assert_close(logprob.double(), expected, atol=1e-5, rtol=0)
        expected = -(log_p.exp() * log_p).sum(-1)
        torch.testing.assert_close(entropy.double(), expected, atol=1e-5, rtol=0)


def test_no_layer_is_dropped_when_ranks_do_not_divide_them() -> None:
    assert facts(2)["layers"] == [3, 2]


def test_packing_serves_the_schedule(policy: Path) -> None:
    """Checked by packing: three rows become as many packs as the schedule can take."""
    rows = random_completions(0, groups=1, group_size=3)
    four = Mesh(pp_degree=4)
    # Only `mesh` and `schedule` matter to it; there is no rank here to load for.
    pipeline = Pipeline.__new__(Pipeline)
    pipeline.mesh, pipeline.schedule = four, "1f1b"
    assert pack(rows, tokens_per_pack=1000, **pipeline.packing("auto")).num_packs == 4
    assert pack(rows, tokens_per_pack=1000, **pipeline.packing(6)).num_packs == 6
    with pytest.raises(UserError, match=r"microbatches = 3.*4 pipeline stages"):
        pipeline.packing(3)
    pipeline.schedule = "gpipe"
    assert pack(rows, tokens_per_pack=1000, **pipeline.packing(3)).num_packs == 3


def test_tokens_that_the_model_does_not_have_are_refused(policy: Path) -> None:
    pipeline = Pipeline(policy, Mesh(), dtype=torch.float32, temperature=1.0)
    beyond = Completion([1, 2], [3, 100_000], group=0)
    with pytest.raises(UserError, match="token id 100000 is beyond"):
        pipeline.run_forward(pack([beyond], tokens_per_pack=64))


def test_microbatches_do_not_change_the_forward(policy: Path) -> None:
    pipeline = Pipeline(policy, Mesh(), dtype=torch.float32, temperature=1.0)
    packs = batch()
    one, auto = pipeline.run_forward(packs, 1), pipeline.run_forward(packs)
    assert one is not None and auto is not None
    assert not one.requires_grad
    torch.testing.assert_close(one[packs.target_mask], auto[packs.target_mask])


def test_a_heavy_head_leaves_its_rank_fewer_layers() -> None:
    light = tiny_config("llama", num_hidden_layers=8, vocab_size=50)
    heavy = tiny_config("llama", num_hidden_layers=8, vocab_size=1000)
    assert [len(part) for part in split_model(light, 2)] == [4, 4]
    counts = [len(part) for part in split_model(heavy, 2)]
    assert sum(counts) == 8
    assert counts[1] < counts[0]


def test_the_tested_table_is_what_the_equivalence_tests_test() -> None:
    assert {model["family"] for model in MODELS.values()} == TESTED


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text", "starcoder2", "qwen3_moe"])
def test_families_outside_the_table_are_tried_and_pass(family: str) -> None:
    check_architecture(AutoConfig.for_model(family), split=True)


def test_granite_is_refused_where_its_multiplier_would_be_applied_twice() -> None:
    granite = AutoConfig.for_model("granite", embedding_multiplier=12.0)
    with pytest.raises(UserError, match=r"granite.*pipeline stages.*pp_degree = 1"):
        check_architecture(granite, split=True)
    check_architecture(granite, split=False)


def test_layers_that_carry_a_state_are_refused() -> None:
    config = AutoConfig.for_model("qwen3_next", num_experts=4, num_experts_per_tok=2)
    with pytest.raises(UserError, match="linear_attention"):
        check_architecture(config, split=False)


def test_no_pipeline_plan_is_refused_only_for_pipelines() -> None:
    config = AutoConfig.for_model("gpt2")
    with pytest.raises(UserError, match=r"gpt2.*pp_degree = 1"):
        check_architecture(config, split=True)
    check_architecture(config, split=False)
