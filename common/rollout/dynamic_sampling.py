"""Dynamic sampling (DAPO, arXiv 2503.14476): sample until enough groups have a gradient.

A group whose rewards are all equal has no advantage and so no gradient. The rollout judges its own
completions by the recipe's rules, tests each group for variance as the advantages do, and samples
further groups to replace those without. It stores no reward: `score` judges all completions again,
and may do so by other rules, without anything being sampled again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from types import TracebackType
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from common.config import RewardsConfig, RolloutConfig
from common.console import bar, warn
from common.errors import UserError
from common.objective.advantages import groups_with_variance
from common.parallel.mesh import Mesh
from common.rewards.registry import function_versions, package_versions
from common.rewards.scorer import (
    ROLLOUT_COLUMNS,
    Scorer,
    judge_table,
    refuse_failures,
    usage_lines,
    with_columns,
    with_metadata,
)
from common.rollout.groups import Groups
from common.rollout.prompts import RenderedPrompt
from common.runs.layout import shard_name
from common.runs.shards import OutputWriter
from common.tasks.records import Faults


class GroupJudge:
    """Judge of groups, by the rules of `score`.

    Only the first rank uses it. It is a context manager, as `Scorer` is.
    """

    def __init__(
        self, rewards: RewardsConfig, rollout: RolloutConfig, verify_types: Iterable[str]
    ) -> None:
        """Take the rules; none is opened before `check`.

        Args:
            rewards: the recipe's reward rules.
            rollout: gives them the limit of completion tokens.
            verify_types: those of all prompts that may be drawn.
        """
        self._rewards = rewards.with_limit(rollout.max_completion_tokens)
        self._types = sorted(set(verify_types))
        self._scorer = Scorer(self._rewards)
        self._metadata: dict[str, str] = {}
        self.reasons: list[str] = []
        """Why rules failed, one entry per failure."""

    def __enter__(self) -> GroupJudge:
        self._scorer.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._scorer.__exit__(kind, error, trace)

    def check(self, prompts: Sequence[RenderedPrompt]) -> None:
        """Check before sampling that completions of these prompts can be judged.

        Raises:
            UserError: a rule cannot be opened, or a gold answer cannot be read.
            MissingToolError: a program or package is not installed.
        """
        self._scorer.open(self._types)
        self._metadata |= {p.row["prompt_id"]: p.row["metadata"] for p in prompts}
        faults = Faults()
        golds = [(prompt.row["verify_type"], prompt.row["answer"]) for prompt in prompts]
        wrong = self._scorer.unreadable_golds(golds)
        for prompt, fault in zip(prompts, wrong, strict=True):
            if fault is not None:
                faults.add(f"prompt {prompt.row['prompt_id']} ({prompt.row['task']})", fault)
        faults.raise_any()

    def made_by(self) -> dict[str, str]:
        """Return the versions of the packages and functions that decide the outcomes."""
        return package_versions(self._types) | function_versions(self._rewards)

    def usage_lines(self) -> list[str]:
        """Return a line for each rule that asks a service: its requests, tokens and cost."""
        return usage_lines([self._scorer.usage()])

    def outcomes(self, completions: pa.Table) -> list[GroupOutcome]:
        """Judge completions and return the outcome of each group, in order.

        Args:
            completions: rows of a rollout, group after group.
        """
        with bar("judge", completions.num_rows) as shown:
            aux_rewards = list(self._rewards.aux_weights())
            rows = with_metadata(completions, self._metadata)
            judged, reasons = judge_table(rows, self._scorer, aux_rewards, shown.advance)
        self.reasons += reasons
        return group_outcomes(
            completions["group_id"].to_pylist(),
            judged["reward"].to_pylist(),
            judged["verdict"].to_pylist(),
            pc.list_value_length(completions["completion_ids"]).to_pylist(),
        )


def fill_batch(
    groups: Groups,
    writer: OutputWriter,
    mesh: Mesh,
    judge: GroupJudge,
    make: Callable[[OutputWriter, range], object],
    rollout: RolloutConfig,
) -> list[GroupOutcome]:
    """Judge the groups of the first round, then sample and judge up to `max_extra_rounds` more.

    The outcomes of a shard are stored beside it. So a resumed rollout draws the same groups as an
    uninterrupted one, even if a rule with a time limit would judge differently the second time.

    Args:
        groups: the groups of the first round; those of further rounds are added to it.
        writer: holds the shards of the first round; those of further rounds are added to it.
        mesh: the ranks that sample.
        judge: used on the first rank, which decides for all.
        make: makes shards and returns once all ranks have made theirs.
        rollout: the batch size and the number of further rounds allowed.

    Returns:
        The outcome of every group, in the order drawn, on every rank.

    Raises:
        UserError: rules failed on more than 1 % of the completions, or a gold answer cannot be
            read.
    """
    outcomes: list[GroupOutcome] = []
    new = range(len(writer.names))
    while True:
        for shard in new:
            # One by one, so that no rank waits for another longer than a shard takes.
            mesh.at(f"judging {writer.names[shard]} of the rollout")
            outcomes += mesh.broadcast_from_rank0(partial(_judged, writer, shard, judge))
        mesh.broadcast_from_rank0(partial(_refuse_failures, writer, new, outcomes, judge))
        more = groups_to_add(outcomes, rollout.prompts_per_iteration)
        if not more or groups.rounds > rollout.max_extra_rounds:
            return outcomes
        groups.add(more)
        mesh.broadcast_from_rank0(partial(judge.check, groups.prompts[-more:]))
        new = range(new.stop, len(groups.shards))
        writer.extend([shard_name(shard) for shard in new])
        make(writer, new)


def keep(writer: OutputWriter, kept: set[int]) -> None:
    """Set `kept` in every shard.

    No decision depends on the column, so a process killed on the way can simply start again.
    """
    for name in writer.names:
        table = writer.read(name)
        flags = pa.array([group in kept for group in table["group_id"].to_pylist()])
        writer.write(name, with_columns(table, {"kept": flags}))


def tell_filled(facts: dict[str, Any], rollout: RolloutConfig) -> None:
    """Warn if the batch had to be filled up with groups of equal rewards."""
    if not facts["filled"]:
        return
    warn(
        f"{facts['filled']} of {rollout.prompts_per_iteration} groups of the batch have equal "
        f"rewards: of {facts['groups_sampled']} groups drawn {facts['groups_with_variance']} have "
        f"variance ({facts['always_solved']} were always solved, {facts['never_solved']} never) "
        f"and rollout.max_extra_rounds = {rollout.max_extra_rounds} is spent; such groups teach "
        "nothing and count in the denominators of the loss"
    )


def _judged(writer: OutputWriter, shard: int, judge: GroupJudge) -> list[GroupOutcome]:
    """Return the outcomes of a shard: those stored beside it, else judge it now and store them."""
    name = writer.names[shard]
    noted = writer.noted(f"{name}.outcomes")
    if noted is not None:
        return [GroupOutcome(**values) for values in noted]
    outcomes = judge.outcomes(writer.read(name).select(ROLLOUT_COLUMNS))
    writer.note(f"{name}.outcomes", [asdict(outcome) for outcome in outcomes])
    return outcomes


def _refuse_failures(
    writer: OutputWriter, shards: range, outcomes: Sequence[GroupOutcome], judge: GroupJudge
) -> None:
    """Refuse a round in which rules failed too often, and delete its stored outcomes.

    Raises:
        UserError: rules failed on more than 1 % of all completions judged so far.
    """
    failed = sum(outcome.failed for outcome in outcomes)
    completions = sum(outcome.completions for outcome in outcomes)
    try:
        refuse_failures(failed, completions, judge.reasons)
    except UserError:
        for shard in shards:
            writer.note(f"{writer.names[shard]}.outcomes", None)
        raise


Solved = Literal["always", "never", "in_part"]


@dataclass(frozen=True)
class GroupOutcome:
    """Outcome of a group, known once it is judged."""

    varied: bool
    """Whether two of its rewards differ."""
    solved: Solved
    """Which of its judged completions are `correct`: all (`always`), none (`never`), or some.

    `in_part` is also the value of a group without any judged completion.
    """
    completions: int
    failed: int
    """Number of completions on which a rule failed."""
    tokens: int
    """Completion tokens of the whole group."""


def group_outcomes(
    group_ids: Sequence[int],
    rewards: Sequence[float | None],
    verdicts: Sequence[str],
    tokens: Sequence[int],
) -> list[GroupOutcome]:
    """Return the outcome of each group, in the order in which the groups first appear.

    Args:
        group_ids: one entry per completion, as in all arguments.
        rewards: None where a rule failed.
        verdicts: `infra_error` where a rule failed.
        tokens: lengths of the completions.
    """
    number = {group: place for place, group in enumerate(dict.fromkeys(group_ids))}
    groups = [number[group] for group in group_ids]
    varied = groups_with_variance(groups, rewards, len(number))
    members: list[list[int]] = [[] for _ in number]
    for row, group in enumerate(groups):
        members[group].append(row)
    return [
        GroupOutcome(
            bool(varied[group]),
            _solved([verdicts[row] for row in rows]),
            len(rows),
            sum(verdicts[row] == "infra_error" for row in rows),
            sum(tokens[row] for row in rows),
        )
        for group, rows in enumerate(members)
    ]


def groups_to_add(outcomes: Sequence[GroupOutcome], wanted: int) -> int:
    """Return how many groups to sample in the next round.

    It is the number of missing groups divided by the share accepted so far, rounded up, at most
    `wanted`: so many are expected to fill the batch. It is 0 if no group is missing.
    """
    accepted = sum(outcome.varied for outcome in outcomes)
    missing = max(0, wanted - accepted)
    expected = -(-missing * len(outcomes) // accepted) if accepted else wanted
    return min(expected, wanted) if missing else 0


def groups_kept(outcomes: Sequence[GroupOutcome], wanted: int) -> set[int]:
    """Return the groups of the batch: the first `wanted` with variance.

    If there are too few of them, the first groups without variance fill it up.
    """
    order = sorted(range(len(outcomes)), key=lambda group: not outcomes[group].varied)
    return set(order[:wanted])


def cost_facts(outcomes: Sequence[GroupOutcome], kept: set[int], rounds: int) -> dict[str, Any]:
    """Return what dynamic sampling did, for the manifest.

    `always_solved`, `never_solved` and `otherwise_equal` count the groups without variance;
    `filled` counts those of them that fill up the batch. `surplus` counts the groups with variance
    that the batch did not need.
    """
    equal = [outcome.solved for outcome in outcomes if not outcome.varied]
    rejected = [outcome for group, outcome in enumerate(outcomes) if group not in kept]
    surplus = sum(outcome.varied for outcome in rejected)
    return {
        "extra_rounds": rounds,
        "groups_sampled": len(outcomes),
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
    """Return the cost in words, for the terminal.

    For example `2 extra rounds, 41 groups drawn for 32: 22 % of the tokens rejected`.

    Args:
        facts: as `cost_facts` returns them.
        completion_tokens: the number in all groups drawn.
    """
    rounds, drawn = facts["extra_rounds"], facts["groups_sampled"]
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
