"""The algorithm on one screen makes the policies that the stages make."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from support import REPOSITORY

from common.config.recipe_file import load_recipe
from common.runs.layout import Run
from workflows.chain import launch
from workflows.chain.launch import Command
from workflows.minimal import train

SCREEN = 120
SMALLER = (
    *("rollout.prompts_per_iteration=12", "rollout.group_size=8", "rollout.groups_per_shard=4"),
    *("rollout.max_completion_tokens=64", "evaluate.every=0"),
)


def test_it_fits_on_a_screen() -> None:
    text = (REPOSITORY / "workflows/minimal.py").read_text()
    assert len(text.splitlines()) <= SCREEN


def test_two_iterations_make_the_policy_of_the_stages(runs: Path, tmp_path: Path) -> None:
    """The updates are some hundred times larger than what the policies may differ by."""
    recipe = load_recipe(REPOSITORY / "workflows/recipes/arithmetic.toml", list(SMALLER))
    settings = [word for key in SMALLER for word in ("--set", key)]
    chain = Command("workflows.chain", ["iteration", "--run", "a", "--to", "2", *settings])
    assert launch.run(chain, log=tmp_path / "log") == 0, (tmp_path / "log").read_text()
    staged = load_file(Run(runs / "a").policy(2).path / "model.safetensors")
    base = load_file(Run(runs / "a").policy(0).path / "model.safetensors")
    minimal = train(recipe, 2).state_dict()
    assert max((staged[name] - base[name]).abs().max() for name in staged) > 1e-4
    assert max((staged[name] - minimal[name]).abs().max() for name in staged) < 1e-6
