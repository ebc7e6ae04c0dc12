"""The benchmark: both sides of a pair do the same work, and what is counted is what is computed."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_bench import tiny_bench
from torch.utils.flop_counter import FlopCounterMode

from common.errors import MissingToolError, UserError
from common.modeling.linear import FastLinear
from common.modeling.load import load_causal_lm, load_config
from common.parallel.mesh import Mesh
from common.parallel.pipeline import Pipeline
from workflows.bench import memory as bench_memory
from workflows.bench import packs as bench_packs
from workflows.bench import startup as bench_startup
from workflows.bench.__main__ import chosen_parts, main, run
from workflows.bench.floor import Machine, Phase, Shape, floor_seconds, triangle
from workflows.bench.measure import Bench, Measurement, rounds
from workflows.bench.plain import plain_model
from workflows.bench.process import Partner
from workflows.bench.sampler import bare_steps, generate, random_prompts, sample
from workflows.bench.scale import fit
from workflows.bench.stage import ImportClock
from workflows.chain.launch import Command


@pytest.fixture
def bench(tiny_policy: Path, tmp_path: Path) -> Bench:
    return tiny_bench(tiny_policy, tmp_path)


@pytest.fixture
def pipeline(tiny_policy: Path) -> Pipeline:
    return Pipeline(tiny_policy, Mesh(), dtype=torch.float32, temperature=1.0, train=True)


def test_parts_in_one_process_fill_table_and_json(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(bench, ["sampler", "packs", "score", "scale"], tmp_path / "bench.json")
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["device"] == "cpu"
    assert found["dtype"] == "float32"
    assert found["pairs"] == 1
    assert found["machine"]["matmul_flops"] > 0
    lines = found["measurements"]
    # Sampler at one size and the default's: three baselines each. Packs: two works, two baselines.
    assert [line["part"] for line in lines] == ["sampler"] * 6 + ["packs"] * 4 + ["score"] * 2
    for line in lines:
        assert len(line["ours"]) == 1
        if line["against"]:
            ratio = line["baseline"][0] / line["ours"][0]
            assert line["ratio"] == pytest.approx(ratio)
            assert line["floor_ratio"] == pytest.approx(line["ours"][0] / line["floor_seconds"])
            assert line["matmul_share"] > 0
    assert [(law["work"], law["over"]) for law in found["laws"]] == [
        ("sampling", "samples"),
        ("sampling", "tokens"),
        ("forward and backward", "samples"),
        ("forward and backward", "tokens"),
        ("sampling", "layers"),
    ]
    printed = capsys.readouterr().out
    assert "bare steps" in printed
    # A table of what took an hour has all its columns, however narrow the terminal is.
    assert all(word in printed for word in ("share", "matmul", "speed")) and "hidden" not in printed
    assert "seconds = a + b n" in printed


def test_counts_equal_a_hand_count(tiny_policy: Path) -> None:
    config = load_config(tiny_policy)
    shape = Shape.of(config, torch.float32)
    # Hidden 32, 4 heads of 8 (2 for keys and values), MLP 64: q and o, k and v, gate, up and down.
    per_layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64
    head = 32 * config.vocab_size
    assert (shape.layers, shape.layer_weights, shape.head_weights) == (2, per_layer, head)
    assert (shape.attention_width, shape.cache_width) == (32, 32)
    # 3 tokens see 1 + 2 + 3 positions, each with 32 products for the score and 32 for the value.
    counted = shape.forward(3, triangle(3), 1)
    assert counted.multiply_adds == 3 * 2 * per_layer + 2 * (2 * 32 * 6) + head
    assert counted.bytes == 4 * (2 * per_layer + head)
    # Two rows behind one prompt of 5: the first step sees 6 positions a row, the second 7, and
    # reads the prompt's 5 once and 1 or 2 of each row.
    decoded = shape.decode(1, 2, 5, 2)
    assert decoded.multiply_adds == 4 * (2 * per_layer + head) + 2 * 2 * 32 * 2 * (6 + 7)
    assert decoded.bytes == 2 * counted.bytes + 4 * 2 * 32 * (2 * 5 + 2 * (1 + 2))


def test_counts_equal_torch_s_counter(make_policy: Callable[..., Path]) -> None:
    model = plain_model(make_policy("llama", layers=3, tied=False), torch.float32)
    model.config._attn_implementation = "eager"  # whose products the counter sees
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.tensor([[3], [4], [5]]), use_cache=False)
    counted = Shape.of(model.config, torch.float32).forward(3, 3, 3)
    # Some versions of transformers multiply rotary frequencies and positions as matrices.
    rotary = model.config.head_dim // 2
    assert counter.get_total_flops() in (
        2 * counted.multiply_adds,
        2 * (counted.multiply_adds + rotary),
    )


def test_what_a_pack_computes_is_what_is_counted(pipeline: Pipeline) -> None:
    """Every token, every position seen and every prediction, from the packs themselves."""
    from common.modeling.pack_layout import PackLayout, Reach
    from common.modeling.packing import pack

    rows = bench_packs.random_group(pipeline, 6, 3, 7)
    packs = pack(rows, tokens_per_pack=1024, bucket=1)
    layout = PackLayout(packs.position_ids, packs.group_ids, packs.completion_ids)
    mask = layout.visible(Reach())
    shape = Shape.of(pipeline.part.config, torch.float32)
    expected = packs.input_ids.numel(), int(mask.sum()), packs.num_targets
    assert shape.pack(1, 6, 3, 7) == expected


def test_floor_takes_the_slower_of_operations_and_bytes() -> None:
    machine = Machine(matmul_flops=100.0, torch_flops=90.0, copy_bytes=10.0)
    assert floor_seconds([Phase(100, 10), Phase(50, 30)], machine) == 2.0 + 3.0
    line = Measurement("p", "n", "other", "s", [10.0], [25.0], 2.0, [Phase(100, 10)])
    record = line.record(machine)
    assert (record["ratio"], record["reached"], record["floor_ratio"]) == (2.5, True, 5.0)
    assert record["matmul_share"] == pytest.approx(0.2)


def test_contenders_take_turns_and_the_warm_up_is_left_out() -> None:
    order: list[str] = []

    def contender(name: str) -> Callable[[], float]:
        return lambda: float(len(order.append(name) or order))  # type: ignore[func-returns-value]

    taken = rounds({"a": contender("a"), "b": contender("b")}, 2)
    assert order == ["a", "b"] * 3
    assert taken == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_sampler_and_generate_draw_as_many_tokens(tiny_policy: Path) -> None:
    model: Any = load_causal_lm(tiny_policy, torch.float32)
    prompts = random_prompts(model, 8, 6)
    ids = torch.tensor(prompts).repeat_interleave(8, 0)
    ours = sample(model, prompts, 64, 20)
    assert {len(completion) for completion in ours} == {20}
    before = model.generation_config
    torch.manual_seed(0)
    theirs = generate(model, ids, 20)
    assert theirs.shape == (64, 20)
    assert model.generation_config is before
    # The model's own end of sequence comes up on both sides and ends nothing.
    eos = model.config.eos_token_id
    assert any(eos in completion[:-1] for completion in ours)
    rows, columns = torch.nonzero(theirs[:, :-1] == eos, as_tuple=True)
    assert len(rows)
    assert bool((theirs[rows, columns + 1] != 0).any())
    # Both reach the tokens that are rare: nothing is cut off by top-k.
    assert len(theirs.unique()) > 50
    assert len({token for completion in ours for token in completion}) > 50


def test_bare_steps_are_one_forward_for_every_token_but_the_first(
    bench: Bench, tiny_policy: Path
) -> None:
    model: Any = load_causal_lm(tiny_policy, torch.float32)
    shapes: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    prompts = random_prompts(model, 4, 6)
    assert bare_steps(bench, model, torch.tensor(prompts), 5) > 0
    assert shapes == [(4, 6)] + [(4, 1)] * 4


def test_packs_and_padded_rows_compute_the_same(pipeline: Pipeline, tiny_policy: Path) -> None:
    plain = plain_model(tiny_policy, torch.float32)
    assert not any(isinstance(module, FastLinear) for module in plain.modules())
    rows = bench_packs.random_group(pipeline, 6, 3, 7)
    ours = bench_packs.packed_logprobs(pipeline, rows)
    for all_logits in (True, False):
        with torch.no_grad():
            padded = bench_packs.padded_logprobs(plain, rows, all_logits=all_logits)
        assert ours.shape == padded.shape == (3, 7)
        torch.testing.assert_close(ours, padded, atol=2e-5, rtol=1e-5)
    assert bench_packs.largest_gap(pipeline, plain, rows) < 2e-5
    bench_packs.packed_step(pipeline, rows)
    packed = [p.grad.clone() for p in pipeline.part.parameters() if p.grad is not None]
    for all_logits in (True, False):
        bench_packs.padded_step(plain, rows, all_logits=all_logits)
        gradients = [p.grad for p in plain.parameters()]
        assert len(packed) == len(gradients)
        for mine, theirs in zip(packed, gradients, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_both_losses_have_the_same_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # For good in a process: memory of this one could not be measured any more.
    monkeypatch.setattr(bench_memory, "keep_freed_memory", lambda: None)
    files = [tmp_path / "ours.safetensors", tmp_path / "full.safetensors"]
    for side, file in zip(("ours", "full logits"), files, strict=True):
        facts = bench_memory.run_side(side, 300, 2048, 16, "cpu", file)
        assert facts["seconds"] > 0
        assert facts["bytes"] >= 0
    assert bench_memory.relative_gap(*files) < 1e-5
    bench_memory.run_side("ours", 300, 1024, 16, "cpu", tmp_path / "fewer.safetensors")
    with pytest.raises(RuntimeError):
        bench_memory.relative_gap(files[1], tmp_path / "fewer.safetensors")


def test_memory_is_that_beyond_what_was_held() -> None:
    held = torch.ones(4 << 20)
    peak = bench_memory._peak_since_now("cpu")
    more = torch.ones(16 << 20)
    del more
    assert 60 << 20 < peak() < 90 << 20, held.sum()


def test_law_is_found_in_exact_points() -> None:
    law = fit("work", "things", {1.0: [3.0, 9.0, 3.0], 2.0: [5.0], 4.0: [9.0]})
    assert (law.a, law.b) == (pytest.approx(1.0), pytest.approx(2.0))
    assert law.r_squared == pytest.approx(1.0)
    assert fit("work", "things", {1.0: [1.0], 2.0: [5.0], 3.0: [2.0]}).r_squared < 0.5


def test_nested_imports_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, moments = ImportClock(), iter([10.0, 11.0, 15.0])
    inner = clock._timed(lambda: None)
    outer = clock._timed(lambda: inner())
    monkeypatch.setattr("workflows.bench.stage.time.perf_counter", lambda: next(moments))
    outer()
    assert clock.seconds == 5.0


def test_scored_rows_are_judged_half_right() -> None:
    from common.config import RewardsConfig
    from common.rewards.scorer import Scorer, judge_table

    for table in (bench_startup.task_rows(30), bench_startup.math_rows(30)):
        with Scorer(RewardsConfig()) as scorer:
            judged, reasons = judge_table(table, scorer, [])
        assert judged["verdict"].to_pylist().count("correct") == 15
        assert not reasons


def test_a_partner_that_ends_at_its_start_is_named() -> None:
    with pytest.raises(UserError, match=r"workflows\.bench\.nothing` ended with 1"):
        Partner(Command("workflows.bench.nothing", []), 1, torch.device("cpu"))


def test_options_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen_parts("score, sampler") == ["sampler", "score"]
    assert "iteration" in chosen_parts("")
    with pytest.raises(UserError, match="'speed' is no part; known: sampler"):
        chosen_parts("sampler,speed")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="--device cuda"):
            main(only="score", device="cuda")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "trl" else found(name)
    )
    with pytest.raises(MissingToolError, match=r"pip install -e '\.\[bench\]'"):
        main(only="iteration")
