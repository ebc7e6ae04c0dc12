"""Your own rewards: a function of (completion, row), or one with the signature of TRL's."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa

from common import functions
from common.config import FunctionReward
from common.errors import UserError
from common.rewards.rule import Reward, Row
from common.tasks.arrow_values import python_values
from common.tasks.golds import plain

OURS = "write it as function(completion, row), or with TRL's signature (completions, **columns)"


def find_function(name: str, reward: FunctionReward) -> Reward:
    """Return the function of `[rewards.functions.<name>]`, called as rewards are.

    A function with a parameter `completions` has TRL's signature (`GRPOTrainer.reward_funcs`). It
    gets lists, here of one completion each: `completions`, `prompts` if it asks for them, and the
    row's columns by name, all of them if it takes any keyword.

    Raises:
        UserError: `functions.find_function` raises it, or neither way of calling fits the function.
    """
    where = f"rewards.functions.{name}.function"
    function = functions.find_function(reward.function, where)
    where = f"{where} = {reward.function!r}"
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # of a builtin, which has none to look at
        return function
    if "completions" in parameters:
        return _as_trl(function, parameters.values(), reward, where)
    try:
        inspect.signature(function).bind("completion", {})
    except TypeError as error:
        shown = f"{inspect.signature(function)}"
        raise UserError(f"{where}: it is called as {shown}: {error}; {OURS}") from None
    return function


def columns_of_prompts(prompts: Iterable[Row]) -> dict[str, dict[str, Any]]:
    """Return the columns of the user's data that prompts keep beside their own, by prompt id.

    Args:
        prompts: rows with `prompt_id` and `metadata`, the columns as JSON.
    """
    return {row["prompt_id"]: json.loads(row["metadata"]) for row in prompts}


def further_columns(completions: pa.Table, known: Iterable[str]) -> list[dict[str, Any]]:
    """Return each row's columns that are neither text nor numbers, in types that JSON has.

    Args:
        completions: the file's rows.
        known: names of the columns that rules see anyway.
    """
    without = {*known, "prompt_ids", "completion_ids", "sampler_logprobs"}
    names = [name for name in completions.column_names if name not in without]
    columns = [map(plain, python_values(completions[name])) for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def source_hash(reward: FunctionReward) -> str:
    """Return the hash of the function's file, by `common.functions.source_hash`."""
    return functions.source_hash(reward.function)


def _as_trl(
    function: Callable[..., Any],
    parameters: Iterable[inspect.Parameter],
    reward: FunctionReward,
    where: str,
) -> Reward:
    """Return a function of TRL's as one of (completion, row)."""
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    named = {p.name: p for p in parameters if p.kind is not p.VAR_KEYWORD}
    needed = [name for name, p in named.items() if p.default is p.empty]

    def judge(completion: str, row: Row) -> float | None:
        given = {name: [value] for name, value in row.items() if takes_any or name in named}
        given["completions"] = [_message("assistant", completion, reward)]
        if takes_any or "prompts" in named:
            given["prompts"] = [_message("user", str(row.get("question", "")), reward)]
        if missing := [name for name in needed if name not in given]:
            columns = ", ".join(map(repr, row))
            raise UserError(f"{where} needs a column {missing[0]!r}; the row has {columns}")
        found = function(**given)
        if not isinstance(found, (list, tuple)) or len(found) != 1:
            raise UserError(
                f"{where} returned {found!r}, not a list with a reward for each completion"
            )
        value: float | None = found[0]
        return value

    return judge


def _message(role: str, text: str, reward: FunctionReward) -> Any:
    return [{"role": role, "content": text}] if reward.completions == "messages" else text
