"""The objective's README stays true: its tables, its example, its commands and links."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
import torch
from support import REPOSITORY
from support.objective_rows import forward, some_rows, token_batch
from support.tiny_runs import UNUSED
from support.trained_runs import steps

from common.config import (
    PRESETS,
    AdvantagesConfig,
    ObjectiveConfig,
    PolicyTermName,
    ReferenceConfig,
    Section,
)
from common.config.recipe_file import parse_recipe
from common.objective.loss import grpo_loss, metrics
from common.runs.manifest import read_manifest
from common.training.policy_term import ADVANTAGES, LOG_RATIOS, load_policy_term

FOLDER = REPOSITORY / "common" / "objective"
README = (FOLDER / "README.md").read_text(encoding="utf-8")
SECTIONS = {
    "advantages": AdvantagesConfig,
    "objective": ObjectiveConfig,
    "reference": ReferenceConfig,
}


def below(title: str) -> str:
    """The text of a section, up to the next heading of its rank or a higher one."""
    rank = title.index(" ")
    text = README.split(f"\n{title}\n")[1]
    return re.split(rf"^#{{1,{rank}}} ", text, flags=re.M)[0]


def table(text: str) -> list[list[str]]:
    """Cells of the first table, without its head."""
    rows = text.split("\n|---")[1].split("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in row.split(" |")] for row in (f"{row[2:]} " for row in rows)]


def names(cell: str) -> list[str]:
    return re.findall(r"`([\w.]+)`", cell)


@pytest.mark.parametrize(("name", "section"), SECTIONS.items())
def test_every_key_is_there_with_its_default(name: str, section: type[Section]) -> None:
    found = {}
    for keys, defaults, *_ in table(below(f"### [{name}]")):
        for key, default in zip(names(keys), defaults.split(", "), strict=True):
            found[key] = None if default == "not set" else json.loads(default.strip("`"))
    assert found == section().model_dump()


@pytest.mark.parametrize(("name", "section"), SECTIONS.items())
def test_every_choice_is_explained(name: str, section: type[Section]) -> None:
    effects = {key: cells[2] for cells in table(below(f"### [{name}]")) for key in names(cells[0])}
    effects["kl_kind"] = below("### KL estimators")
    for key, choices in choices_of(section).items():
        explained = set(re.findall(r'`"(\w+)"`', effects[key]))
        unsaid = {"none"} if key == "sampler_correction" else set()
        assert explained >= choices - unsaid, key


def choices_of(section: type[Section]) -> dict[str, set[Any]]:
    """Keys with a closed set of names."""
    properties = section.model_json_schema()["properties"].items()
    found = {key: set(schema["enum"]) for key, schema in properties if "enum" in schema}
    if section is ObjectiveConfig:
        found["policy_term"] = set(get_args(PolicyTermName))
    return {key: choices for key, choices in found.items() if choices != {0, 1}}


ELSEWHERE = table(below("## The same options in TRL, verl and OpenRLHF"))
UNNAMED: dict[str, set[str]] = {
    "policy_term": {"clip"},
    "ratio_level": {"token"},
    "kl_kind": {"k1", "k2", "k3"},
    "sampler_correction": {"none"},
}
"""Choices without a row: what every trainer has, or what the row of the key says."""


@pytest.mark.parametrize("name", ["advantages", "objective"])
def test_every_key_and_choice_is_compared_with_others(name: str) -> None:
    """Ours only. The columns of verl and OpenRLHF are checked by nobody but readers; neither is
    installed for the tests."""
    compared: dict[str, set[str]] = {}
    keys: list[str] = []
    for cell, *_ in ELSEWHERE:  # `"x"` alone belongs to the key above it
        cell = re.sub(r"`(\w+)_low`, `_high`", r"`\1_low`, `\1_high`", cell)
        keys = [] if "**" in cell else re.findall(r"`([a-z_.]+)", cell) or keys
        for key in keys:
            compared.setdefault(key, set()).update(re.findall(r'"(\w+)"', cell))
    choices = choices_of(SECTIONS[name])
    for key in SECTIONS[name].model_fields:
        assert compared[key] == choices.get(key, set()) - UNNAMED.get(key, set()), key


def test_options_of_trl_are_its_own() -> None:
    """Every word of the TRL column is in its sources, the version that parity is tested with."""
    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        pytest.skip("TRL is not installed")
    trl = Path(spec.origin).parent
    files = [*(trl / "trainer").glob("*_config.py"), *(trl / "rewards").glob("*.py")]
    sources = "\n".join(path.read_text() for path in [*files, trl / "trainer" / "rloo_trainer.py"])
    column = " ".join(re.findall(r"`([^`]*)`", " ".join(cells[1] for cells in ELSEWHERE)))
    words = re.findall(r"[A-Za-z_]{4,}", column)
    assert len(words) > 20
    for word in words:
        assert word in sources, word


def test_presets_are_those_that_there_are() -> None:
    """Their papers: `test_presets.py`."""
    assert [names(cells[0])[0] for cells in table(below("## Presets"))] == list(PRESETS)


def test_metrics_are_those_of_the_loss() -> None:
    rows, config = some_rows(), ObjectiveConfig()
    found = metrics(grpo_loss(*forward(rows), token_batch(rows, config), config)[1])
    assert {name for cells in table(below("## Metrics")) for name in names(cells[0])} == set(found)


@pytest.fixture
def example(tmp_path: Path) -> ModuleType:
    """The README's module, in a folder from which a command could be run."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    (tmp_path / "my_terms.py").write_text(code)
    spec = importlib.util.spec_from_file_location("my_terms", tmp_path / "my_terms.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def recipe_of_the_example() -> str:
    (piece,) = re.findall(r"```toml\n(.*?)```", README, re.S)
    return piece


def objective_of_the_example() -> ObjectiveConfig:
    return parse_recipe(UNUSED + recipe_of_the_example(), origin="README").objective


def test_the_example_trains_by_the_command(
    example: ModuleType,
    untrained: Path,
    at: Callable[..., Any],
    stage: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = at(untrained)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    keys = tomllib.loads(recipe_of_the_example())["objective"].items()
    words = [word for key, value in keys for word in ("--set", f"objective.{key}={value}")]
    stage("train", "--run", "a", "--iteration", "1", *words)
    manifest = read_manifest(run.train(1))
    assert manifest.recipe["objective"]["policy_term"] == "my_terms:soft_gate"
    assert manifest.recorded["made_by"].keys() == {"policy_term: my_terms:soft_gate"}
    frame = steps(run)
    assert frame["grad_norm"].min() > 0
    assert frame.select("clip_fraction_low", "clip_fraction_high").sum().row(0) == (0, 0)


@pytest.mark.parametrize("microbatches", [1, 3])
def test_the_example_is_sapo_as_trl_has_it(example: ModuleType, microbatches: int) -> None:
    pytest.importorskip("trl", reason="the test extra is not installed")
    from support.trl_trainer import assert_same, grpo_loss_of_trl, settings_of

    rows, config = some_rows(2), objective_of_the_example()
    batch = token_batch(rows, config)
    ours, _ = grpo_loss(*forward(rows), batch, config, example.soft_gate)
    settings = settings_of(config) | {"loss_type": "sapo"}
    theirs, _ = grpo_loss_of_trl(rows, batch.mask, microbatches, **settings)
    assert_same(ours, theirs, rows)


def test_the_example_keeps_its_slope_at_ratio_1(example: ModuleType) -> None:
    """Of −A, as every term: a gate of sigmoid alone would have a quarter of it."""
    ratio = torch.ones(2, requires_grad=True)
    advantages = torch.tensor([2.0, -2.0])
    loss = example.soft_gate(ratio, ratio.log(), advantages, ObjectiveConfig())
    (slope,) = torch.autograd.grad(loss.sum(), ratio)
    torch.testing.assert_close(slope, -advantages)


def test_the_contract_names_what_a_term_is_tried_on(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert f"{len(LOG_RATIOS) * len(ADVANTAGES)}\ntokens, together and one by one" in README
    assert f"exp({min(LOG_RATIOS):g}) to exp({max(LOG_RATIOS):g})" in README
    monkeypatch.syspath_prepend(tmp_path)
    assert load_policy_term(objective_of_the_example()) is not None
    sys.modules.pop("my_terms")


def test_links_and_named_files_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    titles = re.findall(r"^#+ (.*)$", README, re.M)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    for link in links:
        path, _, anchor = link.partition("#")
        assert (FOLDER / path).exists(), link
        assert not anchor or anchor in anchors, link
    assert {p.name for p in FOLDER.glob("[a-z]*.py")} == {
        path for path in links if re.fullmatch(r"\w+\.py", path)
    }


def test_make_commands_are_accepted(runs: Path) -> None:
    lines = re.sub(r"\\\n\s+", "", README).splitlines()
    commands = [line.strip() for line in lines if line.startswith("    make ")]
    assert commands
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", f"{command} -n"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
