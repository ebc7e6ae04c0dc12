"""Talking with a policy: typed, piped or given, by the recipe's prompt and limits."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common.engines.engine import Sample
from common.errors import UserError
from common.rollout.prompts import SamplingPolicy
from common.runs.layout import Run
from common.runs.manifest import read_manifest
from stages import ask


@pytest.fixture
def run(finished: Path, at: Callable[[Path], Run]) -> Run:
    return at(finished)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def answers(capsys: pytest.CaptureFixture[str], **options: object) -> dict[str, object]:
    capsys.readouterr()
    ask.ask("a", question="What is 1 + 1?", as_json=True, **options)  # type: ignore[arg-type]
    return json.loads(capsys.readouterr().out)


def test_the_newest_policy_answers_unless_another_is_named(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    newest, base = answers(capsys), answers(capsys, iteration=0)
    assert (newest["policy"], base["policy"]) == (2, 0)
    assert newest == answers(capsys, iteration=2)


def test_greedy_answers_are_those_of_the_evaluation(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """So it is the recipe's prompt, and the same sampler."""
    import polars as pl

    evaluated = pl.read_parquet(run.evaluation(2).path / "*.parquet").filter(sample_index=-1)
    for question, text in evaluated.select("question", "completion_text").iter_rows():
        capsys.readouterr()
        ask.ask("a", question=question, temperature=0.0, samples=2, as_json=True)
        found = json.loads(capsys.readouterr().out)
        assert [answer["completion_text"] for answer in found["answers"]] == [text, text]


def test_samples_differ_and_are_the_same_again(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    first = answers(capsys, samples=4)
    texts = {answer["completion_text"] for answer in first["answers"]}  # type: ignore[attr-defined]
    assert len(texts) > 1
    assert first == answers(capsys, samples=4) != answers(capsys, samples=4, seed=1)
    limit = read_manifest(run.rollout(1)).recipe["rollout"]["max_completion_tokens"]
    assert all(a["tokens"] <= limit for a in first["answers"])  # type: ignore[attr-defined]


def test_a_piped_question_is_one_question(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    monkeypatch.setattr(sys, "stdin", io.StringIO("Two lines:\nwhat is 1 + 1?\n"))
    ask.ask("a", as_json=True)
    assert json.loads(capsys.readouterr().out)["question"] == "Two lines:\nwhat is 1 + 1?"
    monkeypatch.setattr(sys, "stdin", io.StringIO(" \n"))
    with pytest.raises(UserError, match="there is no question; add --question"):
        ask.ask("a")


def test_typed_questions_are_answered_until_the_end(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same question again has another answer; one that is too long is refused, and no more."""
    typed = iter(["What is 1 + 1?", " ", "What is 1 + 1?", "too long " * 200])

    def line(prompt: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("builtins.input", line)
    capsys.readouterr()
    ask.ask("a")
    captured = capsys.readouterr()
    assert captured.out.startswith("policy 2 of a; each question stands for itself; Ctrl-D ends")
    shown = re.split(r"\[\d+ tokens.*\]\n", captured.out.partition("ends\n")[2])
    assert len(shown) == 3 and shown[0] != shown[1]
    assert "beyond the context" in captured.err


def test_what_a_model_writes_cannot_rewrite_the_screen(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = "\x1b[2J[red]\u202ea\tb\nc"
    monkeypatch.setattr(SamplingPolicy, "text", lambda self, sample: hostile)
    capsys.readouterr()
    ask.ask("a", question="What is 1 + 1?")
    shown = capsys.readouterr().out
    assert shown.startswith("[2J[red]a\tb\nc\n[")
    assert answers(capsys)["answers"][0]["completion_text"] == hostile  # type: ignore[index]


def test_an_answer_that_was_cut_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    for reason, end in (("length", "; cut off (rollout.max_completion_tokens)"), ("stop", "")):
        sample = Sample([1, 2], [0.0, 0.0], reason)  # type: ignore[arg-type]
        ask.show(
            [
                {
                    "assistant_prefix": "<think>",
                    "completion_text": "x",
                    "tokens": len(sample.completion_ids),
                    "finish_reason": sample.finish_reason,
                }
            ]
        )
        assert capsys.readouterr().out == f"<think>x\n[2 tokens{end}]\n"


def test_what_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="the newest policy of a is 2; make policy 9 with: make"):
        ask.ask("a", iteration=9)
    with pytest.raises(UserError, match="no such run"):
        ask.ask("nobody")
    monkeypatch.setattr(sys, "stdin", Terminal())
    with pytest.raises(UserError, match="--json answers one question"):
        ask.ask("a", as_json=True)
