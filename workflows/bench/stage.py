"""A stage, run as its command is, with one thing changed for measuring.

    python -m workflows.bench.stage without-stops rollout --run demo --iteration 3
    python -m workflows.bench.stage until-work train --run demo --iteration 3 --overwrite

`without-stops` takes the stop tokens away from the sampler, so that every completion has the full
length. `until-work` ends the process where the stage begins its work and prints, as JSON, the
seconds until then and how many of them imports took. The clock starts at the time in `STARTED`.
"""

from __future__ import annotations

import builtins
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

WORK = {
    "rollout": ("common.engines.native.sampler", "Sampler", "generate"),
    "score": ("stages.score", "", "judge_shards"),
    "logprobs": ("common.parallel.pipeline", "Pipeline", "run_forward"),
    "train": ("common.parallel.pipeline", "Pipeline", "run_step"),
}
"""Module, class and function whose first call begins the stage's work."""

STARTED = "STAGED_GRPO_BENCH_STARTED"
"""Environment variable: the time at which the process was asked for, in seconds since 1970."""


class ImportClock:
    """A clock of the seconds inside imports, with nested ones counted once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0

    def install(self) -> None:
        """Time import statements and `importlib.import_module` from now on."""
        builtins.__import__ = self._timed(builtins.__import__)
        importlib.import_module = self._timed(importlib.import_module)

    def _timed(self, load: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self._counted():
                return load(*args, **kwargs)

        return timed

    @contextmanager
    def _counted(self) -> Any:
        self._depth += 1
        started = time.perf_counter()
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self.seconds += time.perf_counter() - started


def until_work(stage: str) -> None:
    """Replace the first function of the stage's work by one that reports and ends the process."""
    clock = ImportClock()
    clock.install()
    importlib.import_module(f"stages.{stage}")
    module_name, owner, name = WORK[stage]
    module: Any = importlib.import_module(module_name)

    def report(*args: Any, **kwargs: Any) -> None:
        total = time.time() - float(os.environ[STARTED])
        print(json.dumps({"seconds": total, "imports": clock.seconds}), flush=True)
        os._exit(0)

    setattr(getattr(module, owner) if owner else module, name, report)


def without_stops(stage: str) -> None:
    """Let no token end a completion."""
    policy: Any = importlib.import_module("common.rollout.prompts")

    def none(*args: Any, **kwargs: Any) -> list[int]:
        return []

    policy.stop_ids = none


if __name__ == "__main__":
    change, chosen = sys.argv[1:3]
    {"until-work": until_work, "without-stops": without_stops}[change](chosen)
    sys.argv = [f"stages.{chosen}", *sys.argv[3:]]
    from common.command import launch

    launch(importlib.import_module(f"stages.{chosen}").main)
