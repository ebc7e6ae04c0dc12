"""Scheduling of jobs with prerequisites; the answer is the length of the critical path."""

import math
from typing import Any

from pydantic import Field, model_validator

from common.tasks.question import (
    Difficulty,
    Question,
    Space,
    Split,
    draw,
    read_difficulty,
    unravel,
)

NAMES = "ABCDEFGHIJ"
ENDING = (
    "Tasks can run at the same time. "
    "What is the smallest total number of days required to complete every task?"
)


class SchedulingDifficulty(Difficulty):
    """The number of tasks and their durations set the difficulty."""

    min_tasks: int = Field(default=2, ge=1, le=len(NAMES))
    """Number of tasks of the smallest schedule."""

    max_tasks: int = Field(default=4, ge=1, le=len(NAMES))
    """Number of tasks of the largest schedule; each size comes equally often."""

    max_duration: int = Field(default=9, ge=1, le=1000)
    """Longest duration of a task in days; the shortest is 1."""

    @model_validator(mode="after")
    def _ordered(self) -> "SchedulingDifficulty":
        if self.min_tasks > self.max_tasks:
            raise ValueError(f"min_tasks {self.min_tasks} exceeds max_tasks {self.max_tasks}")
        return self


def generate(count: int, *, split: Split, seed: int, **difficulty: Any) -> list[Question]:
    """Draw `count` distinct questions; schedules that differ in names only share a split.

    Raises:
        UserError: a difficulty key or value is not allowed, or there are too few questions.
    """
    settings = read_difficulty(SchedulingDifficulty, "scheduling", difficulty)
    sizes = range(settings.min_tasks, settings.max_tasks + 1)
    spaces = [_space(tasks, settings.max_duration) for tasks in sizes]
    return draw(spaces, count, split, seed, "scheduling")


def finish_days(durations: list[int], prerequisites: list[list[int]]) -> list[int]:
    """Return the earliest day on which each task is done.

    Prerequisites have lower indices than the task that needs them.
    """
    finishes: list[int] = []
    for duration, needed in zip(durations, prerequisites, strict=True):
        finishes.append(max((finishes[i] for i in needed), default=0) + duration)
    return finishes


def _space(tasks: int, max_duration: int) -> Space:
    pairs = [(task, earlier) for task in range(tasks) for earlier in range(task)]
    radices = (*[max_duration] * tasks, *[2] * len(pairs))

    def decode(index: int) -> tuple[str, Question]:
        digits = unravel(index, radices)
        durations = [digit + 1 for digit in digits[:tasks]]
        prerequisites: list[list[int]] = [[] for _ in range(tasks)]
        for (task, earlier), needed in zip(pairs, digits[tasks:], strict=True):
            if needed:
                prerequisites[task].append(earlier)
        question = Question(
            task="scheduling",
            question=_wording(durations, prerequisites),
            answer=str(max(finish_days(durations, prerequisites))),
            verify_type="ANSWER_TAG",
            metadata={"durations": durations, "prerequisites": prerequisites},
        )
        return f"scheduling {_signature(durations, prerequisites)}", question

    return Space(math.prod(radices), decode)


def _wording(durations: list[int], prerequisites: list[list[int]]) -> str:
    sentences = []
    for name, duration, needed in zip(NAMES, durations, prerequisites, strict=False):
        takes = f"Task {name} takes {duration} {'day' if duration == 1 else 'days'}"
        needs = " and ".join(NAMES[i] for i in needed)
        sentences.append(f"{takes} and needs {needs}." if needed else f"{takes}.")
    return " ".join([*sentences, ENDING])


def _signature(durations: list[int], prerequisites: list[list[int]]) -> str:
    """Return a text that is free of task names: each task is written by what it depends on."""
    signatures: list[str] = []
    for duration, needed in zip(durations, prerequisites, strict=True):
        signatures.append(f"{duration}({','.join(sorted(signatures[i] for i in needed))})")
    return ",".join(sorted(signatures))
