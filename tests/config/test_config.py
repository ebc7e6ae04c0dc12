"""Recipes: what is refused, in which words, and how overrides are written."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel
from support import REPOSITORY

from common.config import (
    ColumnMap,
    DatasetSource,
    FunctionReward,
    GeneratorSource,
    GymSource,
    Recipe,
)
from common.config.recipe_file import load_recipe, override_text, parse_recipe
from common.errors import UserError

BASE = """
[model]
path = "somewhere"

[data.words]
kind = "dataset"
path = "words.jsonl"
"""

RECIPES = sorted((REPOSITORY / "workflows" / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_of_the_project_is_valid_and_described(path: Path) -> None:
    assert load_recipe(path).description


@pytest.mark.parametrize(
    ("addition", "said"),
    [
        (
            "[rollout]\ngroup_sise = 3",
            "unknown key 'rollout.group_sise'; did you mean 'group_size'?",
        ),
        ("[rolout]\ngroup_size = 3", "unknown key 'rolout'; did you mean 'rollout'?"),
        ("[rollout]\ngroup_size = 1", "rollout.group_size = 1: input should be greater"),
        ("[rollout]\ntemperature = 0", "rollout.temperature = 0: input should be greater than 0"),
        ("[rollout]\ntop_p = 0.9", "evaluate.top_p is for evaluations"),
        (
            "[logprobs]\nold_from = 'sampler'",
            "unknown key 'logprobs.old_from': it is called logprobs.old_logprobs_from now",
        ),
        ("[logprobs]\nalarm_gap_mean = 1", "it is called logprobs.warn_gap_mean now"),
        ("[train]\nprompts_per_step = 5", "nearest that do: 4, 8"),
        ("[train]\nepochs = 'x'", "train.epochs = 'x': input should be a valid integer"),
        ("[objective]\ndual_clip = 1.1", "dual_clip 1.1 must exceed 1 + clip_high"),
        ("[objective]\nkl_kind = 'k4'", "'k1', 'k2' or 'k3'"),
        (
            "[objective]\npolicy_term = 'clipp'",
            "objective.policy_term = 'clipp': say 'clip', 'cispo', or your own function as "
            "'module:function'",
        ),
        ("[objective]\npolicy_term = 'mine:'", "objective.policy_term = 'mine:': say 'clip'"),
        ("[objective]\npolicy_term = 'my module:f'", "or your own function as 'module:function'"),
        (
            "[logprobs]\nold_logprobs_from = 'sampler'\n[objective]\ntop_entropy_quantile = 0.2",
            "objective.top_entropy_quantile = 0.2 ranks tokens by the entropy that only "
            'logprobs.old_logprobs_from = "policy" computes',
        ),
        (
            "[logprobs]\nold_logprobs_from = 'sampler'\n[objective]\nsampler_correction = 'mask'",
            "objective.sampler_correction = 'mask' weighs by the difference of trainer and "
            'sampler; with logprobs.old_logprobs_from = "sampler" there is none',
        ),
        ("[run]\nkeep_policies = 1", "run.keep_policies"),
        ("[data.a]\npath = 'x'", 'say kind = "generator", kind = "dataset" or'),
        ("[data.a]\nkind = 'dataset'\npath = 'x'\nanswer_patern = 'y'", "'answer_pattern'"),
        (
            "[data.a]\nkind = 'reasoning_gym'\ndatset = 'x'",
            "'data.a.datset'; did you mean 'dataset'?",
        ),
        ("[data.a]\nkind = 'reasoning_gym'\ndataset = 'x'\nconfg = {}", "did you mean 'config'?"),
        ("[rewards.functions.x]\nfunction = 'a:b'\nwieght = 1", "did you mean 'weight'?"),
        ("[rewards.functions.length]\nfunction = 'a:b'", "functions.length: name a reward"),
        ("[rewards.functions.Xy]\nfunction = 'a:b'", "functions.Xy: name a reward in lower case"),
        ("[rewards.code]\nseconds = 1e300", "rewards.code.seconds = 1e+300: input should be less"),
        ("[data.a]\nkind = 'generator'\ngenerator = 'sums'", "'multiplication', 'counting'"),
        ("[data.a]\nkind = 'dataset'\npath = 'x'\n[data.a.columns]\nanwser = 'b'", "'answer'"),
        ("[model", "not valid TOML"),
    ],
)
def test_faults_are_named_with_their_remedy(addition: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_recipe(BASE + addition, origin="mine.toml")
    assert said in str(caught.value)
    assert str(caught.value).startswith("mine.toml: ")


def test_several_faults_come_at_once() -> None:
    with pytest.raises(UserError) as caught:
        parse_recipe(BASE + "[train]\nepochs = 0\nlerning_rate = 1", origin="r")
    assert "train.epochs" in str(caught.value)
    assert "did you mean 'learning_rate'" in str(caught.value)


def test_a_missing_recipe_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "near.toml").write_text(BASE)
    with pytest.raises(UserError, match=r"there are near\.toml"):
        load_recipe(tmp_path / "far.toml")


def test_a_recipe_in_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    text = "# café\n[model]\npath = 'm'\n[data.a]\nkind = 'dataset'\npath = 'x.jsonl'\n"
    path.write_text(text, encoding="utf-8-sig")
    assert load_recipe(path).model.path == "m"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="not UTF-8 at byte 5; save it as UTF-8"):
        load_recipe(path)


def test_overrides_keep_comments_and_types() -> None:
    text = BASE + "# slow\n[train]\nlearning_rate = 1e-5 # small\n"
    changed = override_text(
        text,
        [
            "train.learning_rate=2e-5",
            "rewards.format.weight=0.2",
            "data.words.path=../other.jsonl",
            "run.keep_policies=all",
        ],
    )
    assert "# slow" in changed
    assert "# small" in changed
    recipe = parse_recipe(changed, origin="r")
    assert recipe.train.learning_rate == 2e-5
    assert recipe.rewards.aux_weights() == {"format": 0.2}
    assert recipe.data["words"].path == "../other.jsonl"  # type: ignore[union-attr]
    assert recipe.run.keep_policies == "all"


@pytest.mark.parametrize("override", ["novalue", "=1", "a..b=1", "model.path.deeper=1"])
def test_malformed_overrides_are_refused(override: str) -> None:
    with pytest.raises(UserError, match="--set"):
        parse_recipe(BASE, origin="r", overrides=[override])


def test_an_override_equals_the_edited_file() -> None:
    overrides = ["rollout.group_size=4", 'prompt.system="Be brief."', "train.epochs=2"]
    given = parse_recipe(BASE, origin="r", overrides=overrides)
    written = Recipe.model_validate(tomllib.loads(override_text(BASE, overrides)))
    assert given == written


def test_every_key_is_explained() -> None:
    """Tables are explained by their class, keys under their name."""

    def visit(model: type[BaseModel]) -> None:
        for name, field in model.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                visit(kind)
            elif name not in ("kind", "data"):
                assert field.description, f"{model.__name__}.{name}"

    for model in (Recipe, GeneratorSource, DatasetSource, GymSource, ColumnMap, FunctionReward):
        visit(model)


@pytest.mark.parametrize(
    "override", ["train.learning_rate=inf", "rewards.answer.weight=nan", "rollout.temperature=inf"]
)
def test_numbers_are_finite(override: str) -> None:
    with pytest.raises(UserError, match="finite"):
        parse_recipe(BASE, origin="r", overrides=[override])


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_recipe(tmp_path)
