"""The process that draws questions of a reasoning-gym data set: `python -m common.tasks.gym_draw`.

It is a process of its own because some data sets print, and because some draw in the order of a
set, which only a process with a fixed `PYTHONHASHSEED` repeats. It reads one JSON request from
standard input, {"task", "dataset", "config", "seed", "train", "eval", "scored"}, and writes JSON
lines, the evaluation questions first:

    {"question", "entry", "answer", "index", "difficulty"}
                                 a question, the entry that scores it, the answer that it gives
    {"drawn", "alike", "faulty", "fault"}
                                 at the end: entries looked at, questions left out because an
                                 evaluation question is like them, faulty entries left out, why
    {"error"}                    instead, if the recipe asks for the impossible
"""

from __future__ import annotations

import difflib
import itertools
import json
import os
import random
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from common.errors import UserError
from common.tasks.gym_entry import Entry, fault_of, make_dataset

OURS = {"seed": "seed", "size": "train and eval"}
"""Keys of every data set that the source sets itself, and where."""

MOST_NUMBERS = 4
"""In questions with no more numbers, their order makes no other question."""


def main() -> None:
    """Serve one request."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with open(os.devnull, "w") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 1)
    try:
        for line in draw(**json.load(sys.stdin)):
            print(json.dumps(line), file=lines, flush=True)
    except UserError as error:
        print(json.dumps({"error": str(error)}), file=lines, flush=True)


def draw(
    task: str,
    dataset: str,
    config: dict[str, Any],
    seed: int,
    train: int,
    eval: int,
    scored: bool,
) -> Iterator[dict[str, Any]]:
    """Yield distinct questions, `eval` and then `train`, or fewer if no more turn up; an end line.

    No training question is an evaluation question with its numbers in another order: who has
    learned 7 * 3 knows 3 * 7.

    The data set is walked from index 0. The walk ends when many entries running, five for each
    question found and 200 more, bring no new question.

    Raises:
        UserError: the data set does not exist, refuses its config, or fails.
    """
    where = f"data.{task}"
    _check_name(where, dataset)
    _check_keys(where, dataset, config)
    random.seed(seed)
    count = train + eval
    found: set[str] = set()
    held_out: set[str] = set()
    alike: set[str] = set()
    fault, faulty, index, fruitless = "", 0, -1, 0
    for index, values in enumerate(_entries(where, dataset, config, seed, count)):
        entry, question = Entry(values, config), values["question"]
        content = _content(question)
        fruitless += 1
        if question in found:
            pass
        elif len(found) >= eval and content in held_out:
            alike.add(question)
        elif wrong := fault_of(entry) if scored else _without_answer(entry):
            fault, faulty = wrong, faulty + 1
        else:
            if len(found) < eval:
                held_out.add(content)
            found.add(question)
            fruitless = 0
            yield _line(entry, index)
        if len(found) == count or fruitless > 200 + 5 * len(found):
            break
    yield {"drawn": index + 1, "alike": len(alike), "faulty": faulty, "fault": fault}


def _content(question: str) -> str:
    """The same for questions that differ in the order of a few numbers; of many it is a board."""
    numbers = re.findall(r"\d+", question)
    if len(numbers) > MOST_NUMBERS:
        return question
    return re.sub(r"\d+", "#", question) + " ".join(sorted(numbers))


def _without_answer(entry: Entry) -> str | None:
    return None if entry.values["answer"] is not None else "gives no answer to compare with"


def _line(entry: Entry, index: int) -> dict[str, Any]:
    return {
        "question": entry.values["question"],
        "entry": entry.write(),
        "answer": str(entry.values["answer"]),
        "index": index,
        "difficulty": entry.values["metadata"].get("difficulty"),
    }


def _entries(
    where: str, dataset: str, config: Mapping[str, Any], seed: int, size: int
) -> Iterator[dict[str, Any]]:
    """Entries by index, without end: a data set that is read through is made anew, twice as long.

    Most data sets are as long as they are said to be, at no cost; one makes all entries at once.
    """
    made = _make(where, dataset, config, seed, size)
    for index in itertools.count():
        if index == size:
            size *= 2
            made = _make(where, dataset, config, seed, size)
        try:
            values = dict(made[index])
        except Exception as error:
            raise UserError(
                f"{where}: reasoning-gym's {dataset} fails at index {index} of seed {seed}: "
                f"{type(error).__name__}: {error}; try another seed or config"
            ) from None
        yield values


def _check_name(where: str, dataset: str) -> None:
    from reasoning_gym.factory import DATASETS

    if dataset == "composite":
        raise UserError(
            f"{where}.dataset = 'composite': give each of its data sets a source of its own"
        )
    if dataset not in DATASETS:
        near = difflib.get_close_matches(dataset, DATASETS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(
            f"{where}.dataset = {dataset!r}: reasoning-gym has no such data set among its "
            f"{len(DATASETS) - 1}{hint}"
        )


def _check_keys(where: str, dataset: str, config: Mapping[str, Any]) -> None:
    from reasoning_gym.factory import DATASETS

    known = sorted(DATASETS[dataset][1].__dataclass_fields__.keys() - OURS)
    for key in config:
        if key in OURS:
            raise UserError(f"{where}.config.{key}: set {where}.{OURS[key]} instead")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(
                f"{where}.config.{key}: {dataset} has no such key among {', '.join(known)}{hint}"
            )


def _make(where: str, dataset: str, config: Mapping[str, Any], seed: int, size: int) -> Any:
    """The data set; raises `UserError` that names the key at fault, or all when it is not told."""
    try:
        return make_dataset(dataset, config, seed=seed, size=size)
    except ValidationError as error:
        first = error.errors()[0]
        key, said = ".".join(map(str, first["loc"])), first["msg"]
        if key:
            raise UserError(f"{where}.config.{key} = {first['input']!r}: {said}") from None
    except Exception as error:
        said = str(error) or type(error).__name__
    keys = [key for key in config if key in said] or list(config)
    given = ", ".join(f"{where}.config.{key} = {config[key]!r}" for key in keys)
    raise UserError(f"{given or where}: {dataset} refuses it: {said}")


if __name__ == "__main__":
    main()
