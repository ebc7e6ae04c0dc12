"""Gold answers as text: how one cell of a data set becomes the `answer` of a row, and back.

A row has one column `answer` of text. Several golds, of which any is right, stand in it as
`{"any_of": ["4", "four"]}`: a form of its own, since a list such as `[0, 1]` is a gold by itself,
an interval.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from common.errors import UserError
from common.tasks.columns import plain
from common.tasks.records import as_text

STRUCTURED = ("CODE", "REASONING_GYM", "JSON_SCHEMA", "IFEVAL", "SQL")
"""Verify types whose golds are JSON: a column may hold the value itself instead of its text."""

ONE_GOLD = (*STRUCTURED, "JUDGE")
"""Verify types of which a row has a single gold."""

OWN_COLUMNS = {"IFEVAL": ("instruction_id_list", "kwargs")}
"""Verify types whose golds published data sets keep in columns of these names, which are read where
there is no answer column."""

_ANY_OF = "any_of"


def gold_text(value: Any, verify_type: str) -> str:
    """Return the text of a row's `answer` for the value that a data set holds.

    Text stays as it is, and numbers are written out. A list of one element is that element; a list
    of several becomes several golds. Under a verify type whose golds are JSON, a list or an object
    is written as JSON.

    Raises:
        UserError: the value is none of these, or the verify type takes a single gold.
    """
    if verify_type in STRUCTURED and isinstance(value, (list, dict)):
        return json.dumps(plain(value))
    if not isinstance(value, (list, tuple)):
        return _one(value)
    golds = list(dict.fromkeys(_one(gold) for gold in value))
    if not golds:
        raise UserError("holds an empty list; give at least one gold answer")
    if len(golds) > 1 and verify_type in ONE_GOLD:
        raise UserError(f"holds {len(golds)} gold answers, and {verify_type} takes one")
    return join_golds(golds)


def join_golds(golds: Sequence[str]) -> str:
    """Return several golds as one text, and a single one as it is."""
    if len(golds) == 1:
        return golds[0]
    return json.dumps({_ANY_OF: list(golds)}, ensure_ascii=False)


def split_golds(answer: str, verify_type: str) -> list[str]:
    """Return the golds of an `answer`: those of `{"any_of": […]}`, or else the text itself."""
    if verify_type in ONE_GOLD or not answer.lstrip().startswith("{"):
        return [answer]
    try:
        content = json.loads(answer)
    except (ValueError, RecursionError):
        return [answer]
    golds = content.get(_ANY_OF) if isinstance(content, dict) and len(content) == 1 else None
    well_formed = isinstance(golds, list) and all(isinstance(gold, str) for gold in golds)
    return golds if golds and well_formed else [answer]


def _one(value: Any) -> str:
    text = as_text(value)
    if not text.strip():
        raise UserError("is empty; fill it in, or leave the row out")
    return text
