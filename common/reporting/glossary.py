"""Short headers of the columns that tables have on the terminal, and what the columns mean.

`--legend` prints the meanings. In JSON and Parquet a column has its full name.
"""

from __future__ import annotations

import re

SHORT = {
    "iteration": "iter",
    "reward_mean": "reward",
    "reward_std": "std",
    "zero_variance_groups": "flat",
    "truncated_fraction": "cut",
    "truncated": "cut",
    "clip_fraction_low": "clip-",
    "clip_fraction_high": "clip+",
    "grad_norm": "grad",
    "learning_rate": "lr",
    "group_id": "group",
    "samples": "of",
    "questions": "asked",
    "greedy_low": "low",
    "greedy_high": "high",
    "times_attempted": "drawn",
    "not_attempted": "undrawn",
    "verify_type": "rule",
    "infra_error": "failed",
    "well_formed": "formed",
    "accuracy_of_well_formed": "right if formed",
    "mean_advantage": "advantage",
    "difference_low": "diff_low",
    "difference_high": "diff_high",
    "minus_baseline": "minus_base",
    "minus_baseline_low": "low",
    "minus_baseline_high": "high",
}
"""Headers that are shorter than the column's name; no two of a table may be the same."""

LOW, HIGH = "lower end of the 95 % interval", "upper end of the 95 % interval"

MEANINGS = {
    "iteration": "iteration N samples policy N - 1 and trains policy N",
    "steps": "optimizer steps of the iteration",
    "reward_mean": "mean reward of the completions, before training on them",
    "reward_std": "standard deviation of the group's rewards (ddof 1)",
    "zero_variance_groups": "groups whose rewards are all equal: they teach nothing",
    "tokens": "mean length of a completion, in tokens",
    "truncated_fraction": "share of completions that hit the length limit, 0 to 1",
    "loss": "mean over the optimizer steps",
    "kl": "distance from the reference, mean over tokens, in nats",
    "entropy": "mean over tokens, in nats; near 0, sampling no longer explores",
    "clip_fraction_low": "share of tokens clipped from below, 0 to 1",
    "clip_fraction_high": "share of tokens clipped from above, 0 to 1",
    "grad_norm": "norm of the gradient before it is clipped",
    "learning_rate": "mean over the optimizer steps",
    "group_id": "number of the group: one question and its completions",
    "task": "name of the source of questions in the recipe's [data]",
    "question": "the user's message",
    "answer": "the gold answer",
    "correct": "completions whose verdict is correct",
    "samples": "completions",
    "kept": "whether dynamic sampling kept the group for training",
    "policy": "number of the policy; 0 is the base",
    "questions": "held-out questions",
    "greedy": "share of the questions that the greedy completion answers right",
    "greedy_low": LOW,
    "greedy_high": HIGH,
    "truncated": "share of completions that hit the length limit, 0 to 1",
    "before": "share of right answers of the first policy",
    "after": "share of right answers of the last policy",
    "difference": "after minus before, on the same questions",
    "low": LOW,
    "high": HIGH,
    "difference_low": LOW,
    "difference_high": HIGH,
    "choice": "the part of the change that comes from choosing other openings",
    "choice_low": LOW,
    "choice_high": HIGH,
    "within": "the part of the change that comes from being right more often within an opening",
    "within_low": LOW,
    "within_high": HIGH,
    "accuracy": "share of right answers among those that could be judged",
    "well_formed": "share of answers in which the rule found one, right or wrong",
    "accuracy_of_well_formed": "share of right answers among the well-formed",
    "opening": "first word of a completion",
    "share": "share of the first policy's completions that begin so",
    "share_after": "the same of the last policy",
    "right": "share of right answers among the first policy's that begin so",
    "right_after": "the same of the last policy",
    "prompts": "training prompts",
    "never": "prompts that no completion has solved",
    "in_part": "prompts between never and always",
    "always": "prompts that all completions of the last drawing solved",
    "not_attempted": "prompts that were not drawn yet, or never judged",
    "prompt_id": "id of the prompt",
    "times_attempted": "how often the prompt was drawn",
    "positions": "positions of the tokens in their completions, from 0",
    "mean": "mean",
    "max": "largest",
    "min": "least",
    "std": "standard deviation (ddof 1)",
    "token_id": "id of the token",
    "text": "the token's text",
    "rollout_id": "id of the completion: iteration, group, sample",
    "position": "position of the token in its completion, from 0",
    "trainer": "logprob by the trainer, in nats",
    "sampler": "logprob by the sampler, in nats",
    "gap": "difference of the two, in nats",
    "rule": "the reward's rule; `reward` is the weighted sum",
    "rows": "completions",
    "judged": "share of completions to which the rule gave a number",
    "verify_type": "the rule that judges the answer",
    "wrong": "completions with another answer than the gold one",
    "no_answer": "completions in which the rule found no answer",
    "timeout": "completions whose judging took too long",
    "infra_error": "completions on which the rule itself failed; they have no reward",
    "gold": "the gold answer",
    "change": "gained, lost, kept or missed, from the first policy to the last",
    "part": "folder or file of the run",
    "size": "size on disk; a file linked several times counts once",
    "bytes": "size on disk; a file linked several times counts once",
    "groups": "groups of that drawing",
    "pass_rate": "share of correct completions among those that could be judged",
    "id": "id of the completion",
    "reward": "weighted sum of the rules",
    "verdict": "what the answer's rule said",
    "extracted_answer": "the answer that the rule read",
    "reward_after": "the same by the other scoring",
    "verdict_after": "the same by the other scoring",
    "extracted_answer_after": "the same by the other scoring",
    "changed": "completions with another value than before",
    "rose": "of them those with a higher one",
    "fell": "of them those with a lower one",
    "became_null": "of them those that had a value",
    "were_null": "of them those that had none",
    "mean_before": "mean of the first scoring",
    "mean_after": "mean of the other scoring",
}
"""What a column means, where its table has no entry in `OF_TABLE`."""

_TOKEN_COUNTS = {
    "tokens": "tokens in the loss",
    "low": "of them clipped from below",
    "high": "of them clipped from above",
}
_GAPS = {
    "tokens": "number of such tokens",
    "mean": "mean difference of sampler's and trainer's logprob, in nats",
    "max": "largest difference, in nats",
}
_LISTED_TOKEN = {
    "token": "the token's text",
    "old_logprob": "its logprob under policy N - 1, in nats",
    "new_logprob": "its logprob under policy N, in nats",
    "text": "the token between « and », with the text around it",
    "clipped": "low or high: from below or above",
    "ratio": "probability by policy N divided by that of policy N - 1",
    "advantage": "the completion's advantage",
}

OF_TABLE = {
    "groups": {
        "tokens": "mean length of the group's completions, in tokens",
        "truncated": "completions that hit the length limit",
        "reward_mean": "mean reward of the group",
        "samples": "completions of the group",
    },
    "runs": {
        "run": "name of the run",
        "iteration": "the last complete iteration; 0: prepared",
        "reward_mean": "mean reward of that iteration",
        "evaluated": "the last evaluated policy",
        "greedy": "its greedy accuracy on held-out questions, mean over the tasks",
        "model": "the base model",
        "data": "sources of questions",
        "changed": "when the last iteration was finished (UTC)",
    },
    "status": dict.fromkeys(
        ("prepare", "rollout", "score", "logprobs", "train", "tokens", "evaluate"),
        "state of the stage's output: fresh, stale and why, missing or damaged",
    )
    | {"evaluate": "state of the evaluation of policy N"},
    "changes": {
        "stage": "a finished stage",
        "key": "a key of the recipe",
        "made with": "its value when the stage was made",
        "now": "its value in the recipe in force",
    },
    "answers": {
        "before": "what the first evaluated policy wrote",
        "after": "what the last evaluated policy wrote",
    },
    "overall": _GAPS,
    "positions": _GAPS,
    "token_ids_by_mean": _GAPS,
    "token_ids_by_max": _GAPS,
    "prompts": _TOKEN_COUNTS
    | {
        "completions": "completions with tokens in the loss",
        "mean_advantage": "mean advantage of the clipped tokens",
    },
    "texts": _TOKEN_COUNTS | {"token_text": "the token's text", "ratio": "mean ratio"},
    "tokens": _LISTED_TOKEN,
    "verdicts": {"task": "source of questions, or the verdict before"},
    "agreement": {
        "rule": "one rule",
        "other": "another rule",
        "both": "completions that both like: to which they give more than their mean",
        "only_rule": "completions that only the first likes",
        "only_other": "completions that only the other likes",
        "neither": "completions that neither likes",
        "correlation": "Pearson's, over the completions that both judged",
    },
    "disagreements": {
        "liked_by": "the rule that gives more than its mean",
        "gives": "what it gives",
        "not_by": "the rule that does not",
        "which_gives": "what that gives",
        "id": "id of the completion",
        "extracted_answer": "the answer that the rule read",
    },
    "rules": {"mean": "mean reward", "min": "least reward", "max": "largest reward"},
}
"""What a column means in the table of a key."""

PATTERNS = {
    r"pass@1": "share of the sampled answers that are right",
    r"pass@(\d+)": r"probability that one of \1 sampled answers is right",
    r"maj@(\d+)": r"accuracy of the most frequent of \1 sampled answers",
    r"'.*' right": "how often completions that begin so are right, 0 to 1",
    r"'.*'": "share of completions that begin with this word, 0 to 1",
}
"""What columns mean whose names follow from the data."""


def short(name: str) -> str:
    """Return the header of a column on the terminal."""
    return SHORT.get(name, name)


def meaning(name: str, table: str = "") -> str:
    """Return what a column means, with its unit; empty if its name says all that is known.

    Args:
        name: of the column, in JSON.
        table: key of the table that has it.
    """
    found = OF_TABLE.get(table, {}).get(name) or MEANINGS.get(name)
    if found is not None:
        return found
    for pattern, text in PATTERNS.items():
        if match := re.fullmatch(pattern, name):
            return match.expand(text) if match.groups() else text
    return ""
