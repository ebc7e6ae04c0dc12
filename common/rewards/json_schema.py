"""JSON_SCHEMA: the answer is JSON that the row's schema allows.

The JSON is the last closed block that says it is `json`, else the last block that says nothing,
else the content of the single `<answer>…</answer>`, else the whole answer part. The package
jsonschema validates it by the draft that the schema's `$schema` names, 2020-12 without one. As the
specification has it by default, `format` is a remark and not a check; `pattern` and `enum` check. A
schema says one right answer with `const`.

A schema may refer to its own parts (`$ref`), never to anything outside: nothing is fetched. JSON is
read strictly: an object may not have a key twice, NaN and numbers beyond a double are refused.
Patterns are matched by Python's `re`, which a text can keep busy for hours, so the rule runs in a
process that is killed after `rewards.json_schema.seconds`.
"""

from __future__ import annotations

import json
import math
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, NoReturn

from common.config import RewardsConfig
from common.errors import MissingToolError
from common.rewards.answer_part import answer_part, several_answers
from common.rewards.marked import last_block, marked_or_whole
from common.rewards.rule import NO_ANSWER, GoldError, Row, Verdict, graded

INSTALL = "`make extras`"

_PROBES: tuple[Any, ...] = (None, True, 0, 0.5, "", "a", [], [[]], {}, {"a": {}})
"""One value of each kind. A schema that cannot judge these cannot judge an answer."""


def require(rewards: RewardsConfig) -> None:
    """Check that jsonschema is installed.

    Raises:
        MissingToolError: it is not.
    """
    if find_spec("jsonschema") is None:
        raise MissingToolError(f"JSON_SCHEMA needs the package jsonschema: {INSTALL}")


@lru_cache(256)
def read_gold(answer: str) -> Any:
    """Return a validator for the row's schema.

    Raises:
        GoldError: the answer is not JSON or not a schema, or it refers to something that is not in
            it.
        MissingToolError: jsonschema is not installed.
    """
    require(RewardsConfig())
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import Draft202012Validator, validator_for
    from referencing import Registry

    try:
        schema = read_json(answer)
    except ValueError as error:
        raise GoldError(f"is not JSON: {error}") from None
    if not isinstance(schema, (dict, bool)):
        raise GoldError("is no schema: give an object")
    kind = validator_for(schema, default=None)
    if kind is None:
        if isinstance(schema, dict) and "$schema" in schema:
            raise GoldError(f"has the unknown $schema {schema['$schema']!r:.80}")
        kind = Draft202012Validator
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise GoldError(f"is no schema: {error.message:.200} at {error.json_path}") from None
    except Exception as error:  # of any library behind it: a meta-schema has patterns too
        raise GoldError(f"is no schema: {type(error).__name__}: {error}") from None
    # An empty registry of one's own: the default one fetches what a reference names.
    validator = kind(schema, registry=Registry())
    _try(validator, schema)
    return validator


def _try(validator: Any, schema: Any) -> None:
    """Check that the schema can judge, and that all that it refers to is in it."""
    from referencing.exceptions import Unresolvable

    try:
        for probe in _PROBES:
            validator.is_valid(probe)
        for sub_schema, resolver in _parts(validator, schema):
            for keyword in ("$ref", "$dynamicRef", "$recursiveRef"):
                if isinstance(sub_schema.get(keyword), str):
                    resolver.lookup(sub_schema[keyword])
    except Unresolvable as error:
        raise GoldError(f"refers to {error.ref!r:.80}, which is not in it") from None
    except RecursionError:
        raise GoldError("refers to itself without end") from None
    except Exception as error:  # a pattern that is none, a number that divides nothing
        raise GoldError(f"cannot judge: {type(error).__name__}: {error}") from None


def _parts(validator: Any, schema: Any) -> list[tuple[dict[str, Any], Any]]:
    """Return each schema within the schema, with what finds the references in it."""
    from referencing.jsonschema import specification_with

    dialect = validator.META_SCHEMA.get("$schema") or validator.META_SCHEMA["id"]
    resource = specification_with(dialect).create_resource(schema)
    from jsonschema.validators import SPECIFICATIONS

    found: list[tuple[dict[str, Any], Any]] = []
    waiting = [(resource, SPECIFICATIONS.resolver_with_root(resource))]
    while waiting:
        part, resolver = waiting.pop()
        if isinstance(part.contents, dict):
            found.append((part.contents, resolver))
        waiting += [(sub, resolver.in_subresource(sub)) for sub in part.subresources()]
    return found


def judge(text: str, row: Row) -> Verdict:
    """Validate the answer's JSON by the row's schema."""
    validator = read_gold(row["answer"])
    part = answer_part(text) or ""
    block = last_block(part, ("json",))
    if block is None and (several := several_answers(part)) is not None:
        return graded(False, several)
    answer = (marked_or_whole(part) if block is None else block).strip()
    if not answer:
        return NO_ANSWER
    try:
        return graded(validator.is_valid(read_json(answer)), answer)
    except (ValueError, RecursionError, ArithmeticError):
        # Not JSON; or nested so deep, or with a number so large, that it is nobody's answer. The
        # schema itself has judged smaller values without a fault.
        return graded(False, answer)


def read_json(text: str) -> Any:
    """Return the value of a JSON text, read strictly.

    Raises:
        ValueError: it is not JSON, has a key twice, or a number that a double cannot hold.
    """
    try:
        return json.loads(
            text, object_pairs_hook=_object, parse_float=_number, parse_constant=_refuse
        )
    except RecursionError:
        raise ValueError("nested too deep") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("an object has a key twice")
    return value


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text:.40} is too large")
    return value


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")
