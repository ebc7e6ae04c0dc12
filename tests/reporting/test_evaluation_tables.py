"""Two evaluations of a run put side by side: greedy accuracy, gains, and the answers themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from common.accuracy import GREEDY
from common.errors import UserError
from common.reporting.evaluation_tables import (
    answers_table,
    first_and_last,
    greedy_difference,
    selected,
)
from common.reporting.opening_tables import answered_table, gain_table
from common.runs.layout import Run, shard_name
from common.runs.schemas import EVALUATION, KEY
from common.runs.shards import OutputWriter


def row(question: str, sample: int, verdict: str, text: str = "Guess. 1") -> dict[str, Any]:
    return {
        KEY: f"{question}-{sample}",
        "prompt_id": question,
        "task": question[0],
        "sample_index": sample,
        "prompt_ids": [1],
        "completion_ids": [2],
        "assistant_prefix": "",
        "completion_text": text,
        "finish_reason": "stop",
        "question": f"{question}?",
        "answer": "1",
        "verify_type": "EXACT",
        "reward_answer": None,
        "extracted_answer": None,
        "verdict": verdict,
    }


def evaluate(run: Run, policy: int, rows: list[dict[str, Any]]) -> None:
    names = [shard_name(0)]
    output = run.evaluation(policy)
    writer = OutputWriter(output, inputs={}, recipe={}, seed=0, names=names, schema=EVALUATION)
    writer.open().write(names[0], pa.Table.from_pylist(rows, schema=EVALUATION))
    writer.commit()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "a")


def test_questions_whose_rule_failed_are_left_out(run: Run) -> None:
    before = {"a1": "wrong", "a2": "correct", "a3": "infra_error", "a4": "wrong", "b1": "correct"}
    after = {"a1": "correct", "a2": "correct", "a3": "correct", "a4": "infra_error", "b1": "wrong"}
    for policy, verdicts in ((0, before), (9, after)):
        evaluate(run, policy, [row(name, GREEDY, verdict) for name, verdict in verdicts.items()])
    table = answers_table(run, 0, 9)
    assert table["question"].to_list() == ["a1?", "a2?", "b1?"]
    assert table["change"].to_list() == ["gained", "kept", "lost"]
    assert selected(table, "a", "kept")["question"].to_list() == ["a2?"]
    difference = greedy_difference(run, 0, 9)
    assert difference["task"].to_list() == ["a", "b", "mean over tasks"]
    assert difference["difference"].to_list() == [0.5, -1, -0.25]
    assert difference["questions"].to_list() == [2, 1, 3]


def test_a_gain_is_that_of_questions_which_both_answered(run: Run) -> None:
    evaluate(run, 0, [row("a1", 0, "wrong"), row("a2", 0, "wrong"), row("b1", 0, "infra_error")])
    careful = "Carefully: 1"
    rows = [row("a1", 0, "correct", careful), row("a2", 0, "infra_error"), row("b1", 0, "correct")]
    evaluate(run, 9, rows)
    (gain,) = gain_table(run, 0, 9).to_dicts()
    assert (gain["task"], gain["questions"], gain["difference"]) == ("a", 1, 1)
    assert (gain["choice"], gain["within"]) == (1, 0)


def test_questions_weigh_the_same_however_many_answers_were_judged(run: Run) -> None:
    verdicts = {0: ("wrong", "wrong", "wrong"), 9: ("correct", "infra_error", "wrong")}
    for policy, (a, b, c) in verdicts.items():
        rows = [row("a1", 0, a), row("a1", 1, b), row("a2", 0, c), row("a2", 1, c)]
        evaluate(run, policy, rows)
    (gain,) = gain_table(run, 0, 9).to_dicts()
    assert gain["difference"] == gain["within"] == pytest.approx(0.5)
    assert gain["within_low"] == 0 and gain["within_high"] == 1


def test_greedy_answers_are_never_compared_with_sampled_ones(run: Run) -> None:
    evaluate(run, 0, [row("a1", GREEDY, "wrong")])
    evaluate(run, 9, [row("a1", GREEDY, "wrong"), row("a1", 0, "correct")])
    assert gain_table(run, 0, 9)["difference"].to_list() == [0]
    assert answered_table(run)["accuracy"].to_list() == [0, 0]
    with pytest.raises(UserError, match="--sample 0: policy 0 was evaluated with 0 sampled"):
        answers_table(run, 0, 9, sample=0)


def test_what_is_to_be_evaluated_next(run: Run) -> None:
    (run.policy(5).path).mkdir(parents=True)
    (run.policy(5).path / "manifest.json").write_text("{}")
    for missing in (0, 5):
        with pytest.raises(UserError, match=rf"two; next: make evaluate N={missing} RUN=a"):
            first_and_last(run)
        evaluate(run, missing, [row("a1", GREEDY, "wrong")])
    assert first_and_last(run) == (0, 5)


def test_evaluations_of_other_questions_cannot_be_compared(run: Run) -> None:
    evaluate(run, 0, [row("a1", GREEDY, "wrong")])
    evaluate(run, 9, [row("a2", GREEDY, "wrong")])
    with pytest.raises(UserError, match="no judged question in common; make them anew"):
        answers_table(run, 0, 9)
    for table in (greedy_difference, gain_table):
        with pytest.raises(UserError, match="no judged question in common; make them anew"):
            table(run, 0, 9)
