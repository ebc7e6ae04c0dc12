"""The recipe as a whole, and those of its tables that have no module of their own."""

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
    """Policy 0: a Hugging Face directory or a hub name; `prepare` copies it into the run."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type of sampling and training; `auto` is float32 on CPU, bfloat16 on CUDA.
    Master weights and the optimizer are always float32."""


class PromptConfig(Section):
    template: Literal["auto", "chat", "r1_zero"] = "auto"
    """`chat` renders with the tokenizer's chat template, `r1_zero` with the plain-text template of
    DeepSeek-R1-Zero (arXiv 2501.12948, table 1); `auto` takes `chat` if the tokenizer has one."""
    system: str = ""
    """System message before the question; empty for none."""
    assistant_prefix: str = ""
    """Text that opens the assistant's turn. The completion continues it; rules judge both. A model
    that was trained to begin with `<think>` may need it; one that was not will not close it."""


class RolloutConfig(Section):
    prompts_per_iteration: Positive = 32
    """Groups per iteration. Prompts come in shuffled order, each once per epoch."""
    group_size: Annotated[int, Field(ge=2)] = 16
    """Completions per prompt, at least two: a single one has nothing to be compared with."""
    groups_per_shard: Positive = 8
    """Groups per shard, the unit of resuming, of determinism and of division over ranks."""
    max_completion_tokens: Positive = 128
    """Longest completion in tokens, the stop token included."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Divides the logits, both in sampling and in every logprob of training."""
    max_concurrent: Positive = 64
    """Completions decoded at once, which is also the number of rows of the key-value cache."""
    on_long: Literal["error", "drop"] = "error"
    """What to do with a prompt that leaves no room for `max_completion_tokens` in the context."""
    sampling: Literal["uniform", "ledger"] = "uniform"
    """`uniform` takes the prompts in shuffled order. `ledger` considers how often each was solved
    before: it skips prompts that are always solved, and repeats those that are solved in part."""
    ledger_revisit: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Share of an iteration's groups that `ledger` draws again from prompts solved in part."""
    ledger_recheck_epochs: Positive = 4
    """`ledger` samples an always solved prompt in one of so many epochs, in case it was
    forgotten."""
    dynamic_sampling: bool = False
    """Draw further prompts until `prompts_per_iteration` groups have rewards that differ within the
    group. The other groups stay on disk but not in the batch (DAPO, arXiv 2503.14476)."""
    max_extra_rounds: Positive = 3
    """How often dynamic sampling may draw again before rejected groups fill up the batch."""


class LogprobsConfig(Section):
    old_logprobs_from: Literal["policy", "sampler"] = "policy"
    """Where old_logprobs come from. `policy` computes them by a forward of the trainer. `sampler`
    takes those recorded while sampling, over the full vocabulary, which saves that forward. The
    ratio is then of trainer to sampler, no gap is checked and no entropy is known. `sampler` is
    refused unless both compute in the same type on the same kind of device."""
    tokens_per_pack: Positive = 1024
    """Most tokens per pack: a shared prompt followed by completions of it."""
    warn_gap_mean: Annotated[float, Field(gt=0)] = 0.02
    """Warn if the mean of |old_logprobs - sampler_logprobs| over the iteration exceeds this, in
    nats."""
    stop_gap_mean: Annotated[float, Field(gt=0)] = 0.05
    """Stop with exit code 5 if that mean exceeds this."""
    warn_gap_max: Annotated[float, Field(gt=0)] = 1.0
    """Warn if the largest gap of a single token exceeds this, in nats."""
    stop_gap_max: Annotated[float, Field(gt=0)] | None = None
    """Stop if that largest gap exceeds this. Not given, it never stops: in bfloat16 a single token
    may be far off."""


class TrainConfig(Section):
    learning_rate: Annotated[float, Field(gt=0)] = 1e-6
    """Learning rate of AdamW after warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Decay from `learning_rate` after warm-up to `min_learning_rate` at `total_iterations`."""
    min_learning_rate: Annotated[float, Field(ge=0)] = 0.0
    """Learning rate at the end of the decay."""
    warmup_iterations: Annotated[int, Field(ge=0)] = 0
    """Iterations over which the learning rate rises linearly from 0."""
    total_iterations: Positive = 100
    """Iterations that the schedule spans, however far a run goes: going to iteration 3 and then to
    20 equals going to 20 at once."""
    epochs: Positive = 1
    """Passes over the iteration's completions (mu in the GRPO paper)."""
    prompts_per_step: Positive | None = None
    """Groups per optimizer step; all groups of the iteration if not given."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Largest gradient norm over the whole model; larger gradients are scaled down to it."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of AdamW's mean gradient."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of AdamW's mean squared gradient."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Term added to AdamW's denominator."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's weight decay of matrices; norms and biases have none."""
    tokens_per_pack: Positive = 1024
    """Most tokens per pack, which bounds activation memory."""
    share_prompts: bool = True
    """Compute a prompt once for the completions of its group in a pack."""
    microbatches: Positive | Literal["auto"] = "auto"
    """Microbatches per optimizer step; `auto` is one per pack."""
    activation_checkpointing: bool = False
    """Keep only the input of each decoder layer for backward, which computes the layer again
    (arXiv 1604.06174). This takes a fraction of the activation memory and costs one more forward.
    It is off by default because `tokens_per_pack` bounds that memory too and costs nothing."""
    on_no_signal: Literal["stop", "keep"] = "stop"
    """What to do when every group of an iteration has equal rewards: `stop` with exit code 4, or
    `keep` the policy as it is and go on, as the next iteration may have groups that differ. With
    `stop`, an iteration also ends after `score` if over 90 % of its completions have no answer that
    the rules can read, unless the recipe has other rewards besides the answer's."""
    checkpoint_every_steps: Annotated[int, Field(ge=0)] = 0
    """Save trainer state every so many steps within an iteration. With 0, an interrupted iteration
    starts again from its first step."""


class MeshConfig(Section):
    pp_degree: Positive | Literal["auto"] = "auto"
    """Number of pipeline stages; `auto` is the number of processes divided by dp_degree."""
    dp_degree: Positive = 1
    """Number of replicas of the pipeline, each of which takes a share of the groups."""
    pipeline_schedule: Literal["1f1b", "gpipe"] = "1f1b"
    """`1f1b` keeps at most one microbatch per pipeline stage in flight (arXiv 2006.09503), `gpipe`
    all microbatches (arXiv 1811.06965)."""
    timeout_seconds: Positive = 600
    """How long a rank waits for another before all ranks end."""


class EvaluateConfig(Section):
    every: Annotated[int, Field(ge=0)] = 0
    """Let `make iteration` evaluate policy 0 and every n-th policy after it; 0 for never."""
    samples: Annotated[int, Field(ge=0)] = 0
    """Completions to sample per question besides the greedy one (for pass@k and maj@k)."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Temperature of the sampled completions."""
    top_p: Fraction = 1.0
    """Sample from the smallest set of most likely tokens that has this mass; 1 for all tokens."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Sample from this many most likely tokens; 0 for all tokens."""
    max_completion_tokens: Positive | None = None
    """Longest completion in tokens; that of the rollout if not given."""


class Recipe(Section):
    """The whole experiment."""

    description: str = ""
    """What the experiment is for."""
    preset: PresetName | None = None
    """Settings of a paper (`common/config/presets.py`), which the recipe's own keys overrule."""
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
    """Check that the objective needs nothing that old_logprobs from the sampler cannot give."""
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
