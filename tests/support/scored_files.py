"""Completions scored twice by the real command, for tests of how scores are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from common.runs.schemas import KEY
from stages import score

TEXTS = [
    "<think>7 + 7</think><answer>14</answer>",  # right and well formed
    "<think>7 + 7</think><answer>13</answer>",  # wrong, well formed
    "14",  # LAST_NUMBER reads it, ANSWER_TAG does not
    "no number \x1b[2J\u202e at all",
]


def completions(**columns: Any) -> pl.DataFrame:
    """Return two groups of four: one judged by its tag, one by its last number."""
    rows = {
        KEY: [f"r{i}" for i in range(8)],
        "group_id": [0] * 4 + [1] * 4,
        "task": ["tags"] * 4 + ["numbers"] * 4,
        "question": ["What is\n7 + 7?"] * 8,
        "completion_text": TEXTS * 2,
        "answer": ["14"] * 8,
        "verify_type": ["ANSWER_TAG"] * 4 + ["LAST_NUMBER"] * 4,
    }
    return pl.DataFrame(rows | columns)


def score_twice(folder: Path) -> tuple[Path, Path]:
    """Score into two files; in the second, the format's weight works against the answer's."""
    source, first, second = (folder / f"{name}.parquet" for name in ("rows", "first", "second"))
    completions().write_parquet(source)
    weights = (["rewards.format.weight=0.5"], ["rewards.format.weight=-1"])
    for target, overrides in zip((first, second), weights, strict=True):
        score.main(input_path=source, output_path=target, overrides=overrides, quiet=True)
    return first, second


def by(frame: pl.DataFrame, **values: object) -> dict[str, Any]:
    """Return the one row with these values."""
    found = frame.filter(*(pl.col(name) == value for name, value in values.items()))
    assert found.height == 1, found
    return found.to_dicts()[0]
