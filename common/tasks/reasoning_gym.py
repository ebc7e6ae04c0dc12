"""Questions of reasoning-gym's data sets (https://github.com/open-thought/reasoning-gym).

A question is an entry of a data set. To score an answer, the data set needs the whole entry and the
config that it was made with, so an `Entry` writes both into the row's `answer`, and the verify type
REASONING_GYM reads them back. Under another verify type the row's `answer` is the one that the
entry gives.

`read_questions` draws questions in a process of its own, `python -m common.tasks.reasoning_gym`:
some data sets print, and some iterate over a set, whose order is the same only in processes with
the same `PYTHONHASHSEED`. reasoning-gym takes a second or two to import, so it is imported only in
that process and where an answer is scored.
"""

from __future__ import annotations

import difflib
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from importlib.util import find_spec
from typing import IO, TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from common.console import bar, say
from common.errors import MissingToolError, UserError
from common.tasks.question import Question
from common.tasks.records import UnreadableGolds

if TYPE_CHECKING:
    from common.config import GymSource

# Entries

NONSENSE = "I do not know."
"""A wrong answer to every question; a data set that accepts it accepts everything."""

_EXAMPLES = ("possible_answer", "example_answer", "example_correct_answer")
"""Metadata keys under which an entry without an answer may have an example of one."""

_ARITHMETIC = r"(?:[-+()0-9 \t]|\*(?!\*)|/(?!/)){1,2000}"
_FUNCTIONS = "sin|cos|tan|sec|csc|cot|asin|acos|atan|sinh|cosh|tanh|exp|log|ln|sqrt|Abs|pi"
_FORMULA = (
    rf"(?:[-+*/()0-9 \t]|(?<=[0-9])\.(?=[0-9])"
    rf"|(?<![A-Za-z])(?:{_FUNCTIONS}|[A-Za-z])(?![A-Za-z])){{1,2000}}"
)

# reasoning-gym passes answers to `eval`, or to sympy's `parse_expr`, which evaluates them. None of
# these patterns allows an answer to call or look up anything but a mathematical function. They also
# exclude NaN, which two data sets take as close to every number.
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
    """A question of a data set, with everything that scoring it needs."""

    values: Mapping[str, Any]
    """`question`, `answer` and `metadata` as reasoning-gym made them."""
    config: Mapping[str, Any]
    """The data set's config, without the keys that were left at their defaults."""

    @property
    def dataset(self) -> str:
        """Return the name of the data set that made the entry and scores it."""
        return str(self.values["metadata"]["source_dataset"])

    def own_answer(self) -> str | None:
        """Return a correct answer, or None if the data set gives none."""
        metadata = self.values["metadata"]
        answers = [self.values["answer"], *(metadata.get(key) for key in _EXAMPLES)]
        answer = next((answer for answer in answers if answer is not None), None)
        return json.dumps(answer) if isinstance(answer, dict) else answer and str(answer)

    def write(self) -> str:
        """Return the entry as JSON from which `read_entry` gives an equal entry."""
        config = {"config": dict(self.config)} if self.config else {}
        return json.dumps(_encode(dict(self.values) | config))


def read_entry(text: str) -> Entry:
    """Read what `Entry.write` wrote, or an entry that was dumped as plain JSON.

    Raises:
        UserError: it is neither; the message, such as "is no JSON", follows the caller's subject.
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
    """Return the score that the entry's data set gives to `answer`, from 0 to 1.

    An answer scores 0 if it makes the scorer raise, if the score is not a number, or if it would be
    evaluated and contains more than a formula.

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
    """Return why the entry cannot tell right from wrong answers; None if it can.

    Raises:
        UserError: the data set is unknown, or refuses the entry's config.
    """
    own = entry.own_answer()
    if own is not None and (value := score(entry, own)) < 1:
        return f"scores its own answer {value:g}, not 1"
    if score(entry, NONSENSE) == 1:
        return f"scores any answer 1 ({NONSENSE!r}, for one)"
    return None


def make_dataset(name: str, config: Mapping[str, Any], **others: Any) -> Any:
    """Return a data set of reasoning-gym; `others` are its `seed` and `size`.

    The name must be known. For a bad config, whatever reasoning-gym or pydantic raises is raised.
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
    """Return whether the answer uses the entry's numbers; puzzle24 accepts 6*4*1*1 for any."""
    used = sorted(int(number) for number in re.findall("[0-9]+", answer))
    return used == sorted(entry.values["metadata"]["numbers"])


def _encode(value: Any) -> Any:
    """Return `value` in types that JSON has, with marks where JSON would lose the type.

    Raises:
        TypeError: a value's type is not supported.
    """
    if value is None or isinstance(value, bool):
        return value
    for plain in (int, float):
        if isinstance(value, plain):
            return plain(value)
    if isinstance(value, str):
        return str.__str__(value)  # for an Enum, str() would return the name
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


# A source of questions


def require_package(needed_by: str) -> None:
    """Check that reasoning-gym is installed.

    Args:
        needed_by: beginning of the message: what needs it.

    Raises:
        MissingToolError: it is not installed; the message says how to install it.
    """
    if find_spec("reasoning_gym") is None:
        raise MissingToolError(f"{needed_by} needs the package reasoning-gym: `make extras`")


SAMPLE_SECONDS, LONG_SECONDS = 3.0, 30.0
"""Time after which the duration of a draw is estimated, and the shortest one that is announced."""


def read_questions(
    task: str, source: GymSource, unreadable_golds: UnreadableGolds, notices: list[str]
) -> tuple[list[Question], list[Question]]:
    """Return distinct questions for training and for evaluation, the same for the same source.

    The evaluation questions are drawn first, so they stay the same when more training questions are
    asked for. No training question is one of them with its numbers in another order. Entries that
    cannot tell right from wrong answers are left out, with a notice.

    Args:
        task: name of the source in the recipe's [data].
        source: the source, as the recipe has it.
        unreadable_golds: says which golds their verify types cannot read.
        notices: lines about entries that were left out are added here.

    Raises:
        MissingToolError: reasoning-gym is not installed.
        UserError: the data set does not exist, refuses its config, fails, has too few distinct
            questions, or gives answers that the verify type cannot read.
    """
    require_package(f"data.{task}")
    request = source.model_dump(include={"dataset", "config", "seed", "train", "eval"})
    *lines, end = _drawn(task, request | {"task": task, "scored": _scores_itself(source)})
    if end["faulty"]:
        notices.append(
            f"data.{task}: left out {end['faulty']} entries of {source.dataset}, the last of which "
            f"{end['fault']}"
        )
    if len(lines) < source.train + source.eval:
        raise UserError(_too_few(task, source, len(lines), end))
    questions = [_question(task, source, line) for line in lines]
    _check_golds(task, source, questions, unreadable_golds)
    return questions[source.eval :], questions[: source.eval]


def _drawn(task: str, request: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the lines that the drawing process prints, the end line last."""
    lines: list[dict[str, Any]] = []
    count = request["train"] + request["eval"]
    with (
        tempfile.TemporaryFile() as complaints,
        _drawing(request, complaints) as process,
        bar(f"drawing {task}", count, "questions") as shown,
    ):
        assert process.stdout
        started, announced = 0.0, False
        for text in process.stdout:
            lines.append(json.loads(text))
            started = started or time.monotonic()  # importing the package does not count
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
    """Start a drawing process that ends with the context; `complaints` is its standard error."""
    # Imported here because it loads pyarrow, which workers that score entries do not need.
    from common.runs.layout import REPOSITORY

    with subprocess.Popen(
        [sys.executable, "-m", "common.tasks.reasoning_gym"],
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


def _question(task: str, source: GymSource, line: dict[str, Any]) -> Question:
    metadata = {"dataset": source.dataset, "index": line["index"]}
    if line["difficulty"] is not None:
        metadata["difficulty"] = line["difficulty"]
    return Question(
        task=task,
        question=line["question"],
        answer=line["entry"] if _scores_itself(source) else line["answer"],
        verify_type=source.verify_type,
        metadata=metadata,
    )


def _scores_itself(source: GymSource) -> bool:
    return source.verify_type == "REASONING_GYM"


def _check_golds(
    task: str, source: GymSource, questions: list[Question], unreadable_golds: UnreadableGolds
) -> None:
    if _scores_itself(source):
        return  # the drawing process left out what cannot be scored
    wrong = unreadable_golds([(question.verify_type, question.answer) for question in questions])
    for question, reason in zip(questions, wrong, strict=True):
        if reason:
            raise UserError(
                f"data.{task}.verify_type = {source.verify_type!r}: {source.dataset} at index "
                f"{question.metadata['index']}: {reason}; take another rule, or leave the key "
                "out to let the data set score"
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


# The process that draws

OURS = {"seed": "seed", "size": "train and eval"}
"""Keys of every data set that are set by the source, with the source's own name for them."""

MOST_NUMBERS = 4
"""Questions with at most this many numbers count as alike if only the numbers' order differs."""


def main() -> None:
    """Serve one request.

    The request is a JSON object on standard input, {"task", "dataset", "config", "seed", "train",
    "eval", "scored"}. The answer is JSON lines on standard output, evaluation questions first:

        {"question", "entry", "answer", "index", "difficulty"}
                                 a question, the entry that scores it, the answer that it gives
        {"drawn", "alike", "faulty", "fault"}
                                 at the end: number of entries drawn, of questions left out because
                                 they are like an evaluation question, of faulty entries left out,
                                 and what is wrong with the last of these
        {"error"}                instead of the end line, if the request cannot be met
    """
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
    """Yield `eval` and then `train` distinct questions, or fewer if there are no more.

    An end line follows. No training question is an evaluation question with its numbers in another
    order: a model that has learned 7 * 3 knows 3 * 7. Entries are drawn from index 0 on. Drawing
    ends early when more entries in a row bring no new question than 200 plus five for each question
    found.

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
    """Return a text that is the same for questions which differ only in the order of numbers.

    A question with many numbers is likely a board, so it is returned unchanged.
    """
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
    """Yield entries by index, endlessly: when a data set ends, it is made again, twice as long.

    Most data sets can have any length at no cost, but one makes all its entries at once.
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
    """Return the data set, or raise `UserError` that names the key at fault, or all of them."""
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
