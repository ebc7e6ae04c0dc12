"""prepare: prompts and policy 0 of what a recipe names, or a refusal with nothing written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from safetensors import safe_open
from support import REPOSITORY
from support.local_hub import local_hub
from support.prepared_sums import RECIPE, ROWS, refusal, write_data, write_recipe, written

from common.errors import UserError
from common.runs.hashing import model_hashes
from common.runs.layout import Run
from common.runs.manifest import read_manifest
from common.runs.policies import open_policy
from common.runs.schemas import PROMPTS
from stages import prepare


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path)


@pytest.fixture
def recipe(tmp_path: Path, tiny_policy: Path, data: Path) -> Path:
    return write_recipe(tmp_path, tiny_policy, data)


def test_prompts_and_policy_0(runs: Path, recipe: Path, tiny_policy: Path) -> None:
    prepare.main("a", recipe=recipe)
    frame = pl.read_parquet(runs / "a/prompts/*.parquet")
    assert frame.columns == PROMPTS.names
    expected = {(row["question"], row["answer"].partition("#### ")[2]) for row in ROWS}
    assert set(zip(frame["question"], frame["answer"], strict=True)) == expected
    assert frame["prompt_id"].n_unique() == 30
    train = pl.read_parquet(runs / "a/prompts/train-*.parquet")
    evaluation = pl.read_parquet(runs / "a/prompts/eval-*.parquet")
    assert (train.height, evaluation.height) == (20, 10)
    assert not set(train["question"]) & set(evaluation["question"])
    run = Run.named("a", runs)
    policy = open_policy(run, 0)
    assert model_hashes(policy) == model_hashes(tiny_policy)
    with safe_open(policy / "model.safetensors", "numpy") as tensors:
        parameters = sum(tensors.get_tensor(name).size for name in tensors.keys())  # noqa: SIM118
    assert read_manifest(run.policy(0)).facts["parameters"] == parameters
    facts = read_manifest(run.prompts).facts
    assert (facts["train"], facts["eval"]) == ({"sums": 20}, {"sums": 10})


def test_policy_0_is_linked_where_that_can_be(runs: Path, recipe: Path, tiny_policy: Path) -> None:
    prepare.main("a", recipe=recipe)
    assert (runs / "a/policies/0000/model.safetensors").samefile(tiny_policy / "model.safetensors")


def test_policy_0_is_copied_where_links_cannot_be(
    runs: Path, recipe: Path, tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def across_file_systems(*paths: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", across_file_systems)
    prepare.main("a", recipe=recipe)
    copy = runs / "a/policies/0000/model.safetensors"
    assert not copy.samefile(tiny_policy / "model.safetensors")
    assert model_hashes(copy.parent) == model_hashes(tiny_policy)


def test_again_changes_nothing(
    runs: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare.main("a", recipe=recipe)
    before = {name: (runs / name).stat().st_mtime_ns for name in written(runs)}
    capsys.readouterr()
    prepare.main("a")
    assert "nothing to do" in capsys.readouterr().out
    assert {name: (runs / name).stat().st_mtime_ns for name in written(runs)} == before
    run = Run.named("a", runs)
    hashes = [read_manifest(o).content_hash for o in (run.prompts, run.policy(0))]
    prepare.main("a", overwrite=True)
    assert [read_manifest(o).content_hash for o in (run.prompts, run.policy(0))] == hashes
    shutil.rmtree(runs / "a/policies/0000")
    prepare.main("a")
    assert open_policy(run, 0).is_dir()


def test_every_fault_at_once_and_nothing_written(
    runs: Path, recipe: Path, data: Path, stage: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """As a user sees it: exit 2, the messages, no traceback, no file."""
    data.write_text('{"question": "a?", "answer": "#### b"}\nno\n')
    done = stage(
        *("prepare", "--run", "a", "--recipe", str(recipe), "--set", "model.path=./no/model"),
        expect=2,
    )
    assert f"{data}:1: answer 'b' cannot be read as LAST_NUMBER" in done.stderr
    assert f"{data}:2:1: not JSON" in done.stderr
    assert "model.path = './no/model': no such folder" in done.stderr
    assert "Traceback" not in done.stderr
    assert written(runs) == []


def test_later_stages_need_questions(runs: Path, recipe: Path) -> None:
    assert "none is left for training" in refusal(recipe, "data.sums.eval=30")
    text = refusal(recipe, "evaluate.every=5", "data.sums.eval=0")
    assert "evaluate.every = 5, but there are no evaluation questions" in text
    assert written(runs) == []


def test_a_tokenizer_that_loses_text_is_told(
    runs: Path,
    recipe: Path,
    make_policy: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    prepare.main("a", recipe=recipe)
    assert capsys.readouterr().err == ""
    folder = tmp_path / "model"
    shutil.copytree(make_policy("llama"), folder)
    words = Tokenizer(WordLevel({"[UNK]": 0, "What": 1, "is": 2, "+": 3, "?": 4}, "[UNK]"))
    words.pre_tokenizer = Whitespace()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    changes = [f"model.path={folder}", "prompt.template=r1_zero"]
    prepare.main("b", recipe=recipe, overrides=changes)
    assert "does not give back the text of a prompt: 'What is " in capsys.readouterr().err


def test_a_chat_template_that_is_not_there(
    runs: Path, recipe: Path, tiny_policy: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_policy, folder)
    (folder / "chat_template.jinja").unlink()
    text = refusal(recipe, f"model.path={folder}", "prompt.template=chat")
    assert "there is no chat template" in text


def test_another_data_set_for_a_run_that_has_begun(runs: Path, recipe: Path) -> None:
    prepare.main("a", recipe=recipe)
    assert "began with" in refusal(recipe, "data.sums.eval=9")


def test_edited_prompts_are_taken_when_asked(runs: Path, recipe: Path) -> None:
    prepare.main("a", recipe=recipe)
    path = runs / "a/prompts/train-00000.parquet"
    frame = pl.read_parquet(path)
    frame.with_columns(question=pl.col("question") + " Think.").write_parquet(path)
    with pytest.raises(UserError, match="accept-edits"):
        prepare.main("a")
    prepare.main("a", accept_edits=True)
    prepare.main("a")
    assert read_manifest(Run.named("a", runs).prompts).edited


def test_model_and_data_by_hub_name(
    runs: Path, tiny_policy: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The real client libraries against a hub on this machine."""
    files = tmp_path / "repository" / "main"
    files.mkdir(parents=True)
    (files / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:20]))
    (files / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[20:]))
    (files.parent / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files:\n"
        "  - {split: train, path: main/train.jsonl}\n"
        "  - {split: test, path: main/test.jsonl}\n---\n"
    )
    recipe = tmp_path / "hub.toml"
    text = RECIPE.format(policy="mine/tiny", data="mine/sums")
    recipe.write_text(text.replace("eval = 10", 'eval = 5\nname = "main"\neval_split = "test"'))
    cache = tmp_path_factory.mktemp("hub")
    with local_hub(cache, {"mine/tiny": tiny_policy}, {"mine/sums": files.parent}) as environment:

        def call(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "stages.prepare", *arguments, "--recipe", str(recipe)]
            return subprocess.run(
                command,
                cwd=REPOSITORY,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
                capture_output=True,
                text=True,
                check=False,
            )

        done = call("--run", "a", "--json")
        unknown = call("--run", "b", "--set", "data.sums.path=mine/sum", "--set", "model.path=my/m")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    result: dict[str, Any] = json.loads(done.stdout)
    assert (result["train"], result["eval"]) == ({"sums": 20}, {"sums": 5})
    assert model_hashes(open_policy(Run.named("a", runs), 0)) == model_hashes(tiny_policy)
    assert unknown.returncode == 2
    assert "mine/sum (split 'train'): not a local path, and the hub gives: " in unknown.stderr
    assert "model.path = 'my/m': not a local folder, and the hub gives: " in unknown.stderr
    assert "Traceback" not in unknown.stderr


def test_a_hub_that_cannot_be_reached_is_said_in_seconds() -> None:
    code = (
        "import time\n"
        "from common.errors import UserError\n"
        "from common.modeling.install import find_model\n"
        "from common.tasks import hub\n"
        "import datasets\n"
        "for ask in (lambda: find_model('a/b'), lambda: hub.read_hub('a/b', '', 'train')):\n"
        "    began = time.monotonic()\n"
        "    try:\n"
        "        ask()\n"
        "    except UserError as error:\n"
        "        print(error)\n"
        "    assert time.monotonic() - began < 3 * hub.SECONDS_TO_ANSWER\n"
    )
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.count("http://127.0.0.1:9 cannot be reached (Connection refused)") == 2
    assert done.stderr == ""
