"""A recipe of thirty sums, and what `prepare` makes of it or says about it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import UserError
from stages import prepare

ROWS = [
    {"question": f"What is {i} + {i}?", "answer": f"{i}+{i} is {2 * i}\n#### {2 * i}"}
    for i in range(30)
]
RECIPE = """\
[model]
path = "{policy}"
[data.sums]
kind = "dataset"
path = "{data}"
eval = 10
answer_pattern = '####\\s*(.+)'
verify_type = "LAST_NUMBER"
"""


def write_data(folder: Path) -> Path:
    path = folder / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def write_recipe(folder: Path, policy: Path, data: Path) -> Path:
    path = folder / "sums.toml"
    path.write_text(RECIPE.format(policy=policy, data=data))
    return path


def written(runs: Path) -> list[str]:
    """Return the files of all runs, except recipes."""
    return sorted(
        str(p.relative_to(runs))
        for p in runs.rglob("*")
        if p.is_file() and not p.name.startswith("recipe")
    )


def refusal(recipe: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as raised:
        prepare.main("a", recipe=recipe, overrides=list(overrides))
    return str(raised.value)
