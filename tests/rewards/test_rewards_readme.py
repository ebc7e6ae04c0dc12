"""What `common/rewards/README.md` says is so: its examples, commands, figures and files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import REPOSITORY
from support.needs_sandbox import needs_sandbox

from common.config import FunctionReward, RewardsConfig
from common.config.recipe_file import parse_recipe
from common.rewards import ifeval, sql
from common.rewards.code_tests import read_tests
from common.rewards.llm_judge import MOST_FAILURES
from common.rewards.registry import AUX_REWARDS, VERIFY, judge
from common.rewards.rule import VERDICTS
from common.rewards.sandbox.bubblewrap import MIB, Limits
from common.rewards.scorer import MOST_INFRA_ERRORS, Scorer
from common.tasks.golds import ONE_GOLD, gold_text

FOLDER = REPOSITORY / "common" / "rewards"
README = (FOLDER / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.strip()
    for line in re.sub(r"\\\n\s+", "", README).splitlines()
    if re.match(r" {4}(make|python) ", line)
]


def section(title: str) -> str:
    """The text below a heading, up to the next of its level or above."""
    return re.split(r"^## ", README.split(f"\n## {title}\n")[1], flags=re.M)[0]


def rows_of(text: str, index: int = 0) -> list[list[str]]:
    """Cells of a table, without its head and without the marks of code."""
    lines = text.split("\n|---")[index + 1].split("\n\n")[0].splitlines()[1:]
    return [[cell.strip().strip("`") for cell in line.split("|")[1:-1]] for line in lines]


def in_one_line(title: str) -> str:
    return " ".join(section(title).split())


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_accepted(command: str) -> None:
    words = command.split()
    dry = ["make", "-n", *words[1:]]
    if words[0] == "python":
        subcommand = [word for word in words[3:4] if not word.startswith("-")]
        dry = [sys.executable, "-m", words[2], *subcommand, "--help"]
    done = subprocess.run(
        dry,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"},
    )
    assert done.returncode == 0, done.stderr
    for option in (word for word in words if word.startswith("--")):
        assert re.search(rf"{option}\b", done.stdout), option


def test_every_rule_and_verdict_is_listed() -> None:
    assert {name for name, _ in rows_of(section("Verify types"))} == set(VERIFY)
    assert [name for name, *_ in rows_of(section("Verdicts and failures"))] == list(VERDICTS)
    weights = set(re.findall(r"^(\w+)\.weight", section("Auxiliary rewards"), re.M))
    assert weights == {"answer", *AUX_REWARDS}


@pytest.mark.parametrize(
    ("verify_type", "completion", "gold", "reward"),
    rows_of(section("How an answer is found and read")),
)
def test_examples_of_short_answers(
    verify_type: str, completion: str, gold: str, reward: str
) -> None:
    verdict = judge(completion, {"answer": gold, "verify_type": verify_type})
    assert verdict.reward == float(reward)


@pytest.mark.parametrize(("answer", "gold", "equal"), rows_of(section("MATH")))
def test_examples_of_mathematics(answer: str, gold: str, equal: str) -> None:
    verdict = judge(rf"\boxed{{{answer}}}", {"answer": gold, "verify_type": "MATH"})
    assert verdict.reward == {"yes": 1, "no": 0}[equal]


OF_ONE_TYPE = ("NUMERIC", "REGEX", "JSON_SCHEMA", "IFEVAL")


@pytest.mark.parametrize(
    ("verify_type", "completion", "gold", "reward"),
    [(name, *row) for name in OF_ONE_TYPE for row in rows_of(section(name))],
)
def test_examples_of_one_verify_type(
    verify_type: str, completion: str, gold: str, reward: str
) -> None:
    verdict = judge(completion, {"answer": gold, "verify_type": verify_type})
    assert verdict.reward == float(reward)


def json_lines(title: str) -> list[str]:
    (examples,) = re.findall(r"```json\n(.*?)```", section(title), re.S)
    return list(examples.splitlines())


def test_the_example_of_several_golds() -> None:
    (line,) = json_lines("Several golds")
    row = json.loads(line)
    text = gold_text(row["answer"], row["verify_type"])
    assert f"`{text}`" in in_one_line("Several golds")
    for completion, reward in (("4", 1), ("four", 1), ("5", 0)):
        assert judge(completion, row | {"answer": text}).reward == reward
    for name in ONE_GOLD:
        assert name in in_one_line("Several golds")


def test_examples_of_instructions_can_be_read() -> None:
    assert [len(ifeval.read_gold(line)) for line in json_lines("IFEVAL")] == [2, 1]


@needs_sandbox
def test_examples_of_databases_say_what_is_right() -> None:
    first, second = (sql.read_gold(line) for line in json_lines("SQL"))
    assert [first.databases[0].rows, second.databases[0].rows] == [
        ((("number", "2"),),),
        ((("number", "1"),), (("number", "2"),)),
    ]


def test_examples_of_tests_can_be_read() -> None:
    (examples,) = re.findall(r"```json\n(.*?)```", section("CODE"), re.S)
    assert len([test for line in examples.splitlines() for test in read_tests(line)]) == 3


def test_defaults_are_the_configurations() -> None:
    rewards = RewardsConfig(functions={"name": FunctionReward(function="a:b")})
    for key, default, _ in rows_of(section("Verdicts and failures"), 1):
        value: object = rewards
        for part in key.replace("<name>", "name").split(".")[1:]:
            value = value[part] if isinstance(value, dict) else getattr(value, part)
        assert value == float(default), key
    assert f"`rewards.similarity.correct_from` on ({rewards.similarity.correct_from})" in (
        in_one_line("SIMILARITY")
    )
    tolerance, asked = rewards.numeric, rewards.judge
    assert f"`rewards.numeric.relative` ({tolerance.relative}, which is 1 %)" in (
        in_one_line("NUMERIC")
    )
    assert f"`rewards.numeric.absolute` ({tolerance.absolute:g})" in in_one_line("NUMERIC")
    assert f"`rewards.judge.correct_from` on ({asked.correct_from})" in in_one_line("JUDGE")
    assert f"After {MOST_FAILURES} failures in a row" in in_one_line("JUDGE")
    assert f"`rewards.judge.max_concurrent` ({asked.max_concurrent})" in (
        in_one_line("Verdicts and failures")
    )
    assert f"more than {MOST_INFRA_ERRORS:.0%}".replace("%", " %") in (
        in_one_line("Verdicts and failures")
    )


def test_figures_of_the_sandbox_are_its_limits() -> None:
    limits = Limits()
    said = (
        f"{limits.tmp_bytes // MIB} MiB of files, {limits.threads} threads, "
        f"{limits.cpu_seconds} s of CPU time, {limits.seconds:g} s in all, "
        f"{limits.memory_bytes // MIB} MiB of memory and {limits.output_bytes // MIB} MiB of output"
    )
    assert said in in_one_line("The sandbox")


def test_pieces_of_recipes_are_valid() -> None:
    base = '[model]\npath = "x"\n[data.other]\nkind = "generator"\ngenerator = "counting"\n'
    pieces = re.findall(r"```toml\n(.*?)```", README, re.S)
    assert len(pieces) >= 4
    for piece in pieces:
        parse_recipe(base + piece, origin="README")


def test_the_example_of_a_reward_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _ = re.findall(r"```python\n(def .*?)```", README, re.S)
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    brief = FunctionReward(function="mine:brief", weight=1)
    row = {"answer": "1", "verify_type": "EXACT"}
    with Scorer(RewardsConfig(functions={"brief": brief})) as scorer:
        judged = scorer.judge([("x", row), ("x" * 500, row)])
    assert [one.aux_rewards["brief"] for one in judged] == [1, 0]


def test_the_example_of_trls_signature_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both functions of the recipe, by the recipe as printed."""
    pytest.importorskip("trl.rewards")
    _, code = re.findall(r"```python\n(def .*?)```", README, re.S)
    (recipe,) = (t for t in re.findall(r"```toml\n(.*?)```", README, re.S) if "trl.rewards" in t)
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    base = '[model]\npath = "x"\n[data.other]\nkind = "generator"\ngenerator = "counting"\n'
    rewards = parse_recipe(base + recipe, origin="README").rewards
    row = {"answer": "1", "verify_type": "EXACT", "question": "?", "solution": "42"}
    with Scorer(rewards) as scorer:
        judged = scorer.judge([("<think>a</think> 42", row), ("41", row)])
    assert [one.aux_rewards for one in judged] == [
        {"solved": 1, "thinks": 1},
        {"solved": 0, "thinks": 0},
    ]


def test_links_and_files_exist() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    headings = {
        re.sub(r"[^\w -]", "", title).replace(" ", "-").lower()
        for title in re.findall(r"^##+ (.*)", README, re.M)
    }
    for link in links:
        if link.startswith("#"):
            assert link[1:] in headings, link
        elif "://" not in link:
            assert (FOLDER / link).exists(), link
    files = {
        name
        for line in section("The files in this folder").splitlines()
        for name in re.findall(r"`([\w.]+/?)`", line.split("|")[1] if "|" in line else "")
    }
    for name in files:
        assert (FOLDER / name).exists(), name
    there = {path.name for path in FOLDER.glob("*.py")} - {"__init__.py", "function.py"}
    assert there <= files
