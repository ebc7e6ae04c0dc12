"""Giving a complete output its final name."""

from __future__ import annotations

import shutil

from common.runs.layout import Output
from common.runs.manifest import sync_directory

PLAN = "plan.json"
"""In a partial output: what it is to be made of."""


def publish(output: Output) -> None:
    """Give a partial output that has its manifest the final name, replacing a former one.

    Safe to repeat: a kill between the renames leaves a state that the next call completes.
    """
    if (output.partial / "manifest.json").is_file():
        for scrap in (*output.partial.glob("*.done.json"), output.partial / PLAN):
            scrap.unlink(missing_ok=True)
        if output.path.exists():
            shutil.rmtree(output.replaced, ignore_errors=True)
            output.path.rename(output.replaced)
        output.partial.rename(output.path)
        sync_directory(output.path.parent)
    if output.path.exists():
        shutil.rmtree(output.replaced, ignore_errors=True)
