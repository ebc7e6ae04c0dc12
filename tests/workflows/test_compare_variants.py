"""Variants from options, and the runs that they may make, keep or remove: no model is needed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.planned_runs import complete_run, do

from common.config import PRESETS
from common.config.recipe_file import override_text, parse_recipe, read_recipe_text
from common.errors import UserError
from common.runs.child import Frozen
from common.runs.layout import DEFAULT_RECIPE, Run
from common.runs.manifest import read_manifest, write_manifest
from common.runs.policies import prune
from common.runs.recipe import changed_since_begun
from common.runs.stages import BY_NAME
from workflows.compare.children import make_children
from workflows.compare.variants import not_applied, read_variants
from workflows.variants import Variant, replaced_by_preset


@pytest.fixture
def parent(tmp_path: Path) -> Run:
    """`demo`, its stages played up to iteration 4, with the default recipe."""
    run = complete_run(tmp_path, to=4)
    shutil.copy(DEFAULT_RECIPE, run.recipe)
    recipe = parse_recipe(read_recipe_text(run.recipe), origin="test")
    sampled = {"rollout": recipe.rollout.model_dump(mode="json")}
    for output, made_with in (
        (run.prompts, BY_NAME["prepare"].recorded(recipe)),
        *((run.rollout(n), sampled) for n in range(1, 5)),
    ):
        manifest = read_manifest(output).model_copy(update={"recipe": made_with})
        write_manifest(output.path, manifest)
    return run


def variants(parent: Run, *options: str, iteration: int = 2, **others: list[str]) -> list[Variant]:
    given = {"presets": [], "recipes": [], "common": []} | others
    frozen = Frozen(parent, iteration)
    return read_variants(frozen, variants=list(options), **given)  # type: ignore[arg-type]


TWO = ("one:train.epochs=3", "dr:preset=dr_grpo")


def test_presets_replace_what_presets_decide(parent: Run) -> None:
    text = parent.recipe.read_text() + "\n[rewards.length]\nweight = 0.9\n"
    recipe = parse_recipe(replaced_by_preset(text, "grpo"), origin="test")
    assert recipe.objective.kl_coef == PRESETS["grpo"]["objective"]["kl_coef"] == 0.04
    before = parse_recipe(text, origin="test")
    assert recipe.rewards.length.weight == 0 and recipe.train == before.train
    parent.recipe.write_text(text)
    (dapo, own) = variants(
        parent,
        "own:objective.clip_high=0.5,preset=dapo",
        presets=["dapo"],
        common=["objective.clip_low=0.1"],
    )
    assert (dapo.recipe.objective.clip_low, dapo.recipe.objective.clip_high) == (0.1, 0.28)
    assert (own.recipe.objective.clip_low, own.recipe.objective.clip_high) == (0.1, 0.5)


def test_what_a_frozen_rollout_cannot_follow_is_said(
    parent: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    two = variants(parent, presets=["grpo", "dapo"])
    assert [not_applied(Frozen(parent, 2), v) for v in two] == [[], ["rollout.dynamic_sampling"]]
    make_children(Frozen(parent, 2), two, overwrite=False)
    assert capsys.readouterr().out == (
        "dapo: rollout.dynamic_sampling cannot change a rollout that is frozen; "
        "demo.2.dapo has it from iteration 3 on\n"
    )


def test_a_run_from_before_a_key_began_with_its_default(parent: Run) -> None:
    recipe = parse_recipe(read_recipe_text(parent.recipe), origin="test")
    assert changed_since_begun(parent, recipe) == []
    manifest = read_manifest(parent.prompts)
    del manifest.recipe["data"]["counting"]["seed"]
    write_manifest(parent.prompts.path, manifest)
    assert changed_since_begun(parent, recipe) == []
    text = override_text(read_recipe_text(parent.recipe), ["data.counting.seed=7"])
    recipe = parse_recipe(text, origin="test")
    assert changed_since_begun(parent, recipe) == ["data.counting.seed (0 then, 7 now)"]
    del recipe.data["scheduling"]
    _, scheduling = changed_since_begun(parent, recipe)
    assert scheduling.startswith("data.scheduling (") and scheduling.endswith("None now)")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["a:train.epochs=2"], "two variants or more"),
        (["a:train.epochs=2", "a:train.epochs=3"], "two variants are called 'a'"),
        (["a:train.epoch=2", "b:train.epochs=1"], "variant 'a': unknown key 'train.epoch'"),
        (["a", "b:train.epochs=1"], "--variant 'a': write it as NAME:section.key=value"),
        (["a:preset=dpo", "b:train.epochs=1"], "preset 'dpo': there are grpo, dapo"),
        (
            ["a:preset=dapo,objective.policy_term=mine:term", "b:train.epochs=1"],
            "'mine:term' is your own, but preset = 'dapo'",
        ),
        (["a/b:train.epochs=2", "b:train.epochs=1"], "begins with a letter or a digit; choose"),
        ([":train.epochs=2", "b:train.epochs=1"], "variant '': its run would be 'demo.2.'"),
        (["_a:train.epochs=2", "b:train.epochs=1"], "begins with a letter or a digit; choose"),
        (["a" * 70 + ":train.epochs=2", "b:train.epochs=1"], "1 to 64 of the characters"),
        (
            ["a:model.path=elsewhere", "b:train.epochs=1"],
            r"path \('.*' then, 'elsewhere' now\) is",
        ),
        (["a:data.counting.train=7", "b:train.epochs=1"], r"train \(800 then, 7 now\) is not what"),
    ],
)
def test_faulty_variants_are_refused(parent: Run, options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        variants(parent, *options)


def test_a_variant_may_have_a_policy_term_of_its_own(parent: Run) -> None:
    own = "own:objective.policy_term=mine.terms:soft,train.epochs=2"
    (found, _) = variants(parent, own, TWO[0])
    assert found.recipe.objective.policy_term == "mine.terms:soft"
    assert found.recipe.train.epochs == 2


def test_children_are_made_once_and_anew_on_demand(parent: Run) -> None:
    frozen = Frozen(parent, 2)
    (one, _) = make_children(frozen, variants(parent, *TWO), overwrite=False)
    do(one, "score", 2)
    make_children(frozen, variants(parent, *TWO), overwrite=False)
    assert one.score(2).path.exists() and not one.making.root.exists()
    make_children(frozen, variants(parent, *TWO), overwrite=True)
    assert not one.score(2).path.exists() and one.rollout(2).path.exists()
    do(parent, "rollout", 2, value=7)
    with pytest.raises(UserError, match=r"its iterations/0002/rollout is another.*--overwrite"):
        make_children(frozen, variants(parent, *TWO), overwrite=False)
    make_children(frozen, variants(parent, *TWO), overwrite=True)
    assert read_manifest(one.rollout(2)).content_hash == (
        read_manifest(parent.rollout(2)).content_hash
    )


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ("train.epochs=4", "train.epochs"),
        # A name that the child's recipe has not: told only by looking both ways.
        ("train.epochs=3,rewards.functions.f.function=a:b", "rewards.functions.f"),
    ],
)
def test_a_child_of_another_recipe_is_refused(parent: Run, keys: str, named: str) -> None:
    make_children(Frozen(parent, 2), variants(parent, *TWO), overwrite=False)
    other = variants(parent, f"one:{keys}", TWO[1])
    with pytest.raises(UserError, match=rf"recipe.toml differs in {named}.*--overwrite"):
        make_children(Frozen(parent, 2), other, overwrite=False)


def test_a_child_that_went_on_is_never_removed(parent: Run) -> None:
    """Checked for all variants before the first of them is removed."""
    frozen = Frozen(parent, 2)
    one, dr = make_children(frozen, variants(parent, *TWO), overwrite=False)
    for stage in ("score", "logprobs", "train"):
        do(dr, stage, 2)
    do(one, "score", 2)
    make_children(frozen, variants(parent, *TWO), overwrite=False)
    do(dr, "rollout", 3)
    with pytest.raises(UserError, match=r"demo.2.dr went on to iteration 3; --overwrite would"):
        make_children(frozen, variants(parent, *TWO), overwrite=True)
    assert one.score(2).path.exists() and dr.rollout(3).path.exists()


@pytest.mark.parametrize("mark", [None, "{", "[]", '{"run": "demo", "iteration": 1}'])
def test_a_run_that_is_no_child_of_this_iteration_is_never_removed(
    parent: Run, mark: str | None
) -> None:
    """Any run may be called demo.2.one."""
    frozen = Frozen(parent, 2)
    one, _ = make_children(frozen, variants(parent, *TWO), overwrite=False)
    assert json.loads(one.child_of.read_text()) == {"run": "demo", "iteration": 2}
    one.child_of.unlink()
    if mark is not None:
        one.child_of.write_text(mark)
    with pytest.raises(UserError, match=r"demo.2.one: no child_of.json.*Remove the folder your"):
        make_children(frozen, variants(parent, *TWO), overwrite=True)
    with pytest.raises(UserError, match=r"no child_of.json in it says so"):
        make_children(frozen, variants(parent, *TWO), overwrite=False)
    assert one.rollout(2).path.exists()


def test_a_pruned_iteration_names_those_that_can_be_compared(parent: Run) -> None:
    prune(parent, newest=4, keep_policies="all", keep_trainer=3)
    with pytest.raises(UserError, match=r"trainer/0001.*pruned.*that can: 1, 3, 4$"):
        variants(parent, *TWO)
    assert variants(parent, *TWO, iteration=3)


def test_a_pruned_reference_concerns_the_variants_that_have_it(parent: Run) -> None:
    """Policy 3, from which iteration 4 starts, is there; policy 2, a reference, is not."""
    prune(parent, newest=4, keep_policies=2, keep_trainer="all")
    refreshed = "new:preset=grpo,reference.update=refresh,reference.refresh_every="
    with pytest.raises(UserError, match=r"policies/0002: its files were pruned.*that can: 1$"):
        variants(parent, refreshed + "2", iteration=4, presets=["dapo"])
    assert variants(parent, refreshed + "3", iteration=4, presets=["dapo", "grpo"])
