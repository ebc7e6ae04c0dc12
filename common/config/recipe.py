"""The other tables of the recipe, and the whole."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from common.config.data import Source
from common.config.objective import AdvantagesConfig, ObjectiveConfig, ReferenceConfig
from common.config.presets import PresetName, with_preset
from common.config.rewards import RewardsConfig
from common.config.section import Fraction, Positive, Section


class RunConfig(Section):
    seed: int = 0
    """Seeds the prompt order and, with iteration, prompt and sample, every sampled token."""
    keep_policies: Annotated[int, Field(ge=2)] | Literal["all"] = "all"
    """How many of the newest policies keep their weights. Policy 0 always does."""
    keep_trainer: Annotated[int, Field(ge=2)] | Literal["all"] = "all"
    """How many of the newest trainer states (optimizer and master weights) are kept."""


class ModelConfig(Section):
    path: str
    """Policy 0: a Hugging Face directory, or a hub name. Copied into the run by `prepare`."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type of sampling and training; `auto` is float32 on CPU, bfloat16 on CUDA.
    Master weights and the optimizer are float32 always."""


class PromptConfig(Section):
    template: Literal["auto", "chat", "r1_zero"] = "auto"
    """`chat` renders with the tokenizer's chat template, `r1_zero` with the plain-text template of
    DeepSeek-R1-Zero (arXiv 2501.12948, table 1); `auto` takes `chat` if the tokenizer has one."""
    system: str = ""
    """System message put before the question; empty for none."""
    assistant_prefix: str = "<think>"
    """Text that opens the assistant's turn; the completion continues it and rules judge both."""


class RolloutConfig(Section):
    prompts_per_iteration: Positive = 32
    """Groups of one iteration; prompts come in a shuffled order, each once an epoch."""
    group_size: Annotated[int, Field(ge=2)] = 16
    """Completions of one prompt. One alone has no group to be compared with."""
    groups_per_shard: Positive = 8
    """Groups in one shard, the unit of resuming, of determinism and of division over ranks."""
    max_completion_tokens: Positive = 128
    """Longest completion, the stop token included."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Divides the logits, in sampling and in every logprob of training alike."""
    max_concurrent: Positive = 64
    """Completions decoded at once, hence rows of the key-value cache."""
    on_long: Literal["error", "drop"] = "error"
    """What to do with a prompt that leaves no room for `max_completion_tokens` in the context."""
    sampling: Literal["uniform", "ledger"] = "uniform"
    """`uniform` takes the prompts in the shuffled order; `ledger` looks at how often each was
    solved before: always solved ones are passed over, half solved ones come again."""
    ledger_revisit: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Share of an iteration's groups that `ledger` draws again from the prompts solved in part."""
    ledger_recheck_epochs: Positive = 4
    """`ledger` takes an always solved prompt in every so many epochs, in case it was forgotten."""
    dynamic_sampling: bool = False
    """Draw further prompts until `prompts_per_iteration` groups have different rewards; the
    others are kept on disk and left out of the batch (DAPO, arXiv 2503.14476)."""
    max_extra_rounds: Positive = 3
    """How often dynamic sampling may draw again; then rejected groups fill the batch."""


class LogprobsConfig(Section):
    old_logprobs_from: Literal["policy", "sampler"] = "policy"
    """Where old_logprobs come from: `policy` computes them by the trainer's own forward; `sampler`
    takes what was noted while sampling, for the full vocabulary, and saves that forward. The ratio
    is then of trainer to sampler, no gap is checked and no entropy known; refused where both do
    not compute in the same type on the same kind of device."""
    tokens_per_pack: Positive = 1024
    """Most tokens of one pack: a shared prompt and completions behind it."""
    warn_gap_mean: Annotated[float, Field(gt=0)] = 0.02
    """Warn when mean |old_logprobs - sampler_logprobs| of the iteration is above (nats)."""
    stop_gap_mean: Annotated[float, Field(gt=0)] = 0.05
    """Stop when it is above, with exit code 5."""
    warn_gap_max: Annotated[float, Field(gt=0)] = 1.0
    """Warn when the largest gap of a single token is above (nats)."""
    stop_gap_max: Annotated[float, Field(gt=0)] | None = None
    """Stop when it is above; one token in bfloat16 may be far off, so never when not given."""


class TrainConfig(Section):
    learning_rate: Annotated[float, Field(gt=0)] = 1e-6
    """AdamW's, after warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Decay from `learning_rate` after warm-up to `min_learning_rate` at `total_iterations`."""
    min_learning_rate: Annotated[float, Field(ge=0)] = 0.0
    """Where the decay ends."""
    warmup_iterations: Annotated[int, Field(ge=0)] = 0
    """Iterations over which the learning rate rises from 0, linearly."""
    total_iterations: Positive = 100
    """The horizon of the schedule; going to iteration 3 and then 20 equals going to 20."""
    epochs: Positive = 1
    """Passes over the iteration's completions (mu in the GRPO paper)."""
    prompts_per_step: Positive | None = None
    """Groups in one optimizer step; all of the iteration's when not given."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are scaled down to this norm, taken over the whole model."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW's decay of the mean gradient."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """AdamW's decay of the mean squared gradient."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's floor of the denominator."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decay of matrices; norms and biases have none."""
    tokens_per_pack: Positive = 1024
    """Most tokens of one pack, so the bound of activation memory."""
    share_prompts: bool = True
    """Compute a prompt once for the completions of its group in a pack."""
    microbatches: Positive | Literal["auto"] = "auto"
    """Microbatches of one optimizer step; `auto`: one for each pack."""
    activation_checkpointing: bool = False
    """Keep only the input of each decoder layer for backward, which computes the layer again
    (arXiv 1604.06174): a fraction of the activation memory for one more forward. Not by default,
    since `tokens_per_pack` bounds that memory too and costs nothing."""
    on_no_signal: Literal["stop", "keep"] = "stop"
    """What to do when every group of an iteration has equal rewards: `stop` with exit code 4, or
    `keep` the policy as it is and go on (all solved today need not mean all solved tomorrow)."""
    checkpoint_every_steps: Annotated[int, Field(ge=0)] = 0
    """Commit trainer state within an iteration; 0: an interrupted iteration is replayed."""


class MeshConfig(Section):
    pp_degree: Positive | Literal["auto"] = "auto"
    """Pipeline stages; `auto` is the number of processes divided by dp_degree."""
    dp_degree: Positive = 1
    """Replicas of the pipeline, each with its share of the groups."""
    pipeline_schedule: Literal["1f1b", "gpipe"] = "1f1b"
    """`1f1b` keeps at most one microbatch a pipeline stage in flight (arXiv 2006.09503), `gpipe`
    all of them (arXiv 1811.06965)."""
    timeout_seconds: Positive = 600
    """How long a rank waits for another before all of them end."""


class EvaluateConfig(Section):
    every: Annotated[int, Field(ge=0)] = 0
    """Evaluate policy 0 and every so many iterations as part of `make iteration`; 0: never."""
    samples: Annotated[int, Field(ge=0)] = 0
    """Completions sampled for each question besides the greedy one (pass@k, maj@k)."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of the sampled completions."""
    top_p: Fraction = 1.0
    """Sample from the smallest set of most likely tokens that has this mass; 1: from all."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Sample from so many most likely tokens; 0: from all."""
    max_completion_tokens: Positive | None = None
    """The rollout's when not given."""


class Recipe(Section):
    """The whole experiment."""

    description: str = ""
    """What the experiment is for."""
    preset: PresetName | None = None
    """Settings of a paper (`common/config/presets.py`); what the recipe says itself goes before."""
    run: RunConfig = RunConfig()
    model: ModelConfig
    prompt: PromptConfig = PromptConfig()
    data: dict[str, Source]
    """Sources of questions by task name, as `[data.gsm8k]`."""
    rollout: RolloutConfig = RolloutConfig()
    rewards: RewardsConfig = RewardsConfig()
    advantages: AdvantagesConfig = AdvantagesConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    reference: ReferenceConfig = ReferenceConfig()
    logprobs: LogprobsConfig = LogprobsConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="before")
    @classmethod
    def _preset_first(cls, document: Any) -> Any:
        return with_preset(document)

    @model_validator(mode="after")
    def _sections_agree(self) -> Recipe:
        if not self.data:
            raise ValueError("data: no source of questions; add a table such as [data.gsm8k]")
        if self.logprobs.old_logprobs_from == "sampler":
            _fits_without_old_policy(self.objective)
        if self.preset is not None and self.objective.has_own_term:
            raise ValueError(
                f"objective.policy_term = {self.objective.policy_term!r} is your own, but preset = "
                f"{self.preset!r} stands for a paper's whole objective; remove the policy_term, or "
                "remove the preset and write the settings that you keep of it into the recipe "
                "(common/config/presets.py has them)"
            )
        steps, prompts = self.train.prompts_per_step, self.rollout.prompts_per_iteration
        if steps is not None and prompts % steps:
            divisors = [d for d in range(1, prompts + 1) if prompts % d == 0]
            near = [d for d in divisors if d < steps][-1:] + [d for d in divisors if d > steps][:1]
            raise ValueError(
                f"train.prompts_per_step = {steps} does not divide rollout.prompts_per_iteration "
                f"= {prompts}; nearest that do: {', '.join(map(str, near))}"
            )
        return self


def _fits_without_old_policy(objective: ObjectiveConfig) -> None:
    """Refuse what old_logprobs taken from the sampler leave nothing for."""
    if objective.top_entropy_quantile < 1:
        raise ValueError(
            f"objective.top_entropy_quantile = {objective.top_entropy_quantile} ranks tokens by "
            'the entropy that only logprobs.old_logprobs_from = "policy" computes; a sampler notes '
            "none. Set it to 1, or take the policy's"
        )
    if objective.sampler_correction != "none":
        raise ValueError(
            f"objective.sampler_correction = {objective.sampler_correction!r} weighs by the "
            'difference of trainer and sampler; with logprobs.old_logprobs_from = "sampler" there '
            'is none, since the ratio itself is of trainer to sampler; set it to "none"'
        )
