"""The README stays true: its commands, files, links and its tree exist."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import REPOSITORY

from common.config import AdvantagesConfig, FunctionReward, ObjectiveConfig, RewardsConfig
from common.config.recipe_file import parse_recipe
from common.rewards.scorer import Scorer

README = (REPOSITORY / "README.md").read_text()
BLOCK_LINES = [
    line.strip() for line in re.sub(r"\\\n\s+", "", README).splitlines() if line.startswith("    ")
]
MAKE = [re.split(r"\s{3,}", line)[0] for line in BLOCK_LINES if line.startswith("make ")]
STAGES = [re.split(r"\s{3,}", line)[0] for line in BLOCK_LINES if " stages." in line]
ELSEWHERE = re.findall(
    r"^\|(.*)\|$", README[README.index("### The same option") : README.index("[tis]:")], re.M
)


@pytest.mark.parametrize("command", MAKE)
def test_make_commands_are_accepted(command: str, runs: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{command} -n"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", STAGES)
def test_options_of_stage_commands_exist(command: str) -> None:
    words = [word for word in command.split() if word != "--"]
    module = words[words.index("-m") + 1]
    subcommand = [w for w in words[words.index("-m") + 2 :][:1] if not w.startswith("-")]
    done = subprocess.run(
        [sys.executable, "-m", module, *subcommand, "--help"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"},
    )
    assert done.returncode == 0, done.stderr
    after = words[words.index("-m") + 2 :]
    for option in (word for word in after if word.startswith("--")):
        assert re.search(rf"{option}\b", done.stdout), f"{module} has no {option}"


def test_links_and_named_files_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    named = re.findall(r"`((?:common|stages|workflows|data/models)/[\w./-]+)`", README)
    for path in {*links, *named}:
        assert (REPOSITORY / path).exists(), path


def test_the_tree_is_the_tree() -> None:
    tree = README[README.index("## The tree") : README.index("## Develop")]
    entries = re.findall(r"^ {4}( *)([\w./]+) {2,}(.*)", tree, re.M)
    folder = Path()
    found: dict[str, set[str]] = {}
    for indent, name, text in entries:
        if not indent:
            folder = Path(name)
            assert (REPOSITORY / folder).is_dir(), name
            if folder == Path("stages"):
                stages = set(text.split(":")[1].split())
                there = {p.stem for p in (REPOSITORY / "stages").glob("[a-z]*.py")}
                assert stages == there
        else:
            assert (REPOSITORY / folder / name).exists(), f"{folder}/{name}"
            found.setdefault(str(folder), set()).add(name.rstrip("/"))
    rooms = {p.name for p in (REPOSITORY / "common").iterdir() if (p / "__init__.py").exists()}
    assert rooms <= found["common"]


def test_recipes_are_listed() -> None:
    for path in (REPOSITORY / "workflows" / "recipes").glob("*.toml"):
        assert f"`{path.name}`" in README


def test_the_polars_example_runs_as_written() -> None:
    """As far as it can without a run: it is one block of valid Python that names real columns."""
    from common.runs.schemas import ROLLOUT, score_schema

    (code,) = re.findall(r"```python\n(import polars.*?)```", README, re.S)
    compile(code, "README", "exec")
    columns = {*ROLLOUT.names, *score_schema([]).names}
    for name in re.findall(r'pl\.col\("(\w+)"\)|on="(\w+)"|group_by\("(\w+)"\)', code):
        assert set(name) - {""} <= columns


def test_pieces_of_recipes_are_valid() -> None:
    base = '[model]\npath = "x"\n[data.other]\nkind = "generator"\ngenerator = "counting"\n'
    pieces = re.findall(r"```toml\n(.*?)```", README, re.S)
    assert len(pieces) >= 2
    for piece in pieces:
        parse_recipe(base + piece, origin="README")


def test_the_example_of_a_reward_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(def .*?)```", README, re.S)
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    brief = FunctionReward(function="mine:brief", weight=1)
    row = {"answer": "1", "verify_type": "EXACT"}
    with Scorer(RewardsConfig(functions={"brief": brief})) as scorer:
        judged = scorer.judge([("x", row), ("x" * 500, row)])
    assert [one.aux_rewards["brief"] for one in judged] == [1, 0]


def _options_compared() -> dict[str, set[str]]:
    """Keys of the options table and their choices: `"x"` alone belongs to the key above it."""
    options: dict[str, set[str]] = {}
    keys: list[str] = []
    for row in ELSEWHERE:
        cell = re.sub(r"`(\w+)_low`, `_high`", r"`\1_low`, `\1_high`", row.split("|")[0])
        keys = [] if "**" in cell else re.findall(r"`([a-z_.]+)", cell) or keys
        for key in keys:
            options.setdefault(key, set()).update(re.findall(r'"(\w+)"', cell))
    return options


UNNAMED: dict[str, set[object]] = {
    "ddof": {0, 1},
    "policy_term": {"clip"},
    "ratio_level": {"token"},
    "kl_kind": {"k1", "k2", "k3"},
    "sampler_correction": {"none"},
}
"""Choices without a row: what every trainer has, or what the row of the key says."""


@pytest.mark.parametrize("section", [AdvantagesConfig, ObjectiveConfig])
def test_every_key_and_choice_of_the_objective_is_compared_with_others(
    section: type[AdvantagesConfig | ObjectiveConfig],
) -> None:
    """Ours only. The columns of verl and OpenRLHF are checked by nobody but readers; neither is
    installed for the tests."""
    options = _options_compared()
    for name, schema in section.model_json_schema()["properties"].items():
        assert name in options, name
        choices = set(schema.get("enum", []))
        assert options[name] == choices - UNNAMED.get(name, set()), name


def test_options_of_trl_are_its_own() -> None:
    """Every word of the TRL column is in its sources, the version that parity is tested with."""
    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        pytest.skip("TRL is not installed")
    trl = Path(spec.origin).parent
    files = [*(trl / "trainer").glob("*_config.py"), *(trl / "rewards").glob("*.py")]
    sources = "\n".join(path.read_text() for path in [*files, trl / "trainer" / "rloo_trainer.py"])
    column = [row.split("|")[1] for row in ELSEWHERE]
    words = re.findall(r"[A-Za-z_]{4,}", " ".join(re.findall(r"`([^`]*)`", " ".join(column))))
    assert len(words) > 20
    for word in words:
        assert word in sources, word
