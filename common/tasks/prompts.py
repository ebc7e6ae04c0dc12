"""Prompts: rows of a data set, checked, with the columns of `prompts/`."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any

import pyarrow as pa

from common.config import DatasetSource
from common.errors import UserError
from common.runs.schemas import PROMPTS
from common.tasks.columns import in_one_type, plain
from common.tasks.records import Faults, Record, UnreadableGolds

Messages = list[dict[str, str]]

STRUCTURED = ("CODE", "REASONING_GYM")
"""Verify types whose gold is JSON; a column may then hold the value itself instead of its text."""

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
    rows are read.
    """
    records = in_one_type(records)
    columns = {name for record in records for name in record.values}
    reader = _Reader(task, source, columns)
    for fault in reader.missing_columns():
        faults.add(f"data.{task}", f"{source.path}: {fault}")
        records = []
    prompts = []
    for record in records:
        try:
            prompts.append(reader.read(record))
        except UserError as error:
            faults.add(record.where, str(error))
    golds = [(prompt.verify_type, prompt.answer) for prompt in prompts]
    for prompt, wrong in zip(prompts, unreadable_golds(golds), strict=True):
        if wrong is not None:
            faults.add(prompt.where, wrong)
    return prompts


class _Reader:
    """Reader of the rows of one source."""

    def __init__(self, task: str, source: DatasetSource, columns: Iterable[str]) -> None:
        self._task = task
        self._source = source
        self._columns = set(columns)
        self._map = source.columns
        self._mapped = {
            name: column
            for name, column in source.columns.model_dump().items()
            if column in self._columns
        }
        if not {"question", "messages"} & set(self._mapped) and TRL_PROMPT in self._columns:
            self._mapped["question"] = TRL_PROMPT
        self._pattern = _compile(task, source.answer_pattern)

    def missing_columns(self) -> list[str]:
        """Return what is wrong with the columns: one is missing, or two give the verify type."""
        if not self._columns:
            return []
        faults = []
        if not {"question", "messages"} & set(self._mapped):
            faults.append(self._no_column("question"))
        if "answer" not in self._mapped:
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
        near = difflib.get_close_matches(column, self._columns, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return (
            f"no column {column!r} among {', '.join(map(repr, sorted(self._columns)))}{hint}; "
            f"name it in data.{self._task}.columns.{name}"
        )

    def _value(self, record: Record, name: str) -> Any:
        return record.values.get(self._mapped[name]) if name in self._mapped else None

    def _text(self, record: Record, name: str) -> str:
        column, value = self._mapped[name], self._value(record, name)
        if value is None:
            raise UserError(f"no value in column {column!r}")
        if name == "answer" and _is_number(value):
            value = str(value)
        if not isinstance(value, str):
            raise UserError(f"column {column!r} holds {_shown(value)}, not text")
        if not value.strip():
            raise UserError(f"column {column!r} is empty")
        return _writable(value, column)

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
                f"empty and the last the user's; found {_shown(given)}"
            )
        return [{"role": m["role"], "content": m["content"]} for m in given]

    def _answer(self, record: Record, verify_type: str) -> str:
        value = self._value(record, "answer")
        if verify_type in STRUCTURED and isinstance(value, (list, dict)):
            return _writable(json.dumps(plain(value)), self._mapped["answer"])
        text = self._text(record, "answer")
        if self._pattern is None:
            return text
        match = self._pattern.search(text)
        if match is None or not (match[1] or "").strip():
            raise UserError(
                f"answer_pattern {self._source.answer_pattern!r} finds no answer in {_shown(text)}"
            )
        return str(match[1]).strip()

    def _given_id(self, record: Record) -> str:
        value = self._value(record, "prompt_id")
        if value is None:
            return ""
        if not isinstance(value, (str, int)) or isinstance(value, bool) or value == "":
            column = self._mapped["prompt_id"]
            raise UserError(f"column {column!r} holds {_shown(value)}, which is no id")
        return _writable(str(value), "prompt_id")

    def _metadata(self, record: Record) -> dict[str, Any]:
        """Return the row's columns by name, together with the items of its metadata column.

        Left out are those that `prompts/` has under the same name.
        """
        kept = {name for name, column in self._mapped.items() if name == column} & set(_IN_PROMPTS)
        names = sorted(self._columns - kept)
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


def _compile(task: str, pattern: str) -> re.Pattern[str] | None:
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


def _is_number(value: Any) -> bool:
    number = isinstance(value, (int, float, Decimal)) and not isinstance(value, bool)
    return number and math.isfinite(value)


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
