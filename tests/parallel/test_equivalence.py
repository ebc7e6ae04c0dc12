"""The division of the work changes nothing: loss and gradients of one optimizer batch.

Each division is compared with a plain implementation that knows no packs, no microbatches and no
ranks: the whole model, one padded row per completion, the formulas written out. In float64 and
before the optimizer (Adam's first step would turn rounding into a learning rate), with old
logprobs far from the policy: at ratio 1 half of the objective is silent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.equivalence_cases import (
    MAX_TOKENS,
    REGULARISED,
    TEMPERATURE,
    Case,
    read_results,
    samples,
    store_cases,
    write_results,
)
from support.multirank import torchrun
from support.plain_objective import PlainRow, plain_loss
from support.tiny_models import KeepFloat64, tiny_model
from torch import Tensor

from common.modeling.load import load_causal_lm

# Five layers: neither 2 nor 4 ranks divide them.
MODELS = {
    "qwen2": {"family": "qwen2", "tied": True},
    "llama": {"family": "llama", "tied": False},
    "qwen3": {"family": "qwen3", "tied": True},
}
PADDED = {"tokens_per_pack": 1, "share_prompts": False}


BOUNDS = {"sampler_low": 0.7, "sampler_high": 1.5}
# Each aggregation, ratio level, policy term (a recipe's own among them) and sampler correction,
# with and without the rest.
OBJECTIVES: dict[str, dict[str, Any]] = {
    "sequence-mean": {"aggregation": "sequence_mean", **REGULARISED},
    "constant": {
        "aggregation": "constant",
        "dual_clip": 1.5,
        "sampler_correction": "mask",
        **BOUNDS,
        **REGULARISED,
    },
    "constant-dropped": {"aggregation": "constant", "mask_truncated": True},
    "gspo": {"ratio_level": "sequence", "aggregation": "sequence_mean"},
    "rloo": {
        "ratio_level": "sequence_sum",
        "aggregation": "sequence_mean",
        "kl_kind": "k2",
        "kl_importance_weight": True,
        **REGULARISED,
    },
    "cispo": {"policy_term": "cispo", "cispo_cap": 2.0, "top_entropy_quantile": 0.4},
    "own-term": {"policy_term": "support.own_terms:soft_gate", **REGULARISED},
    "truncated-sequences": {
        "sampler_correction": "truncate",
        "sampler_level": "sequence",
        "top_entropy_quantile": 0.6,
        **BOUNDS,
        **REGULARISED,
    },
    "masked-sequences": {
        "sampler_correction": "mask",
        "sampler_level": "geometric",
        "ratio_level": "sequence",
        "aggregation": "sequence_mean",
        "top_entropy_quantile": 0.5,
        "sampler_low": 0.9,
        "sampler_high": 1.1,
    },
}


def divisions(model: str) -> list[Case]:
    """Ways to divide the work of one objective; the name begins with the number of ranks."""

    def case(name: str, **how) -> Case:
        return Case(f"{name}-{model}", model, **how)

    eight: dict[str, Any] = {"dtype": "float32", "microbatches": 8}
    cases = [
        case("1-one-microbatch", microbatches=1),
        case("1-four", microbatches=4),
        case("1-auto-padded", microbatches="auto", **PADDED),
        case("1-zero-variance-dropped", settings={}),
        case("2-1f1b", microbatches=4),
        case("2-gpipe", microbatches=4, schedule="gpipe"),
        case("2-padded", microbatches="auto", **PADDED),
        case("2-replicas", dp=2, microbatches=2),
        case("2-replicas-dropped", dp=2, settings={}),
        case("2-float32", **eight),
        # Five or fewer packs: the rest of the eight are empty.
        case("4-1f1b", microbatches=8, tokens_per_pack=80),
        case("4-gpipe", microbatches=8, schedule="gpipe"),
        case("4-replicas-of-2", dp=2, microbatches=4),
        case("4-float32", **eight),
        case("1-float32", **eight),
        *(
            case(f"{ranks}-float32-recomputed", activation_checkpointing=True, **eight)
            for ranks in (1, 2, 4)
        ),
    ]
    if model == "qwen3":
        kept = ("1-four", "2-1f1b", "4-1f1b")
        return [c for c in cases if c.name.startswith(kept) or "float32" in c.name]
    return cases


def objectives(name: str, settings: dict[str, Any]) -> list[Case]:
    """Ways to divide the work of another objective."""

    def case(division: str, **how) -> Case:
        return Case(f"{division}-{name}", "qwen2", settings=settings, **how)

    return [
        case("1-one-microbatch", microbatches=1, tokens_per_pack=200),
        case("1-auto-padded", microbatches="auto", **PADDED),
        case("4-replicas-of-2", dp=2, microbatches=4),
    ]


EVERY = [case for model in MODELS for case in divisions(model)]
EVERY += [case for entry in OBJECTIVES.items() for case in objectives(*entry)]
CASES = {case.name: case for case in EVERY}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the models and what every case gave: one launch for each number of ranks."""
    folder = tmp_path_factory.mktemp("equivalence")
    for name, how in MODELS.items():
        tiny_model(**how, num_hidden_layers=5).save_pretrained(folder / name)
    store_cases(list(CASES.values()), folder)
    write_results([case for name, case in CASES.items() if name.startswith("1-")], folder)
    for ranks in (2, 4):
        torchrun(ranks, "equivalence_cases.py", folder)
    return folder


_plain: dict[str, tuple[float, dict[str, Tensor]]] = {}


def plain(case: Case, folder: Path) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of the plain objective on the whole model, nothing shared with ours."""
    key = f"{case.model} {case.objective()}"
    if key not in _plain:
        model = load_causal_lm(folder / case.model, torch.float64)
        with KeepFloat64():
            loss = plain_loss(plain_rows(model), case.objective(), MAX_TOKENS)
            loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        _plain[key] = loss.item(), gradients
    return _plain[key]


def plain_rows(model) -> list[PlainRow]:
    """The samples through the whole model, one padded row per completion."""
    rows = samples()
    texts = [[*s.prompt_ids, *s.completion_ids] for s in rows]
    width = max(map(len, texts))
    ids = torch.tensor([text + [2] * (width - len(text)) for text in texts])
    attention = torch.tensor([[1] * len(t) + [0] * (width - len(t)) for t in texts])
    logits = model(input_ids=ids, attention_mask=attention).logits / TEMPERATURE
    found = []
    for index, s in enumerate(rows):
        start, length = len(s.prompt_ids), len(s.completion_ids)
        per_token = (s.old_logprobs, s.ref_logprobs, s.sampler_logprobs, s.entropy)
        found.append(
            PlainRow(
                logits[index, start - 1 : start + length - 1].log_softmax(-1),
                list(s.completion_ids),
                *(values.astype(float).tolist() for values in per_token),
                advantage=s.advantage,
                truncated=s.truncated,
            )
        )
    return found


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.dtype == "float64"])
def test_loss_and_gradients_are_those_of_the_plain_whole_model(name: str, results: Path) -> None:
    case = CASES[name]
    loss, gradients = read_results(case, results)
    expected_loss, expected = plain(case, results)
    assert loss == pytest.approx(expected_loss, abs=1e-10)
    assert gradients.keys() == expected.keys()
    for parameter, gradient in expected.items():
        # The comparison would be idle if a gradient were nought.
        assert gradient.abs().max() > 1e-6, parameter
        assert (gradients[parameter] - gradient).abs().max() < 1e-10, parameter


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.dtype == "float32"])
def test_float32_stays_close(name: str, results: Path, record_property) -> None:
    """The figure is reported; it is rounding, so a bound relative to the largest gradient."""
    case = CASES[name]
    _, gradients = read_results(case, results)
    _, expected = plain(case, results)
    largest = max(float(g.abs().max()) for g in expected.values())
    off = max(float((gradients[n].double() - g).abs().max()) for n, g in expected.items())
    record_property("float32_gradient_difference", off / largest)
    print(f"{name}: largest gradient difference {off:.2e} of {largest:.2e}")
    assert off < 1e-5 * largest


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_recomputed_layers_give_the_same_bits(ranks: int, model: str, results: Path) -> None:
    """Activation checkpointing makes the very products of the forward once more."""
    loss, gradients = read_results(CASES[f"{ranks}-float32-{model}"], results)
    again, found = read_results(CASES[f"{ranks}-float32-recomputed-{model}"], results)
    assert loss == again
    assert gradients.keys() == found.keys()
    for parameter, gradient in gradients.items():
        assert torch.equal(gradient, found[parameter]), parameter
