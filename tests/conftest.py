"""Shared fixtures: tiny random models with a real tokenizer, and runs made by the real stages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import settings
from support import REPOSITORY

from common.console import set_quiet
from common.runs.layout import Run
from workflows.chain.launch import Command

# Content is the same bit for bit only with the same number of threads. Ranks have one thread, so
# the tests have one too. This must be set before anything loads OpenMP.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test needs a network; tests of hub names serve a hub of their own.
os.environ["HF_HUB_OFFLINE"] = "1"
# If make runs pytest, its options must not reach the makes that tests start.
for _name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"):
    os.environ.pop(_name, None)

# The examples are the same each time, since these tests decide what is merged. New ones are
# searched for with --hypothesis-profile=explore. No deadline: a busy machine is not a fault.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", derandomize=False, deadline=None)
settings.load_profile("repeatable")


TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}

RECIPE = """\
[model]
path = "{policy}"

[data.multiplication]
kind = "generator"
generator = "multiplication"
train = 40
eval = 8

[rollout]
prompts_per_iteration = 6
group_size = 4
groups_per_shard = 2
max_completion_tokens = 12
max_concurrent = 8

[rewards.format]
weight = 0.1

[objective]
kl_coef = 0.01

[train]
learning_rate = 1e-3
"""


@pytest.fixture(autouse=True)
def _heard() -> None:
    """Undo `--quiet`, which a command leaves behind in this process."""
    set_quiet(False)


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a byte-level tokenizer of some 300 tokens and a ChatML template."""
    from workflows.pretraining_tokenizer import build_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(["What is 12 * 3?", "How many times"]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_policy(
    tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Return a factory of tiny random policies: `make_policy("llama", layers=5, tied=False)`."""
    made: dict[str, Path] = {}

    def make(
        model_type: str = "qwen2", layers: int = 2, tied: bool = True, **changes: object
    ) -> Path:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        name = json.dumps([model_type, layers, tied, changes], sort_keys=True)
        if name not in made:
            folder = tmp_path_factory.mktemp(model_type)
            tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
            config = AutoConfig.for_model(
                model_type,
                **TINY
                | {
                    "vocab_size": len(tokenizer),
                    "num_hidden_layers": layers,
                    "tie_word_embeddings": tied,
                    "eos_token_id": tokenizer.eos_token_id,
                    "pad_token_id": tokenizer.pad_token_id,
                    "bos_token_id": None,
                }
                | changes,
            )
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            with torch.no_grad():
                # The usual initial scale gives flat distributions that hide mistakes.
                for parameter in model.parameters():
                    if parameter.ndim == 2:
                        parameter.normal_(0, 0.15)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            made[name] = folder
        return made[name]

    return make


@pytest.fixture(scope="session")
def tiny_policy(make_policy: Callable[..., Path]) -> Path:
    """Return the folder of a tiny random Qwen2 with tied embeddings."""
    return make_policy()


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty runs directory, which the commands of this test use."""
    folder = tmp_path / "runs"
    folder.mkdir()
    monkeypatch.setenv("STAGED_GRPO_RUNS", str(folder))
    return folder


@pytest.fixture
def recipe_file(tmp_path: Path, tiny_policy: Path) -> Path:
    """Write a recipe that takes seconds: 6 prompts x 4 samples in 3 shards, tiny random policy."""
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE.format(policy=tiny_policy))
    return path


@pytest.fixture
def stage() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a stage as a user does: `stage("score", "--run", "a", "--iteration", "1")`.

    `ranks=2` runs it under torchrun; `expect` is the exit code that it must have.
    """

    def run(
        name: str, *arguments: str, expect: int = 0, ranks: int = 1
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            Command(f"stages.{name}", arguments, ranks).words,
            cwd=REPOSITORY,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == expect, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture(scope="session")
def prepared(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a factory of runs directories whose run `a` is prepared.

    Tests share them and must not change them: `at` makes a copy. `prepared(recipe, "a.b=c",
    rows=[…])` formats the recipe with `policy`, a tiny random one, and `data`, a file with these
    rows.
    """
    from stages import prepare

    made: dict[str, Path] = {}

    def make(recipe: str, *overrides: str, rows: Sequence[Mapping[str, str]] = ()) -> Path:
        name = json.dumps([recipe, overrides, list(rows)])
        if name not in made:
            folder = tmp_path_factory.mktemp("prepared")
            data, path = folder / "data.jsonl", folder / "recipe.toml"
            data.write_text("".join(json.dumps(row) + "\n" for row in rows))
            path.write_text(recipe.format(policy=tiny_policy, data=data))
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("STAGED_GRPO_RUNS", str(folder / "runs"))
                prepare.main("a", recipe=path, overrides=list(overrides), quiet=True)
            made[name] = folder / "runs"
        return made[name]

    return make


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a runs directory with run `a` of `trained_runs`, ready for its first training."""
    from support.trained_runs import prepare_training

    folder = tmp_path_factory.mktemp("untrained")
    prepare_training(folder)
    return folder


@pytest.fixture(scope="session")
def trained(untrained: Path) -> Path:
    """Make a runs directory with the run of `untrained`, trained for two iterations in one go."""
    from support.trained_runs import finish_training

    folder = untrained.with_name("trained")
    finish_training(untrained, folder)
    return folder


@pytest.fixture(scope="session")
def finished(prepared: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a runs directory whose run `a` has two iterations and every other output."""
    from support.finished_run import RECIPE, ROWS

    from stages import evaluate, logprobs, rollout, score, tokens, train

    folder = tmp_path_factory.mktemp("finished") / "runs"
    shutil.copytree(prepared(RECIPE, rows=ROWS), folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAGED_GRPO_RUNS", str(folder))
        for iteration in (1, 2):
            for stage in (rollout, score, logprobs, train):
                stage.main("a", iteration, quiet=True)
        for policy in (0, 2):
            evaluate.main("a", policy, quiet=True)
        tokens.main("a", 1, quiet=True)
    set_quiet(False)
    return folder


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Run]:
    """Return a function that copies a runs directory for this test and returns its run `a`.

    The commands of the test use the copy.
    """

    def copied(folder: Path) -> Run:
        runs = tmp_path / "runs"
        shutil.copytree(folder, runs)
        monkeypatch.setenv("STAGED_GRPO_RUNS", str(runs))
        return Run(runs / "a")

    return copied


@pytest.fixture
def original_file(tmp_path: Path) -> Path:
    """Write forty questions as JSON lines."""
    from support.question_files import ORIGINAL_ROWS, write_lines

    return write_lines(tmp_path / "seed.jsonl", ORIGINAL_ROWS)
