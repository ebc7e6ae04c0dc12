"""The division of the work changes nothing: loss and gradients of one optimizer batch.

Each division is compared with a plain implementation that knows no packs, no microbatches and no
ranks: the whole model, one padded row a completion, the formulas written out. In float64 and
before the optimizer (Adam's first step would turn rounding into a learning rate), with old
logprobs far from the policy: at ratio 1 half of the objective is silent.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from equivalence_cases import (
    MAX_TOKENS,
    OBJECTIVE,
    TEMPERATURE,
    Case,
    read_results,
    samples,
    store_cases,
    write_results,
)
from multirank import torchrun
from tiny_models import KeepFloat64, tiny_model
from torch import Tensor

from common.modeling.load import load_causal_lm

# Five layers: neither 2 nor 4 ranks divide them.
MODELS = {
    "qwen2": {"family": "qwen2", "tied": True},
    "llama": {"family": "llama", "tied": False},
    "qwen3": {"family": "qwen3", "tied": True},
}
PADDED = {"tokens_per_pack": 1, "share_prompts": False}


def divisions(model: str) -> list[Case]:
    """The name begins with the number of ranks."""

    def case(name: str, **how) -> Case:
        return Case(f"{name}-{model}", model, **how)

    cases = [
        case("1-one-microbatch", microbatches=1),
        case("1-four", microbatches=4),
        case("1-auto-padded", microbatches="auto", **PADDED),
        case("1-sequence-mean", aggregation="sequence_mean"),
        case("1-constant", aggregation="constant"),
        case("1-zero-variance-dropped", regularised=False),
        case("2-1f1b", microbatches=4),
        case("2-gpipe", microbatches=4, schedule="gpipe"),
        case("2-padded", microbatches="auto", **PADDED),
        case("2-replicas", dp=2, microbatches=2),
        case("2-replicas-dropped", dp=2, regularised=False),
        case("2-float32", dtype="float32"),
        # Five or fewer packs: the rest of the eight are empty.
        case("4-1f1b", microbatches=8, tokens_per_pack=80),
        case("4-gpipe", microbatches=8, schedule="gpipe"),
        case("4-replicas-of-2", dp=2, microbatches=4),
        case("4-float32", dtype="float32", microbatches=8),
    ]
    if model == "qwen3":
        return [c for c in cases if c.name.startswith(("1-four", "2-1f1b", "4-1f1b"))]
    return cases


CASES = {case.name: case for model in MODELS for case in divisions(model)}


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


_plain: dict[tuple, tuple[float, dict[str, Tensor]]] = {}


def plain(case: Case, folder: Path) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients as math.md's formulas say, nothing shared with the code under test."""
    key = (case.model, case.aggregation, case.regularised)
    if key not in _plain:
        model = load_causal_lm(folder / case.model, torch.float64)
        with KeepFloat64():
            loss = plain_loss(model, case)
            loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        _plain[key] = loss.item(), gradients
    return _plain[key]


def plain_loss(model, case: Case) -> Tensor:
    rows = samples()
    texts = [[*s.prompt_ids, *s.completion_ids] for s in rows]
    width = max(map(len, texts))
    ids = torch.tensor([text + [2] * (width - len(text)) for text in texts])
    attention = torch.tensor([[1] * len(t) + [0] * (width - len(t)) for t in texts])
    logits = model(input_ids=ids, attention_mask=attention).logits / TEMPERATURE
    kl_coef = OBJECTIVE["kl_coef"] if case.regularised else 0.0
    entropy_coef = OBJECTIVE["entropy_coef"] if case.regularised else 0.0
    in_loss = [not (s.truncated and case.regularised) for s in rows]
    tokens = sum(len(s.completion_ids) for s, kept in zip(rows, in_loss, strict=True) if kept)
    total = torch.zeros((), dtype=torch.float64)
    for index, sample in enumerate(rows):
        if not in_loss[index]:
            continue
        start, length = len(sample.prompt_ids), len(sample.completion_ids)
        log_p = logits[index, start - 1 : start + length - 1].log_softmax(-1)
        logp = log_p[range(length), sample.completion_ids]
        ratio = (logp - torch.tensor(sample.old_logprobs).double()).exp()
        clipped = ratio.clamp(0.85, 1.2)
        policy = -torch.min(ratio * sample.advantage, clipped * sample.advantage)
        difference = torch.tensor(sample.ref_logprobs).double() - logp
        token_loss = policy + kl_coef * (difference.exp() - difference - 1)
        per_token = {
            "token_mean": 1 / tokens,
            "sequence_mean": 1 / (length * len(rows)),
            "constant": 1 / (len(rows) * MAX_TOKENS),
        }[case.aggregation]
        entropy = -(log_p.exp() * log_p).sum()
        total = total + per_token * token_loss.sum() - entropy_coef * entropy / tokens
    return total


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
