"""What all commands share: messages instead of tracebacks, exit codes, harmless output."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import REPOSITORY

from common.command import open_run
from common.config import Recipe
from common.console import clean, command_line, python, stdout_to_stderr
from common.errors import (
    NoLearningSignalError,
    NonFiniteError,
    SamplerGapError,
    UserError,
)
from common.runs.layout import Run

CODE = """
import sys
import common.errors as errors
from common.command import Debug, launch

def main(kind: str, debug: Debug = False) -> None:
    raise getattr(errors, kind)("file.jsonl: column \\x1b[31m'x'\\u202e is missing; add it")

launch(main)
"""


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "kind", [UserError, NoLearningSignalError, SamplerGapError, NonFiniteError]
)
def test_a_user_error_is_one_message_and_its_exit_code(kind: type[UserError]) -> None:
    done = call(kind.__name__)
    assert done.returncode == kind.exit_code
    assert done.stderr == "error: file.jsonl: column [31m'x' is missing; add it\n"
    assert done.stdout == ""


def test_several_commands_have_a_sentence_above_them() -> None:
    code = (
        "from common.command import launch\n"
        "def one() -> None: ...\n"
        "def other() -> None: ...\n"
        "launch(one, other, about='What these are for.')"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert shown.index("What these are for.") < shown.index("one") < shown.index("other")


def test_exit_codes_differ() -> None:
    kinds = (UserError, NoLearningSignalError, SamplerGapError, NonFiniteError)
    assert len({kind.exit_code for kind in kinds}) == 4


def test_debug_shows_the_traceback() -> None:
    assert "Traceback" in call("UserError", "--debug").stderr


def test_an_unknown_option_is_exit_2_without_traceback() -> None:
    done = call("UserError", "--nonsense")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "--nonsense" in done.stderr


@given(st.text())
def test_clean_leaves_nothing_that_moves_the_cursor(text: str) -> None:
    cleaned = clean(text)
    assert cleaned == clean(cleaned)
    assert not set(cleaned) & set("\x1b\x07\x08\r\x9b\u202e\u2066\u200f\x00")
    kept = [c for c in text if c.isalnum()]
    assert [c for c in cleaned if c.isalnum()] == kept


def recipe_of(name: str, **options: object) -> Recipe:
    return open_run(name, write=True, **options)[1]  # type: ignore[arg-type]


def test_the_recipe_in_force_is_the_runs_own(runs: Path, recipe_file: Path) -> None:
    first = recipe_of("a", recipe=recipe_file, overrides=["train.epochs=2"], create=True)
    assert first.train.epochs == 2
    assert recipe_of("a") == first
    changed = recipe_of("a", overrides=["train.epochs=3"])
    assert changed.train.epochs == 3
    assert changed.rollout == first.rollout
    stored = Run.named("a", runs).recipe.read_text()
    assert "epochs = 3" in stored
    Run.named("a", runs).recipe.write_text(stored.replace("epochs = 3", "epochs = 4"))
    assert recipe_of("a").train.epochs == 4


def test_a_faulty_recipe_leaves_the_one_in_force(runs: Path, recipe_file: Path) -> None:
    before = recipe_of("a", recipe=recipe_file, create=True)
    with pytest.raises(UserError, match="did you mean"):
        recipe_of("a", overrides=["train.epoch=3"])
    assert recipe_of("a") == before


def test_a_mistyped_run_is_not_begun(runs: Path) -> None:
    with pytest.raises(UserError, match="begin it with: make iteration N=1 RUN=nosuch"):
        recipe_of("nosuch")
    assert not list(runs.iterdir())


def test_native_lines_do_not_get_among_a_command_s_own(capfd: pytest.CaptureFixture[str]) -> None:
    print("before")
    with stdout_to_stderr():
        os.write(1, b"of a library\n")
    print("after", flush=True)
    assert capfd.readouterr() == ("before\nafter\n", "of a library\n")


def answer(*arguments: str, code: str = CODE) -> tuple[int, dict[str, object], str]:
    """Return exit code, the only line of standard output as JSON, and standard error."""
    command = [sys.executable, "-c", code, *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (line,) = done.stdout.splitlines()
    return done.returncode, json.loads(line), done.stderr


JSON_CODE = CODE.replace("Debug, launch", "Debug, Json, launch").replace(
    "debug: Debug = False", "as_json: Json = False, debug: Debug = False"
)
MESSAGE = "file.jsonl: column \x1b[31m'x'\u202e is missing; add it"


@pytest.mark.parametrize(
    "kind", [UserError, NoLearningSignalError, SamplerGapError, NonFiniteError]
)
def test_with_json_an_error_is_json_and_its_exit_code(kind: type[UserError]) -> None:
    """People read the same on standard error."""
    code, facts, said = answer(kind.__name__, code=JSON_CODE)
    assert facts == {"error": MESSAGE, "exit_code": kind.exit_code} and code == kind.exit_code
    assert said == "error: file.jsonl: column [31m'x' is missing; add it\n"


def test_with_json_a_wrong_option_is_json_too() -> None:
    code, facts, said = answer("UserError", "--nonsense", code=JSON_CODE)
    assert code == facts["exit_code"] == 2
    assert "--nonsense" in str(facts["error"]) and "--nonsense" in said


def test_with_json_a_bug_is_json_and_a_traceback() -> None:
    code, facts, said = answer("no_such_error", code=JSON_CODE)
    assert (code, facts["exit_code"]) == (1, 1)
    assert "AttributeError" in str(facts["error"]) and "Traceback" in said


def test_with_json_a_result_stays_the_only_answer() -> None:
    """Of a command that has made something, and then says what it could not make."""
    code = """
from common.command import Json, launch, tell_result
from common.errors import UserError

def main(fail: int, as_json: Json = False) -> None:
    tell_result({"made": 1}, "made 1", as_json=as_json)
    if fail:
        raise UserError("the other one stopped")

launch(main)
"""
    assert answer("0", code=code) == (0, {"made": 1}, "")
    told = "error: the other one stopped\n"
    assert answer("1", code=code) == (2, {"made": 1}, told)


COMMANDS = [
    *(f"stages.{path.stem}" for path in sorted((REPOSITORY / "stages").glob("[a-z]*.py"))),
    *(f"workflows.{name}.__main__" for name in ("chain", "compare", "learn", "ablation", "bench")),
    *(f"workflows.{name}" for name in ("pretrain", "smollm2", "questions")),
]


@pytest.mark.parametrize("module", COMMANDS)
def test_every_command_has_json(module: str) -> None:
    """Every function that the module launches as a command."""
    found = importlib.import_module(module)
    tree = ast.parse(inspect.getsource(found))
    launched = [
        ast.unparse(argument)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("launch", "launch_commands")
        for argument in node.args
    ]
    names = re.findall(r"\w+", " ".join(launched))
    assert names
    for name in names:
        assert "as_json" in inspect.signature(getattr(found, name)).parameters, name


def test_a_command_line_can_be_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Main:
        __spec__ = type("Spec", (), {"name": "workflows.learn.__main__"})

    monkeypatch.setitem(sys.modules, "__main__", Main)  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "argv", ["x", "--read", "a folder"])
    assert command_line() == f"{python()} -m workflows.learn --read 'a folder'"
    done = subprocess.run([*python().split(), "-c", "import torch"], check=False)
    assert done.returncode == 0, "not the interpreter of these packages"
