"""Your own rewards: `module:function`, called with (completion, row)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from common import functions
from common.config import FunctionReward


def find_function(name: str, reward: FunctionReward) -> Callable[..., Any]:
    """Return the function of `[rewards.functions.<name>]`, by `common.functions.find_function`."""
    return functions.find_function(reward.function, f"rewards.functions.{name}.function")


def source_hash(reward: FunctionReward) -> str:
    """Return the hash of the function's file, by `common.functions.source_hash`."""
    return functions.source_hash(reward.function)
