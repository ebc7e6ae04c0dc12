"""SIMILARITY: cosines like the model's own, of the answer alone; models that are not trusted."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.local_hub import local_hub

from common.config import RewardsConfig
from common.config.rewards import SimilarityModel
from common.errors import MissingToolError, UserError
from common.rewards import similarity
from common.rewards.rule import GoldError, Judge
from common.runs.layout import REPOSITORY

GOLD = "Plants use sunlight to make sugar from water and carbon dioxide."
PARAPHRASE = "With the sun's light, plants turn water and carbon dioxide into sugar."
RELATED = "Many plants lose their leaves in winter."
UNRELATED = "The committee postponed its vote on the new railway."


@pytest.fixture(scope="module")
def judge() -> Judge:
    return similarity.open_rule(RewardsConfig())


def row(answer: str = GOLD) -> dict[str, str]:
    return {"answer": answer, "verify_type": "SIMILARITY"}


def test_nearer_meanings_are_worth_more(judge: Judge) -> None:
    texts = [GOLD, PARAPHRASE, RELATED, UNRELATED]
    rewards = [judge(text, row()).reward or 0.0 for text in texts]
    assert rewards == sorted(rewards, reverse=True)
    assert rewards[0] == pytest.approx(1, abs=1e-6)
    assert rewards[1] > RewardsConfig().similarity.correct_from
    assert rewards[2] < 0.6 and rewards[3] < 0.2
    assert all(0 <= reward <= 1 for reward in rewards)
    verdicts = [judge(text, row()).verdict for text in texts]
    assert verdicts == ["correct", "correct", "wrong", "wrong"]


def test_the_reward_is_the_cosine_of_mean_pooled_states(judge: Judge) -> None:
    """As the model's card computes it, by transformers alone."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = similarity.find_folder(similarity.BUNDLED)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()

    def embed(text: str) -> torch.Tensor:
        with torch.no_grad():
            return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0)

    for text in (PARAPHRASE, RELATED, "x", "Ünïcödé — 水"):
        expected = torch.cosine_similarity(embed(text), embed(GOLD), dim=0).item()
        assert judge(text, row()).reward == pytest.approx(max(expected, 0), abs=1e-5)


def test_an_opposite_meaning_is_worth_nothing_less_than_0(judge: Judge) -> None:
    found = judge("I like trains", row())
    assert (found.reward, found.verdict) == (0.0, "wrong")


@pytest.mark.parametrize(
    ("text", "reward", "verdict"),
    [
        (f"<think>{UNRELATED}</think>{GOLD}", 1.0, "correct"),
        (f"<think>{UNRELATED}</think><answer> {GOLD}\n</answer> {UNRELATED}", 1.0, "correct"),
        (f"<answer>{GOLD}</answer><answer>{GOLD}</answer>", 0.0, "wrong"),
        (f"<answer>{GOLD}", 0.0, "no_answer"),
        (f"<answer> </answer>{GOLD}", 0.0, "no_answer"),
        (f"<think>{GOLD}", 0.0, "no_answer"),
        (" \n", 0.0, "no_answer"),
        ("", 0.0, "no_answer"),
    ],
)
def test_what_is_compared(judge: Judge, text: str, reward: float, verdict: str) -> None:
    found = judge(text, row())
    assert (found.reward, found.verdict) == (pytest.approx(reward, abs=1e-6), verdict)


@pytest.mark.parametrize("text", ["\ud800", "\x00", "𝔘" * 3000, "a" * 300_000, "<answer>\u200b"])
def test_odd_texts_have_a_finite_reward(judge: Judge, text: str) -> None:
    found = judge(text, row())
    assert found.reward is not None and 0 <= found.reward <= 1


def test_what_lies_beyond_the_models_window_does_not_count(judge: Judge) -> None:
    long = "plants and light " * 200
    assert judge(long + UNRELATED, row()).reward == judge(long, row()).reward


def test_a_score_does_not_depend_on_process_or_order(judge: Judge) -> None:
    texts = [PARAPHRASE, RELATED, UNRELATED, "word " * 300, "I like trains", GOLD]
    code = (
        "import json, sys\n"
        "from common.config import RewardsConfig\n"
        "from common.rewards.similarity import open_rule\n"
        "judge = open_rule(RewardsConfig())\n"
        f"texts, row = json.loads(sys.argv[1]), {row()!r}\n"
        "print(json.dumps([judge(text, row).reward for text in reversed(texts)]))"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", code, json.dumps(texts)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "2"},
        capture_output=True,
        check=True,
    )
    assert elsewhere.stderr == b""
    rewards = [judge(text, row()).reward for text in texts]
    assert json.loads(elsewhere.stdout)[::-1] == rewards


def test_golds() -> None:
    assert similarity.read_gold(f" {GOLD}\n") == GOLD
    with pytest.raises(GoldError, match="is empty"):
        similarity.read_gold(" \n")


def test_cosines_are_clipped_and_never_nan() -> None:
    one, other = np.array([3.0, 4.0]), np.array([4.0, 3.0])
    assert similarity.cosine(one, other) == pytest.approx(24 / 25)
    assert similarity.cosine(one, -other) == 0
    assert similarity.cosine(one, np.zeros(2)) == 0
    assert similarity.cosine(one, np.array([math.nan, 1.0])) == 0
    assert similarity.cosine(one * 1e200, other) == 0  # overflows
    assert 1 - 1e-12 < similarity.cosine(one / 7, one / 11) <= 1


def using(model: str | Path) -> RewardsConfig:
    return RewardsConfig(similarity=SimilarityModel(model=str(model)))


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "has no config.json; it is no sentence-transformers model"),
        ({"config.json": "{}"}, "has no safetensors"),
        ({"config.json": "{}", "pytorch_model.bin": ""}, "has no safetensors"),
        (
            {"config.json": "{}", "model.safetensors": "", "2_Dense/pytorch_model.bin": ""},
            "pytorch_model.bin is pickled; convert it to safetensors",
        ),
        (
            {"modules.json": '[{"type": "custom.Transformer"}]', "model.safetensors": ""},
            "its module 'custom.Transformer' is code of its own",
        ),
        ({"modules.json": "[1]", "model.safetensors": ""}, "modules.json cannot be read"),
        ({"modules.json": "[", "model.safetensors": ""}, "modules.json cannot be read"),
    ],
)
def test_folders_that_are_not_loaded(tmp_path: Path, files: dict[str, str], says: str) -> None:
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    with pytest.raises(UserError, match=says):
        similarity.require(using(tmp_path))


def test_pickles_beside_safetensors_do_not_matter(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "pytorch_model.bin"):
        (tmp_path / name).write_text("{}")
    similarity.require(using(tmp_path))


@pytest.mark.parametrize("name", ["nowhere", "./nowhere/at/all", "~/no such folder"])
def test_names_of_no_model(name: str) -> None:
    with pytest.raises(UserError, match=r"rewards\.similarity\.model = '.*: no such folder; give"):
        similarity.require(using(name))


@pytest.mark.parametrize("missing", ["sentence_transformers", similarity.MODULE])
def test_without_a_package(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingToolError, match="make extras"):
        similarity.require(RewardsConfig())


def test_require_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from common.config import RewardsConfig\n"
        "from common.rewards.similarity import require\n"
        "require(RewardsConfig())\n"
        "sys.exit(bool({'torch', 'sentence_transformers', 'transformers'} & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Serves a model with code and a pickle beside its weights."""
    folder = tmp_path / "served"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "pytorch_model.bin", "modeling_own.py"):
        (folder / name).write_text("{}")
    with local_hub(tmp_path / "cache", {"mine/sentences": folder}) as environment:
        yield os.environ | environment | {"PYTHONPATH": str(REPOSITORY)}


def test_of_a_hub_model_neither_code_nor_pickles_are_downloaded(hub: dict[str, str]) -> None:
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from common.rewards.similarity import find_folder\n"
            "print(*sorted(path.name for path in find_folder(sys.argv[1]).iterdir()))",
            "mine/sentences",
        ],
        env=hub,
        capture_output=True,
        text=True,
    )
    assert found.stdout.split() == ["config.json", "model.safetensors"], found.stderr


def test_a_name_that_the_hub_does_not_know(hub: dict[str, str]) -> None:
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            "from common.rewards.similarity import find_folder; find_folder('mine/nothing')",
        ],
        env=hub,
        capture_output=True,
        text=True,
    )
    assert "UserError: rewards.similarity.model = 'mine/nothing': no such folder" in found.stderr
