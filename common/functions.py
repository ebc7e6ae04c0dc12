"""The user's own functions, which a recipe names as `module:function`.

They are imported by that name, and told apart by a hash of their module's source. A module is
looked for in the working directory, in the environment, and last beside the recipe.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.errors import UserError

_beside: list[Path] = []


def look_beside(folder: Path) -> None:
    """Let modules be found in the recipe's folder too, after all other places.

    It is last so that a file there never hides an installed package from the rest of the process.
    The folder of a former recipe is forgotten.
    """
    for former in folders_beside():
        if sys.path[-1] == former:
            sys.path.pop()
    _beside[:] = [folder.resolve()]
    sys.path.append(str(_beside[0]))


def folders_beside() -> list[str]:
    """Return the folders of `look_beside`, for a process that is to find the same modules."""
    return [str(folder) for folder in _beside]


def find_function(name: str, key: str) -> Callable[..., Any]:
    """Import the function that a key of the recipe names.

    Args:
        name: `module:function`.
        key: the recipe's key, for messages.

    Raises:
        UserError: the module or function does not exist, or the module cannot be imported.
    """
    where = f"{key} = {name!r}"
    module_name, colon, attribute = name.partition(":")
    if not (colon and module_name and attribute):
        raise UserError(f"{where}: write it as module:function")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{where}: {module_name!r} cannot be imported: {type(error).__name__}: {error}; "
            "modules are looked for in the working directory, in the environment and beside the "
            f"recipe{_shown_folders()}"
        ) from error
    _refuse_hidden(name, where)
    function = getattr(module, attribute, None)
    if not callable(function):
        file = source_file(name) or "it"
        raise UserError(
            f"{where}: {module_name!r} has no function {attribute!r}; define it in {file}, or name "
            "one that is there"
        )
    return function


def _refuse_hidden(name: str, where: str) -> None:
    """Refuse a module that is another file than the one of its name beside the recipe.

    Raises:
        UserError: there are two, so that the recipe may mean either.
    """
    module, found = name.partition(":")[0], source_file(name)
    for folder in _beside:
        own = folder / f"{module.replace('.', '/')}.py"
        if own.is_file() and (found is None or not own.samefile(found)):
            raise UserError(
                f"{where}: {own} is hidden by another module {module!r} ({found or 'built in'}), "
                "which is found first; give the file another name"
            )


def _shown_folders() -> str:
    return f" ({', '.join(folders_beside())})" if _beside else ""


def source_file(name: str) -> Path | None:
    """Return the source file of the function's module; None if it cannot be found."""
    try:
        spec = importlib.util.find_spec(name.partition(":")[0])
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return None
    return Path(spec.origin)


def source_hash(name: str) -> str:
    """Return the sha256 of `source_file`; empty if there is none."""
    file = source_file(name)
    return hashlib.sha256(file.read_bytes()).hexdigest() if file else ""
