"""The columns of every stage's shards: one pyarrow schema per stage, one comment per column.

A later stage's shard has the name and the row order of the rollout's. It holds the key `rollout_id`
and the stage's own new columns only, so that no stage rewrites what another has written.
"""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

SCHEMA_VERSION = 2

KEY = "rollout_id"

TOKENS = pa.list_(pa.int32())
LOGPROBS_OF_TOKENS = pa.list_(pa.float32())
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def _column(name: str, kind: pa.DataType, comment: str, *, null: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=null, metadata={"comment": comment})


PROMPTS = pa.schema(
    [
        _column(
            "prompt_id", pa.string(), "stable id: hash of the content unless the data gave one"
        ),
        _column("task", pa.string(), "name of the source in the recipe's [data]"),
        _column(
            "messages", MESSAGES, "chat messages; the system message of the recipe comes later"
        ),
        _column("question", pa.string(), "content of the last user message"),
        _column("answer", pa.string(), "gold answer, readable under its verify type"),
        _column("verify_type", pa.string(), "the rule that judges an answer"),
        _column("metadata", pa.string(), "JSON object with whatever else the source said"),
    ]
)

_SAMPLED = [
    _column("prompt_ids", TOKENS, "rendered prompt, assistant prefix included"),
    _column("completion_ids", TOKENS, "sampled tokens, the stop token included"),
    _column("assistant_prefix", pa.string(), "text of the prompt that belongs to the answer"),
    _column("completion_text", pa.string(), "completion without its final stop token, no clean-up"),
    _column("finish_reason", pa.string(), "stop or length"),
    _column("question", pa.string(), "as in prompts"),
    _column("answer", pa.string(), "as in prompts"),
    _column("verify_type", pa.string(), "as in prompts"),
]

ROLLOUT = pa.schema(
    [
        _column(KEY, pa.string(), "iteration-group-sample, unique within the run"),
        _column("prompt_id", pa.string(), "the prompt that was drawn"),
        _column("task", pa.string(), "as in prompts"),
        _column("group_id", pa.int32(), "which draw of this iteration; a group is one draw"),
        _column("sample_index", pa.int32(), "which completion of its group"),
        *_SAMPLED,
        _column("sampler_logprobs", LOGPROBS_OF_TOKENS, "of the distribution sampled from, nats"),
        _column("policy_version", pa.int32(), "number of the policy that sampled"),
        _column("seed", pa.int64(), "seed of this completion's random numbers"),
        _column("kept", pa.bool_(), "false when dynamic sampling left the group out of the batch"),
    ]
)

# Lists are empty where `kept` is false: nothing trains on those tokens.
LOGPROBS = pa.schema(
    [
        _column(KEY, pa.string(), "as in rollout"),
        _column(
            "old_logprobs",
            LOGPROBS_OF_TOKENS,
            "of the policy that sampled, by the trainer; or the sampler's, as the recipe says",
        ),
        _column(
            "ref_logprobs", LOGPROBS_OF_TOKENS, "of the reference; null at kl_coef 0", null=True
        ),
        _column(
            "entropy",
            LOGPROBS_OF_TOKENS,
            "of the policy's distribution, nats; null where the sampler gave old_logprobs",
            null=True,
        ),
    ]
)

# Values of policy N, which was trained on these tokens; lists are empty where `kept` is false.
TOKEN_RECORDS = pa.schema(
    [
        _column(KEY, pa.string(), "as in rollout"),
        _column("token_text", pa.list_(pa.string()), "of each token alone; U+FFFD for half a char"),
        _column("new_logprobs", LOGPROBS_OF_TOKENS, "of policy N, by the trainer"),
        _column("ratio", LOGPROBS_OF_TOKENS, "policy N to the policy that sampled, at ratio_level"),
        _column("clipped", pa.list_(pa.int8()), "-1 clipped from below, 1 from above, 0 not"),
        _column("entropy", LOGPROBS_OF_TOKENS, "of policy N's distribution, nats"),
        _column("kl", LOGPROBS_OF_TOKENS, "to the reference, by kl_kind; null without", null=True),
        _column("weight", LOGPROBS_OF_TOKENS, "in the policy term; 0 where not in the loss"),
    ]
)

EVALUATION = pa.schema(
    [
        _column(KEY, pa.string(), "evaluation-question-sample, unique within the run"),
        _column("prompt_id", pa.string(), "the evaluation question"),
        _column("task", pa.string(), "as in prompts"),
        _column("sample_index", pa.int32(), "-1 the greedy completion, 0.. the sampled ones"),
        *_SAMPLED,
        _column("reward_answer", pa.float64(), "the row's verify type", null=True),
        _column("extracted_answer", pa.string(), "what the rule read", null=True),
        _column("verdict", pa.string(), "correct, wrong, no_answer, timeout or infra_error"),
    ]
)

# One row per optimizer step; the metrics are defined in common/objective.
TRAIN_METRICS = (
    "loss",
    "policy_loss",
    "kl",
    "entropy",
    "clip_fraction_low",
    "clip_fraction_high",
    "ratio_mean",
    "ratio_max",
    "approx_kl",
    "sampler_gap_mean",
    "sampler_gap_max",
    "sampler_weight_mean",
    "grad_norm",
    "learning_rate",
    "completion_tokens",
    "completions",
    "zero_variance_groups",
    "reward_mean",
    "reward_std",
    "truncated_fraction",
    "tokens_per_second",
    "peak_memory_bytes",
    "step_seconds",
)

_COUNTS = {"completion_tokens", "completions", "zero_variance_groups", "peak_memory_bytes"}

TRAIN = pa.schema(
    [
        _column("iteration", pa.int32(), "the iteration trained"),
        _column("epoch", pa.int32(), "pass over the iteration's completions, from 0"),
        _column("step", pa.int32(), "optimizer step within the iteration, from 0"),
        _column(
            "skipped", pa.bool_(), "no update: nothing to learn, or numbers that are not finite"
        ),
    ]
    + [
        _column(name, pa.int64() if name in _COUNTS else pa.float64(), "see README: metrics")
        for name in TRAIN_METRICS
    ]
)


def score_schema(aux_rewards: Iterable[str]) -> pa.Schema:
    """Return the columns of `score`, with one for each auxiliary reward of this name."""
    return pa.schema(
        [
            _column(KEY, pa.string(), "as in rollout"),
            _column("reward", pa.float64(), "weighted sum; null after an infra error", null=True),
            _column("reward_answer", pa.float64(), "the row's verify type, unweighted", null=True),
            *(
                _column(
                    f"reward_{name}", pa.float64(), "an auxiliary reward, unweighted", null=True
                )
                for name in aux_rewards
            ),
            _column("extracted_answer", pa.string(), "what the rule read", null=True),
            _column("verdict", pa.string(), "correct, wrong, no_answer, timeout or infra_error"),
            _column("advantage", pa.float64(), "group-relative, of the recipe's kind"),
            _column("group_reward_mean", pa.float64(), "over non-null rewards", null=True),
            _column(
                "group_reward_std",
                pa.float64(),
                "over non-null rewards, by n - advantages.ddof",
                null=True,
            ),
        ]
    )
