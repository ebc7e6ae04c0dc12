r"""How far the rules agree with cases that others wrote, and with styles of answering.

Without options it judges the cases of `data/suites/`. Data sets and tests of others are given by
path, as they are published; nothing of them is kept here:

    python -m workflows.suites --golds math/test.jsonl --golds gsm8k/test.jsonl \
        --tests Math-Verify/tests --tests math/modeling/math_equivalence_test.py \
        --solutions grade-school-math/grade_school_math/data/example_model_solutions.jsonl

Every gold must be its own answer in every style. The table says of each suite how many cases there
are, how many of them both judges of MATH decide as the suite says, how many wrong answers this
project's passes, and which of its disagreements are its policy (`data/suites/policy.toml`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from common.command import launch
from common.config import RewardsConfig
from common.console import clean, say
from common.errors import UserError
from common.rewards.scorer import Scorer
from workflows.suite_files import (
    OWN_PAIRS,
    RULES,
    Case,
    are_numbers,
    changed_cases,
    notation_cases,
    own_golds,
    pair_cases,
    policy,
    read_golds,
    read_solutions,
    read_test_file,
    style_cases,
)

HEAD = ("suite", "rule", "cases", "refused", "ours", "math-verify", "passes", "policy", "open")


@dataclass(frozen=True)
class Suite:
    """Cases of one source for one rule."""

    name: str
    cases: list[Case]


@dataclass(frozen=True)
class Judged:
    """A case, and what was said about it; None if the gold was refused."""

    case: Case
    passed: bool | None

    @property
    def agrees(self) -> bool:
        """Whether the verdict is what the suite says."""
        return self.passed is self.case.is_right


def main(
    golds: Annotated[
        list[Path] | None, typer.Option("--golds", help="A data set in JSON Lines; repeatable.")
    ] = None,
    tests: Annotated[
        list[Path] | None,
        typer.Option("--tests", help="Python tests of another judge, file or folder; repeatable."),
    ] = None,
    solutions: Annotated[
        Path | None, typer.Option("--solutions", help="GSM8K's sample solutions with labels.")
    ] = None,
    first: Annotated[
        int, typer.Option("--first", help="Only so many golds of each data set; 0 for all.", min=0)
    ] = 0,
    show: Annotated[
        bool, typer.Option("--show", help="Print each disagreement, with its key.")
    ] = False,
) -> None:
    """Print a table of agreement with suites of cases."""
    suites = [*own_suites(), *outside_suites(golds or [], tests or [], solutions, first)]
    reasons = policy()
    rows: list[tuple[str, ...]] = [HEAD]
    with Scorer(RewardsConfig()) as strict, Scorer(_math_verify()) as other:
        for suite in suites:
            ours = judged(strict, suite.cases)
            theirs = judged(other, suite.cases) if suite.cases[0].rule == "MATH" else None
            rows.append(row_of(suite, ours, theirs, reasons))
            if show:
                _show(suite, ours, reasons)
    for line in table(rows):
        say(line)


def _math_verify() -> RewardsConfig:
    return RewardsConfig.model_validate({"math": {"judge": "math-verify"}})


def own_suites() -> list[Suite]:
    """Return the suites of `data/suites/`."""
    suites = [Suite("pairs", pair_cases(OWN_PAIRS))]
    for rule in RULES:
        suites.append(Suite("right styles", style_cases(rule, own_golds())))
        suites.append(Suite("changed answers", changed_cases(rule)))
    return suites


def outside_suites(
    golds: list[Path], tests: list[Path], solutions: Path | None, first: int = 0
) -> list[Suite]:
    """Return the suites of others' files, of data sets only the `first` golds, unless that is 0.

    Raises:
        UserError: a file cannot be read, or has no cases.
    """
    suites = []
    for path in golds:
        found = read_golds(path)[: first or None]
        name = path.parent.name if path.stem in ("test", "train") else path.stem
        if are_numbers(found):
            suites += [
                Suite(f"{name} golds", style_cases(rule, found)) for rule in ("MATH", "LAST_NUMBER")
            ]
        else:
            suites.append(Suite(f"{name} golds", notation_cases(found)))
    for path in tests:
        files = sorted(path.glob("test_*.py")) if path.is_dir() else [path]
        name = path.resolve().parent.name if path.is_dir() else path.parent.name
        suites.append(
            Suite(f"{name} tests", [case for file in files for case in read_test_file(file)])
        )
    if solutions is not None:
        suites += [
            Suite("GSM8K solutions", read_solutions(solutions, rule))
            for rule in ("MATH", "LAST_NUMBER")
        ]
    for suite in suites:
        if not suite.cases:
            raise UserError(f"{suite.name}: no cases were found; give the files as published")
    return suites


def judged(scorer: Scorer, cases: list[Case]) -> list[Judged]:
    """Judge cases; one whose gold cannot be read is refused."""
    faults = scorer.unreadable_golds([(case.rule, case.gold) for case in cases])
    readable = [case for case, fault in zip(cases, faults, strict=True) if fault is None]
    pairs = [(case.text, {"answer": case.gold, "verify_type": case.rule}) for case in readable]
    verdicts = iter(scorer.answers(pairs))
    return [
        Judged(case, next(verdicts).verdict == "correct" if fault is None else None)
        for case, fault in zip(cases, faults, strict=True)
    ]


def row_of(
    suite: Suite, ours: list[Judged], theirs: list[Judged] | None, reasons: dict[str, str]
) -> tuple[str, ...]:
    """Return a suite's row of the table."""
    differing = [one for one in ours if not one.agrees]
    meant = sum(one.case.key in reasons for one in differing)
    count = Counter(
        cases=len(ours),
        refused=sum(one.passed is None for one in ours),
        ours=sum(one.agrees for one in ours),
        passes=sum(bool(one.passed) and not one.case.is_right for one in ours),
    )
    other = "" if theirs is None else str(sum(one.agrees for one in theirs))
    return (
        suite.name,
        suite.cases[0].rule,
        *(str(count[name]) for name in ("cases", "refused", "ours")),
        other,
        str(count["passes"]),
        str(meant),
        str(len(differing) - meant),
    )


def table(rows: list[tuple[str, ...]]) -> list[str]:
    """Return the rows as lines of aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index < 2 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _show(suite: Suite, ours: list[Judged], reasons: dict[str, str]) -> None:
    said = {True: "passed", False: "failed", None: "refused"}
    for one in ours:
        if not one.agrees:
            why = reasons.get(one.case.key, "open")
            tail = clean(repr(one.case.text[-100:]))
            gold = clean(repr(one.case.gold[-100:]))
            say(f"{suite.name} {one.case.key} {said[one.passed]}: {tail}, gold {gold} ({why})")


if __name__ == "__main__":
    launch(main)
