"""Value and gradient of our loss against the loss code of TRL 1.16 itself, on the same tensors.

TRL's `dapo` is our `token_mean`, `grpo` is `sequence_mean`, `dr_grpo` is `constant`, `cispo` has
its cap in `epsilon_high`, `importance_sampling_level = "sequence"` is `ratio_level`, `delta` is
`dual_clip`, `beta` is `kl_coef`, `use_bias_correction_kl` is `kl_importance_weight`, and
`vllm_importance_sampling_mode` is `sampler_level` and `sampler_correction`. Where TRL is not what
a paper says, or not what we do: `test_trl_parity_deviations.py`.
"""

from __future__ import annotations

from itertools import product

import pytest
from support.objective_rows import forward, our_loss, some_rows, token_batch
from support.trl_trainer import assert_same, grpo_loss_of_trl, rloo_loss_of_trl, settings_of

from common.config import ObjectiveConfig

trl = pytest.importorskip("trl", reason="the test extra is not installed")

OBJECTIVES = {
    "dapo": {"clip_high": 0.28},
    "grpo": {"aggregation": "sequence_mean"},
    "dr_grpo": {"aggregation": "constant"},
    "gspo": {"ratio_level": "sequence", "aggregation": "sequence_mean", "clip_low": 0.05},
    "gspo-token_mean": {"ratio_level": "sequence", "clip_low": 0.05},
    "cispo": {"policy_term": "cispo", "cispo_cap": 1.2},
}
KLS = [{}, {"kl_coef": 0.04}, {"kl_coef": 0.04, "kl_importance_weight": True}]
DUAL_CLIPS = [{}, {"dual_clip": 1.6}]
BOUNDS = {"sampler_low": 0.7, "sampler_high": 1.5}
CORRECTIONS = [{}] + [
    {"sampler_correction": correction, "sampler_level": level, **BOUNDS}
    for correction, level in product(("truncate", "mask"), ("token", "sequence"))
]
TRUNCATED = [{}, {"mask_truncated": True}]


def configs(name: str) -> list[ObjectiveConfig]:
    """Every combination that TRL has as well and means the same by."""
    objective = OBJECTIVES[name]
    found = []
    for kl, dual_clip, correction, truncated in product(KLS, DUAL_CLIPS, CORRECTIONS, TRUNCATED):
        if dual_clip and name == "cispo":
            continue
        if kl.get("kl_importance_weight") and "ratio_level" in objective:
            continue
        found.append(ObjectiveConfig(**objective, **kl, **dual_clip, **correction, **truncated))
    return found


@pytest.mark.parametrize("microbatches", [1, 3])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_and_gradient_equal_trl(name, microbatches):
    rows = some_rows(2)
    for config in configs(name):
        mask = token_batch(rows, config).mask
        theirs, _ = grpo_loss_of_trl(rows, mask, microbatches, **settings_of(config))
        assert_same(our_loss(rows, config, microbatches), theirs, rows)


@pytest.mark.parametrize("microbatches", [1, 2])
def test_rloo_equals_trl_s_own_trainer(microbatches):
    """Its ratio is of the whole completion, its loss a mean over completions; KL is elsewhere."""
    rows = some_rows(2)
    config = ObjectiveConfig(ratio_level="sequence_sum", aggregation="sequence_mean", clip_high=0.3)
    mask = token_batch(rows, config).mask
    theirs = rloo_loss_of_trl(rows, mask, microbatches, epsilon_low=0.2, epsilon_high=0.3)
    assert_same(our_loss(rows, config, microbatches), theirs, rows)


def test_bnpo_in_one_microbatch_is_the_token_mean():
    rows = some_rows(2)
    config = ObjectiveConfig(kl_coef=0.04)
    settings = settings_of(config) | {"loss_type": "bnpo"}
    theirs, _ = grpo_loss_of_trl(rows, token_batch(rows, config).mask, 1, **settings)
    assert_same(our_loss(rows, config, 1), theirs, rows)


def test_entropy_bonus_equals_trl_in_one_microbatch():
    rows = some_rows(2)
    for aggregation in ("token_mean", "sequence_mean", "constant"):
        config = ObjectiveConfig(entropy_coef=0.1, aggregation=aggregation)
        mask = token_batch(rows, config).mask
        theirs, _ = grpo_loss_of_trl(rows, mask, 1, **settings_of(config))
        assert_same(our_loss(rows, config, 1), theirs, rows)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_top_entropy_equals_trl_in_one_microbatch(name):
    """The stored entropy is the policy's own there, as at the first step of an iteration."""
    rows = some_rows(2)
    rows.entropy = forward(rows)[1].detach()
    for quantile, kl, correction in product((0.2, 0.5, 0.8), KLS[:2], CORRECTIONS):
        config = ObjectiveConfig(
            **OBJECTIVES[name], **kl, **correction, top_entropy_quantile=quantile
        )
        batch = token_batch(rows, config)
        assert 0 < int((batch.in_policy_term & batch.mask).sum()) < int(batch.mask.sum())
        theirs, _ = grpo_loss_of_trl(rows, batch.mask, 1, **settings_of(config))
        assert_same(our_loss(rows, config, 1), theirs, rows)


def test_trl_is_the_version_that_was_read():
    assert trl.__version__.startswith("1.16")
