"""An entry of a reasoning-gym data set: written as the row's `answer`, read back, and scored.

Scoring an answer takes the whole entry and the keys that its data set was made with, so both go
into the row, which then needs nothing else. reasoning-gym takes a second to import and is imported
when an entry is scored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from pydantic import TypeAdapter

from common.errors import UserError

NONSENSE = "I do not know."
"""Right under no question; a data set that accepts it accepts everything."""

_EXAMPLES = ("possible_answer", "example_answer", "example_correct_answer")
"""Keys of the metadata under which an entry without one answer has an example."""

_ARITHMETIC = r"(?:[-+()0-9 \t]|\*(?!\*)|/(?!/)){1,2000}"
_FUNCTIONS = "sin|cos|tan|sec|csc|cot|asin|acos|atan|sinh|cosh|tanh|exp|log|ln|sqrt|Abs|pi"
_FORMULA = (
    rf"(?:[-+*/()0-9 \t]|(?<=[0-9])\.(?=[0-9])"
    rf"|(?<![A-Za-z])(?:{_FUNCTIONS}|[A-Za-z])(?![A-Za-z])){{1,2000}}"
)

# reasoning-gym gives answers to `eval`, or to sympy's `parse_expr`, which evaluates: none of these
# patterns lets through what could call or look up anything but a function of mathematics. It also
# takes NaN for near to every number in two data sets.
_READABLE = {
    name: re.compile(pattern)
    for name, pattern in {
        "countdown": _ARITHMETIC,
        "puzzle24": _ARITHMETIC,
        "polynomial_multiplication": _FORMULA,
        "simple_integration": _FORMULA,
        "intermediate_integration": _FORMULA,
        "binary_matrix": r"[0-9\s\[\],-]+",
        "spiral_matrix": r"[0-9\s\[\],-]+",
        "n_queens": r"""[Q_\s\[\],'"]+""",
        "string_insertion": r"""[A-Za-z\s\[\],'"]+""",
        "complex_arithmetic": r"[0-9ij\s.()+-]+",
        "number_sorting": r"""[0-9\s\[\],'".+-]+""",
    }.items()
}


@dataclass(frozen=True)
class Entry:
    """A question of a data set, with all that its scoring needs."""

    values: Mapping[str, Any]
    """`question`, `answer` and `metadata` as reasoning-gym made them."""
    config: Mapping[str, Any]
    """Keys of the data set that were not left at their defaults."""

    @property
    def dataset(self) -> str:
        """Name of the data set that made it and scores it."""
        return str(self.values["metadata"]["source_dataset"])

    def own_answer(self) -> str | None:
        """A right answer; None for the data sets that give none."""
        metadata = self.values["metadata"]
        answers = [self.values["answer"], *(metadata.get(key) for key in _EXAMPLES)]
        answer = next((answer for answer in answers if answer is not None), None)
        return json.dumps(answer) if isinstance(answer, dict) else answer and str(answer)

    def write(self) -> str:
        """As JSON that `read_entry` reads back equal."""
        config = {"config": dict(self.config)} if self.config else {}
        return json.dumps(_encode(dict(self.values) | config))


def read_entry(text: str) -> Entry:
    """Read what `Entry.write` wrote, or an entry that was dumped as plain JSON.

    Raises:
        UserError: "is no …", for a message that begins with what was to be read.
    """
    try:
        values = json.loads(text, object_hook=_decode)
    except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
        raise UserError(f"is no JSON: {error}") from None
    if not isinstance(values, dict) or not {"question", "answer", "metadata"} <= values.keys():
        raise UserError("is no JSON object with question, answer and metadata")
    metadata = values["metadata"]
    if not isinstance(metadata, dict) or not isinstance(metadata.get("source_dataset"), str):
        raise UserError("does not name its data set in metadata.source_dataset")
    config = values.pop("config", {})
    if not isinstance(config, dict):
        raise UserError("has a config that is no JSON object")
    return Entry(values, config)


def score(entry: Entry, answer: str) -> float:
    """What the entry's data set gives for `answer`, from 0 to 1.

    An answer that makes the scorer raise cannot be read, and is worth 0; so is one that would be
    evaluated and holds more than a formula, and one whose score is no number.

    Raises:
        UserError: the data set is unknown, or refuses the entry's config.
    """
    dataset = _open(entry.dataset, json.dumps(_encode(entry.config)))
    readable = _READABLE.get(entry.dataset)
    if readable and not readable.fullmatch(answer):
        return 0.0
    try:
        if entry.dataset == "puzzle24" and not _uses_the_numbers(entry, answer):
            return 0.0
        # Some scorers write into the entry.
        value = float(dataset.score_answer(answer, deepcopy(dict(entry.values))))
    except Exception:
        return 0.0
    return min(value, 1.0) if value > 0 else 0.0


def fault_of(entry: Entry) -> str | None:
    """Why the entry cannot tell right from wrong; None if it can.

    Raises:
        UserError: as `score` does.
    """
    own = entry.own_answer()
    if own is not None and (value := score(entry, own)) < 1:
        return f"scores its own answer {value:g}, not 1"
    if score(entry, NONSENSE) == 1:
        return f"scores any answer 1 ({NONSENSE!r}, for one)"
    return None


def make_dataset(name: str, config: Mapping[str, Any], **others: Any) -> Any:
    """A data set of reasoning-gym, of which `name` is known.

    `others` are its `seed` and `size`. Raises whatever it raises about its keys.
    """
    from reasoning_gym.factory import DATASETS

    dataset_type, config_type = DATASETS[name]
    settings = TypeAdapter(config_type).validate_python({**config, **others})
    return dataset_type(config=settings)


@lru_cache(maxsize=128)
def _open(name: str, config: str) -> Any:
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        raise UserError(f"is of the data set {name!r}, which reasoning-gym does not have")
    try:
        return make_dataset(name, json.loads(config, object_hook=_decode))
    except Exception as error:
        raise UserError(f"has a config that {name} refuses: {error}") from None


def _uses_the_numbers(entry: Entry, answer: str) -> bool:
    """puzzle24 itself would take 6*4*1*1 for any question."""
    used = sorted(int(number) for number in re.findall("[0-9]+", answer))
    return used == sorted(entry.values["metadata"]["numbers"])


def _encode(value: Any) -> Any:
    """`value` as JSON has it, with marks where JSON would lose the type.

    Raises:
        TypeError: it cannot be written.
    """
    if value is None or isinstance(value, bool):
        return value
    for plain in (int, float):
        if isinstance(value, plain):
            return plain(value)
    if isinstance(value, str):
        return str.__str__(value)  # of an Enum, str() would give the name
    if isinstance(value, list):
        return [_encode(item) for item in value]
    if isinstance(value, tuple):
        return {"$tuple": [_encode(item) for item in value]}
    if isinstance(value, Fraction):
        return {"$fraction": [value.numerator, value.denominator]}
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: _encode(item) for key, item in value.items()}
        return {"$dict": [[_encode(key), _encode(item)] for key, item in value.items()]}
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _decode(marked: dict[str, Any]) -> Any:
    if len(marked) == 1:
        (mark, value), *_ = marked.items()
        if mark == "$tuple":
            return tuple(value)
        if mark == "$fraction":
            return Fraction(*value)
        if mark == "$dict":
            return dict(value)
    return marked
