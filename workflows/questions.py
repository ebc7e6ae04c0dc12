r"""Mathematical questions with LaTeX answers, as a file of JSON Lines.

It reads nothing and writes 12 questions of each kind, always the same ones, with `question`,
`answer`, `verify_type` (MATH), `kind` and `level` (1 easy, 2 harder). It has made
`data/questions/latex.jsonl`.

A rule that knows which expressions are equal accepts an answer that only repeats the question:
`\frac{6}{8}` is a right answer to "reduce $\frac{6}{8}$". So no question here shows an expression
that equals its answer.

    python -m workflows.questions --output data/questions/latex.jsonl
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Annotated, Any

import typer

from common.command import Debug, Json, launch, tell_result
from common.errors import UserError
from common.runs.manifest import write_atomically
from workflows.question_kinds import EASY, HARDER, Kind

PER_KIND = 12


def main(
    output: Annotated[Path, typer.Option("--output", help="The JSONL file to write.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the questions."""
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: name a file in a folder that exists")
    rows = questions()
    write_atomically(output, "".join(f"{json.dumps(row)}\n" for row in rows).encode())
    facts = {"output": str(output), "questions": len(rows), "kinds": len(EASY) + len(HARDER)}
    line = f"{output}: {len(rows)} questions of {facts['kinds']} kinds"
    tell_result(facts, line, as_json=as_json)


def questions() -> list[dict[str, Any]]:
    """Return all questions, each once: first the easy, then the harder ones, kinds taking turns."""
    rows = []
    for level, kinds in enumerate((EASY, HARDER), start=1):
        turns = zip(*(_draw(kind, level) for kind in kinds), strict=True)
        rows += [row for turn in turns for row in turn]
    return rows


def _draw(kind: Kind, level: int) -> list[dict[str, Any]]:
    """Draw distinct questions of a kind, which are the same whatever other kinds there are."""
    draw = random.Random(kind.__name__).randint
    found: dict[str, str] = {}
    while len(found) < PER_KIND:
        question, answer = kind(draw)
        found[question] = answer
    rest = {"verify_type": "MATH", "kind": kind.__name__, "level": level}
    return [{"question": q, "answer": a, **rest} for q, a in found.items()]


if __name__ == "__main__":
    launch(main)
