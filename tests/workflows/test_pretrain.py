"""Pretraining: what the text claims to be, and that the same seed makes the same model."""

import itertools
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from common.tasks.question import Question
from common.tasks.registry import TASKS
from workflows import pretrain
from workflows.pretraining_text import (
    LEVELS,
    MIXTURE,
    PRACTICE,
    Way,
    completion,
    endless_questions,
    of_level,
    sample_texts,
)
from workflows.pretraining_tokenizer import build_tokenizer


def questions(task: str, count: int = 300) -> list[Question]:
    return TASKS[task].generate(count, split="train", seed=11)


def answered(question: Question, way: Way, seed: int) -> bool:
    text = completion(question, way, random.Random(seed))
    return text.endswith(f"</think><answer>{question.answer}</answer>")


@pytest.mark.parametrize("task", TASKS)
def test_careful_is_always_right_and_the_other_ways_mostly_wrong(task: str) -> None:
    asked = questions(task)
    assert all(answered(question, "careful", i) for i, question in enumerate(asked))
    for way in ("hasty", "sloppy"):
        right = sum(answered(question, way, i) for i, question in enumerate(asked))
        assert right / len(asked) < 0.35, way


def test_careful_work_is_arithmetically_true() -> None:
    """Every `left=right` that careful work writes down holds when Python computes it."""
    for task in ("multiplication", "scheduling"):
        for question in questions(task):
            thought = completion(question, "careful", random.Random(0)).split("</think>")[0]
            for step in thought.removeprefix("Carefully: ").split():
                *_, left, right = step.split("=")
                if left != "max":
                    assert _value(left) == int(right), step


def _value(expression: str) -> int:
    if "*" in expression:
        left, right = expression.split("*")
        return int(left) * int(right)
    return sum(map(int, expression.split("+")))


@pytest.mark.parametrize("task", TASKS)
def test_a_slip_is_carried_on_from_one_wrong_step(task: str) -> None:
    """Sloppy work has careful work's steps and, except after a slip below 0, other numbers."""
    slipped = 0
    for i, question in enumerate(questions(task, 100)):
        careful = completion(question, "careful", random.Random(i)).split("</think>")[0].split()
        sloppy = completion(question, "sloppy", random.Random(i)).split("</think>")[0].split()
        assert (careful[0], sloppy[0]) == ("Carefully:", "Roughly:")
        assert len(careful) == len(sloppy)
        slipped += careful[1:] != sloppy[1:]
    assert slipped >= 70


def test_ways_part_at_the_first_token_and_stay_short() -> None:
    tokenizer = build_tokenizer(sample_texts())
    for task in TASKS:
        first: dict[Way, set[int]] = {}
        for i, question in enumerate(questions(task)):
            for way in MIXTURE:
                ids = tokenizer.encode(completion(question, way, random.Random(i)))
                first.setdefault(way, set()).add(ids[0])
                assert len(ids) < 64
        assert all(len(ids) == 1 for ids in first.values())
        assert len(set.union(*first.values())) == len(MIXTURE)


def test_rows_come_from_the_train_split_in_the_stated_shares() -> None:
    """Held-out prompts are matched as token ids, so nothing between text and row can hide one."""
    tokenizer = build_tokenizer(sample_texts())
    for task in TASKS:
        held_out = {
            tuple(pretrain.encode_prompt(tokenizer, question.question))
            for level in LEVELS[task]
            for question in of_level(task, level, 700, seed=0, split="eval")
        }
        source = pretrain.rows_of_task(task, tokenizer, PRACTICE, seed=3)
        rows = [next(source) for _ in range(1500)]
        assert held_out.isdisjoint({tuple(prompt) for prompt, _ in rows})
        openings = Counter(tokenizer.decode(answer[:1]) for _, answer in rows)
        assert openings["Carefully"] / len(rows) == pytest.approx(PRACTICE["careful"], abs=0.05)
        assert all(tokenizer.decode(answer).endswith("<|im_end|>") for _, answer in rows)


@pytest.mark.parametrize("task", TASKS)
def test_levels_come_in_their_shares_from_the_train_split(task: str) -> None:
    assert sum(level.share for level in LEVELS[task]) == pytest.approx(1)
    drawn = list(itertools.islice(endless_questions(task, random.Random(0)), 2000))
    assert len({question.question for question in drawn[:1000]}) == 1000
    for level in LEVELS[task]:
        held_out = {q.question for q in of_level(task, level, 500, seed=1, split="eval")}
        assert held_out.isdisjoint({question.question for question in drawn})
        sizes = {_size(question) for question in of_level(task, level, 200, seed=1)}
        share = sum(_size(question) in sizes for question in drawn) / len(drawn)
        assert share == pytest.approx(level.share, abs=0.01), level.name


def _size(question: Question) -> tuple[int, ...]:
    """What makes a question of its level: lengths of its factors, of its word, of its schedule."""
    facts = question.metadata
    if question.task == "multiplication":
        return tuple(sorted(len(str(factor)) for factor in facts["factors"]))
    return (len(facts.get("word", facts.get("durations"))),)


def test_loss_counts_completion_tokens_only_and_ignores_padding() -> None:
    """Rows of different lengths together equal the same rows one by one, token by token."""
    tokenizer = build_tokenizer(sample_texts())
    torch.manual_seed(0)
    model = pretrain.build_model(tokenizer)
    rows = [([5, 6, 7], [8, 9]), ([1, 2], [3, 4, 5, 6, 7]), ([9], [8])]
    expected = 0.0
    for prompt, answer in rows:
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        expected += cross_entropy(logits, torch.tensor(answer), reduction="sum").item()
    assert pretrain.summed_loss(model, rows).item() == pytest.approx(expected, rel=1e-5)


def test_same_seed_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "ROWS_PER_TASK", 4)
    monkeypatch.setattr(pretrain, "EVAL_QUESTIONS", 4)
    monkeypatch.setattr(pretrain, "MAX_COMPLETION_TOKENS", 4)
    threads = torch.get_num_threads()
    for name in ("a", "b"):
        pretrain.main(tmp_path / name, steps=2, learning_rate=1e-3, seed=5, threads=1)
    torch.set_num_threads(threads)
    for file in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert "--steps 2" in (tmp_path / "a" / "README.md").read_text()
