"""The user's own functions, which a recipe names as `module:function`.

They are imported by that name, and told apart by a hash of their module's source.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.errors import UserError


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
            "modules are looked for in the working directory and in the environment"
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        file = source_file(name) or "it"
        raise UserError(
            f"{where}: {module_name!r} has no function {attribute!r}; define it in {file}, or name "
            "one that is there"
        )
    return function


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
