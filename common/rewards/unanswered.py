"""Why hardly a completion of an iteration has an answer that the rules can read, and the remedy.

Such an iteration teaches nothing, and more of its kind would not either: the prompt, the limit of
tokens or the form of the answer has to change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from common.config import RewardsConfig
from common.console import python
from common.errors import NoLearningSignalError
from common.rewards.registry import VERIFY
from common.runs.layout import Output, Run
from common.runs.manifest import has_manifest, read_manifest

MOST_UNANSWERED = 0.9
"""Share of completions without an answer above which an iteration is not worth going on with."""

FACT = "unanswered"


def unanswered_facts(
    completions: pa.Table,
    verdicts: pa.ChunkedArray,
    rewards: RewardsConfig,
    max_completion_tokens: int,
) -> dict[str, Any]:
    """Return what there is to know about the completions without an answer.

    Args:
        completions: rows of a rollout.
        verdicts: of the same rows.
        rewards: the rewards in use.
        max_completion_tokens: the limit under which they were sampled.

    Returns:
        The facts for the manifest of `score`; empty if enough completions have an answer.
    """
    rows = completions.filter(pc.equal(verdicts, "no_answer"))
    if rows.num_rows <= MOST_UNANSWERED * completions.num_rows:
        return {}
    prefixes, texts = rows["assistant_prefix"].to_pylist(), rows["completion_text"].to_pylist()
    whole = [prefix + text for prefix, text in zip(prefixes, texts, strict=True)]
    return {
        FACT: {
            "completions": completions.num_rows,
            "no_answer": rows.num_rows,
            "truncated": rows["finish_reason"].to_pylist().count("length"),
            "max_completion_tokens": max_completion_tokens,
            "open_thoughts": sum("<think>" in text.rpartition("</think>")[2] for text in whole),
            "prefix": Counter(prefixes).most_common(1)[0][0],
            "verify_type": Counter(rows["verify_type"].to_pylist()).most_common(1)[0][0],
            "other_rewards": sorted(rewards.aux_weights()),
        }
    }


def explain(facts: Mapping[str, Any], score: Output) -> str:
    """Return the reason in a sentence, and what to do.

    Args:
        facts: those under `FACT` in the manifest of `score`.
        score: the scores of the iteration.
    """
    found, half = facts["no_answer"], facts["no_answer"] / 2
    limit = facts["max_completion_tokens"]
    run, number = Run(score.run), score.iteration
    remedy = run.make(number, remake_from=number, settings={"prompt.assistant_prefix": ""})
    if facts["open_thoughts"] > half and "<think>" in facts["prefix"]:
        why = f"the prefix {facts['prefix']!r} opens a thought that the model does not end"
    elif facts["truncated"] > half:
        why = f"{facts['truncated']} are cut off at {limit} tokens"
        longer = {"rollout.max_completion_tokens": 4 * limit}
        remedy = run.make(number, remake_from=number, settings=longer)
    else:
        form = VERIFY[facts["verify_type"]].form
        why = f"{facts['verify_type']} looks for {form}"
        remedy = (
            "ask for that in prompt.system of the recipe, or take another verify_type; then "
            + run.make(number, remake_from=number)
        )
    return (
        f"{score.name}: {found} of {facts['completions']} completions have no answer that the "
        f"rules can read: {why}.\n"
        f"  See them:  {python()} -m stages.show completions --run {run.name} "
        f"--iteration {number}\n"
        f"  Mend it:   {remedy}"
    )


def refuse_unanswered(score: Output, on_no_signal: str) -> None:
    """Stop before the iteration costs more, if hardly a completion of it has an answer.

    An iteration goes on that is not scored yet, whose recipe has other rewards than the answer's
    (which can teach the form of an answer), or whose recipe goes on without a signal anyway.

    Args:
        score: the scores of the iteration.
        on_no_signal: `train.on_no_signal` of the recipe.

    Raises:
        NoLearningSignalError: the iteration must not go on; the message has reason and remedy.
    """
    if on_no_signal == "keep" or not has_manifest(score):
        return
    facts = read_manifest(score).facts
    if FACT in facts and not facts[FACT]["other_rewards"]:
        raise NoLearningSignalError(explain(facts[FACT], score))
