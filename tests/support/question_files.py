"""Files of questions, and what is read from them."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from common.config import DatasetSource, RewardsConfig
from common.errors import UserError
from common.rewards.scorer import Scorer
from common.tasks.prompts import Prompt
from common.tasks.sources import Prompts, read_sources

unreadable_golds = Scorer(RewardsConfig()).unreadable_golds


ORIGINAL_ROWS = [
    {
        "question": f"Task A takes {i} days. What is the smallest total number of days required?",
        "answer": str(i),
        "verify_type": "LAST_NUMBER",
    }
    for i in range(1, 41)
]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path | str, **settings: Any) -> Prompts:
    source = DatasetSource(path=str(path), **({"eval": 0} | settings))
    return read_sources({"mine": source}, unreadable_golds)


def faults(path: Path | str, **settings: Any) -> str:
    with pytest.raises(UserError) as raised:
        read(path, **settings)
    return str(raised.value)


def pairs(prompts: list[Prompt]) -> list[tuple[str, str]]:
    return [(prompt.question, prompt.answer) for prompt in prompts]


def write_kind(kind: str, tmp_path: Path) -> Path:
    """Write the original rows as a file or folder of this kind and return its path."""
    path = tmp_path / f"rows.{kind}"
    frame = pl.DataFrame(ORIGINAL_ROWS)
    if kind == "jsonl":
        write_lines(path, ORIGINAL_ROWS)
    elif kind == "json":
        path.write_text(json.dumps(ORIGINAL_ROWS, indent=2))
    elif kind == "parquet":
        frame.write_parquet(path)
    elif kind == "csv":
        frame.write_csv(path)
    elif kind == "folder":
        path.mkdir()
        write_lines(path / "a.jsonl", ORIGINAL_ROWS[:10])
        frame[10:25].write_parquet(path / "b.parquet")
        frame[25:].write_csv(path / "c.csv")
        (path / "README.md").write_text("about the data")
    elif kind in ("dataset", "splits"):
        from datasets import Dataset, DatasetDict

        rows = Dataset.from_list(ORIGINAL_ROWS)
        (DatasetDict(train=rows, test=rows) if kind == "splits" else rows).save_to_disk(path)
    return path
