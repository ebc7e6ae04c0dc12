"""Variants of a recipe: what `workflows.compare` trains side by side, from its options."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import tomlkit

from common.config import PRESETS, Recipe
from common.errors import UserError
from common.recipe_file import override_text, parse_recipe, read_recipe_text
from common.runs.child import Frozen
from common.runs.manifest import read_manifest
from common.runs.recipe import changed_since_begun, differing_keys

# A comma that another key follows: values may hold commas too.
_NEXT_KEY = re.compile(r",(?=\s*(?:preset|[\w-]+(?:\.[\w-]+)+)\s*=)")

_WHOLE_SECTIONS = ("advantages", "objective")
"""A preset decides all of them; of the other sections only the keys that some preset names."""


@dataclass(frozen=True)
class Variant:
    """One recipe of a comparison."""

    name: str
    text: str
    """Its recipe.toml."""
    recipe: Recipe

    @property
    def processes(self) -> int:
        """How many its mesh needs; `pp_degree = "auto"` is one pipeline stage."""
        mesh = self.recipe.mesh
        return mesh.dp_degree * (1 if mesh.pp_degree == "auto" else mesh.pp_degree)


def read_variants(
    frozen: Frozen,
    *,
    presets: list[str],
    recipes: list[Path],
    variants: list[str],
    common: list[str],
) -> list[Variant]:
    """The variants of a command line; the first is the baseline.

    Args:
        presets: names of presets, over the recipe of the frozen run.
        recipes: recipe files, each a variant called by its stem.
        variants: `NAME:section.key=value,…`, over the recipe of the frozen run.
        common: `section.key=value` for all variants, below their own keys.

    Raises:
        UserError: everything wrong with one of them, or two of the same name.
    """
    path = frozen.run.recipe
    parent = read_recipe_text(path)
    found = [variant_of(name, parent, [*common, f"preset={name}"]) for name in presets]
    found += [variant_of(file.stem, read_recipe_text(file), common, str(file)) for file in recipes]
    for name, keys in map(named_keys, variants):
        found.append(variant_of(name, parent, [*common, *keys]))
    names = [variant.name for variant in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"two variants are called {twice[0]!r}; give each a name of its own")
    if len(found) < 2:
        raise UserError(
            "give two variants or more: --preset grpo --preset dapo, --recipe FILE, or "
            '--variant "large:train.learning_rate=1e-4"'
        )
    for variant in found:
        frozen.child(variant.name)
        _same_model_and_data(frozen, variant)
        frozen.require_kept(variant.recipe)
    return found


def named_keys(option: str) -> tuple[str, list[str]]:
    """Name and keys of a `--variant NAME:section.key=value,…`.

    Raises:
        UserError: it is written otherwise.
    """
    name, colon, keys = option.partition(":")
    found = _NEXT_KEY.split(keys)
    if not colon or not all("=" in key for key in found):
        raise UserError(
            f"--variant {option!r}: write it as NAME:section.key=value,section.key=value"
        )
    return name.strip(), found


def variant_of(name: str, text: str, keys: list[str], origin: str = "") -> Variant:
    """Recipe text with `keys` put into it: the last `preset=` first, then the others in order.

    Raises:
        UserError: the text or a key is faulty, told with `origin`.
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
    """Recipe text whose preset decides all that presets decide: what it said there goes."""
    document = tomlkit.parse(text)
    for section, key in _decided_by_presets():
        table = document if section is None else document.get(section)
        if isinstance(table, dict) and key in table:
            del table[key]
    document["preset"] = preset
    return tomlkit.dumps(document)


def not_applied(frozen: Frozen, variant: Variant) -> list[str]:
    """Keys that would have made another rollout: they hold from the next iteration on."""
    recorded = read_manifest(frozen.run.rollout(frozen.iteration)).recipe
    keys = differing_keys(recorded, variant.recipe.model_dump(mode="json"))
    if "rewards" in recorded:  # of dynamic sampling
        new = variant.recipe.rewards.functions.keys() - recorded["rewards"]["functions"].keys()
        keys += [f"rewards.functions.{name}" for name in sorted(new)]
    return keys


def _decided_by_presets() -> Iterator[tuple[str | None, str]]:
    """Section (None: the top) and key of all that some preset sets."""
    for section in _WHOLE_SECTIONS:
        yield None, section
    for values in PRESETS.values():
        for section, keys in values.items():
            if section not in _WHOLE_SECTIONS and isinstance(keys, Mapping):
                yield from ((section, key) for key in keys)


def _same_model_and_data(frozen: Frozen, variant: Variant) -> None:
    if changed := changed_since_begun(frozen.run, variant.recipe):
        raise UserError(
            f"variant {variant.name!r}: {', '.join(changed)} is not what run {frozen.run.name!r} "
            "began with; variants train from its rollout, so they keep its model and its data"
        )
