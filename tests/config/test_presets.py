"""Presets: the papers' settings, under the recipe's own keys."""

from __future__ import annotations

import re
import tomllib
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from support import REPOSITORY

from common.config import PRESETS
from common.config.presets import PresetName
from common.config.recipe_file import load_recipe, override_text, parse_recipe, preset_remark
from common.errors import UserError
from common.objective.advantages import compute_advantages
from common.rewards.auxiliary import open_length

RECIPES = sorted((REPOSITORY / "workflows" / "recipes").glob("*.toml"))
README = (REPOSITORY / "common/objective/README.md").read_text()

BASE = """
[model]
path = "somewhere"

[data.words]
kind = "generator"
generator = "counting"
"""

PAPERS: dict[str, tuple[str, dict[str, Any]]] = {
    "grpo": (
        "2402.03300",
        {
            "advantages.kind": "group",  # section 4.1.2
            "objective.kl_kind": "k3",  # eq. 4
            "objective.kl_coef": 0.04,  # section 4.2: "The KL coefficient is 0.04"
            "objective.aggregation": "sequence_mean",  # eq. 3: 1/G sum 1/|o| sum
            "objective.clip_low": 0.2,  # not stated; PPO's (1707.06347)
            "objective.clip_high": 0.2,
        },
    ),
    "dapo": (
        "2503.14476",
        {
            "advantages.kind": "group",  # eq. 9
            "objective.clip_low": 0.2,  # section 4.1
            "objective.clip_high": 0.28,  # section 4.1
            "objective.kl_coef": 0.0,  # section 2.3
            "objective.aggregation": "token_mean",  # section 3.3
            "rollout.dynamic_sampling": True,  # section 3.2
            "rewards.length.weight": 0.5,  # eq. 13, at half of the paper's scale of rewards
        },
    ),
    "dr_grpo": (
        "2503.20783",
        {
            "advantages.kind": "none",  # section 3.2
            "objective.aggregation": "constant",  # section 3.2
            "objective.clip_low": 0.2,  # table 6: "Policy clipping parameter 0.2"
            "objective.clip_high": 0.2,
            "objective.kl_coef": 0.0,  # table 6: "KL loss coefficient 0.0"
        },
    ),
    "gspo": (
        "2507.18071",
        {
            "advantages.kind": "group",  # eq. 6
            "objective.ratio_level": "sequence",  # eq. 7
            "objective.clip_low": 3e-4,  # section 5.1
            "objective.clip_high": 4e-4,  # section 5.1
            "objective.kl_coef": 0.0,  # left out of the formulas; as in TRL's documentation
            "objective.aggregation": "sequence_mean",  # eq. 5
        },
    ),
    "cispo": (
        "2506.13585",
        {
            "advantages.kind": "group",  # eq. 2
            "objective.policy_term": "cispo",  # eq. 4 and 5
            "objective.cispo_cap": 5.0,  # not stated; TRL's documentation (`epsilon_high`)
            "objective.kl_coef": 0.0,  # section 3.1: "There is no KL penalty term in CISPO"
            "objective.aggregation": "token_mean",  # eq. 4
            "rollout.dynamic_sampling": True,  # section 3.1: "we utilize the dynamic sampling
            "rewards.length.weight": 0.5,  # and length penalty techniques" of DAPO
        },
    ),
    "rloo": (
        "2402.14740",
        {
            "advantages.kind": "leave_one_out",
            "objective.ratio_level": "sequence_sum",  # the completion is a single action
            "objective.aggregation": "sequence_mean",
            "objective.kl_coef": 0.03,  # appendix C, TL;DR
            "objective.kl_kind": "k2",  # ours: the paper's KL is in the reward
            "objective.clip_low": 0.2,  # TRL's RLOOConfig; the paper does not clip
            "objective.clip_high": 0.2,
        },
    ),
}
"""Preset: its paper, and each setting with the place that states it."""


def test_names_are_the_presets() -> None:
    assert get_args(PresetName) == tuple(PRESETS) == tuple(PAPERS)


@pytest.mark.parametrize("name", PAPERS)
def test_a_preset_sets_what_the_paper_says_and_nothing_else(name: str) -> None:
    plain = _flat(parse_recipe(BASE, origin="x").model_dump())
    preset = _flat(parse_recipe(f'preset = "{name}"\n{BASE}', origin="x").model_dump())
    says = PAPERS[name][1]
    assert {key: preset[key] for key in says} == says
    assert {key for key in plain if plain[key] != preset[key]} <= {"preset", *says}
    assert set(_flat(PRESETS[name])) == set(says)


@pytest.mark.parametrize(("path", "name"), list(product(RECIPES, PRESETS)), ids=str)
def test_every_recipe_takes_every_preset(path: Path, name: str) -> None:
    """Also after a round through the file, as `make iteration SET=preset=...` stores it."""
    text = override_text(path.read_text(), [f"preset={name}"])
    recipe = parse_recipe(text, origin=path.name)
    assert recipe == load_recipe(path, [f"preset={name}"])
    own = tomllib.loads(path.read_text()).get("objective", {})
    given = {key: value for key, value in PRESETS[name]["objective"].items() if key not in own}
    assert recipe.objective.model_dump() | own | given == recipe.objective.model_dump()


def test_own_keys_go_before_at_every_depth() -> None:
    text = f"""
preset = "dapo"
{BASE}
[rollout]
group_size = 4
[rewards]
length.buffer_tokens = 7
format.weight = 0.1
[objective]
clip_high = 0.3
"""
    recipe = parse_recipe(text, origin="x", overrides=["objective.kl_coef=0.01"])
    assert recipe.objective.clip_high == 0.3
    assert recipe.objective.kl_coef == 0.01
    assert recipe.objective.aggregation == "token_mean"
    assert recipe.rollout.group_size == 4
    assert recipe.rollout.dynamic_sampling
    assert recipe.rewards.length.buffer_tokens == 7
    assert recipe.rewards.length.weight == 0.5
    assert recipe.rewards.format.weight == 0.1


@pytest.mark.parametrize(
    "text",
    [
        BASE,
        f"# comment\n\n{BASE}",
        f'# comment\ndescription = "x" # y\n\n# of the model\n{BASE}',
        f'preset = "grpo"\n{BASE}',
        f'description = "x"\n{BASE}[rollout]\ngroup_size = 4\n# end',
    ],
)
def test_the_override_lands_before_the_tables(text: str) -> None:
    """A key behind a table's header would belong to that table, and be unknown there."""
    written = override_text(text, ["preset=dapo"])
    assert tomllib.loads(written) == {**tomllib.loads(text), "preset": "dapo"}
    comments = [line for line in text.splitlines() if "#" in line]
    assert [line for line in written.splitlines() if "#" in line] == comments


@pytest.mark.parametrize("value", ["dappo", "3", "[1]", "GRPO"])
def test_an_unknown_preset_is_refused_with_the_known_ones(value: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_recipe(BASE, origin="recipe.toml", overrides=[f"preset={value}"])
    assert str(refused.value).startswith("recipe.toml: preset")
    assert all(f"'{name}'" in str(refused.value) for name in PRESETS)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", PRESETS)
def test_a_term_of_one_s_own_is_no_paper_s(name: str) -> None:
    text = f'preset = "{name}"\n{BASE}\n[objective]\npolicy_term = "mine:term"\n'
    with pytest.raises(UserError) as refused:
        parse_recipe(text, origin="recipe.toml")
    said = str(refused.value)
    assert said.startswith("recipe.toml: objective.policy_term = 'mine:term' is your own")
    assert f"preset = '{name}'" in said and "remove the preset" in said
    assert parse_recipe(text.replace("preset", "description"), origin="x").objective.has_own_term


def test_a_wrong_table_beside_a_preset_is_named() -> None:
    with pytest.raises(UserError, match=r"^r: objective = 3: "):
        parse_recipe(f'preset = "dapo"\nobjective = 3\n{BASE}', origin="r")


def test_what_overrules_a_preset_is_said() -> None:
    """Only what differs: a key that says the same as the paper is no matter."""
    text = 'preset = "dapo"\nrewards.length.weight = 1\n[objective]\nkl_coef = 0.001\n'
    text += "clip_high = 0.28\n"
    assert preset_remark(text) == (
        "preset dapo: the recipe's own rewards.length.weight = 1 (dapo: 0.5), "
        "objective.kl_coef = 0.001 (dapo: 0.0)"
    )
    assert preset_remark('preset = "dapo"\n') == preset_remark("[objective]\nkl_coef = 1\n") == ""


def test_dapo_gives_the_advantages_of_its_paper() -> None:
    """Rewards 1 and -1 with a penalty to -1 in 4,096 of 20,480 tokens, against the preset's."""
    recipe = parse_recipe(f'preset = "dapo"\n{BASE}', origin="x")
    penalty = open_length(recipe.rewards.with_limit(20_480))
    lengths = np.array([500, 16_384, 17_000, 18_432, 20_479, 20_480])
    correct = np.array([1, 0, 1, 1, 0, 0])
    paper = np.where(correct == 1, 1.0, -1.0) - np.clip((lengths - 16_384) / 4_096, 0, 1)
    ours = recipe.rewards.answer.weight * correct + recipe.rewards.length.weight * np.array(
        [penalty("", {"completion_tokens": int(n)}) for n in lengths]
    )
    expected = (paper - paper.mean()) / paper.std(ddof=1)
    advantages = compute_advantages([0] * 6, list(ours), recipe.advantages.kind)
    np.testing.assert_allclose(advantages.advantage, expected, rtol=1e-3)


@pytest.mark.parametrize("name", PAPERS)
def test_the_page_names_preset_and_paper(name: str) -> None:
    (row,) = re.findall(rf"^\| `{name}` \|.*$", README, re.M)
    assert PAPERS[name][0] in row


def _flat(tables: Any, above: str = "") -> dict[str, Any]:
    """Nested tables as `section.key: value`."""
    found: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{above}{key}.")
        else:
            found[f"{above}{key}"] = value
    return found
