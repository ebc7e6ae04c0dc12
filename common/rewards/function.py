"""Your own rewards: `module:function`, called with (completion, row)."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.config import FunctionReward
from common.errors import UserError


def find_function(name: str, reward: FunctionReward) -> Callable[..., Any]:
    """Import the function of `[rewards.functions.<name>]`; modules are found as from the shell.

    Raises:
        UserError: no such module or function, or the module cannot be imported.
    """
    where = f"rewards.functions.{name}.function = {reward.function!r}"
    module_name, colon, attribute = reward.function.partition(":")
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
        raise UserError(f"{where}: {module_name!r} has no function {attribute!r}")
    return function


def source_hash(reward: FunctionReward) -> str:
    """sha256 of the file that the function's module is; empty when there is none to be found."""
    try:
        spec = importlib.util.find_spec(reward.function.partition(":")[0])
    except (ImportError, ValueError):
        return ""
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return ""
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()
