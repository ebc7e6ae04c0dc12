"""The sources of a recipe's [data]: read, checked, and split for training and evaluation.

A hash of the question decides which rows are taken or held out. So the same file gives the same
split in any order of its rows, and a question is never in both splits.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.config import DatasetSource, GeneratorSource, GymSource, Source
from common.errors import MissingToolError, UserError
from common.tasks.files import READERS, files_of, read_files
from common.tasks.hub import is_hub_name, is_saved_to_disk, read_hub, read_saved
from common.tasks.prompts import Prompt, read_prompts
from common.tasks.question import Question, Split
from common.tasks.reasoning_gym import read_questions
from common.tasks.records import Faults, Record, UnreadableGolds
from common.tasks.registry import get_task


@dataclass
class Prompts:
    """The questions of a run."""

    train: list[Prompt] = field(default_factory=list)
    eval: list[Prompt] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    """What was left out and why: nothing is dropped silently."""


def read_sources(data: Mapping[str, Source], unreadable_golds: UnreadableGolds) -> Prompts:
    """Return all questions of a recipe's [data].

    Args:
        data: sources by task name.
        unreadable_golds: says which golds their verify types cannot read.

    Raises:
        UserError: the sources have faults; the message lists them all at once.
        MissingToolError: a package that a source needs is not installed.
    """
    faults = Faults()
    prompts = Prompts()
    for task, source in data.items():
        try:
            if isinstance(source, GeneratorSource):
                _generate(task, source, prompts)
            elif isinstance(source, GymSource):
                train, held_out = read_questions(task, source, unreadable_golds, prompts.notices)
                prompts.train += [_prompt(task, question) for question in train]
                prompts.eval += [_prompt(task, question) for question in held_out]
            else:
                _SourceReader(task, source, unreadable_golds, faults, prompts.notices).read_into(
                    prompts
                )
        except MissingToolError:
            raise
        except UserError as error:
            faults.lines += str(error).splitlines()
    _check_ids(prompts, faults)
    faults.raise_any()
    prompts.notices += faults.notices
    _keep_apart(prompts)
    return prompts


def _generate(task: str, source: GeneratorSource, prompts: Prompts) -> None:
    generate = get_task(source.generator).generate
    splits: dict[Split, tuple[int, list[Prompt]]] = {
        "train": (source.train, prompts.train),
        "eval": (source.eval, prompts.eval),
    }
    for split, (count, into) in splits.items():
        questions = generate(count, split=split, seed=source.seed, **source.difficulty)
        into += [_prompt(task, question) for question in questions]


def _prompt(task: str, question: Question) -> Prompt:
    return Prompt(
        task=task,
        messages=[{"role": "user", "content": question.question}],
        answer=question.answer,
        verify_type=question.verify_type,
        metadata=question.metadata,
        where=f"data.{task}",
    )


@dataclass(frozen=True)
class _SourceReader:
    """Reader of one data set, which adds its faults and notices to those of all sources."""

    task: str
    source: DatasetSource
    unreadable_golds: UnreadableGolds
    faults: Faults
    notices: list[str]

    def read_into(self, prompts: Prompts) -> None:
        """Add the source's prompts, unless it has a fault."""
        source, found = self.source, len(self.faults.lines)
        eval_path = source.eval_path or source.path
        if source.eval_split and Path(eval_path).expanduser().is_file():
            raise UserError(
                f"data.{self.task}.eval_split = {source.eval_split!r}: {eval_path} is one file and "
                "has no splits; remove the key, or name an evaluation file in eval_path"
            )
        apart = bool(source.eval_path or source.eval_split)
        rows = self._rows(source.path, source.train_split)
        candidates = rows
        if apart:
            split = source.eval_split or source.train_split
            candidates = self._rows(eval_path, split) if source.eval else []
        if len(self.faults.lines) > found:
            return
        held_out = _first_by_hash(candidates, source.eval)
        if apart and len(held_out) < source.eval:
            self._notice(f"eval = {source.eval}, but {eval_path} has {len(held_out)}; took all")
        prompts.train += self._training_rows(rows, held_out, apart)
        prompts.eval += held_out

    def _rows(self, path: str, split: str) -> list[Prompt]:
        """Return the checked rows of one split, without repetitions of a question and answer."""
        records = self._records(path, split)
        rows = read_prompts(records, self.task, self.source, self.unreadable_golds, self.faults)
        kept: dict[tuple[str, str], Prompt] = {}
        for prompt in rows:
            # Rows with given ids all stay, even if they are alike; a repeated id is a fault.
            kept.setdefault((prompt.prompt_id, prompt.where if prompt.given_id else ""), prompt)
        if len(kept) < len(rows):
            self._notice(f"left out {len(rows) - len(kept)} repeated rows of {path}")
        if several := _questions_with_several_answers(kept.values()):
            self._notice(
                f"questions of {path} are asked in several rows with different answers "
                f"({len(several)}, the first at {several[0].where}); each row is a prompt of its "
                "own, and only its own answer is right there"
            )
        return list(kept.values())

    def _records(self, name: str, split: str) -> Sequence[Record]:
        path = Path(name).expanduser()
        if is_saved_to_disk(path):
            records = read_saved(path, split)
        elif path.exists():
            files = files_of(path, split)
            if path.is_dir():
                names = ", ".join(file.name for file in files)
                self._notice(f"{split} is {names} of {path}")
            return read_files(files, self.faults)
        elif is_hub_name(name) and path.suffix.lower() not in READERS:
            records = read_hub(name, self.source.name, split)
        else:
            raise UserError(f"data.{self.task}: {path} does not exist{_near(path)}")
        if not records:
            self.faults.add(f"data.{self.task}", f"{name} (split {split!r}) is empty: no rows")
        return records

    def _training_rows(
        self, rows: list[Prompt], held_out: list[Prompt], apart: bool
    ) -> list[Prompt]:
        """Return as many of `rows` as the source asks for, without evaluation questions."""
        held_out_keys = {prompt.key for prompt in held_out}
        rest = [prompt for prompt in rows if prompt.key not in held_out_keys]
        if not rest:
            raise UserError(
                f"data.{self.task}: {self.source.path} has {len(rows)} questions, and eval = "
                f"{self.source.eval} of them are held out: none is left for training; lower "
                f"data.{self.task}.eval"
            )
        same = len(rows) - len(rest) - (0 if apart else len(held_out))
        if same:
            self._notice(f"left out {same} training rows that ask an evaluation question")
        wanted = self.source.train
        if wanted is not None and wanted > len(rest):
            raise UserError(
                f"data.{self.task}.train = {wanted}, but {self.source.path} has {len(rest)} "
                "questions for training; lower the key, or remove it to take all"
            )
        return rest if wanted is None else _first_by_hash(rest, wanted)

    def _notice(self, line: str) -> None:
        self.notices.append(f"data.{self.task}: {line}")


def _first_by_hash(prompts: list[Prompt], count: int) -> list[Prompt]:
    """Return the first `count` prompts by hash of the question, in their original order."""
    by_hash = sorted(range(len(prompts)), key=lambda i: (prompts[i].key, prompts[i].prompt_id))
    return [prompts[i] for i in sorted(by_hash[:count])]


def _questions_with_several_answers(prompts: Iterable[Prompt]) -> list[Prompt]:
    """Return the first prompt of each question that has different answers in different rows."""
    golds: dict[str, set[tuple[str, str]]] = {}
    firsts: dict[str, Prompt] = {}
    for prompt in prompts:
        golds.setdefault(prompt.key, set()).add((prompt.verify_type, prompt.answer))
        firsts.setdefault(prompt.key, prompt)
    return [firsts[key] for key, answers in golds.items() if len(answers) > 1]


def _near(path: Path) -> str:
    """Return a hint at a file or folder next to `path` with a similar name; empty if none."""
    beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, beside, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _check_ids(prompts: Prompts, faults: Faults) -> None:
    """Add a fault for each id that two prompts of the run have in common."""
    places: dict[str, str] = {}
    for prompt in [*prompts.train, *prompts.eval]:
        if prompt.prompt_id in places:
            faults.add(
                prompt.where,
                f"prompt_id {prompt.prompt_id!r} is also at {places[prompt.prompt_id]}",
            )
        places.setdefault(prompt.prompt_id, prompt.where)


def _keep_apart(prompts: Prompts) -> None:
    """Remove evaluation questions from the training questions, across all sources."""
    evaluated = {prompt.key for prompt in prompts.eval}
    dropped = Counter(p.task for p in prompts.train if p.key in evaluated)
    prompts.train = [prompt for prompt in prompts.train if prompt.key not in evaluated]
    prompts.notices += [
        f"data.{task}: left out {count} training rows that ask an evaluation question"
        for task, count in dropped.items()
    ]
