"""A recipe's own policy term through the real stages: what it trains, is noted as, is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from support.own_terms import clip_again
from support.trained_runs import made, nothing_made, steps

from common.config.recipe_file import override_text, parse_recipe
from common.errors import UserError
from common.runs.freshness import status_of
from common.runs.layout import Run
from common.runs.manifest import read_manifest
from common.runs.recipe import recipe_in_force
from common.training.loop import Trainer
from stages import prepare
from stages.train import main as train
from workflows.compare.children import VariantResult, run_stages
from workflows.variants import Variant

OWN = "objective.policy_term=support.own_terms:{}"
MODULE = """\
def term(ratio, logprobs, advantages, config):
    return -ratio * advantages
"""


@pytest.mark.parametrize("name", ["clip", "cispo"])
@pytest.mark.parametrize("kl", ["objective.kl_coef=0.01", "objective.kl_coef=0.0"])
def test_a_term_with_a_built_in_formula_trains_the_very_same_policy(
    untrained: Path, at, name: str, kl: str
) -> None:
    """With and without a KL: without, completions of advantage 0 are left out of both."""
    run = at(untrained)
    train("a", 1, overrides=[kl, f"objective.policy_term={name}"])
    built_in, rows = made(run)[:2], steps(run)
    train("a", 1, overwrite=True, overrides=[OWN.format(f"{name}_again")])
    own = steps(run)
    assert made(run)[:2] == built_in
    clipped = ["clip_fraction_low", "clip_fraction_high"]
    assert rows.select(clipped).sum().sum_horizontal().item() > 0 or name == "cispo"
    assert own.select(clipped).sum().sum_horizontal().item() == 0
    timed = ["tokens_per_second", "step_seconds", "peak_memory_bytes"]
    assert own.drop(clipped + timed).equals(rows.drop(clipped + timed))


def test_another_term_trains_another_policy(untrained: Path, trained: Path, at) -> None:
    run = at(untrained)
    train("a", 1, overrides=[OWN.format("soft_gate")])
    assert made(run)[0] != made(Run(trained / "a"))[0]
    assert steps(run)["grad_norm"].min() > 0


def test_a_module_of_the_user_s_trains_by_the_command(
    untrained: Path, at, stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = at(untrained)
    (tmp_path / "mine.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    option = "objective.policy_term=mine:term"
    stage("train", "--run", "a", "--iteration", "1", "--set", option)
    manifest = read_manifest(run.train(1))
    assert manifest.recipe["objective"]["policy_term"] == "mine:term"
    expected = hashlib.sha256(MODULE.encode()).hexdigest()
    assert manifest.recorded["made_by"] == {"policy_term: mine:term": expected}
    assert recipe_in_force(run).objective.policy_term == "mine:term"
    (tmp_path / "mine.py").write_text(MODULE.replace("-ratio", "-2 * ratio"))
    assert status_of(run, run.train(1)).state == "fresh", "as with functions of rewards"


def test_built_in_terms_leave_no_mark(trained: Path) -> None:
    assert "made_by" not in read_manifest(Run(trained / "a").train(1)).recorded


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["objective.policy_term=nowhere:term"], "'nowhere' cannot be imported"),
        (["objective.policy_term=mine:missing"], "'mine' has no function 'missing'"),
        (["objective.policy_term=mine:shape"], "return the loss of each token"),
        (["objective.policy_term=mine:term", "preset=dapo"], "stands for a paper's whole"),
    ],
)
def test_the_command_refuses_with_exit_code_2(
    untrained: Path, at, stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options, said
) -> None:
    run = at(untrained)
    (tmp_path / "mine.py").write_text(
        MODULE + "def shape(ratio, logprobs, advantages, config):\n    return ratio.sum()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    words = [word for option in options for word in ("--set", option)]
    done = stage("train", "--run", "a", "--iteration", "1", *words, expect=2)
    assert done.stderr.startswith("error: ") and said in done.stderr
    assert "Traceback" not in done.stderr
    assert nothing_made(run)


def test_a_fault_is_found_before_a_model_is_loaded(
    untrained: Path, at, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = at(untrained)
    monkeypatch.setattr("common.training.loop.Pipeline", None)
    with pytest.raises(UserError, match="use no mean, sum, maximum"):
        train("a", 1, overrides=[OWN.format("over_batch")])
    assert nothing_made(run)


def test_prepare_refuses_before_anything_is_sampled(runs: Path, recipe_file: Path) -> None:
    with pytest.raises(UserError, match=r"own_terms\.py.*return a loss"):
        prepare.main("a", recipe_file, [OWN.format("objective")])
    assert not (runs / "a" / "prompts").exists()
    prepare.main("a", recipe_file, [OWN.format("soft_gate")])
    assert (runs / "a" / "prompts").exists()


def test_an_interrupted_training_goes_on_only_with_the_same_file(
    untrained: Path, at, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = at(untrained)
    module = tmp_path / "edited_term.py"
    module.write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    options = ["train.checkpoint_every_steps=1", "objective.policy_term=edited_term:term"]
    taken: list[int] = []
    original = Trainer.accumulate

    def stopping(self, minibatch):
        taken.append(minibatch.step)
        if minibatch.step == stop:
            raise KeyboardInterrupt
        return original(self, minibatch)

    monkeypatch.setattr(Trainer, "accumulate", stopping)
    for stop, change in ((2, ""), (4, ""), (None, "# edited\n")):
        module.write_text(module.read_text() + change)
        if stop is None:
            train("a", 1)
        else:
            with pytest.raises(KeyboardInterrupt):
                train("a", 1, overrides=options)
    assert taken == [0, 1, 2, 2, 3, 4, 0, 1, 2, 3, 4, 5]
    recorded = read_manifest(run.train(1)).recorded["made_by"]
    assert recorded == {
        "policy_term: edited_term:term": hashlib.sha256(module.read_bytes()).hexdigest()
    }


def test_compare_tells_when_a_variant_was_trained_before_an_edit(
    untrained: Path, at, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    run = at(untrained)
    module = tmp_path / "compared_term.py"
    module.write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    option = "objective.policy_term=compared_term:term"
    train("a", 1, overrides=[option], quiet=True)
    variant = Variant("own", run.recipe.read_text(), recipe_in_force(run))
    outcome = VariantResult(variant, run)
    run_stages(outcome, 1, evaluate=False, quiet=True)
    assert outcome.result == "trained" and "edited" not in capsys.readouterr().err
    module.write_text(MODULE + "# edited\n")
    run_stages(outcome, 1, evaluate=False, quiet=True)
    assert "compared_term:term as it was before" in capsys.readouterr().err


def test_a_name_survives_the_recipe_s_file(untrained: Path) -> None:
    text = override_text((untrained / "recipe.toml").read_text(), ["objective.policy_term=a.b:c"])
    recipe = parse_recipe(text, origin="x")
    assert recipe.objective.policy_term == "a.b:c" and recipe.objective.has_own_term
    assert json.loads(recipe.model_dump_json())["objective"]["policy_term"] == "a.b:c"


def test_the_copy_is_no_call_of_the_original() -> None:
    """Or the comparison above would compare a function with itself."""
    from common.objective import loss

    assert clip_again is not loss.clip_term and clip_again.__module__ == "support.own_terms"
