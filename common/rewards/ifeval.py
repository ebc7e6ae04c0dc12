"""IFEVAL: the answer follows instructions that a program can check (IFEval, arXiv 2311.07911).

The gold is JSON, in the columns of the data set google/IFEval or as a list:

    {"instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
     "kwargs": [{}, {"num_words": 300, "relation": "at least"}]}
    [{"id": "punctuation:no_comma"}, {"id": "startend:quotation"}]

`ifeval_checks.py` has the 25 instructions. The answer is the whole answer part, taken as it stands
(the paper's strict accuracy). The reward is 1 when all instructions are followed and 0 otherwise,
or with `rewards.ifeval.partial` the share of them that are followed; an answer that follows all is
`correct`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple

from common.config import RewardsConfig
from common.errors import MissingToolError
from common.rewards.answer_part import answer_part
from common.rewards.ifeval_checks import CHECKS, ArgumentError, Check
from common.rewards.rule import NO_ANSWER, GoldError, Judge, Row, Verdict

INSTALL = "`make extras`"


class Instruction(NamedTuple):
    """One instruction of a row."""

    check: Check
    arguments: dict[str, Any]


def require(rewards: RewardsConfig) -> None:
    """Check that py3langid is installed.

    Raises:
        MissingToolError: it is not.
    """
    if find_spec("py3langid") is None:
        raise MissingToolError(f"IFEVAL needs the package py3langid: {INSTALL}")


def open_rule(rewards: RewardsConfig) -> Judge:
    """Return the rule with the recipe's settings."""
    partial = rewards.ifeval.partial

    def judge(text: str, row: Row) -> Verdict:
        instructions = read_gold(row["answer"])
        answer = (answer_part(text) or "").strip()
        if not answer:
            return NO_ANSWER
        followed = [check.follows(answer, **arguments) for check, arguments in instructions]
        if all(followed):
            return Verdict(1.0, "correct", answer)
        return Verdict(sum(followed) / len(followed) if partial else 0.0, "wrong", answer)

    return judge


@lru_cache(1024)
def read_gold(answer: str) -> tuple[Instruction, ...]:
    """Return the row's instructions, at least one.

    Raises:
        GoldError: it is not as described above, or an instruction is unknown or lacks an argument.
        MissingToolError: py3langid is not installed.
    """
    require(RewardsConfig())
    try:
        content = json.loads(answer)
    except (ValueError, RecursionError) as error:
        raise GoldError(f"is not JSON: {error}") from None
    instructions = [_instruction(name, given) for name, given in _pairs(content)]
    if not instructions:
        raise GoldError("has no instructions")
    return tuple(instructions)


def _pairs(content: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the id and the arguments of each instruction."""
    if isinstance(content, dict) and "instruction_id_list" in content:
        names = content["instruction_id_list"]
        kwargs = content.get("kwargs") or []
        if not isinstance(names, list) or not isinstance(kwargs, list):
            raise GoldError('is to have lists as "instruction_id_list" and "kwargs"')
        if len(names) != len(kwargs):
            raise GoldError(f"has {len(names)} instructions, but arguments for {len(kwargs)}")
        yield from zip(names, kwargs, strict=True)
        return
    for item in content if isinstance(content, list) else [content]:
        if not isinstance(item, dict) or "id" not in item:
            raise GoldError('is to be an object with "instruction_id_list", or a list of "id"s')
        yield item["id"], {name: value for name, value in item.items() if name != "id"}


def _instruction(name: Any, given: Any) -> Instruction:
    if not isinstance(name, str) or name not in CHECKS:
        near = difflib.get_close_matches(str(name), CHECKS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise GoldError(f"has the unknown instruction {name!r:.80}{hint}")
    if given is not None and not isinstance(given, dict):
        raise GoldError(f"has arguments of {name} that are no object")
    try:
        return Instruction(CHECKS[name], CHECKS[name].read(given or {}))
    except ArgumentError as error:
        raise GoldError(f"has a fault: {name} {error}") from None
