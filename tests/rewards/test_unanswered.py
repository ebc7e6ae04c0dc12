"""An iteration with hardly an answer says why, and stops before it costs more."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest
from support.scored_runs import completion, start_scored_run, write_rollout

from common.errors import NoLearningSignalError
from common.rewards.registry import VERIFY
from common.rewards.unanswered import FACT, refuse_unanswered
from common.runs.layout import Run
from common.runs.manifest import has_manifest, read_manifest
from stages import score

RECIPE = """\
[model]
path = "x"
[data.sums]
kind = "dataset"
path = "y"
"""
Made = Callable[..., Run]


@pytest.fixture
def scored(runs: object) -> Made:
    """Make a run of 24 completions, of which all but `answered` are as given."""

    def make(recipe: str = RECIPE, answered: int = 0, **row: object) -> Run:
        run = start_scored_run(recipe)
        rows = [completion(group, sample) for group in range(6) for sample in range(4)]
        rows = [r | (row if n >= answered else {}) for n, r in enumerate(rows)]
        write_rollout(run, rows)
        return run

    return make


def test_a_prefix_that_the_model_does_not_close(scored: Made) -> None:
    run = scored(completion_text="It is 14.", answered=0)
    with pytest.raises(NoLearningSignalError) as stopped:
        score.main("a", 1)
    said = str(stopped.value)
    assert "24 of 24 completions have no answer that the rules can read" in said
    assert "the prefix '<think>' opens a thought that the model does not end" in said
    assert "make iteration N=1 FROM=1 RUN=a SET=prompt.assistant_prefix=\n" in said + "\n"
    assert has_manifest(run.score(1)), "the scores can be looked at"
    with pytest.raises(NoLearningSignalError, match="opens a thought"):
        refuse_unanswered(run.score(1), "stop")


def test_a_limit_that_cuts_answers_off(scored: Made) -> None:
    scored(assistant_prefix="", completion_text="First, we", finish_reason="length")
    with pytest.raises(NoLearningSignalError) as stopped:
        score.main("a", 1)
    assert "24 are cut off at 20 tokens" in str(stopped.value)
    assert "SET=rollout.max_completion_tokens=80" in str(stopped.value)


def test_a_form_that_nobody_asked_for(scored: Made) -> None:
    scored(assistant_prefix="", completion_text="The answer is 14.")
    with pytest.raises(NoLearningSignalError) as stopped:
        score.main("a", 1)
    assert "ANSWER_TAG looks for <answer>…</answer>" in str(stopped.value)
    assert "ask for that in prompt.system of the recipe" in str(stopped.value)


@pytest.mark.parametrize("setting", ["train.on_no_signal=keep", "rewards.format.weight=0.1"])
def test_it_goes_on_where_the_recipe_has_a_use_for_it(
    scored: Made, setting: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The form of an answer is what another reward may be there to teach."""
    run = scored(completion_text="It is 14.")
    score.main("a", 1, overrides=[setting])
    assert "opens a thought that the model does not end" in capsys.readouterr().err
    refuse_unanswered(run.score(1), setting.removeprefix("train.on_no_signal="))


def test_a_tenth_of_answers_is_enough(scored: Made, capsys: pytest.CaptureFixture[str]) -> None:
    run = scored(completion_text="It is 14.", answered=6)
    score.main("a", 1)
    assert "no answer that" not in capsys.readouterr().err
    assert FACT not in read_manifest(run.score(1)).facts


def test_every_verify_type_says_what_it_looks_for() -> None:
    assert all(verifier.form for verifier in VERIFY.values())


def test_the_chain_stops_before_logprobs(
    prepared: Callable[..., object], at: Callable[..., Run]
) -> None:
    """A random policy, which closes no thought; the second time nothing is sampled again."""
    from conftest import RECIPE as TINY
    from support import REPOSITORY

    from workflows.chain.launch import Command

    settings = ("rewards.format.weight=0", "prompt.assistant_prefix=<think>")
    run = at(prepared(TINY, *settings))
    command = Command("workflows.chain", ["iteration", "--run", "a", "--to", "1"])
    for stages in (["rollout", "score"], ["logprobs"]):
        done = subprocess.run(
            command.words, cwd=REPOSITORY, capture_output=True, text=True, check=False
        )
        assert done.returncode == 4, done.stderr
        assert done.stdout.count(" -m stages.") == len(stages)
        assert "no answer that the rules can read" in done.stderr
    assert not run.logprobs(1).path.exists()
