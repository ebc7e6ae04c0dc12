"""What stages import and the process that forks them has imported, without starting a thread.

Locks that a thread holds would stay locked in a forked process, and a GPU that was opened before
the fork cannot be used there. polars and pyarrow are left out: they load quickly and start threads.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from common.process import wait_briefly

MODULES = (
    "torch.distributed.launcher.api",
    "torch.distributed.pipelining",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.processing_utils",
    "transformers.tokenization_utils_tokenizers",
    "pydantic.main",
    "pydantic.types",
    "rich.progress",
    "tomlkit",
    "typer",
)

LEFT_OUT = ("sklearn", "pandas")
"""Packages that some versions of transformers import when they are installed, with pyarrow behind
them, and that nothing here uses. A stage can still import them."""


def why_not_fork() -> str | None:
    """Return what a process forked from this one would suffer from, or None."""
    if (threads := len(list(Path("/proc/self/task").iterdir()))) != 1:
        return f"{threads} threads are running after the imports"
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if str(fd.readlink()).startswith(("/dev/nvidia", "/dev/kfd")):
                return "the imports have opened the GPU"
    return None


def preload() -> str | None:
    """Import `MODULES` and return why no stage may be forked from here, or None if it may."""
    at_interrupt = signal.getsignal(signal.SIGINT)
    if at_interrupt != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends us without a traceback
    wait_briefly(os.environ)
    before = os.environ.get("OPENBLAS_NUM_THREADS")
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # or numpy starts threads when it is loaded
    with _left_out(LEFT_OUT):
        for name in MODULES:
            with suppress(Exception):  # a stage that needs it will say what is wrong
                importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGINT, at_interrupt)
    if before is None:
        del os.environ["OPENBLAS_NUM_THREADS"]
    if reason := why_not_fork():
        print(f"chain: {reason}, so every stage imports by itself", file=sys.stderr)
        return reason
    return None


@contextmanager
def _left_out(names: Sequence[str]) -> Iterator[None]:
    """Make packages look as if they were not installed, unless they are imported already."""
    absent: dict[str, Any] = {name: None for name in names if name not in sys.modules}
    sys.modules.update(absent)
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


PROBLEM = preload()
