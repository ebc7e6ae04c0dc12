"""Scores completions: each rule judges where it may run, and their verdicts become one reward.

`Scorer` does it for texts and rows; the functions below it do it for tables of a run or a file.
"""

from __future__ import annotations

import asyncio
import difflib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from types import NoneType, TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from common.config import RewardsConfig
from common.errors import MissingToolError, UserError
from common.process import usable_cores
from common.rewards import llm_judge
from common.rewards.llm_judge import LLMJudge, Usage
from common.rewards.pool import JudgeRequest, Pool
from common.rewards.registry import (
    aux_rewards_of,
    check_gold,
    get_rule,
    get_verifier,
    guard,
    open_rule,
    unreadable,
)
from common.rewards.rule import VERDICTS, Judge, Place, Row, Verdict, Verifier
from common.rewards.threads import in_threads
from common.runs.schemas import KEY, ROLLOUT
from common.tasks.arrow_values import python_values
from common.tasks.columns import plain
from common.tasks.records import Faults


@dataclass(frozen=True)
class Judgement:
    """All that the rules say about one completion."""

    reward: float | None
    """Weighted sum of the rewards below; None when a rule failed."""
    answer: float | None
    """What the row's verify type gives, unweighted."""
    aux_rewards: dict[str, float | None]
    """What each auxiliary reward of the recipe gives, unweighted."""
    verdict: Verdict
    """Verdict on the answer, or the `infra_error` or `timeout` of an auxiliary reward."""


class Scorer:
    """Judges completions by the rules of a recipe.

    It is a context manager: rules are opened, and their processes started, once; leaving it ends
    them.
    """

    def __init__(self, rewards: RewardsConfig) -> None:
        self._rewards = rewards
        self._here: dict[str, Judge] = {}
        self._services: dict[str, LLMJudge] = {}
        self._pools: dict[str, Pool] = {}
        self._runner = asyncio.Runner()

    @cached_property
    def _weights(self) -> dict[str, float]:
        return weights_of(self._rewards)

    @cached_property
    def has_functions(self) -> bool:
        """Whether a function of the user's is among the rewards in use."""
        return bool(self._rewards.functions.keys() & self._weights.keys())

    def __enter__(self) -> Scorer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pool in self._pools.values():
            self._runner.run(pool.close())
        self._runner.close()

    def open(self, verify_types: Iterable[str], *, aux_rewards: bool = True) -> None:
        """Make the rules ready that such rows need, and so find out what is missing.

        Args:
            verify_types: those of the rows.
            aux_rewards: whether the auxiliary rewards are needed too.

        Raises:
            UserError: a verify type is unknown, or a rule cannot be opened.
            MissingToolError: a program or package that a rule needs is missing.
        """
        types = sorted(set(verify_types))
        for name in types:
            get_verifier(name)
        names = [*types, *(self._aux_names() if aux_rewards else ())]
        for name in names:
            if name not in self._pools:
                self._require(name)
        for name in names:
            if name in self._here or name in self._pools:
                continue
            place = self._place(name)
            if place == "here":
                self._here[name] = open_rule(name, self._rewards)
            elif place == "service":
                self._services[name] = llm_judge.open_rule(self._rewards)
                self._here[name] = guard(name, self._services[name])
            else:
                self._runner.run(self._pool(name).open())

    def judge(
        self,
        completions: Sequence[tuple[str, Row]],
        on_judged: Callable[[], None] = lambda: None,
    ) -> list[Judgement]:
        """Judge completions by their rows' verify types and by all auxiliary rewards.

        Args:
            completions: texts (assistant prefix + completion) and rows.
            on_judged: called whenever all rules have judged a completion.

        Raises:
            UserError: a verify type is unknown, a rule cannot be opened, or a gold answer cannot be
                read.
        """
        rules = ["", *self._aux_names()]
        self.open({row["verify_type"] for _, row in completions})
        own = self._rewards.functions
        rows = [row for _, row in completions]
        whole = [whole_row(row) for row in rows] if self.has_functions else rows
        rows = [_simple(row) for row in rows] if self.has_functions else rows
        jobs = [
            JudgeRequest(rule or row["verify_type"], text, all_of_it if rule in own else row)
            for rule in rules
            for (text, _), row, all_of_it in zip(completions, rows, whole, strict=True)
        ]
        missing = [len(rules)] * len(completions)

        def on_verdict(job: int) -> None:
            missing[job % len(completions)] -= 1
            if not missing[job % len(completions)]:
                on_judged()

        verdicts = self._verdicts(jobs, on_verdict)
        by_rule = [verdicts[i :: len(completions)] for i in range(len(completions))]
        return [
            combine(answer, dict(zip(rules[1:], aux_verdicts, strict=True)), self._weights)
            for answer, *aux_verdicts in by_rule
        ]

    def answers(self, completions: Sequence[tuple[str, Row]]) -> list[Verdict]:
        """Judge completions by their rows' verify types alone."""
        self.open({row["verify_type"] for _, row in completions}, aux_rewards=False)
        jobs = [JudgeRequest(row["verify_type"], text, row) for text, row in completions]
        return self._verdicts(jobs, lambda job: None)

    def check_columns(self, columns: Iterable[str], where: str) -> None:
        """Check that the recipe's functions, which are open, find the columns that they name.

        Args:
            columns: those of the rows, in any of them.
            where: what has these columns, for the error.

        Raises:
            UserError: a function needs another column.
        """
        known = sorted(set(columns))
        for name, pool in self._pools.items():
            for column in pool.needs:
                if column in known:
                    continue
                near = difflib.get_close_matches(column, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise UserError(
                    f"rewards.functions.{name}: the function needs a column {column!r}, which no "
                    f"row of {where} has; there are {', '.join(known)}{hint}"
                )

    def unreadable_golds(self, golds: Sequence[tuple[str, str]]) -> list[str | None]:
        """Return what is wrong with each (verify type, answer), None if it can be read.

        Raises:
            MissingToolError: what reads golds of a type is missing.
        """
        found: dict[tuple[str, str], str | None] = {}
        elsewhere: dict[str, list[str]] = {}
        for verify_type, answer in dict.fromkeys(golds):
            try:
                if get_verifier(verify_type).gold_place == "here":
                    check_gold(verify_type, answer)
                else:
                    elsewhere.setdefault(verify_type, []).append(answer)
                found[verify_type, answer] = None
            except MissingToolError:
                raise
            except UserError as error:
                found[verify_type, answer] = str(error)
        for verify_type, answers in elsewhere.items():
            self._require(verify_type)
            reasons = self._runner.run(self._pool(verify_type).read_golds(answers))
            for answer, reason in zip(answers, reasons, strict=True):
                if reason is not None:
                    found[verify_type, answer] = unreadable(verify_type, answer, reason)
        return [found[gold] for gold in golds]

    def _verdicts(
        self, jobs: Sequence[JudgeRequest], on_verdict: Callable[[int], None]
    ) -> list[Verdict]:
        """Return verdicts on jobs whose rules are open; `on_verdict` is called with a job's index.

        It goes rule by rule.
        """
        verdicts: dict[int, Verdict] = {}
        by_rule: dict[str, list[int]] = {}
        for index, job in enumerate(jobs):
            by_rule.setdefault(job.rule, []).append(index)
        for name, mine in by_rule.items():
            if name in self._services:
                judge = self._here[name]
                asked = [partial(judge, jobs[i].text, jobs[i].row) for i in mine]
                for position, verdict in in_threads(self._threads(name), asked):
                    verdicts[mine[position]] = verdict
                    on_verdict(mine[position])
            elif name in self._here:
                for index in mine:
                    verdicts[index] = self._here[name](jobs[index].text, jobs[index].row)
                    on_verdict(index)
            else:
                work = self._pools[name].judge(
                    [jobs[i] for i in mine], partial(_renumbered, mine, on_verdict)
                )
                verdicts.update(zip(mine, self._runner.run(work), strict=True))
        return [verdicts[i] for i in range(len(jobs))]

    def _pool(self, name: str) -> Pool:
        if name not in self._pools:
            workers = self._rewards.workers
            count = default_workers() if workers == "auto" else workers
            self._pools[name] = Pool(name, self._rewards, count)
        return self._pools[name]

    def usage(self) -> dict[str, Usage]:
        """Return what rules that ask a service have used so far, by name."""
        return {name: service.usage() for name, service in self._services.items()}

    def usage_facts(self) -> dict[str, Any]:
        """Return the same for manifests and `--json`: nothing if no rule asks a service."""
        used = {name: asdict(usage) for name, usage in self.usage().items()}
        return {"usage": used} if used else {}

    def _threads(self, name: str) -> int:
        """Return how many threads ask a service; the ranks of torchrun share its limit."""
        rule = get_rule(name, self._rewards)
        assert isinstance(rule, Verifier)
        return max(1, rule.threads(self._rewards) // _local_ranks())

    def _require(self, name: str) -> None:
        rule = get_rule(name, self._rewards)
        if isinstance(rule, Verifier):
            rule.require(self._rewards)

    def _place(self, name: str) -> Place:
        return get_rule(name, self._rewards).place

    def _aux_names(self) -> list[str]:
        return [name for name in self._weights if name != "answer"]


def _simple(row: Row) -> Row:
    """Return the row's text and numbers, which is what rules other than functions read."""
    kinds = (str, int, float, NoneType)
    return {name: value for name, value in row.items() if isinstance(value, kinds)}


def _renumbered(numbers: Sequence[int], tell: Callable[[int], None], index: int) -> None:
    tell(numbers[index])


def weights_of(rewards: RewardsConfig) -> dict[str, float]:
    """Return the weight of `answer` and of each auxiliary reward that the recipe uses."""
    return {"answer": rewards.answer.weight} | rewards.aux_weights()


def combine(
    answer: Verdict, aux_verdicts: Mapping[str, Verdict], weights: Mapping[str, float]
) -> Judgement:
    """Add up the verdicts on one completion.

    The sum is rounded once (`math.fsum`), so that equal parts give equal sums whatever their order.
    An auxiliary reward that abstained adds nothing; a rule that ran out of time adds 0. There is no
    reward when a rule failed, or when the sum is not finite.
    """
    verdicts = {"answer": answer, **aux_verdicts}
    rewards = {name: verdict.reward for name, verdict in verdicts.items()}
    failed = _first(verdicts, "infra_error")
    late = _first(verdicts, "timeout")
    terms = [weights[name] * part for name, part in rewards.items() if part is not None]
    total = _sum(terms)
    if total is None and not failed:
        failed = Verdict(None, "infra_error", None, f"the weighted sum of {terms} is not finite")
    if (befallen := failed or late) and befallen is not answer:
        reward = None if failed else answer.reward
        answer = Verdict(reward, befallen.verdict, answer.extracted, befallen.reason)
    rewards.pop("answer")
    return Judgement(None if failed else total, verdicts["answer"].reward, rewards, answer)


def _sum(terms: Sequence[float]) -> float | None:
    try:
        total = math.fsum(terms)
    except (OverflowError, ValueError):
        return None
    return total if math.isfinite(total) else None


def _first(verdicts: Mapping[str, Verdict], outcome: str) -> Verdict | None:
    return next((v for v in verdicts.values() if v.verdict == outcome), None)


def needed_columns(rewards: RewardsConfig) -> dict[str, str]:
    """Return the columns that the recipe's auxiliary rewards need, each with the reward's name."""
    known = aux_rewards_of(rewards)
    return {column: name for name in rewards.aux_weights() for column in known[name].needs}


def default_workers() -> int:
    """Return one process per usable core; the ranks of torchrun share the cores."""
    return max(1, usable_cores() // _local_ranks())


def _local_ranks() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


ROLLOUT_COLUMNS = (
    *(KEY, "group_id", "prompt_id", "task", "question", "answer", "verify_type"),
    *("assistant_prefix", "completion_text", "completion_ids", "finish_reason"),
)
"""Columns of a rollout that rules look at, and those that say where a row belongs."""

MOST_INFRA_ERRORS = 0.01
"""Largest share of completions on which rules may fail; beyond it the rules are at fault."""


def check_golds(tables: Mapping[str, pa.Table], scorer: Scorer) -> None:
    """Refuse gold answers that cannot be read: their rows would count as wrong for ever.

    Args:
        tables: by the name of their file, with `verify_type` and `answer`.
        scorer: reads the golds.

    Raises:
        UserError: some cannot; the message has the first with file and row, and counts the others.
    """
    places: dict[tuple[str, str], str] = {}
    for name, table in tables.items():
        golds = zip(table["verify_type"].to_pylist(), table["answer"].to_pylist(), strict=True)
        for row, gold in enumerate(golds):
            places.setdefault(gold, f"{name} row {row}")
    faults = Faults()
    for gold, fault in zip(places, scorer.unreadable_golds(list(places)), strict=True):
        if fault is not None:
            faults.add(places[gold], fault)
    faults.raise_any()


def types_in(tables: Iterable[pa.Table]) -> set[str]:
    """Return the verify types of the rows."""
    return {kind for table in tables for kind in pc.unique(table["verify_type"]).to_pylist()}


def judge_table(
    completions: pa.Table,
    scorer: Scorer,
    aux_rewards: Iterable[str],
    on_judged: Callable[[], None] = lambda: None,
) -> tuple[pa.Table, list[str]]:
    """Judge completions by their rows' verify types and by the recipe's auxiliary rewards.

    Args:
        completions: with `completion_text`, `answer`, `verify_type` and, if a template opened the
            assistant's turn, `assistant_prefix`, which is judged as part of the text.
        scorer: made with a recipe that uses these auxiliary rewards.
        aux_rewards: the names of those in use.
        on_judged: called after each row.

    Returns:
        The columns `reward`, `reward_answer`, `reward_<name>`, `extracted_answer`, `verdict`, and
        the reasons of all infra errors.

    Raises:
        UserError: a gold cannot be read under its verify type.
    """
    seen = columns_for_functions(completions) if scorer.has_functions else completions
    texts = [
        ((row.get("assistant_prefix") or "") + row["completion_text"], row)
        for row in _unpacked(rows_for_rules(seen, lists=scorer.has_functions))
    ]
    rows: list[dict[str, Any]] = []
    reasons: list[str] = []
    for judged in scorer.judge(texts, on_judged):
        rows.append(
            {"reward": judged.reward, "reward_answer": judged.answer}
            | {f"reward_{name}": reward for name, reward in judged.aux_rewards.items()}
            | {
                "extracted_answer": judged.verdict.extracted,
                "verdict": judged.verdict.verdict,
            }
        )
        if judged.reward is None:
            reasons.append(judged.verdict.reason)
    return pa.Table.from_pylist(rows, schema=_schema(aux_rewards)), reasons


EVALUATION_COLUMNS = ("prompt_id", "task", "question", "answer", "verify_type", "finish_reason")
"""Columns of an evaluation that a rule sees."""


def judge_rows(rows: Sequence[dict[str, Any]], scorer: Scorer) -> list[str]:
    """Judge rows of an evaluation by their verify types, in place.

    Returns:
        The reasons of the infra errors.
    """
    texts = [
        (
            row["assistant_prefix"] + row["completion_text"],
            {n: row[n] for n in EVALUATION_COLUMNS},
        )
        for row in rows
    ]
    verdicts = scorer.answers(texts)
    for row, verdict in zip(rows, verdicts, strict=True):
        row["reward_answer"] = verdict.reward
        row["extracted_answer"] = verdict.extracted
        row["verdict"] = verdict.verdict
    return [verdict.reason for verdict in verdicts if verdict.reward is None]


def whole_row(row: Row) -> dict[str, Any]:
    """Return what a function sees of a row: its columns, and those of the user's data, by name.

    Those of the data are in `metadata`, as JSON. A column of the row itself comes first, except for
    the `answer` of a row without a verify type, which no rule has read.
    """
    found = {name: plain(value) for name, value in row.items()}
    more = found.get("metadata")
    if isinstance(more, str):
        with suppress(ValueError):
            more = json.loads(more)
    if not isinstance(more, dict):
        return found
    first = {"metadata"} if found.get("verify_type") else {"metadata", "answer"}
    return found | {name: v for name, v in more.items() if name not in found or name in first}


def with_metadata(completions: pa.Table, by_prompt: Mapping[str, str]) -> pa.Table:
    """Return a rollout with the column `metadata` of its prompts, for `judge_table`.

    Args:
        completions: with `prompt_id`.
        by_prompt: the metadata of each prompt, by `prompt_id`.
    """
    found = [by_prompt.get(prompt) for prompt in completions["prompt_id"].to_pylist()]
    return with_columns(completions, {"metadata": pa.array(found, pa.string())})


def columns_in(tables: Iterable[pa.Table]) -> set[str]:
    """Return the columns that functions see in the rows, by the names in their `metadata` too."""
    found = {"completion_tokens"}
    for table in tables:
        found |= set(table.column_names)
        if "metadata" in table.column_names:
            rows = [{"metadata": value} for value in pc.unique(table["metadata"]).to_pylist()]
            found |= {name for row in rows for name in whole_row(row)}
    return found


def columns_for_functions(completions: pa.Table) -> pa.Table:
    """Return the columns that functions see: of a rollout, the same ones as `score` reads."""
    if not set(ROLLOUT.names) <= set(completions.column_names):
        return completions
    return completions.drop_columns(sorted(set(ROLLOUT.names) - set(ROLLOUT_COLUMNS)))


def rows_for_rules(completions: pa.Table, *, lists: bool = False) -> pa.Table:
    """Return what rules see of the rows: columns of text and numbers, and `completion_tokens`.

    Unless functions are to see them, columns of other types are left out, since unpacking token ids
    and logprobs takes longer than judging; only the number of ids is kept.
    """
    chosen = [field.name for field in completions.schema if lists or _is_plain(field.type)]
    rows = completions.select(chosen)
    if "completion_ids" in completions.column_names and _is_list(completions["completion_ids"]):
        tokens = pc.list_value_length(completions["completion_ids"])
        rows = rows.drop_columns([n for n in chosen if n == "completion_tokens"])
        rows = rows.append_column("completion_tokens", tokens)
    return rows


def _unpacked(rows: pa.Table) -> list[dict[str, Any]]:
    """Return rows as dicts of values that Python has for every type of column."""
    names = rows.column_names
    columns = (python_values(rows[name]) for name in names)
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _is_plain(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_plain(kind.value_type)
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    return any(test(kind) for test in (*texts, *numbers))


def _is_list(column: pa.ChunkedArray) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(column.type) for test in lists)


def check_columns(completions: pa.Table, rewards: RewardsConfig, where: str) -> None:
    """Check that the columns are there which the recipe's auxiliary rewards need.

    Raises:
        UserError: one is missing or has a gap.
    """
    rows = rows_for_rules(completions)
    for column, name in needed_columns(rewards).items():
        source = {"completion_tokens": "completion_ids"}.get(column, column)
        if column not in rows.column_names or not pa.types.is_integer(rows[column].type):
            raise UserError(f"{where}: the reward {name!r} needs a column {source!r} of lists")
        if rows[column].null_count:
            row = rows[column].is_null().to_pylist().index(True)
            raise UserError(
                f"{where} row {row}: no value in column {source!r}, which the reward {name!r} needs"
            )


def _schema(aux_rewards: Iterable[str]) -> pa.Schema:
    rewards = ["reward", "reward_answer", *(f"reward_{name}" for name in aux_rewards)]
    texts = ["extracted_answer", "verdict"]
    return pa.schema([(r, pa.float64()) for r in rewards] + [(t, pa.string()) for t in texts])


def with_columns(table: pa.Table, columns: Mapping[str, Any]) -> pa.Table:
    """Return `table` with these columns; columns of the same name are replaced."""
    for name, column in columns.items():
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, column)
        else:
            table = table.append_column(name, column)
    return table


def refuse_infra_errors(scored: pa.Table, reasons: list[str]) -> None:
    """Check that the rules failed on 1 % of the rows at most.

    Args:
        scored: with `verdict`.
        reasons: of the infra errors.

    Raises:
        UserError: they failed on more; the message has the first three reasons.
    """
    failed = scored["verdict"].to_pylist().count("infra_error")
    refuse_failures(failed, scored.num_rows, reasons)


def refuse_failures(failed: int, completions: int, reasons: list[str]) -> None:
    """Check as `refuse_infra_errors` does, for rows that were counted before."""
    if failed > MOST_INFRA_ERRORS * completions:
        first = "".join(f"\n  {reason}" for reason in list(dict.fromkeys(reasons))[:3])
        raise UserError(
            f"the reward rules failed on {failed} of {completions} completions, more than "
            f"{MOST_INFRA_ERRORS:.0%}; mend them and run the same command again, which judges "
            f"these anew. First reasons:{first}"
        )


def reward_facts(scored: pa.Table) -> dict[str, Any]:
    """Return mean reward, accuracy and verdicts of scored rows, and by `task` if there is one.

    Accuracy is the share of `correct` among the rows that could be judged.
    """
    facts = _facts(scored)
    if "task" in scored.column_names:
        facts["tasks"] = {
            task: _facts(scored.filter(pc.equal(scored["task"], task)))
            for task in pc.unique(scored["task"].drop_null()).to_pylist()
        }
    return facts


def usage_lines(usages: Iterable[Mapping[str, Usage]]) -> list[str]:
    """Return a line for each rule that asks a service: its requests, tokens and cost.

    Args:
        usages: of the processes that judged, as `Scorer.usage` gives them.
    """
    total: dict[str, Usage] = {}
    for usage in usages:
        for name, used in usage.items():
            total[name] = total[name] + used if name in total else used
    return [f"{name}: {used.line()}" for name, used in total.items()]


def summary(name: str, facts: dict[str, Any]) -> str:
    """Return one line about what was scored.

    Args:
        name: what the line begins with.
        facts: of `reward_facts` and, if there are groups, how many have no variance.
    """
    counts = [f"{n} {outcome}" for outcome, n in facts["verdicts"].items() if n]
    mean, accuracy = facts["reward_mean"], facts["accuracy"]
    figures = "no rewards" if mean is None else f"mean reward {mean:.3f}, accuracy {accuracy:.3f}"
    groups = ""
    if "groups" in facts:
        groups = f"; {facts['zero_variance_groups']} of {facts['groups']} groups without variance"
    if rejected := facts.get("rejected_groups"):
        groups += f", and {facts['rejected_zero_variance_groups']} of {rejected} rejected ones"
    return f"{name}: {facts['completions']} completions, {figures} ({', '.join(counts)}){groups}"


def _facts(scored: pa.Table) -> dict[str, Any]:
    counts = Counter(scored["verdict"].to_pylist())
    judged = scored.num_rows - counts["infra_error"]
    return {
        "completions": scored.num_rows,
        "reward_mean": pc.mean(scored["reward"]).as_py(),
        "accuracy": counts["correct"] / judged if judged else None,
        "verdicts": {outcome: counts[outcome] for outcome in VERDICTS},
    }
