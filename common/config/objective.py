"""[advantages], [objective] and [reference]: what makes up the loss of an optimizer step."""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator

from common.config.section import Fraction, Positive, Section

AdvantageKind = Literal["group", "batch", "none", "leave_one_out"]
PolicyTermName = Literal["clip", "cispo"]
RatioLevel = Literal["token", "sequence", "sequence_sum"]
KlKind = Literal["k1", "k2", "k3"]
SamplerCorrection = Literal["none", "truncate", "mask"]
SamplerLevel = Literal["token", "sequence", "geometric"]
Aggregation = Literal["token_mean", "sequence_mean", "constant"]


class AdvantagesConfig(Section):
    kind: AdvantageKind = "group"
    """`group` is GRPO, `batch` divides by the std of the whole iteration, `none` is Dr. GRPO,
    `leave_one_out` is RLOO."""
    ddof: Literal[0, 1] = 1
    """A std divides its sum of squares by n - ddof: 1 in TRL, verl and OpenRLHF, 0 in numpy."""
    shuffle: bool = False
    """A control: give each group's advantages to its completions in random order, so that rewards
    teach nothing. What still changes is due to chance or to the KL."""


class ObjectiveConfig(Section):
    policy_term: str = "clip"
    """`clip` is PPO's clipped ratio times advantage, `cispo` a capped weight on the logprob that
    never silences a token (arXiv 2506.13585). Or name your own function as `module:function`; it is
    called with (ratio, logprobs, advantages, config), see common/objective/README.md. It cannot be
    used with a preset, which stands for a paper's whole objective."""
    ratio_level: RatioLevel = "token"
    """`token` gives each token its own ratio. The others give a completion one ratio: `sequence`
    the geometric mean of its tokens' ratios (GSPO, arXiv 2507.18071), `sequence_sum` their product
    (RLOO, arXiv 2402.14740)."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The ratio is clipped from below at 1 - clip_low."""
    clip_high: Annotated[float, Field(gt=0)] = 0.2
    """The ratio is clipped from above at 1 + clip_high (DAPO uses 0.28)."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Also bound the ratio from above where the advantage is negative (arXiv 1912.09729; usually
    3)."""
    cispo_cap: Annotated[float, Field(gt=0)] = 5.0
    """Largest weight of a token under `cispo`: the ratio itself, not its distance from 1."""
    kl_kind: KlKind = "k3"
    """Estimator of a token's KL, with d = ref - logp: k1 = -d, k2 = d^2/2, k3 = exp(d) - d - 1."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL to the reference; at 0 the reference is neither loaded nor computed."""
    kl_importance_weight: bool = False
    """Multiply the KL by the token's ratio, so that its gradient is that of the reverse KL
    (arXiv 2512.02556)."""
    sampler_correction: SamplerCorrection = "none"
    """Correct for sampler and trainer giving different logprobs, by the weight w = exp(old -
    sampler) on the policy term. `truncate` caps w at `sampler_high`; `mask` sets w to 0 outside
    [`sampler_low`, `sampler_high`]."""
    sampler_level: SamplerLevel = "token"
    """`token` gives each token its own w; `sequence` gives a completion the product of its tokens'
    w, `geometric` their geometric mean."""
    sampler_low: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Smallest w that `mask` keeps."""
    sampler_high: Annotated[float, Field(ge=1)] = 2.0
    """Largest w that `mask` keeps, and the cap of `truncate`."""
    entropy_coef: float = 0.0
    """Weight of the mean entropy, which is subtracted from the loss."""
    top_entropy_quantile: Fraction = 1.0
    """Share of the step's tokens that have a policy term: those with the highest entropy under the
    old policy (arXiv 2506.01939 uses 0.2)."""
    aggregation: Aggregation = "token_mean"
    """`token_mean` is the mean over all tokens of the step (DAPO), `sequence_mean` the mean over
    completions of their means (GRPO paper); `constant` divides the sum by completions times
    max_completion_tokens (Dr. GRPO)."""
    mask_truncated: bool = False
    """Leave completions that reach the length limit out of the loss, but not out of their group."""

    @property
    def has_own_term(self) -> bool:
        """Whether `policy_term` names the user's own function instead of a built-in term."""
        return ":" in self.policy_term

    @field_validator("policy_term")
    @classmethod
    def _term_has_a_name(cls, name: str) -> str:
        known = get_args(PolicyTermName)
        if name not in known and not re.fullmatch(r"\w+(\.\w+)*:\w+", name):
            built_in = ", ".join(map(repr, known))
            raise ValueError(f"say {built_in}, or your own function as 'module:function'")
        return name

    @model_validator(mode="after")
    def _terms_fit_together(self) -> ObjectiveConfig:
        if self.dual_clip is not None and self.dual_clip <= 1 + self.clip_high:
            raise ValueError(f"dual_clip {self.dual_clip} must exceed 1 + clip_high")
        if self.policy_term == "cispo" and self.ratio_level != "token":
            raise ValueError(
                f'policy_term "cispo" weighs each token by its own ratio; ratio_level '
                f'{self.ratio_level!r} belongs with policy_term "clip"'
            )
        if self.policy_term == "cispo" and self.dual_clip is not None:
            raise ValueError('dual_clip bounds policy_term "clip"; cispo has cispo_cap')
        return self


class ReferenceConfig(Section):
    update: Literal["fixed", "refresh", "ema"] = "fixed"
    """The model that the KL pulls towards: `fixed` is policy 0, `refresh` a recent policy that
    changes every `refresh_every` iterations, `ema` a moving average of the policies."""
    refresh_every: Positive = 50
    """K of `refresh`: the reference of iteration N is policy floor((N - 1) / K) * K."""
    ema_alpha: Fraction = 0.05
    """With `ema`, after each iteration, reference = (1 - alpha) * reference + alpha * policy."""


UNWEIGHTED_K1 = (
    "objective.kl_kind = 'k1' without kl_importance_weight: its gradient vanishes in expectation, "
    "so it adds noise and holds nothing back; use k2 or k3, or kl_importance_weight = true"
)


def config_warnings(config: ObjectiveConfig) -> list[str]:
    """Return warnings, as sentences, about an objective that is allowed but rarely intended."""
    found = []
    if config.kl_coef and config.kl_kind == "k1" and not config.kl_importance_weight:
        found.append(UNWEIGHTED_K1)
    if config.ratio_level != "token" and config.aggregation != "sequence_mean":
        found.append(
            f"objective.ratio_level = {config.ratio_level!r} gives all tokens of a completion one "
            f"ratio, but objective.aggregation = {config.aggregation!r} weighs a completion by "
            "its length; 'sequence_mean' goes with it"
        )
    return found
