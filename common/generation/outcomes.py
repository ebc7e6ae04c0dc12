"""What came of the groups of a rollout, and what dynamic sampling decides by it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from common.objective.advantages import groups_with_variance

Solved = Literal["always", "never", "in_part"]


@dataclass(frozen=True)
class Outcome:
    """What is known of a group once it is judged."""

    varied: bool
    """Whether two of its rewards differ."""
    solved: Solved
    """How many of its judged completions are `correct`; `in_part` also when none was judged."""
    completions: int
    failed: int
    """Completions whose rules failed."""
    tokens: int
    """Of all its completions."""


def group_outcomes(
    group_ids: Sequence[int],
    rewards: Sequence[float | None],
    verdicts: Sequence[str],
    tokens: Sequence[int],
) -> list[Outcome]:
    """The outcome of each group, in the order in which the groups first come."""
    number = {group: place for place, group in enumerate(dict.fromkeys(group_ids))}
    groups = [number[group] for group in group_ids]
    varied = groups_with_variance(groups, rewards, len(number))
    members: list[list[int]] = [[] for _ in number]
    for row, group in enumerate(groups):
        members[group].append(row)
    return [
        Outcome(
            bool(varied[group]),
            _solved([verdicts[row] for row in rows]),
            len(rows),
            sum(verdicts[row] == "infra_error" for row in rows),
            sum(tokens[row] for row in rows),
        )
        for group, rows in enumerate(members)
    ]


def groups_to_draw(outcomes: Sequence[Outcome], wanted: int) -> int:
    """Groups of the next round: as many as are expected to give those that are missing.

    missing / (share accepted so far), rounded up and at most `wanted`; 0 when none is missing.
    """
    accepted = sum(outcome.varied for outcome in outcomes)
    missing = max(0, wanted - accepted)
    expected = -(-missing * len(outcomes) // accepted) if accepted else wanted
    return min(expected, wanted) if missing else 0


def groups_kept(outcomes: Sequence[Outcome], wanted: int) -> set[int]:
    """The batch: the first `wanted` groups with variance; where too few, the first others too."""
    order = sorted(range(len(outcomes)), key=lambda group: not outcomes[group].varied)
    return set(order[:wanted])


def cost_facts(outcomes: Sequence[Outcome], kept: set[int], rounds: int) -> dict[str, Any]:
    """What dynamic sampling did, for the manifest.

    `always_solved`, `never_solved` and `otherwise_equal` are the groups without variance, of which
    `filled` stand in the batch all the same; `surplus` are groups with variance beyond the batch.
    """
    equal = [outcome.solved for outcome in outcomes if not outcome.varied]
    rejected = [outcome for group, outcome in enumerate(outcomes) if group not in kept]
    surplus = sum(outcome.varied for outcome in rejected)
    return {
        "extra_rounds": rounds,
        "groups_drawn": len(outcomes),
        "groups_with_variance": len(outcomes) - len(equal),
        "always_solved": equal.count("always"),
        "never_solved": equal.count("never"),
        "otherwise_equal": equal.count("in_part"),
        "filled": len(equal) - (len(rejected) - surplus),
        "surplus": surplus,
        "groups_rejected": len(rejected),
        "rejected_completion_tokens": sum(outcome.tokens for outcome in rejected),
    }


def cost_text(facts: dict[str, Any], completion_tokens: int) -> str:
    """`2 extra rounds, 41 groups drawn for 32: 22 % of the tokens rejected`.

    Args:
        facts: as `cost_facts` gives them.
        completion_tokens: of all groups drawn.
    """
    rounds, drawn = facts["extra_rounds"], facts["groups_drawn"]
    share = 100 * facts["rejected_completion_tokens"] / completion_tokens
    return (
        f"{rounds} extra round{'' if rounds == 1 else 's'}, {drawn} groups drawn for "
        f"{drawn - facts['groups_rejected']}: {share:.0f} % of the tokens rejected"
    )


def _solved(verdicts: Sequence[str]) -> Solved:
    judged = [verdict == "correct" for verdict in verdicts if verdict != "infra_error"]
    if not judged or 0 < sum(judged) < len(judged):
        return "in_part"
    return "always" if all(judged) else "never"
