"""The files that `workflows.suites` reads: cases of this project, and others' as they publish them.

Nothing here runs what a file holds: Python tests of others are parsed, and their literals are read.
"""

from __future__ import annotations

import ast
import hashlib
import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.rewards.answer_part import last_box
from common.rewards.number import value_of

FOLDER = Path(__file__).parents[1] / "data" / "suites"
OWN_PAIRS = FOLDER / "math_cases.txt"
STYLES = FOLDER / "styles.toml"
POLICY = FOLDER / "policy.toml"
MARKED = {"BOXED_NUMERICAL": r"\boxed", "ANSWER_TAG": "<answer>"}
"""What a text must have for a rule to find an answer in it."""
RULES = ("MATH", "LAST_NUMBER", *MARKED)


@dataclass(frozen=True)
class Case:
    """A completion, its gold, and whether it is right."""

    text: str
    gold: str
    is_right: bool
    rule: str = "MATH"

    @property
    def key(self) -> str:
        """A name for the case that does not repeat it."""
        return hashlib.sha256(f"{self.gold}\0{self.text}".encode()).hexdigest()[:12]


def read_pairs(path: Path) -> list[tuple[str, str, bool]]:
    """Return (answer, gold, whether they are the same) of each line `= answer ‖ gold`, or `≠`."""
    lines = path.read_text("utf-8").splitlines()
    pairs = [(line[0] == "=", line[2:].split(" ‖ ")) for line in lines if line[:2] in ("= ", "≠ ")]
    return [(answer, gold, is_same) for is_same, (answer, gold) in pairs]


def pair_cases(path: Path) -> list[Case]:
    """Return the pairs of a file, the answer in a box."""
    pairs = read_pairs(path)
    return [Case(f"So it is \\boxed{{{answer}}}.", gold, same) for answer, gold, same in pairs]


def right_styles() -> list[dict[str, Any]]:
    """Return the styles of right answers: `name`, `text` with {} for the answer, `rules`."""
    return list(_styles()["right"])


def style_cases(rule: str, golds: list[str]) -> list[Case]:
    """Return each gold in all styles of right answers that a rule must pass."""
    texts = [style["text"] for style in right_styles() if rule in style["rules"]]
    return [Case(text.replace("{}", gold), gold, True, rule) for text in texts for gold in golds]


def notation_cases(golds: list[str]) -> list[Case]:
    """Return each gold in all styles that set it as mathematics, for golds that are no numbers."""
    styles = [style["text"] for style in right_styles() if style.get("notation")]
    plain = [(gold, gold.strip().strip("$")) for gold in golds]
    return [
        Case(text.replace("{}", inner), gold, True)
        for text in styles
        for gold, inner in plain
        if "$" not in inner
    ]


def changed_cases(rule: str) -> list[Case]:
    """Return texts that change an answer, deny it or give another beside it."""
    wrong = _styles()["wrong"]
    marks = [mark for mark in wrong["marks"] if MARKED.get(rule, "") in mark]
    return [
        Case(text.replace("{}", mark).replace("{}", gold), gold, False, rule)
        for text in wrong["texts"]
        for mark in marks
        for gold in wrong["golds"]
    ]


def own_golds() -> list[str]:
    """Return the numbers that styles are tried with when no golds are given."""
    return list(_styles()["golds"])


def _styles() -> dict[str, Any]:
    return tomllib.loads(STYLES.read_text("utf-8"))


def policy() -> dict[str, str]:
    """Return why cases of others are judged otherwise here on purpose, by the cases' keys."""
    reasons = tomllib.loads(POLICY.read_text("utf-8"))
    return {key: reason for reason, keys in reasons.items() for key in keys}


# Files of others


def read_golds(path: Path) -> list[str]:
    """Return the golds of a data set in JSON Lines.

    A gold is the row's `final_answer`, what stands after #### in `answer`, `answer`, or the last
    box of `solution`, as the data sets of Qwen2.5-Math's evaluation have it.
    """
    return [_gold_of(row, path) for row in _rows(path)]


def _gold_of(row: dict[str, Any], path: Path) -> str:
    if isinstance(row.get("final_answer"), list):
        return ", ".join(map(str, row["final_answer"]))
    answer = row.get("answer")
    if answer is not None:
        return str(answer).rpartition("####")[2].strip()
    gold = last_box(str(row.get("solution", "")))
    if gold is None:
        raise UserError(f"{path}: a row has no `answer` and no box in its `solution`")
    return gold


def read_solutions(path: Path, rule: str) -> list[Case]:
    """Return GSM8K's sample solutions with their labels (`example_model_solutions.jsonl`)."""
    cases: list[Case] = []
    for row in _rows(path):
        gold = str(row.get("ground_truth", "")).rpartition("A: ")[2].strip()
        samples = [one for one in row.values() if isinstance(one, dict) and "is_correct" in one]
        cases += [Case(one["solution"], gold, bool(one["is_correct"]), rule) for one in samples]
    return cases


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text("utf-8").splitlines()
        return [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON Lines: {error}") from None


def read_test_file(path: Path) -> list[Case]:
    """Return the cases of a Python file of tests, in one of two forms.

    They are pytest's `parametrize("gold,pred,expected", […])`, as in Math-Verify, and unittest's
    with `test_in` and `test_out`, as in hendrycks/math. Tests with more arguments, which try the
    options of another judge, are left out.
    """
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as Python: {error}") from None
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return [case for function in functions for case in _cases_of(function)]


def _cases_of(function: ast.FunctionDef) -> Iterator[Case]:
    for decorator in function.decorator_list:
        match decorator:
            case ast.Call(ast.Attribute(attr="parametrize"), [ast.Constant(str(names)), rows]):
                order = [name.strip() for name in names.split(",")]
                if sorted(order) == ["expected", "gold", "pred"] and isinstance(rows, ast.List):
                    for values in filter(None, map(_literal, rows.elts)):
                        named = dict(zip(order, values, strict=True))
                        yield Case(named["pred"], named["gold"], bool(named["expected"]))
    named = {
        node.targets[0].id: _literal(node.value)
        for node in function.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    asserted = {node.attr for node in ast.walk(function) if isinstance(node, ast.Attribute)}
    if {"test_in", "test_out"} <= named.keys() and asserted & {"assertTrue", "assertFalse"}:
        answer = f"\\boxed{{{named['test_in']}}}"
        yield Case(answer, named["test_out"], "assertTrue" in asserted)


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return None


def are_numbers(golds: list[str]) -> bool:
    """Return whether all golds are plain numbers."""
    return all(value_of(gold) is not None for gold in golds)
