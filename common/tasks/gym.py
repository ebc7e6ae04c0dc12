"""Questions of reasoning-gym's data sets (https://github.com/open-thought/reasoning-gym).

Each question's answer is the whole entry, which the verify type REASONING_GYM lets the data set
score; under another verify type it is the answer that the entry gives. The package is not imported
here: a process of its own draws (`gym_draw.py`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import IO, Any

from common.config import GymSource
from common.console import bar, say
from common.errors import MissingToolError, UserError
from common.runs.layout import REPOSITORY
from common.tasks.prompts import Prompt, UnreadableGolds

SAMPLE_SECONDS, LONG_SECONDS = 3.0, 30.0
"""A draw that by its first seconds will take longer than the second number is announced."""


def read_gym(
    task: str, source: GymSource, unreadable_golds: UnreadableGolds, notices: list[str]
) -> tuple[list[Prompt], list[Prompt]]:
    """Distinct questions for training and for evaluation.

    The evaluation questions are the first ones, so that asking for more training questions leaves
    them as they are; no training question is one of them with its numbers in another order. The
    same source gives the same questions. Entries that cannot tell right from wrong are left out,
    with a notice.

    Raises:
        MissingToolError: reasoning-gym is not installed.
        UserError: the data set does not exist, refuses its config, fails, has too few distinct
            questions, or answers that the verify type cannot read.
    """
    if find_spec("reasoning_gym") is None:
        raise MissingToolError(f"data.{task} needs the package reasoning-gym: `make extras`")
    request = source.model_dump(include={"dataset", "config", "seed", "train", "eval"})
    *lines, end = _draw(task, request | {"task": task, "scored": _scores_itself(source)})
    if end["faulty"]:
        notices.append(
            f"data.{task}: left out {end['faulty']} entries of {source.dataset}, the last of which "
            f"{end['fault']}"
        )
    if len(lines) < source.train + source.eval:
        raise UserError(_too_few(task, source, len(lines), end))
    prompts = [_prompt(task, source, line) for line in lines]
    _check_golds(task, source, prompts, unreadable_golds)
    return prompts[source.eval :], prompts[: source.eval]


def _draw(task: str, request: dict[str, Any]) -> list[dict[str, Any]]:
    """What the drawing process says, its end line last."""
    lines: list[dict[str, Any]] = []
    count = request["train"] + request["eval"]
    with (
        tempfile.TemporaryFile() as complaints,
        _drawing(request, complaints) as process,
        bar(f"drawing {task}", count) as shown,
    ):
        assert process.stdout
        started, announced = 0.0, False
        for text in process.stdout:
            lines.append(json.loads(text))
            started = started or time.monotonic()  # the package's import is not of the drawing
            if "error" in lines[-1]:
                raise UserError(lines[-1]["error"])
            shown.advance()
            passed = time.monotonic() - started
            if not announced and passed > SAMPLE_SECONDS:
                announced, expected = True, passed / len(lines) * count
                if expected > LONG_SECONDS:
                    say(f"data.{task}: drawing takes about {expected / 60:.1f} minutes")
        if not lines or "drawn" not in lines[-1]:
            code = process.wait()
            raise UserError(
                f"data.{task}: the process that draws {request['dataset']} ended with {code}: "
                f"{_last_line(complaints)}"
            )
    return lines


def _last_line(complaints: IO[bytes]) -> str:
    complaints.seek(0)
    lines = complaints.read().decode(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "it says nothing")


@contextmanager
def _drawing(request: dict[str, Any], complaints: IO[bytes]) -> Iterator[subprocess.Popen[str]]:
    """A drawing process, which ends with the context; `complaints` is its standard error."""
    with subprocess.Popen(
        [sys.executable, "-m", "common.tasks.gym_draw"],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONHASHSEED": "0"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=complaints,
        text=True,
        encoding="utf-8",
    ) as process:
        assert process.stdin
        try:
            process.stdin.write(json.dumps(request))
            process.stdin.close()
            yield process
        finally:
            process.kill()


def _prompt(task: str, source: GymSource, line: dict[str, Any]) -> Prompt:
    metadata = {"dataset": source.dataset, "index": line["index"]}
    if line["difficulty"] is not None:
        metadata["difficulty"] = line["difficulty"]
    return Prompt(
        task=task,
        messages=[{"role": "user", "content": line["question"]}],
        answer=line["entry"] if _scores_itself(source) else line["answer"],
        verify_type=source.verify_type,
        metadata=metadata,
        where=f"data.{task}",
    )


def _scores_itself(source: GymSource) -> bool:
    return source.verify_type == "REASONING_GYM"


def _check_golds(
    task: str, source: GymSource, prompts: list[Prompt], unreadable_golds: UnreadableGolds
) -> None:
    if _scores_itself(source):
        return  # the drawing process left out what cannot be scored
    wrong = unreadable_golds([(prompt.verify_type, prompt.answer) for prompt in prompts])
    for prompt, reason in zip(prompts, wrong, strict=True):
        if reason:
            raise UserError(
                f"data.{task}.verify_type = {source.verify_type!r}: {source.dataset} at index "
                f"{prompt.metadata['index']}: {reason}; take another rule, or leave the key out to "
                "let the data set score"
            )


def _too_few(task: str, source: GymSource, found: int, end: dict[str, Any]) -> str:
    asked = f"data.{task}: train = {source.train} and eval = {source.eval}"
    if not found and end["faulty"]:
        return f"{asked}, but an entry of {source.dataset} {end['fault']}; take another data set"
    alike = f" and {end['alike']} that are evaluation questions with numbers in another order"
    return (
        f"{asked}, but with this config {source.dataset} gave {found} distinct questions"
        f"{alike if end['alike'] else ''} in {end['drawn']} entries; ask for fewer, or widen "
        f"data.{task}.config"
    )
