"""Dynamic sampling (DAPO, arXiv 2503.14476): draw on until the batch is full of what teaches.

A group whose rewards are equal has no advantage and so no gradient. A rollout judges its own
completions, by the recipe's rules and the very test that takes advantages, and draws further
groups in place of such ones. It stores no reward: `score` judges all of them, and may judge them
otherwise, without any being drawn again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from common.config import RewardsConfig, RolloutConfig
from common.errors import UserError
from common.generation.groups import Groups
from common.generation.outcomes import Outcome, group_outcomes, groups_to_draw
from common.generation.policy import Prompt
from common.mesh.mesh import Mesh
from common.reporting.progress import bar, warn
from common.rewards.judging import Judging
from common.rewards.registry import function_versions, package_versions
from common.rewards.scoring import JUDGED, judge_table, refuse_failures, with_columns
from common.runs.layout import shard_name
from common.runs.shards import OutputWriter
from common.tasks.records import Faults


class GroupJudge:
    """Judges groups as `score` would; the first rank does. A context manager, as `Judging` is."""

    def __init__(
        self, rewards: RewardsConfig, rollout: RolloutConfig, verify_types: Iterable[str]
    ) -> None:
        """Nothing is opened before `check`.

        Args:
            verify_types: of all prompts that may be drawn.
        """
        self._rewards = rewards.with_limit(rollout.max_completion_tokens)
        self._types = sorted(set(verify_types))
        self._judging = Judging(self._rewards)
        self.reasons: list[str] = []
        """Of rules that failed."""

    def __enter__(self) -> GroupJudge:
        self._judging.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._judging.__exit__(kind, error, trace)

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Find out before sampling whether completions of these prompts can be judged.

        Raises:
            UserError: a rule cannot be opened, or a gold answer cannot be read.
            MissingToolError: a program or package is not installed.
        """
        self._judging.open(self._types)
        faults = Faults()
        golds = [(prompt.row["verify_type"], prompt.row["answer"]) for prompt in prompts]
        wrong = self._judging.unreadable_golds(golds)
        for prompt, fault in zip(prompts, wrong, strict=True):
            if fault is not None:
                faults.add(f"prompt {prompt.row['prompt_id']} ({prompt.row['task']})", fault)
        faults.raise_any()

    def made_by(self) -> dict[str, str]:
        """Versions of what decides the outcomes."""
        return package_versions(self._types) | function_versions(self._rewards)

    def outcomes(self, completions: pa.Table) -> list[Outcome]:
        """Of each group, in order.

        Args:
            completions: rows of a rollout, group after group.
        """
        with bar("judge", completions.num_rows) as shown:
            extras = list(self._rewards.extras())
            judged, reasons = judge_table(completions, self._judging, extras, shown.advance)
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
) -> list[Outcome]:
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
    outcomes: list[Outcome] = []
    new = range(len(writer.names))
    while True:
        for shard in new:
            # One by one, so that no rank waits for another longer than a shard takes.
            mesh.at(f"judging {writer.names[shard]} of the rollout")
            outcomes += mesh.from_main(partial(_judged, writer, shard, judge))
        mesh.from_main(partial(_refuse_failures, writer, new, outcomes, judge))
        more = groups_to_draw(outcomes, rollout.prompts_per_iteration)
        if not more or groups.rounds > rollout.max_extra_rounds:
            return outcomes
        groups.draw(more)
        mesh.from_main(partial(judge.check, groups.prompts[-more:]))
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
        f"rewards: of {facts['groups_drawn']} groups drawn {facts['groups_with_variance']} have "
        f"variance ({facts['always_solved']} were always solved, {facts['never_solved']} never) "
        f"and rollout.max_extra_rounds = {rollout.max_extra_rounds} is spent; such groups teach "
        "nothing and count in the denominators of the loss"
    )


def _judged(writer: OutputWriter, shard: int, judge: GroupJudge) -> list[Outcome]:
    """Outcomes of a shard: as noted, or found now and noted."""
    name = writer.names[shard]
    noted = writer.noted(f"{name}.outcomes")
    if noted is not None:
        return [Outcome(**values) for values in noted]
    outcomes = judge.outcomes(writer.read(name).select(JUDGED))
    writer.note(f"{name}.outcomes", [asdict(outcome) for outcome in outcomes])
    return outcomes


def _refuse_failures(
    writer: OutputWriter, shards: range, outcomes: Sequence[Outcome], judge: GroupJudge
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
