"""Prompts: rows of a data set, checked, with the columns of `prompts/`."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from common.config import DatasetSource
from common.errors import UserError
from common.runs.schemas import PROMPTS
from common.tasks.columns import in_one_type, plain
from common.tasks.golds import OWN_COLUMNS, STRUCTURED, gold_text, join_golds, split_golds
from common.tasks.records import (
    Faults,
    Record,
    UnreadableGolds,
    as_text,
    listed,
    shown,
    with_nested,
)

Messages = list[dict[str, str]]

TRL_PROMPT = "prompt"
"""What data sets for TRL call the question, a text or a conversation; taken where no column is
named as ours."""

_IN_PROMPTS = ("question", "answer", "verify_type", "prompt_id")

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Prompt:
    """A row of `prompts/`."""

    task: str
    messages: Messages
    answer: str
    verify_type: str
    metadata: dict[str, Any]
    given_id: str = ""
    where: str = ""
    """Where the prompt came from, for messages about it."""

    @property
    def question(self) -> str:
        return self.messages[-1]["content"]

    @cached_property
    def key(self) -> str:
        """Return the hash of what the model is shown: the same key means the same question."""
        return _hash(self.messages)

    @cached_property
    def prompt_id(self) -> str:
        """Return the id that the data gave, else a hash of the content."""
        return self.given_id or _hash([self.task, self.messages, self.answer, self.verify_type])


def to_table(prompts: Sequence[Prompt]) -> pa.Table:
    """Return prompts as a table with the columns of `schemas.PROMPTS`."""
    rows = [
        {name: getattr(prompt, name) for name in PROMPTS.names}
        | {"metadata": json.dumps(prompt.metadata)}
        for prompt in prompts
    ]
    return pa.Table.from_pylist(rows, schema=PROMPTS)


def read_prompts(
    records: Sequence[Record],
    task: str,
    source: DatasetSource,
    unreadable_golds: UnreadableGolds,
    faults: Faults,
) -> list[Prompt]:
    """Return records as prompts, read by the source's column map and answer pattern.

    Faults of rows are added to `faults`. A column that no row has is a single fault, and then no
    rows are read. Golds that can be read but look mistaken are told in the notices of `faults`.
    """
    records = with_nested(records, source.columns.model_dump().values())
    mapped = source.columns.model_dump(exclude={"metadata"}).values()
    records = in_one_type(records, without=mapped)
    columns = {name for record in records for name in record.values}
    inside = {
        f"{name}.{key}"
        for record in records[:1]
        for name, value in record.values.items()
        if isinstance(value, dict)
        for key in value
    }
    reader = _Reader(task, source, columns, inside)
    for fault in reader.missing_columns():
        faults.add(f"data.{task}", f"{source.path}: {fault}")
        records = []
    prompts = []
    for record in records:
        try:
            prompts.append(reader.read(record))
        except UserError as error:
            faults.add(record.where, str(error))
        except RecursionError:
            faults.add(record.where, "is nested too deep; leave the part out that is")
    golds = [(prompt.verify_type, prompt.answer) for prompt in prompts]
    readable = []
    for prompt, wrong in zip(prompts, unreadable_golds(golds), strict=True):
        if wrong is None:
            readable.append(prompt)
            continue
        hint = f"; {_after_mark(task)}" if _is_solution(prompt, source) else ""
        faults.add(prompt.where, wrong + hint)
    faults.notices += [f"data.{task}: {line}" for line in _doubtful_golds(readable, task, source)]
    return prompts


SOLUTION_MARK = "####"
"""What stands before the answer in GSM8K's solutions."""


def _is_solution(prompt: Prompt, source: DatasetSource) -> bool:
    """Return whether a gold seems to be a whole solution, with the answer at its end."""
    named = source.answer_after or source.answer_pattern
    return not named and SOLUTION_MARK in prompt.answer and prompt.verify_type not in STRUCTURED


def _after_mark(task: str) -> str:
    mark = SOLUTION_MARK
    return f'if the answer is what follows {mark}, set data.{task}.answer_after = "{mark}"'


def _doubtful_golds(prompts: Sequence[Prompt], task: str, source: DatasetSource) -> list[str]:
    """Return what looks mistaken about golds that their verify types can read."""
    lines = []
    if solutions := [prompt for prompt in prompts if _is_solution(prompt, source)]:
        lines.append(
            f"gold answers contain {SOLUTION_MARK} ({len(solutions)}, the first at "
            f"{solutions[0].where}); {_after_mark(task)}"
        )
    exact = [prompt for prompt in prompts if prompt.verify_type == "EXACT"]
    if floats := [prompt for prompt in exact if _FLOAT.fullmatch(prompt.answer.strip())]:
        gold = floats[0].answer.strip()
        lines.append(
            f"gold answers of EXACT are numbers such as {gold} ({len(floats)}, the first at "
            f"{floats[0].where}), so {gold.partition('.')[0]} is wrong; pandas makes such numbers "
            "of integers where a value is missing: write them as integers, or give them the verify "
            "type LAST_NUMBER"
        )
    return lines


_FLOAT = re.compile(r"-?[0-9]+\.0")


class _Reader:
    """Reader of the rows of one source."""

    def __init__(
        self, task: str, source: DatasetSource, columns: Iterable[str], inside: Iterable[str]
    ) -> None:
        self._task = task
        self._source = source
        self._columns = set(columns)
        self._inside = set(inside)
        self._map = source.columns
        self._mapped = {
            name: column
            for name, column in source.columns.model_dump().items()
            if column in self._columns
        }
        if not {"question", "messages"} & set(self._mapped) and TRL_PROMPT in self._columns:
            self._mapped["question"] = TRL_PROMPT
        self._pattern = _answer_pattern(task, source)
        own = OWN_COLUMNS.get(source.verify_type or "", ())
        self._gold_columns = own if "answer" not in self._mapped and self._columns >= {*own} else ()

    def missing_columns(self) -> list[str]:
        """Return what is wrong with the columns: one is missing, or two give the verify type."""
        if not self._columns:
            return []
        faults = []
        if not {"question", "messages"} & set(self._mapped):
            faults.append(self._no_column("question"))
        if "answer" not in self._mapped and not self._gold_columns:
            faults.append(self._no_column("answer"))
        if "verify_type" in self._mapped and self._source.verify_type:
            faults.append(
                f"column {self._map.verify_type!r} and data.{self._task}.verify_type both say the "
                "verify type; remove the latter, or ignore the column with "
                f'data.{self._task}.columns.verify_type = ""'
            )
        if "verify_type" not in self._mapped and not self._source.verify_type:
            faults.append(f"{self._no_column('verify_type')}, or set data.{self._task}.verify_type")
        return faults

    def read(self, record: Record) -> Prompt:
        """Return one row as a prompt, or raise `UserError` about the first fault in it."""
        messages = self._messages(record)
        for message in messages:
            _writable(message["content"], "question")
        verify_type = self._source.verify_type or self._text(record, "verify_type")
        answer = self._answer(record, verify_type)
        return Prompt(
            task=self._task,
            messages=messages,
            answer=answer,
            verify_type=verify_type,
            metadata=self._metadata(record),
            given_id=self._given_id(record),
            where=record.where,
        )

    def _no_column(self, name: str) -> str:
        column = getattr(self._map, name)
        near = difflib.get_close_matches(column, [*self._columns, *self._inside], n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return (
            f"no column {column!r} among {listed(sorted(self._columns))}{hint}; "
            f"name it in data.{self._task}.columns.{name}"
        )

    def _value(self, record: Record, name: str) -> Any:
        return record.values.get(self._mapped[name]) if name in self._mapped else None

    def _text(self, record: Record, name: str) -> str:
        column, value = self._mapped[name], self._value(record, name)
        if value is None:
            raise UserError(f"no value in column {column!r}; give it one, or leave the row out")
        if name == "question" and not isinstance(value, (str, bytes)):
            raise UserError(f"column {column!r} {self._no_question(value, column)}")
        try:
            text = as_text(value)
        except UserError as error:
            raise UserError(f"column {column!r} {error}") from None
        if not text.strip():
            raise UserError(f"column {column!r} is empty; fill it in, or leave the row out")
        return text

    def _no_question(self, value: Any, column: str) -> str:
        """Return what is wrong with a value that is no text, with the key that names another."""
        fault = f"holds {shown(value)}, not text; name another column in"
        key = f"data.{self._task}.columns.question"
        if isinstance(value, dict) and value:
            return (
                f'{fault} {key}, or what is inside this one: {key} = "{column}.{next(iter(value))}"'
            )
        return f"{fault} {key}"

    def _messages(self, record: Record) -> Messages:
        given, column = self._value(record, "messages"), self._mapped.get("messages", "")
        if given is None and "question" not in self._mapped:
            raise UserError(f"no value in column {column!r}")
        if given is None:
            given, column = self._value(record, "question"), self._mapped["question"]
            if not isinstance(given, list):
                return [{"role": "user", "content": self._text(record, "question")}]
        well_formed = isinstance(given, list) and all(
            isinstance(m, dict)
            and m.get("role") in ROLES
            and isinstance(m.get("content"), str)
            and m["content"].strip()
            for m in given
        )
        if not well_formed or not given or given[-1]["role"] != "user":
            raise UserError(
                f"column {column!r} is to be a list of role ({', '.join(ROLES)}) and content, none "
                f"empty and the last the user's; found {shown(given)}"
            )
        return [{"role": m["role"], "content": m["content"]} for m in given]

    def _answer(self, record: Record, verify_type: str) -> str:
        if self._gold_columns:
            return json.dumps(plain({name: record.values.get(name) for name in self._gold_columns}))
        column, value = self._mapped["answer"], self._value(record, "answer")
        if value is None:
            raise UserError(f"no value in column {column!r}; give it one, or leave the row out")
        try:
            text = gold_text(value, verify_type)
        except UserError as error:
            raise UserError(f"column {column!r} {error}") from None
        _writable(text, column)
        is_json = verify_type in STRUCTURED and isinstance(value, (list, dict))
        if self._pattern is None or is_json:
            return text
        return join_golds([self._find_answer(gold) for gold in split_golds(text, verify_type)])

    def _find_answer(self, text: str) -> str:
        """Return the gold that `answer_pattern` finds in a text."""
        match = self._pattern.search(text) if self._pattern else None
        if match is None or not (match[1] or "").strip():
            raise UserError(f"{_answer_key(self._source)} finds no answer in {shown(text)}")
        return str(match[1]).strip()

    def _given_id(self, record: Record) -> str:
        value = self._value(record, "prompt_id")
        if value is None:
            return ""
        if not isinstance(value, (str, int)) or isinstance(value, bool) or value == "":
            column = self._mapped["prompt_id"]
            raise UserError(f"column {column!r} holds {shown(value)}, which is no id")
        return _writable(str(value), "prompt_id")

    def _metadata(self, record: Record) -> dict[str, Any]:
        """Return the row's columns by name, together with the items of its metadata column.

        Left out are those that `prompts/` has under the same name.
        """
        kept = {name for name, column in self._mapped.items() if name == column} & set(_IN_PROMPTS)
        names = sorted(self._columns - kept - {*self._gold_columns})
        others = {name: record.values.get(name) for name in names}
        given = self._value(record, "metadata")
        if isinstance(given, str):
            try:
                given = json.loads(given)
            except ValueError:
                given = {"metadata": given}
        if given is not None and not isinstance(given, dict):
            given = {"metadata": given}
        found: dict[str, Any] = plain((given or {}) | others)
        return found


def _answer_key(source: DatasetSource) -> str:
    """Return the key that says where in its column the answer stands, and its value."""
    name = "answer_after" if source.answer_after else "answer_pattern"
    return f"{name} {getattr(source, name)!r}"


def _answer_pattern(task: str, source: DatasetSource) -> re.Pattern[str] | None:
    """Return the pattern whose first group is the answer in its column; None for the whole."""
    if source.answer_after:
        return re.compile(rf"(?s).*{re.escape(source.answer_after)}(.*)")  # after the last one
    pattern = source.answer_pattern
    if not pattern:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"data.{task}.answer_pattern {pattern!r}: {error}") from None
    if not compiled.groups:
        raise UserError(
            f"data.{task}.answer_pattern {pattern!r} has no group; put the answer in parentheses"
        )
    return compiled


def _writable(text: str, column: str) -> str:
    r"""Return `text`, or raise `UserError` if it has half a character: JSON allows a "\ud800"."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"column {column!r} has half a character (a lone surrogate) at {error.start}"
        ) from None
    return text


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]
