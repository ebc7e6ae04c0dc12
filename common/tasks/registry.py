"""The built-in generated tasks by name."""

from dataclasses import dataclass
from typing import Any, Protocol

from common.errors import UserError
from common.tasks import counting, multiplication, scheduling
from common.tasks.question import Difficulty, Question, Split


class Generator(Protocol):
    """A function that draws `count` distinct questions of a split, determined by its arguments."""

    def __call__(
        self, count: int, *, split: Split, seed: int, **difficulty: Any
    ) -> list[Question]: ...


@dataclass(frozen=True)
class Task:
    """A generator and the keys that set its difficulty."""

    generate: Generator
    difficulty: type[Difficulty]


TASKS: dict[str, Task] = {
    "multiplication": Task(multiplication.generate, multiplication.MultiplicationDifficulty),
    "counting": Task(counting.generate, counting.CountingDifficulty),
    "scheduling": Task(scheduling.generate, scheduling.SchedulingDifficulty),
}


def get_task(name: str) -> Task:
    """Return the task called `name`.

    Raises:
        UserError: there is no such task; the message lists the known ones.
    """
    if name not in TASKS:
        raise UserError(f"unknown task {name!r}; known tasks: {', '.join(TASKS)}.")
    return TASKS[name]
