"""The recipe in force: the run's own `recipe.toml`, which a given recipe or override changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from common.config import Recipe, Source
from common.config.recipe_file import override_text, parse_recipe, read_recipe_text
from common.errors import UserError
from common.functions import look_beside
from common.runs.layout import DEFAULT_RECIPE, Output, Run
from common.runs.manifest import has_manifest, read_manifest, write_atomically
from common.runs.stages import BY_NAME, STAGES


def recipe_in_force(
    run: Run, recipe: Path | None = None, overrides: list[str] | None = None, *, write: bool = False
) -> Recipe:
    """Return the recipe that holds for what is still to be made in `run`.

    Args:
        recipe: file that replaces the run's recipe; a new run without one has the default recipe.
        overrides: `section.key=value` each, put into the recipe.
        write: store the result in the run.

    Raises:
        UserError: the recipe is faulty, or names another model or data set than the run began with.
    """
    source = recipe or (run.recipe if run.recipe.is_file() else DEFAULT_RECIPE)
    text = read_recipe_text(source)
    parse_recipe(text, origin=str(source))
    if overrides:
        text = override_text(text, overrides)
    parsed = parse_recipe(text, origin=f"{source} with --set" if overrides else str(source))
    _same_model_and_data(run, parsed, source)
    if write and recipe and recipe.resolve() != run.recipe.resolve():
        run.root.mkdir(parents=True, exist_ok=True)
        write_atomically(run.recipe_folder, f"{recipe.resolve().parent}\n".encode())
    if write and not (run.recipe.is_file() and run.recipe.read_text(encoding="utf-8") == text):
        run.root.mkdir(parents=True, exist_ok=True)
        write_atomically(run.recipe, text.encode())
    return parsed


def look_beside_recipe(run: Run, recipe: Path | None = None) -> None:
    """Let the user's functions be found beside a recipe, else where the run's own came from."""
    if recipe and recipe.resolve() != run.recipe.resolve():
        look_beside(recipe.parent)
    elif run.recipe_folder.is_file():
        look_beside(Path(run.recipe_folder.read_text(encoding="utf-8").rstrip("\n")))


def differences(recorded: Any, now: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """Return the dotted keys of `recorded` whose values in `now` differ, with both values."""
    if not (isinstance(recorded, dict) and isinstance(now, dict)):
        return [] if recorded == now else [(key, recorded, now)]
    return [
        difference
        for name in recorded
        for difference in differences(
            recorded[name], now.get(name), f"{key}.{name}" if key else name
        )
    ]


def differing_keys(recorded: Any, now: Any) -> list[str]:
    """Return only the keys of `differences`."""
    return [key for key, _, _ in differences(recorded, now)]


def made_otherwise(run: Run, recipe: Recipe) -> list[tuple[Output, str, Any, Any]]:
    """Return what the finished stages of iterations were made with that a recipe has otherwise.

    Returns:
        Output, dotted key, the value it was made with and the recipe's, by iteration and stage.
    """
    now = recipe.model_dump(mode="json")
    outputs = [
        run.of(stage.name, iteration)
        for iteration in run.iterations()
        for stage in STAGES
        if stage.per == "iteration"
    ]
    return [
        (output, *difference)
        for output in outputs
        if has_manifest(output)
        for difference in differences(read_manifest(output).recipe, now)
    ]


def changed_since_begun(run: Run, recipe: Recipe) -> list[str]:
    """Return the keys of model and data that differ from those a prepared run began with.

    Each comes as text with both values. A source's key that did not exist when the run began counts
    with its default.
    """
    began, now = read_manifest(run.prompts).recipe, BY_NAME["prepare"].recorded(recipe)
    began = began | {"data": {task: _as_today(source) for task, source in began["data"].items()}}
    changed = {key: (was, new) for key, was, new in differences(began, now)}
    changed |= {key: (was, new) for key, new, was in differences(now, began)}
    return [f"{key} ({was!r} then, {new!r} now)" for key, (was, new) in changed.items()]


def _as_today(source: dict[str, Any]) -> dict[str, Any]:
    try:
        filled: Source = TypeAdapter(Source).validate_python(source)
    except ValidationError:
        return source
    return filled.model_dump(mode="json")


def _same_model_and_data(run: Run, recipe: Recipe, source: Path) -> None:
    if has_manifest(run.prompts) and (changed := changed_since_begun(run, recipe)):
        raise UserError(
            f"{source}: {', '.join(changed)} is not what run {run.name!r} began with; a run keeps "
            "its model and its data: choose another RUN, or remove this one"
        )


def recipe_around(path: Path) -> Path | None:
    """Return the file of the recipe in force of the run that contains `path`; None outside runs."""
    for folder in path.resolve().parents:
        if (folder / "recipe.toml").is_file() and (folder / "iterations").is_dir():
            return folder / "recipe.toml"
    return None
