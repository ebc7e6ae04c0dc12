"""Your own rewards: `module:function`, called as here or as in TRL, with all columns of the row.

A function is `f(completion, row)`, which returns a number, or `f(completions, **columns)`, which
returns a list: the signature of TRL's reward functions (`trl.rewards`). It is told by its
parameters. Either is called for one completion at a time, since each has its own limit of time.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from common import functions
from common.config import FunctionReward
from common.errors import UserError
from common.rewards.rule import Reward, Row

TRL_ARGUMENTS = ("prompts", "completions", "completion_ids")
"""Arguments that TRL makes itself; a function with one of them is called as TRL calls it."""
TRAINERS_ARGUMENTS = ("trainer_state", "log_extra", "log_metric", "environments")
"""Arguments that only a trainer of TRL has; here they are not given."""
NO_COLUMNS = (*TRL_ARGUMENTS, "prompt", "completion")
"""Names that TRL does not pass as columns."""

_LIST_OF_LISTS = re.compile(r"(typing\.)?[Ll]ist\[(typing\.)?[Ll]ist\b")


def open_function(name: str, reward: FunctionReward) -> Reward:
    """Return the function of `[rewards.functions.<name>]`, to be called with (completion, row).

    Raises:
        UserError: it does not exist, its module cannot be imported, or its signature is neither
            ours nor TRL's.
    """
    where, function, parameters = _find(name, reward)
    if _is_trl(parameters):
        return _TrlFunction(function, parameters)
    try:
        inspect.Signature(list(parameters.values())).bind("", {})
    except TypeError:
        called = reward.function.partition(":")[2]
        raise UserError(
            f"{where}: {called}({', '.join(map(str, parameters.values()))}) cannot be called; "
            f"write it as {called}(completion, row), which returns a number, or as in TRL, "
            f"{called}(completions, **columns), which returns a list"
        ) from None
    return lambda completion, row: _result(function(completion, NamedColumns(row)))


def required_columns(name: str, reward: FunctionReward) -> list[str]:
    """Return the columns that a function with TRL's signature must be given.

    Raises:
        UserError: as `open_function` does.
    """
    _, _, parameters = _find(name, reward)
    if not _is_trl(parameters):
        return []
    return [column for column in _required(parameters) if column not in TRL_ARGUMENTS]


class NamedColumns(dict[str, Any]):
    """A row for a function; a column that it lacks is an error that lists those there are."""

    def __missing__(self, column: str) -> Any:
        raise KeyError(f"the row has no column {column!r}; it has {', '.join(sorted(self))}")


class _TrlFunction:
    """A function with TRL's signature, called for one completion.

    As in TRL, a completion is a list of one message if the prompt is a conversation, and text if it
    is not; but a function that declares its completions as lists of lists gets messages always.
    """

    def __init__(
        self, function: Callable[..., Any], parameters: Mapping[str, inspect.Parameter]
    ) -> None:
        self._function = function
        self._all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self._named = [p.name for p in parameters.values() if _is_named(p)]
        self._required = _required(parameters)
        declared = parameters.get("completions")
        annotation = declared.annotation if declared else ""
        self._wants_messages = bool(_LIST_OF_LISTS.match(str(annotation)))

    def __call__(self, completion: str, row: Row) -> Any:
        prompt = row.get("prompt", row.get("messages") or row.get("question"))
        conversation = isinstance(prompt, list)
        if self._wants_messages and not conversation:
            prompt, conversation = [{"role": "user", "content": prompt}], True
        message = [{"role": "assistant", "content": completion}]
        arguments = {name: [value] for name, value in row.items() if name not in NO_COLUMNS}
        arguments |= {
            "prompts": [prompt],
            "completions": [message if conversation else completion],
            "completion_ids": [row.get("completion_ids")],
        }
        if not self._all:
            arguments = {name: arguments[name] for name in self._named if name in arguments}
        # A column that only other rows have is None in this one, as in a table of all.
        arguments |= {name: [None] for name in self._required if name not in arguments}
        return _only(_result(self._function(**arguments)))


def _find(
    name: str, reward: FunctionReward
) -> tuple[str, Callable[..., Any], Mapping[str, inspect.Parameter]]:
    """Return what to call the function in an error, the function, and its parameters."""
    key = f"rewards.functions.{name}.function"
    where = f"{key} = {reward.function!r}"
    function = functions.find_function(reward.function, key)
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        raise UserError(
            f"{where}: its parameters cannot be read; wrap it in a function of your own"
        ) from None
    for argument in _required(parameters) if _is_trl(parameters) else ():
        if argument in TRAINERS_ARGUMENTS:
            raise UserError(
                f"{where}: only TRL's trainer gives {argument!r}; give it a default: "
                f"{argument}=None"
            )
    return where, function, parameters


def _is_trl(parameters: Mapping[str, inspect.Parameter]) -> bool:
    only_names = bool(parameters) and all(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return only_names or any(name in parameters for name in TRL_ARGUMENTS)


def _is_named(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)


def _required(parameters: Mapping[str, inspect.Parameter]) -> list[str]:
    return [name for name, p in parameters.items() if _is_named(p) and p.default is p.empty]


def _result(value: Any) -> Any:
    return asyncio.run(value) if inspect.iscoroutine(value) else value


def _only(values: Any) -> Any:
    """Return the one number in what a function with TRL's signature returned."""
    shown = f"{values!r:.80}"
    try:
        found = list(values)
    except TypeError:
        raise TypeError(
            f"returned {shown}; a function of `completions` returns a list with one number for each"
        ) from None
    if len(found) != 1:
        raise ValueError(f"returned {len(found)} rewards for 1 completion: {shown}")
    return found[0]


def source_hash(reward: FunctionReward) -> str:
    """Return the hash of the function's file, by `common.functions.source_hash`."""
    return functions.source_hash(reward.function)
