"""Recipes as TOML text: reading them, overriding keys, and explaining what is wrong."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomlkit
from pydantic import BaseModel, ValidationError

from common.config import (
    DatasetSource,
    FunctionReward,
    GeneratorSource,
    GymSource,
    Recipe,
    overruled,
)
from common.errors import UserError

SOURCES: dict[str, type[BaseModel]] = {
    "generator": GeneratorSource,
    "dataset": DatasetSource,
    "reasoning_gym": GymSource,
}
"""Model of a table of [data], by its `kind`."""

FORMER_KEYS = {
    "logprobs.old_from": "it is called logprobs.old_logprobs_from now",
    "logprobs.alarm_gap_mean": "it is called logprobs.warn_gap_mean now",
    "logprobs.alarm_gap_max": "it is called logprobs.warn_gap_max now",
    "rollout.top_p": "a rollout samples from the whole distribution, so the key is gone; leave it "
    "out (evaluate.top_p is for evaluations)",
    "rollout.top_k": "a rollout samples from the whole distribution, so the key is gone; leave it "
    "out (evaluate.top_k is for evaluations)",
}
"""Keys of earlier versions, each with what has become of it."""


def parse_recipe(text: str, *, origin: str, overrides: list[str] | None = None) -> Recipe:
    """Parse TOML `text`, with `section.key=value` overrides, into a checked `Recipe`.

    Raises:
        UserError: the text has faults; the message lists all of them, each with `origin`, key,
            value and fix.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{origin}: not valid TOML: {error}") from None
    for override in overrides or []:
        set_key(document, override)
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        lines = [_explain(fault, document) for fault in error.errors()]
        raise UserError("\n".join(f"{origin}: {line}" for line in lines)) from None


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Parse a recipe file as `parse_recipe` does."""
    return parse_recipe(read_recipe_text(path), origin=str(path), overrides=overrides)


def read_recipe_text(path: Path) -> str:
    """Return the text of a recipe file.

    Raises:
        UserError: the file does not exist (the message lists the recipes in its folder), or it
            cannot be read as UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors write a byte order mark
    except FileNotFoundError:
        beside = sorted(p.name for p in path.parent.glob("*.toml") if p.stem != "pyproject")
        known = f"; there are {', '.join(beside)}" if beside else ""
        raise UserError(f"{path}: no such recipe{known}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None


def preset_remark(text: str) -> str:
    """Return a line on what a recipe (TOML text) overrules of its preset; empty if nothing."""
    document = tomllib.loads(text)
    keys = overruled(document)
    return f"preset {document['preset']}: the recipe's own {', '.join(keys)}" if keys else ""


def override_text(text: str, overrides: list[str]) -> str:
    """Return recipe text with overrides written into it; comments and order are kept."""
    document = tomlkit.parse(text)
    for override in overrides:
        set_key(document, override)
    return tomlkit.dumps(document)


def set_key(document: Any, override: str) -> None:
    """Set one `section.key=value` in a TOML document; a value that is no TOML is plain text."""
    dotted, separator, raw = override.partition("=")
    keys = dotted.strip().split(".")
    if not separator or not all(keys):
        raise UserError(f"--set {override!r}: write it as section.key=value")
    table = document
    for depth, key in enumerate(keys[:-1]):
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise UserError(f"--set {override!r}: {'.'.join(keys[: depth + 1])} is no table")
    try:
        table[keys[-1]] = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        table[keys[-1]] = raw.strip()


def _explain(fault: Any, document: dict[str, Any]) -> str:
    """Return a pydantic error as a line that the user can act on."""
    # A tagged union puts its tag into the location, which is not a key of the file.
    path = [str(part) for part in fault["loc"]]
    kind = ""
    if len(path) > 2 and path[0] == "data" and path[2] in SOURCES:
        kind = path.pop(2)
    key = ".".join(path)
    if fault["type"] == "extra_forbidden":
        if key in FORMER_KEYS:
            return f"unknown key {key!r}: {FORMER_KEYS[key]}"
        near = [name for name in _keys(Recipe) if name.split(".")[-1] == path[-1]]
        if not near or kind:
            near = difflib.get_close_matches(path[-1], _fields_beside(path, kind), n=1, cutoff=0.5)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        return f"unknown key {key!r}{hint}"
    if fault["type"] == "missing":
        return f"{key} is required"
    if fault["type"] == "union_tag_not_found":
        return f'{key}: say kind = "generator", kind = "dataset" or kind = "reasoning_gym"'
    message = fault["msg"].removeprefix("Value error, ")
    if not key:
        return message
    shown = "" if isinstance(fault["input"], (dict, list)) else f" = {fault['input']!r}"
    return f"{key}{shown}: {message[0].lower()}{message[1:]}"


def _keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all keys of a recipe that do not depend on names given in it."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def _fields_beside(path: list[str], kind: str) -> list[str]:
    """Return the names of the fields that are allowed in place of the last part of `path`."""
    model: type[BaseModel] = Recipe
    inner = path[:-1]
    if kind:
        model, inner = SOURCES[kind], path[2:-1]
    elif path[:2] == ["rewards", "functions"] and len(path) > 3:
        model, inner = FunctionReward, path[3:-1]
    for part in inner:
        field = model.model_fields.get(part)
        if field is None or not isinstance(field.annotation, type):
            return []
        if not issubclass(field.annotation, BaseModel):
            return []
        model = field.annotation
    return list(model.model_fields)
