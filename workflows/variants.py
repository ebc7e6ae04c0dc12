"""Recipes that differ from one text in some keys: what compare, learn and ablation train."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import tomlkit

from common.config import PRESETS, Recipe
from common.config.recipe_file import override_text, parse_recipe
from common.errors import UserError

# A comma before another key; values may hold commas too.
_NEXT_KEY = re.compile(r",(?=\s*(?:preset|[\w-]+(?:\.[\w-]+)+)\s*=)")

_WHOLE_SECTIONS = ("advantages", "objective")
"""Sections that a preset decides as a whole; of others, it decides the keys some preset sets."""


@dataclass(frozen=True)
class Variant:
    """A recipe under a name."""

    name: str
    text: str
    """Content of its recipe.toml."""
    recipe: Recipe

    @property
    def processes(self) -> int:
        """Return how many processes its mesh needs; `pp_degree = "auto"` counts as one stage."""
        mesh = self.recipe.mesh
        return mesh.dp_degree * (1 if mesh.pp_degree == "auto" else mesh.pp_degree)


def named_keys(option: str) -> tuple[str, list[str]]:
    """Split a `--variant NAME:section.key=value,…` into its name and its keys.

    Raises:
        UserError: the option is not written like this.
    """
    name, colon, keys = option.partition(":")
    found = _NEXT_KEY.split(keys)
    if not colon or not all("=" in key for key in found):
        raise UserError(
            f"--variant {option!r}: write it as NAME:section.key=value,section.key=value"
        )
    return name.strip(), found


def variant_of(name: str, text: str, keys: list[str], origin: str = "") -> Variant:
    """Put `keys` into a recipe's text: first the last `preset=`, then the other keys in order.

    Args:
        origin: what messages call the recipe.

    Raises:
        UserError: the text or a key is faulty.
    """
    origin = origin or f"variant {name!r}"
    parse_recipe(text, origin=origin)
    pairs = [(key.partition("=")[0].strip(), key) for key in keys]
    presets = [key.partition("=")[2].strip(" \"'") for left, key in pairs if left == "preset"]
    if presets:
        if presets[-1] not in PRESETS:
            raise UserError(f"preset {presets[-1]!r}: there are {', '.join(PRESETS)}")
        text = replaced_by_preset(text, presets[-1])
    text = override_text(text, [key for left, key in pairs if left != "preset"])
    return Variant(name, text, parse_recipe(text, origin=origin))


def replaced_by_preset(text: str, preset: str) -> str:
    """Return the text with `preset` and without its own values for what presets decide."""
    document = tomlkit.parse(text)
    for section, key in _decided_by_presets():
        table = document if section is None else document.get(section)
        if isinstance(table, dict) and key in table:
            del table[key]
    document["preset"] = preset
    return tomlkit.dumps(document)


def _decided_by_presets() -> Iterator[tuple[str | None, str]]:
    """Yield section and key of everything that some preset sets; section None is the top level."""
    for section in _WHOLE_SECTIONS:
        yield None, section
    for values in PRESETS.values():
        for section, keys in values.items():
            if section not in _WHOLE_SECTIONS and isinstance(keys, Mapping):
                yield from ((section, key) for key in keys)
