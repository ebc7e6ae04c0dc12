"""Evaluations: greedy and sampled answers of every held-out question, and figures that follow."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch
from support.multirank import torchrun

from common.accuracy import pass_at_k
from common.command import rank
from common.config import RewardsConfig
from common.config.recipe_file import load_recipe
from common.errors import UserError
from common.modeling.chat import stop_ids
from common.modeling.load import load_causal_lm
from common.rewards.registry import AUX_REWARDS, VERIFY, judge
from common.rewards.rule import Judge, Row, Verdict, always
from common.rollout.prompts import SamplingPolicy
from common.runs.layout import DEFAULT_RECIPE, Run
from common.runs.manifest import read_manifest
from common.runs.policies import commit_policy
from common.runs.recipe import recipe_in_force
from common.runs.schemas import EVALUATION
from common.runs.shards import read_output, read_split
from common.runs.stages import BY_NAME
from stages import evaluate

# Answers are texts a random policy writes now and then, so that some are right.
RECIPE = """\
[model]
path = "{policy}"

[prompt]
assistant_prefix = ""

[data.first]
kind = "dataset"
path = "{data}"
eval = 5
verify_type = "LAST_NUMBER"

[data.second]
kind = "generator"
generator = "multiplication"
train = 4
eval = 3

[rollout]
max_completion_tokens = 12
max_concurrent = 16

[evaluate]
samples = 6
temperature = 1.2
"""


@pytest.fixture(scope="module")
def whole(prepared: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run with policy 0 evaluated; not to be changed."""
    folder = tmp_path_factory.mktemp("evaluated")
    questions = [{"question": f"Say {n}", "answer": str(n % 10)} for n in range(9)]
    shutil.copytree(prepared(RECIPE, rows=questions), folder / "runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAGED_GRPO_RUNS", str(folder / "runs"))
        patch.setattr(evaluate, "QUESTIONS_PER_SHARD", 3)
        evaluate.main("a", 0, quiet=True)
        yield Run.named("a")


@pytest.fixture
def run(whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A copy of the evaluated run for one test."""
    shutil.copytree(whole.root.parent, tmp_path / "runs")
    monkeypatch.setenv("STAGED_GRPO_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(evaluate, "QUESTIONS_PER_SHARD", 3)
    return Run.named("a")


def frame_of(run: Run) -> pl.DataFrame:
    frame = pl.from_arrow(read_output(run.evaluation(0)))
    assert isinstance(frame, pl.DataFrame)
    return frame


def test_every_question_has_one_greedy_and_all_sampled_answers(whole: Run) -> None:
    frame = frame_of(whole)
    assert frame.columns == EVALUATION.names
    assert frame["rollout_id"].n_unique() == frame.height == 8 * 7
    by_question = frame.group_by("prompt_id", maintain_order=True).agg("sample_index", "task")
    assert by_question["sample_index"].to_list() == [list(range(-1, 6))] * 8
    assert by_question["task"].list.first().to_list() == ["first"] * 5 + ["second"] * 3
    assert [record.rows for record in read_manifest(whole.evaluation(0)).shards] == [21, 21, 14]
    sampled = frame.filter(pl.col("sample_index") >= 0)
    assert sampled["completion_ids"].n_unique() > 40


def test_the_greedy_answer_is_what_generate_says(whole: Run, tiny_policy: Path) -> None:
    from common.modeling.chat import load_tokenizer

    model = load_causal_lm(tiny_policy, torch.float32)
    stops = stop_ids(tiny_policy, load_tokenizer(tiny_policy))
    for row in frame_of(whole).filter(pl.col("sample_index") == -1).to_dicts():
        prompt = row["prompt_ids"]
        output = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones((1, len(prompt)), dtype=torch.int64),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=stops,
            pad_token_id=0,
        )
        assert row["completion_ids"] == output[0, len(prompt) :].tolist()


def test_verdicts_and_figures_follow_from_the_texts(whole: Run) -> None:
    frame = frame_of(whole)
    for row in frame.to_dicts():
        verdict = judge(row["assistant_prefix"] + row["completion_text"], row)
        assert (row["verdict"], row["extracted_answer"]) == (verdict.verdict, verdict.extracted)
        assert row["reward_answer"] == verdict.reward
    assert 0 < (frame["verdict"] == "correct").sum() < frame.height, "this data would prove little"
    facts = read_manifest(whole.evaluation(0)).facts
    assert list(facts["tasks"]) == ["first", "second"]
    right = (
        frame.filter(pl.col("sample_index") >= 0)
        .group_by("task", "prompt_id")
        .agg((pl.col("verdict") == "correct").sum())
    )
    for task, figures in facts["tasks"].items():
        counts = right.filter(pl.col("task") == task)["verdict"].to_list()
        for k in (1, 2, 4, 6):
            expected = sum(pass_at_k(count, 6, k) for count in counts) / len(counts)
            assert figures[f"pass@{k}"] == pytest.approx(expected)
        assert figures["greedy_low"] <= figures["greedy"] <= figures["greedy_high"]
        assert {"maj@6", "tokens", "truncated", "questions"} <= set(figures)
    assert facts["mean_over_tasks"]["questions"] == 8


def test_parts_make_the_same_whole(whole: Run, run: Run) -> None:
    evaluate.main("a", 0, overwrite=True, shards="1-2", quiet=True)
    evaluate.main("a", 0, overwrite=True, quiet=True)
    again, first = (read_manifest(r.evaluation(0)) for r in (run, whole))
    assert again.content_hash == first.content_hash
    assert again.facts == first.facts


def test_two_policies_meet_the_same_luck(run: Run) -> None:
    """The same weights as another policy answer the same."""
    policy = run.policy(7)
    without_manifest = shutil.ignore_patterns("manifest.json")
    shutil.copytree(run.policy(0).path, policy.partial, ignore=without_manifest)
    commit_policy(policy, inputs={}, recipe={}, seed=0)
    evaluate.main("a", 7, quiet=True)
    first, second = (read_output(run.evaluation(n), ["completion_ids"]) for n in (0, 7))
    assert first == second
    recipe = recipe_in_force(run)
    seeds = [
        evaluate.seeds(recipe, row["prompt_id"]) for row in read_split(run, "eval").to_pylist()
    ]
    assert [of_question[0] for of_question in seeds] == [None] * 8
    assert len({seed for of_question in seeds for seed in of_question[1:]}) == 8 * 6


def test_the_table_is_printed_and_json_is_one_object(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["evaluate.samples=0", "evaluate.max_completion_tokens=2"]
    evaluate.main("a", 0, overwrite=True, overrides=overrides)
    text = capsys.readouterr().out
    assert "evaluations/0000: greedy" in text and "second" in text and "pass@" not in text
    assert max(frame_of(run)["completion_ids"].list.len()) == 2
    evaluate.main("a", 0, overwrite=True, as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert facts["tasks"]["second"]["questions"] == 3
    evaluate.main("a", 0)
    assert "nothing to do" in capsys.readouterr().out


def fail(monkeypatch: pytest.MonkeyPatch, which: Callable[[Row], bool]) -> None:
    """Make every verify type of the run fail on these rows."""
    failed = Verdict(None, "infra_error", None, "no sandbox")
    for name in ("LAST_NUMBER", "ANSWER_TAG", "EXACT"):
        rule = VERIFY[name]
        judge = rule.open(RewardsConfig())

        def failing(text: str, row: Row, judge: Judge = judge) -> Verdict:
            return failed if which(row) else judge(text, row)

        monkeypatch.setitem(VERIFY, name, replace(rule, open=always(failing)))


def test_rules_that_fail_refuse_the_figures(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, lambda row: True)
    with pytest.raises(UserError) as raised:
        evaluate.main("a", 0, overwrite=True, quiet=True)
    assert str(raised.value) == (
        "the reward rules failed on 56 of 56 completions, more than 1%; mend them and run the same "
        "command again, which judges these anew. First reasons:\n  no sandbox"
    )
    assert run.evaluation(0).path.exists(), "the former evaluation stands"


def test_mended_rules_judge_again_what_was_sampled(
    whole: Run, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two shards have failures. Going on needs no weights, and the whole is as if none had been."""

    def no_weights(*_: object) -> None:
        raise AssertionError("sampled again")

    with monkeypatch.context() as patch:
        fail(patch, lambda row: row["task"] == "second")
        for _ in range(2):
            with pytest.raises(UserError, match=r"failed on 21 of 56 "):
                evaluate.main("a", 0, overwrite=True, quiet=True)
            patch.setattr(SamplingPolicy, "engine", no_weights)
    monkeypatch.setattr(SamplingPolicy, "engine", no_weights)
    evaluate.main("a", 0, overwrite=True, quiet=True)
    again, first = (read_manifest(r.evaluation(0)) for r in (run, whole))
    assert again.content_hash == first.content_hash
    assert again.facts == first.facts


def test_two_ranks_make_the_same_and_the_first_alone_verifies_and_warns(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = frame_of(run)["prompt_ids"].list.len()
    assert lengths.min() < lengths.max()
    options = [f"evaluate.max_completion_tokens={256 - lengths.min()}", "evaluate.samples=1"]
    evaluate.main(
        "a", 0, overwrite=True, overrides=[*options, 'rollout.on_long="drop"'], quiet=True
    )
    alone = read_manifest(run.evaluation(0)).content_hash
    assert len(frame_of(run)) < 8 * 2
    assert capsys.readouterr().err.count("questions leave no room") == 1
    done = torchrun(2, "test_evaluate.py")
    assert done.stderr.count("questions leave no room") == 1
    assert re.findall(r"rank \d verifies", done.stdout) == ["rank 0 verifies"]
    assert read_manifest(run.evaluation(0)).content_hash == alone


def test_settings_of_every_verify_type_are_part_of_an_evaluation() -> None:
    others = {"answer", "functions", "workers", *AUX_REWARDS}
    recipe = load_recipe(DEFAULT_RECIPE)
    recorded = BY_NAME["evaluate"].recorded(recipe)["rewards"]
    assert set(RewardsConfig.model_fields) - others == set(recorded)


def test_what_cannot_be_evaluated_is_refused(run: Run) -> None:
    with pytest.raises(UserError, match="0003 is missing; make it with: make iteration N=3"):
        evaluate.main("a", 3, quiet=True)
    too_long = ["evaluate.max_completion_tokens=250"]
    with pytest.raises(UserError, match="beyond the context of 256"):
        evaluate.main("a", 0, quiet=True, overwrite=True, overrides=too_long)


def as_a_rank() -> None:
    """Evaluate the run again as one of torchrun's ranks, telling who verifies the policy."""
    verify = evaluate.open_policy

    def told(run: Run, number: int) -> Path:
        print(f"rank {rank()} verifies", flush=True)
        return verify(run, number)

    evaluate.open_policy = told  # type: ignore[attr-defined]
    evaluate.QUESTIONS_PER_SHARD = 3
    evaluate.main("a", 0, overwrite=True, quiet=True)


if __name__ == "__main__":
    as_a_rank()
