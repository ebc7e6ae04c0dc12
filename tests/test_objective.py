"""The loss equals the formulas of the papers, however the batch is cut into microbatches."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import ObjectiveConfig
from common.objective.aggregation import token_weights, tokens_in_loss
from common.objective.kl import kl_term
from common.objective.metrics import merge_sums, metrics
from common.objective.objective import TokenBatch, grpo_loss, zero_advantage_rows_matter
from common.objective.policy_term import clip_term, token_ratio

MAX_COMPLETION_TOKENS = 12
VOCABULARY = 11


@dataclass
class Rows:
    """Completions with everything the loss needs: padded [C, L, …] tensors in float64."""

    logits: torch.Tensor
    targets: torch.Tensor
    old: torch.Tensor
    ref: torch.Tensor
    sampler: torch.Tensor
    advantages: torch.Tensor
    lengths: list[int]
    truncated: list[bool]


def some_rows(seed: int = 0, lengths: tuple[int, ...] = (5, 9, 1, 7, 12, 3)) -> Rows:
    """Ratios from about 0.3 to 3, so that every branch of the clip occurs."""
    torch.manual_seed(seed)
    count, longest = len(lengths), max(lengths, default=1)
    logits = torch.randn(count, longest, VOCABULARY, dtype=torch.float64) * 2
    targets = torch.randint(0, VOCABULARY, (count, longest))
    logprobs = torch.log_softmax(logits, -1).gather(2, targets[..., None]).squeeze(2)

    def near(scale: float) -> torch.Tensor:
        return logprobs + scale * torch.randn(count, longest, dtype=torch.float64)

    old = near(0.5)
    return Rows(
        logits=logits.requires_grad_(),
        targets=targets,
        old=old,
        ref=near(0.7),
        sampler=old + 0.1 * torch.randn(count, longest, dtype=torch.float64),
        advantages=torch.randn(count, dtype=torch.float64),
        lengths=list(lengths),
        truncated=[length == MAX_COMPLETION_TOKENS for length in lengths],
    )


def plain_loss(rows: Rows, config: ObjectiveConfig) -> torch.Tensor:
    """The objective as papers print it: sums over completions and tokens, one term at a time."""
    completion_losses, counts, entropies = [], [], []
    for i, length in enumerate(rows.lengths):
        if config.mask_truncated and rows.truncated[i]:
            length = 0
        token_losses = []
        for t in range(length):
            p = torch.softmax(rows.logits[i, t], -1)
            logp = p[rows.targets[i, t]].log()
            r = (logp - rows.old[i, t]).exp()
            A = rows.advantages[i]
            bounded = r if config.dual_clip is None else torch.clamp(r, max=config.dual_clip)
            clamped = torch.clamp(r, 1 - config.clip_low, 1 + config.clip_high)
            loss = -torch.minimum(bounded * A, clamped * A)
            if config.kl_coef:
                d = rows.ref[i, t] - logp
                kl = {"k1": -d, "k2": d * d / 2, "k3": d.exp() - d - 1}[config.kl_kind]
                loss = loss + config.kl_coef * kl * (r if config.kl_importance_weight else 1)
            token_losses.append(loss)
            entropies.append(-(p * p.log()).sum())
        completion_losses.append(sum(token_losses, torch.zeros((), dtype=torch.float64)))
        counts.append(length)
    total = sum(counts)
    loss = {
        "token_mean": lambda: sum(completion_losses) / max(total, 1),
        "sequence_mean": lambda: (
            sum(s / max(n, 1) for s, n in zip(completion_losses, counts, strict=True)) / len(counts)
        ),
        "constant": lambda: sum(completion_losses) / (len(counts) * MAX_COMPLETION_TOKENS),
    }[config.aggregation]()
    return loss - config.entropy_coef * sum(entropies) / max(total, 1)


def forward(rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Logprobs and entropy [C, L]."""
    log_p = torch.log_softmax(rows.logits, -1)
    chosen = log_p.gather(2, rows.targets[..., None]).squeeze(2)
    return chosen, -(log_p.exp() * log_p).sum(-1)


def token_batch(rows: Rows, config: ObjectiveConfig) -> TokenBatch:
    """The whole optimizer batch, one completion a row."""
    counts = tokens_in_loss(rows.lengths, rows.truncated, mask_truncated=config.mask_truncated)
    tokens = int(counts.sum())
    weights = token_weights(
        config.aggregation,
        counts,
        tokens=tokens,
        completions=len(counts),
        max_completion_tokens=MAX_COMPLETION_TOKENS,
    )
    mask = torch.arange(rows.old.shape[1]) < counts[:, None]
    shape = torch.ones_like(rows.old)
    return TokenBatch(
        mask=mask,
        old_logprobs=rows.old,
        ref_logprobs=rows.ref if config.kl_coef else None,
        advantages=shape * rows.advantages[:, None],
        weights=shape * weights[:, None],
        token_mean_weights=shape / max(tokens, 1),
        sampler_gap=(rows.old - rows.sampler).abs(),
    )


CONFIGS = [
    ObjectiveConfig(aggregation=aggregation, kl_coef=0.3, kl_kind=kl, kl_importance_weight=weighted)
    for aggregation, kl, weighted in product(
        ("token_mean", "sequence_mean", "constant"), ("k1", "k2", "k3"), (False, True)
    )
] + [
    ObjectiveConfig(),
    ObjectiveConfig(clip_high=0.28, dual_clip=1.5, aggregation="sequence_mean"),
    ObjectiveConfig(entropy_coef=0.05, aggregation="constant", mask_truncated=True, kl_coef=0.01),
    ObjectiveConfig(entropy_coef=-0.1, mask_truncated=True, aggregation="sequence_mean"),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: str(c.model_dump(exclude_defaults=True)))
def test_value_and_gradient_are_those_of_the_plain_implementation(config):
    rows = some_rows()
    expected = plain_loss(rows, config)
    (gradient,) = torch.autograd.grad(expected, rows.logits)
    loss, _ = grpo_loss(*forward(rows), token_batch(rows, config), config)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(loss, rows.logits)[0], gradient, rtol=1e-10, atol=1e-12
    )


@given(
    st.sampled_from(CONFIGS),
    st.lists(st.integers(1, 12), min_size=1, max_size=8),
    st.integers(1, 5),
    st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_the_cut_into_microbatches_changes_nothing(config, lengths, parts, random):
    """Loss, gradient and metrics of any assignment of rows to microbatches, empty ones included."""
    rows = some_rows(1, tuple(lengths))
    batch = token_batch(rows, config)
    outputs = forward(rows)
    whole, sums = grpo_loss(*outputs, batch, config)
    (gradient,) = torch.autograd.grad(whole, rows.logits, retain_graph=True)
    part_of = [random.randrange(parts) for _ in lengths]
    loss, merged = torch.zeros((), dtype=torch.float64), None
    for part in range(parts):
        chosen = torch.tensor([i for i, p in enumerate(part_of) if p == part], dtype=torch.int64)
        value, of_part = grpo_loss(*(o[chosen] for o in outputs), batch.select(chosen), config)
        loss, merged = loss + value, merge_sums(merged, of_part)
    torch.testing.assert_close(loss, whole, rtol=0, atol=1e-10)
    torch.testing.assert_close(
        torch.autograd.grad(loss, rows.logits)[0], gradient, rtol=0, atol=1e-10
    )
    assert metrics(merged) == pytest.approx(metrics(sums), abs=1e-10)


def test_a_wrong_normaliser_would_be_seen():
    """The invariance test has teeth: per-microbatch token means differ from the global one."""
    rows = some_rows()
    config = ObjectiveConfig()
    local = 0.0
    for half in (slice(0, 3), slice(3, 6)):
        part = Rows(**{name: value[half] for name, value in vars(rows).items()})
        loss, _ = grpo_loss(*forward(part), token_batch(part, config), config)
        local += loss.item() / 2
    whole = grpo_loss(*forward(rows), token_batch(rows, config), config)[0].item()
    assert abs(local - whole) > 1e-3


@pytest.mark.parametrize("config", CONFIGS[:3] + CONFIGS[-2:], ids=str)
def test_an_empty_batch_has_loss_and_gradient_zero(config):
    rows = some_rows()
    rows.lengths = [0] * len(rows.lengths)
    loss, sums = grpo_loss(*forward(rows), token_batch(rows, config), config)
    (gradient,) = torch.autograd.grad(loss, rows.logits)
    assert loss.item() == 0
    assert not gradient.any()
    assert set(metrics(sums).values()) == {0.0}


@pytest.mark.parametrize("garbage", [math.inf, -math.inf, math.nan, -1e4])
def test_what_padding_holds_is_never_used(garbage):
    config = CONFIGS[-2]
    rows = some_rows()
    batch = token_batch(rows, config)
    logprobs, entropy = (o.detach() for o in forward(rows))
    expected, sums = grpo_loss(logprobs, entropy, batch, config)
    spoiled = [o.where(batch.mask, garbage).requires_grad_() for o in (logprobs, entropy)]
    loss, spoiled_sums = grpo_loss(*spoiled, batch, config)
    assert loss.item() == expected.item()
    assert metrics(spoiled_sums) == metrics(sums)
    for gradient in torch.autograd.grad(loss, spoiled):
        assert not gradient[~batch.mask].any()
        assert gradient[batch.mask].all()


def test_on_the_sampling_policy_the_ratio_is_one_and_nothing_is_clipped():
    """The loss is then −Σ w·A and its gradient the policy gradient −Σ w·A·∇logp."""
    rows = some_rows()
    config = ObjectiveConfig()
    logprobs, entropy = forward(rows)
    batch = replace(token_batch(rows, config), old_logprobs=logprobs.detach())
    loss, sums = grpo_loss(logprobs, entropy, batch, config)
    found = metrics(sums)
    assert (found["ratio_mean"], found["ratio_max"]) == (1.0, 1.0)
    assert found["clip_fraction_low"] == found["clip_fraction_high"] == found["approx_kl"] == 0.0
    plain = -(batch.weights * batch.advantages * batch.mask * logprobs).sum()
    for a, b in zip(
        torch.autograd.grad(loss, rows.logits, retain_graph=True),
        torch.autograd.grad(plain, rows.logits),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_metrics_are_token_means_over_the_mask():
    rows = some_rows()
    config = ObjectiveConfig(kl_coef=0.2, entropy_coef=0.1, aggregation="sequence_mean")
    batch = token_batch(rows, config)
    logprobs, entropy = forward(rows)
    loss, sums = grpo_loss(logprobs, entropy, batch, config)
    found, m = metrics(sums), batch.mask
    log_ratio = (logprobs - rows.old)[m]
    r, A = log_ratio.exp(), batch.advantages[m]
    d = (rows.ref - logprobs)[m]
    expected = {
        "loss": loss,
        "kl": (d.exp() - d - 1).mean(),
        "entropy": entropy[m].mean(),
        "clip_fraction_low": ((r < 0.8) & (A < 0)).double().mean(),
        "clip_fraction_high": ((r > 1.2) & (A > 0)).double().mean(),
        "ratio_mean": r.mean(),
        "ratio_max": r.max(),
        "approx_kl": (r - 1 - log_ratio).mean(),
        "sampler_gap_mean": (rows.old - rows.sampler)[m].abs().mean(),
        "sampler_gap_max": (rows.old - rows.sampler)[m].abs().max(),
        "sampler_weight_mean": 1.0,
    }
    without_kl = config.model_copy(update={"kl_coef": 0.0, "entropy_coef": 0.0})
    expected["policy_loss"] = plain_loss(rows, without_kl)
    assert expected["clip_fraction_low"] > 0
    assert expected["clip_fraction_high"] > 0
    assert found == pytest.approx(
        {name: float(torch.as_tensor(value).detach()) for name, value in expected.items()}
    )


def test_approx_kl_near_ratio_one_is_no_rounding_noise():
    """In float32, r − 1 − log r of a log-ratio of 1e-4 is 5e-9, far below the ulp of r."""
    rows = some_rows()
    config = ObjectiveConfig()
    logprobs, entropy = (o.detach().float() for o in forward(rows))
    batch = replace(token_batch(rows, config), old_logprobs=logprobs - 1e-4)
    _, sums = grpo_loss(logprobs, entropy, batch, config)
    assert metrics(sums)["approx_kl"] == pytest.approx(5e-9, rel=0.05)


@pytest.mark.parametrize(
    "config",
    [ObjectiveConfig(aggregation=a) for a in ("token_mean", "sequence_mean", "constant")],
    ids=str,
)
def test_rows_without_advantage_may_be_dropped(config):
    """They have no gradient if KL and entropy have no weight; the counts keep them."""
    rows = some_rows()
    rows.advantages[[1, 4]] = 0.0
    batch, outputs = token_batch(rows, config), forward(rows)
    kept = torch.tensor([0, 2, 3, 5])
    whole = grpo_loss(*outputs, batch, config)[0]
    part = grpo_loss(*(o[kept] for o in outputs), batch.select(kept), config)[0]
    assert not zero_advantage_rows_matter(config)
    torch.testing.assert_close(part, whole, rtol=0, atol=1e-15)
    (of_whole,) = torch.autograd.grad(whole, rows.logits, retain_graph=True)
    (of_part,) = torch.autograd.grad(part, rows.logits)
    torch.testing.assert_close(of_part, of_whole, rtol=0, atol=0)


@pytest.mark.parametrize("changed", [{"kl_coef": 0.1}, {"entropy_coef": 0.1}])
def test_rows_without_advantage_matter_to_kl_and_entropy(changed):
    config = ObjectiveConfig(**changed)
    rows = some_rows()
    rows.advantages[:] = 0.0
    loss, _ = grpo_loss(*forward(rows), token_batch(rows, config), config)
    assert zero_advantage_rows_matter(config)
    assert torch.autograd.grad(loss, rows.logits)[0].any()


def test_masked_completions_stay_in_the_sequence_mean():
    """One of two completions truncated: half the weight of the other is not doubled."""
    counts = tokens_in_loss([4, 12], [False, True], mask_truncated=True)
    weights = token_weights(
        "sequence_mean", counts, tokens=4, completions=2, max_completion_tokens=12
    )
    assert counts.tolist() == [4, 0]
    assert weights.tolist() == [1 / 8, 0.0]


@pytest.mark.parametrize(
    ("r", "A", "loss", "slope"),
    [
        (1.5, 2.0, -2.4, 0.0),  # good and already likelier: clipped at 1.2
        (0.5, 2.0, -1.0, -2.0),  # good but less likely: pulled back
        (0.5, -2.0, 1.6, 0.0),  # bad and already less likely: clipped at 0.8
        (1.5, -2.0, 3.0, 2.0),  # bad but likelier: pushed down
        (4.0, -2.0, 6.0, 0.0),  # beyond dual_clip = 3: bounded
        (1.1, 2.0, -2.2, -2.0),  # inside
    ],
)
def test_clip_by_cases(r, A, loss, slope):
    ratio = torch.tensor(r, dtype=torch.float64, requires_grad=True)
    config = ObjectiveConfig(dual_clip=3.0)
    value = clip_term(ratio, torch.tensor(A, dtype=torch.float64), config)
    assert value.item() == pytest.approx(loss)
    assert float(torch.autograd.grad(value, ratio)[0]) == pytest.approx(slope)


def test_an_enormous_ratio_of_a_clipped_token_has_gradient_zero_and_not_nan():
    logprobs = torch.tensor([-1.0], requires_grad=True)
    ratio = token_ratio(logprobs, torch.tensor([-200.0]))
    loss = clip_term(ratio, torch.tensor([1.0]), ObjectiveConfig())
    assert loss.item() == pytest.approx(-1.2)
    assert float(torch.autograd.grad(loss.sum(), logprobs)[0]) == 0.0


def exact_gradient_in_expectation(kind: str, weighted: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """E over all tokens, on-policy, of the estimator's gradient, and the logits' reference."""
    torch.manual_seed(3)
    logits = torch.randn(7, dtype=torch.float64, requires_grad=True)
    ref = torch.log_softmax(torch.randn(7, dtype=torch.float64), -1)
    logprobs = torch.log_softmax(logits, -1)
    p = logprobs.detach().exp()
    term = kl_term(kind, logprobs, ref)
    if weighted:
        term = term * token_ratio(logprobs, logprobs.detach())
    (found,) = torch.autograd.grad((p * term).sum(), logits, retain_graph=True)
    kl = {
        "reverse": (logprobs.exp() * (logprobs - ref)).sum(),
        "forward": (ref.exp() * (ref - logprobs)).sum(),
        "none": 0.0 * logprobs.sum(),
    }
    return found, {n: torch.autograd.grad(v, logits, retain_graph=True)[0] for n, v in kl.items()}


@pytest.mark.parametrize(
    ("kind", "weighted", "gradient_of"),
    [
        ("k1", False, "none"),
        ("k2", False, "reverse"),
        ("k3", False, "forward"),
        ("k1", True, "reverse"),
        ("k3", True, "reverse"),
    ],
)
def test_what_each_kl_estimator_pulls_towards(kind, weighted, gradient_of):
    """What `kl.py` says of the gradients, by exact expectation over a vocabulary of 7."""
    found, expected = exact_gradient_in_expectation(kind, weighted)
    torch.testing.assert_close(found, expected[gradient_of], rtol=0, atol=1e-12)
    assert expected["reverse"].abs().max() > 0.01
    assert (expected["reverse"] - expected["forward"]).abs().max() > 0.01
