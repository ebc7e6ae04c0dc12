"""The variants of a command line: what `workflows.compare` trains side by side."""

from __future__ import annotations

from pathlib import Path

from common.config.recipe_file import read_recipe_text
from common.errors import UserError
from common.runs.child import Frozen
from common.runs.manifest import read_manifest
from common.runs.recipe import changed_since_begun, differing_keys
from workflows.variants import Variant, named_keys, variant_of


def read_variants(
    frozen: Frozen,
    *,
    presets: list[str],
    recipes: list[Path],
    variants: list[str],
    common: list[str],
) -> list[Variant]:
    """Read the variants of a command line; the first is the baseline.

    Args:
        presets: names of presets, each put into the recipe of the frozen run.
        recipes: recipe files, each a variant called by its stem.
        variants: `NAME:section.key=value,…`, each put into the recipe of the frozen run.
        common: `section.key=value` for all variants, put in after a preset and before other keys.

    Raises:
        UserError: a variant is faulty (the message says everything that is wrong with it), two
            have the same name, or there are fewer than two.
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


def not_applied(frozen: Frozen, variant: Variant) -> list[str]:
    """Return keys that would have made another rollout; they hold from the next iteration on."""
    recorded = read_manifest(frozen.run.rollout(frozen.iteration)).recipe
    keys = differing_keys(recorded, variant.recipe.model_dump(mode="json"))
    if "rewards" in recorded:  # of dynamic sampling
        new = variant.recipe.rewards.functions.keys() - recorded["rewards"]["functions"].keys()
        keys += [f"rewards.functions.{name}" for name in sorted(new)]
    return keys


def _same_model_and_data(frozen: Frozen, variant: Variant) -> None:
    if changed := changed_since_begun(frozen.run, variant.recipe):
        raise UserError(
            f"variant {variant.name!r}: {', '.join(changed)} is not what run {frozen.run.name!r} "
            "began with; variants train from its rollout, so they keep its model and its data"
        )
