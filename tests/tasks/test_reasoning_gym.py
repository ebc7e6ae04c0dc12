"""Sources of the kind reasoning_gym: which questions are drawn, and what is said of wrong ones."""

import json
import os
import re
import subprocess
import sys
import tomllib
from typing import Any

import pytest
from support.question_files import unreadable_golds

from common.config import GymSource, RewardsConfig
from common.errors import MissingToolError, UserError
from common.rewards.reasoning_gym import read_gold, require
from common.runs.layout import REPOSITORY
from common.tasks import reasoning_gym
from common.tasks.prompts import Prompt
from common.tasks.sources import read_sources

EASY: dict[str, Any] = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


def texts(prompts: list[Prompt]) -> list[str]:
    return [prompt.question for prompt in prompts]


def read(task: str, source: GymSource) -> tuple[list[Prompt], list[Prompt], list[str]]:
    prompts = read_sources({task: source}, unreadable_golds)
    return prompts.train, prompts.eval, prompts.notices


def test_questions_are_distinct_and_apart_and_the_same_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # This data set goes through a set of strings, whose order is another in each process.
    source = GymSource(dataset="isomorphic_strings", train=60, eval=20, seed=3)
    train, held_out, notices = read("strings", source)
    assert (len(train), len(held_out), notices) == (60, 20, [])
    assert len({*texts(train), *texts(held_out)}) == 80
    monkeypatch.setenv("PYTHONHASHSEED", "77")
    fewer, same, _ = read("strings", source.model_copy(update={"train": 10}))
    assert [prompt.prompt_id for prompt in same] == [prompt.prompt_id for prompt in held_out]
    assert texts(fewer) == texts(train[:10])
    first = train[0]
    assert (first.task, first.verify_type, first.where) == (
        "strings",
        "REASONING_GYM",
        "data.strings",
    )
    assert first.metadata["dataset"] == "isomorphic_strings" and first.metadata["index"] >= 20
    entry = read_gold(first.answer)
    assert entry.values["question"] == first.question == first.messages[-1]["content"]


def test_another_seed_gives_other_questions() -> None:
    drawn = [
        [line["question"] for line in draw("chain_sum", seed=seed, count=30)[:-1]]
        for seed in (1, 1000)
    ]
    assert len({*drawn[0]} & {*drawn[1]}) < 5


def draw(
    dataset: str, *, seed: int = 0, count: int = 10, held_out: int = 0, **config: Any
) -> list[dict[str, Any]]:
    return list(reasoning_gym.draw("sums", dataset, config, seed, count, held_out, scored=True))


def test_a_data_set_without_enough_questions_says_how_many_it_has() -> None:
    *lines, end = draw("chain_sum", count=500, **EASY)
    assert len(lines) == 200  # 10 × 10 pairs of digits, with + or −
    assert end["faulty"] == 0 and end["drawn"] < 4000
    source = GymSource(dataset="chain_sum", train=190, eval=20, config=EASY)
    with pytest.raises(UserError, match=r"train = 190 and eval = 20") as said:
        read("sums", source)
    told = re.search(r"gave (\d+) distinct questions and (\d+) that are eval", str(said.value))
    assert told and int(told[1]) + int(told[2]) == 200
    assert "data.sums.config" in str(said.value)


def test_numbers_in_another_order_are_not_trained_on() -> None:
    source = GymSource(dataset="products", train=30, eval=30, config=EASY)
    pairs = [
        {frozenset(re.findall(r"\d+", text)) for text in texts(prompts)}
        for prompts in read("products", source)[:2]
    ]
    assert pairs[0] and pairs[1] and not pairs[0] & pairs[1]
    boards = draw(
        "game_of_life", held_out=20, count=40, grid_size_x=3, grid_size_y=3, filled_cells=3
    )
    assert boards[-1]["alike"] == 0


def test_a_data_set_that_makes_all_entries_at_once_is_made_anew() -> None:
    lines = draw("acre", count=40)[:-1]
    assert len({line["question"] for line in lines}) == 40
    indices = [line["index"] for line in lines]
    assert indices == sorted(indices)


def test_entries_that_cannot_tell_right_from_wrong_are_left_out() -> None:
    source = GymSource(dataset="intermediate_integration", train=18, eval=2, seed=123)
    train, held_out, notices = read("integrals", source)
    assert len(train + held_out) == 20
    assert not any("Integral" in json.loads(p.answer)["answer"] for p in train + held_out)
    assert notices and "left out" in notices[0] and "scores its own answer 0" in notices[0]
    with pytest.raises(UserError, match=r"scores any answer 1 .*; take another data set"):
        read("life", GymSource(dataset="game_of_life_halting", train=5, eval=0))


@pytest.mark.parametrize(
    ("dataset", "config", "says"),
    [
        ("chain_sums", {}, r"data\.sums\.dataset = 'chain_sums': .* 105; did you mean 'chain_sum'"),
        ("composite", {}, "give each of its data sets a source of its own"),
        ("chain_sum", {"min_term": 2}, r"data\.sums\.config\.min_term: .*did you mean 'min_terms'"),
        ("chain_sum", {"min_terms": 0}, r"data\.sums\.config\.min_terms = 0: .*must be positive"),
        ("chain_sum", {"min_terms": "x"}, r"data\.sums\.config\.min_terms = 'x': .*integer"),
        ("chain_sum", {"min_terms": 9}, r"config\.min_terms = 9: .*max_terms must be >= min_terms"),
        ("chain_sum", {"seed": 1}, r"data\.sums\.config\.seed: set data\.sums\.seed instead"),
        ("chain_sum", {"size": 1}, r"set data\.sums\.train and eval instead"),
        ("calendar_arithmetic", {"tasks": ["leap"]}, r"data\.sums\.config\.tasks = \['leap'\]"),
    ],
)
def test_impossible_sources(dataset: str, config: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        list(reasoning_gym.draw("sums", dataset, config, seed=0, train=10, eval=0, scored=True))


def test_an_error_in_the_drawing_process_reaches_the_user() -> None:
    with pytest.raises(UserError, match="did you mean 'min_terms'"):
        read("sums", GymSource(dataset="chain_sum", config={"min_term": 2}))


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    hint = "make extras"
    with pytest.raises(MissingToolError, match=hint):
        read("sums", GymSource(dataset="chain_sum"))
    with pytest.raises(MissingToolError, match=hint):
        require(RewardsConfig())


def test_neither_rule_nor_source_imports_the_package_before_it_is_needed() -> None:
    code = (
        "import sys, common.tasks.sources, common.rewards.reasoning_gym as g\n"
        "from common.config import RewardsConfig\n"
        "g.require(RewardsConfig())\n"
        "sys.exit(bool({'reasoning_gym', 'sympy', 'torch'} & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


def test_another_rule_judges_by_the_answer_that_the_data_set_gives() -> None:
    source = GymSource(dataset="chain_sum", train=8, eval=2, config=EASY, verify_type="LAST_NUMBER")
    train, held_out, _ = read("sums", source)
    for prompt in train + held_out:
        first, sign, second = prompt.question.split(": ")[1].removesuffix(" =").split()
        result = int(first) + int(second) * (1 if sign == "+" else -1)
        assert (prompt.verify_type, prompt.answer) == ("LAST_NUMBER", str(result))


def test_an_answer_that_the_other_rule_cannot_read() -> None:
    source = GymSource(dataset="spell_backward", train=4, eval=0, verify_type="LAST_NUMBER")
    with pytest.raises(UserError) as said:
        read("words", source)
    assert re.fullmatch(
        r"data\.words\.verify_type = 'LAST_NUMBER': spell_backward at index 0: answer '\w+' cannot "
        r"be read as LAST_NUMBER: it is no number; take another rule, or leave the key out .*",
        str(said.value),
    )


def test_the_other_rule_needs_an_answer() -> None:
    source = GymSource(dataset="graph_color", train=4, eval=0, verify_type="EXACT")
    with pytest.raises(UserError, match="gives no answer to compare with; take another data set"):
        read("colors", source)


@pytest.mark.parametrize("name", ["reasoning-gym.toml", "sums-smollm2.toml"])
def test_the_recipes_draw(name: str) -> None:
    path = REPOSITORY / "workflows" / "recipes" / name
    for task, source in tomllib.loads(path.read_text(encoding="utf-8"))["data"].items():
        asked = GymSource.model_validate(source)
        train, held_out, notices = read(task, asked)
        assert (len(train), len(held_out), notices) == (asked.train, asked.eval, [])
