"""Dynamic sampling (DAPO, arXiv 2503.14476): sample on until the batch is full of what teaches.

A group whose rewards are equal has no advantage and so no gradient. A rollout judges its own
completions, by the recipe's rules and the very test that takes advantages, and samples further
groups in place of such ones. It stores no reward: `score` judges all of them, and may judge them
otherwise, without any being sampled again.
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
    with_columns,
)
from common.rollout.groups import Groups
from common.rollout.prompts import RenderedPrompt
from common.runs.layout import shard_name
from common.runs.shards import OutputWriter
from common.tasks.records import Faults


class GroupJudge:
    """Judges groups as `score` would; the first rank does. A context manager, as `Scorer` is."""

    def __init__(
        self, rewards: RewardsConfig, rollout: RolloutConfig, verify_types: Iterable[str]
    ) -> None:
        """Nothing is opened before `check`.

        Args:
            verify_types: of all prompts that may be drawn.
        """
        self._rewards = rewards.with_limit(rollout.max_completion_tokens)
        self._types = sorted(set(verify_types))
        self._scorer = Scorer(self._rewards)
        self.reasons: list[str] = []
        """Of rules that failed."""

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
        """Find out before sampling whether completions of these prompts can be judged.

        Raises:
            UserError: a rule cannot be opened, or a gold answer cannot be read.
            MissingToolError: a program or package is not installed.
        """
        self._scorer.open(self._types)
        faults = Faults()
        golds = [(prompt.row["verify_type"], prompt.row["answer"]) for prompt in prompts]
        wrong = self._scorer.unreadable_golds(golds)
        for prompt, fault in zip(prompts, wrong, strict=True):
            if fault is not None:
                faults.add(f"prompt {prompt.row['prompt_id']} ({prompt.row['task']})", fault)
        faults.raise_any()

    def made_by(self) -> dict[str, str]:
        """Versions of what decides the outcomes."""
        return package_versions(self._types) | function_versions(self._rewards)

    def outcomes(self, completions: pa.Table) -> list[GroupOutcome]:
        """Of each group, in order.

        Args:
            completions: rows of a rollout, group after group.
        """
        with bar("judge", completions.num_rows) as shown:
            aux_rewards = list(self._rewards.aux_weights())
            judged, reasons = judge_table(completions, self._scorer, aux_rewards, shown.advance)
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
    """Judge the groups of the first round and sample up to `max_extra_rounds` further ones.

    What comes of a shard is noted beside it: a resumed rollout draws what it would have drawn, even
    if a rule with a time limit judged otherwise the second time.

    Args:
        groups: of the first round; gets those of the others.
        judge: used on the first rank, which decides for all.
        make: makes shards and returns once all ranks have made theirs.

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
    """Set `kept` in every shard; it is read by none of the decisions, so a kill costs nothing."""
    for name in writer.names:
        table = writer.read(name)
        flags = pa.array([group in kept for group in table["group_id"].to_pylist()])
        writer.write(name, with_columns(table, {"kept": flags}))


def tell_filled(facts: dict[str, Any], rollout: RolloutConfig) -> None:
    """Warn of a batch that the rounds could not fill."""
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
    """Outcomes of a shard: as noted, or found now and noted."""
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
    """Refuse a round of which too much could not be judged, and forget what came of it."""
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
) -> list[GroupOutcome]:
    """The outcome of each group, in the order in which the groups first come."""
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
    """Groups of the next round: as many as are expected to give those that are missing.

    missing / (share accepted so far), rounded up and at most `wanted`; 0 when none is missing.
    """
    accepted = sum(outcome.varied for outcome in outcomes)
    missing = max(0, wanted - accepted)
    expected = -(-missing * len(outcomes) // accepted) if accepted else wanted
    return min(expected, wanted) if missing else 0


def groups_kept(outcomes: Sequence[GroupOutcome], wanted: int) -> set[int]:
    """The batch: the first `wanted` groups with variance; where too few, the first others too."""
    order = sorted(range(len(outcomes)), key=lambda group: not outcomes[group].varied)
    return set(order[:wanted])


def cost_facts(outcomes: Sequence[GroupOutcome], kept: set[int], rounds: int) -> dict[str, Any]:
    """What dynamic sampling did, for the manifest.

    `always_solved`, `never_solved` and `otherwise_equal` are the groups without variance, of which
    `filled` stand in the batch all the same; `surplus` are groups with variance beyond the batch.
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
    """`2 extra rounds, 41 groups drawn for 32: 22 % of the tokens rejected`.

    Args:
        facts: as `cost_facts` gives them.
        completion_tokens: of all groups drawn.
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
