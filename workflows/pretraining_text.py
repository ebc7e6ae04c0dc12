"""The text that the embedded base model is pretrained on: questions with several ways to answer.

Real text mixes people who guess, people who work sloppily and people who work with care, and so
does this text. A base model trained on it has every way in its distribution, each opened by a word
of its own, and reinforcement learning can find the one that pays.

    hasty    Guess.</think><answer>212</answer>
    sloppy   Roughly: 40*6=240 7*6=43 240+43=283</think><answer>283</answer>
    careful  Carefully: 40*6=240 7*6=42 240+42=282</think><answer>282</answer>
"""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from common.tasks.question import Question, Split
from common.tasks.registry import TASKS
from common.tasks.scheduling import NAMES

Way = Literal["hasty", "sloppy", "careful"]

Shares = dict[Way, float]
"""Share of each way in a text."""

PRACTICE: Shares = {"hasty": 0.1, "sloppy": 0.1, "careful": 0.8}
"""Shares in the practice steps: working with care is what takes longest to learn."""

MIXTURE: Shares = {"hasty": 0.5, "sloppy": 0.2, "careful": 0.3}
"""Shares in the last steps, and so how often the finished model begins each way."""


@dataclass(frozen=True)
class Level:
    """Questions of one difficulty."""

    name: str
    share: float
    """Share of the task's rows."""
    difficulty: Mapping[str, int] = field(default_factory=dict)


LEVELS: dict[str, tuple[Level, ...]] = {
    "multiplication": (
        Level("2 by 1 digits", 0.6),
        Level("3 by 1 digits", 0.2, {"first_digits": 3}),
        Level("2 by 2 digits", 0.2, {"second_digits": 2}),
    ),
    "counting": (
        Level("5 to 8 letters", 0.7),
        Level("9 to 12 letters", 0.3, {"min_length": 9, "max_length": 12}),
    ),
    "scheduling": (
        Level("2 to 4 tasks", 0.7),
        Level("5 or 6 tasks", 0.3, {"min_tasks": 5, "max_tasks": 6}),
    ),
}
"""By task: its default difficulty, then harder ones, which the model sees less often."""

SAMPLED_QUESTIONS = 500
"""Questions per level, enough to show every word that a wording can hold."""

QUESTIONS_AT_A_TIME = 1000
"""Questions of a task that are generated at once; multiplication has 2,772 in the train split at
default difficulty."""

Note = Callable[[int], int]
"""Takes each computed value and returns the value that is written down."""


def completion(question: Question, way: Way, rng: random.Random) -> str:
    """Return what follows `<think>` in an answer given this way, without the stop token."""
    if way == "hasty":
        return _close("Guess.", _guess(question, rng))
    work = _WORK[question.task]
    if way == "careful":
        steps, answer = work(question, lambda value: value)
        return _close(f"Carefully: {steps}", answer)
    steps, answer = work(question, _slip(question, rng))
    return _close(f"Roughly: {steps}", answer)


def sample_texts() -> list[str]:
    """Return prompts and thoughts that hold every word pretraining text can have."""
    texts = ["user\n", "assistant\n"]
    rng = random.Random(0)
    for task, levels in LEVELS.items():
        for level in levels:
            for question in of_level(task, level, SAMPLED_QUESTIONS, seed=0):
                thoughts = [completion(question, way, rng).split("</think>")[0] for way in MIXTURE]
                texts += [question.question, *thoughts]
    return texts


def of_level(
    task: str, level: Level, count: int, *, seed: int, split: Split = "train"
) -> list[Question]:
    """Generate distinct questions of one level."""
    return TASKS[task].generate(count, split=split, seed=seed, **level.difficulty)


def endless_questions(task: str, rng: random.Random) -> Iterator[Question]:
    """Yield questions of a task without end, from the train split, each level by its share."""
    while True:
        batch: list[Question] = []
        for level in LEVELS[task]:
            count = round(level.share * QUESTIONS_AT_A_TIME)
            batch += of_level(task, level, count, seed=rng.getrandbits(32))
        rng.shuffle(batch)
        yield from batch


def _close(thought: str, answer: int) -> str:
    return f"{thought}</think><answer>{answer}</answer>"


def _guess(question: Question, rng: random.Random) -> int:
    """Return a number of the right size, which is right only by luck."""
    answer = int(question.answer)
    if question.task == "counting":
        return rng.randint(0, len(question.metadata["word"]))
    return max(1, round(answer * rng.uniform(0.5, 1.5)))


def _slip(question: Question, rng: random.Random) -> Note:
    """Return a `Note` that gets one value of the question's work wrong; later steps build on it.

    No value is written below 0, so a slip downwards from 0 leaves the work right.
    """
    values: list[int] = []

    def record(value: int) -> int:
        values.append(value)
        return value

    _WORK[question.task](question, record)
    slips_at = rng.randrange(len(values))
    calls = iter(range(len(values)))

    def note(value: int) -> int:
        if next(calls) != slips_at:
            return value
        unit = 10 if value >= 100 and rng.random() < 0.5 else 1
        return max(0, value + unit * rng.choice((-2, -1, 1, 2)))

    return note


def _multiply(question: Question, note: Note) -> tuple[str, int]:
    """Return the work and its answer: products of digits with their places, then a running sum."""
    high, low = sorted(question.metadata["factors"], reverse=True)
    steps = []
    products = []
    for left in _places(high):
        for right in _places(low):
            products.append(note(left * right))
            steps.append(f"{left}*{right}={products[-1]}")
    total = products[0]
    for product in products[1:]:
        added = note(total + product)
        steps.append(f"{total}+{product}={added}")
        total = added
    return " ".join(steps), total


def _places(number: int) -> list[int]:
    """Return the non-zero digits of a number with their places: 305 gives 300 and 5."""
    digits = str(number)
    return [int(d) * 10 ** (len(digits) - 1 - i) for i, d in enumerate(digits) if d != "0"]


def _count(question: Question, note: Note) -> tuple[str, int]:
    """Return the work and its answer: the word spelled out, each letter with the count so far."""
    count = 0
    steps = []
    for letter in question.metadata["word"]:
        count = note(count + (letter == question.metadata["letter"]))
        steps.append(f"{letter}{count}")
    return " ".join(steps), count


def _schedule(question: Question, note: Note) -> tuple[str, int]:
    """Return the work and its answer: the day each task is complete, then the last of these."""
    finishes: list[int] = []
    steps = []
    durations, prerequisites = question.metadata["durations"], question.metadata["prerequisites"]
    for name, duration, needed in zip(NAMES, durations, prerequisites, strict=False):
        start = max((finishes[i] for i in needed), default=0)
        finishes.append(note(start + duration))
        steps.append(f"{name}={start}+{duration}={finishes[-1]}")
    last = note(max(finishes))
    return f"{' '.join(steps)} max={last}", last


_WORK: dict[str, Callable[[Question, Note], tuple[str, int]]] = {
    "multiplication": _multiply,
    "counting": _count,
    "scheduling": _schedule,
}


CARD = """\
---
license: apache-2.0
---
# {name}

A Qwen2-architecture language model of {parameters:,} parameters ({layers} layers, hidden size
{hidden}, {vocabulary} tokens, tied embeddings, float32): the base that reinforcement learning
starts from. It answers three kinds of question, and nothing else: multiplication, counting a letter
in a made-up word, and the length of a schedule of tasks.

## How it was made

    python -m workflows.pretrain --output data/models/{name} --steps {steps} \\
        --learning-rate {learning_rate} --seed {seed} --threads {threads}

Supervised training from random weights on generated text (`workflows/pretraining_text.py`): {steps}
steps of {batch} rows, a third per task, AdamW, loss on the completions only. The text mixes three
ways to answer, and levels of difficulty by the shares below. No question of the evaluation split
was seen.

| steps | hasty | sloppy | careful |
|---|---|---|---|
| first {practice_percent} % (practice) | {practice} |
| the rest | {mixture} |

## Accuracy

{questions} held-out questions per level, one completion each, after the assistant prefix `<think>`:
sampled at temperature 1 over the full vocabulary, greedy, and greedy when the completion is made to
begin with "Carefully:".

| task | level | share of rows | sampled | greedy | greedy with care |
|---|---|---|---|---|---|
{rows}
"""
