"""The documents stay true: their commands, files, links, keys and the tree exist."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from pydantic import BaseModel
from support import REPOSITORY

from common.config import (
    Recipe,
)
from common.config.recipe_file import parse_recipe

ROOMS = ("common", "workflows")
DOCUMENTS = {
    str(path.relative_to(REPOSITORY)): path.read_text()
    for path in sorted(
        [
            *REPOSITORY.glob("*.md"),
            *(path for room in ROOMS for path in (REPOSITORY / room).rglob("*.md")),
        ]
    )
}
README = DOCUMENTS["README.md"]
LINES = 220
BLOCK_LINES = list(
    dict.fromkeys(
        line.strip()
        for text in DOCUMENTS.values()
        for line in re.sub(r"\\\n\s+", "", text).splitlines()
        if line.startswith("    ")
    )
)
MAKE = [re.split(r"\s{3,}", line)[0] for line in BLOCK_LINES if line.startswith("make ")]
STAGES = [re.split(r"\s{3,}", line)[0] for line in BLOCK_LINES if " stages." in line]
COMING = re.findall(
    r"^\|(.*)\|$",
    README[README.index("## Coming from TRL") : README.index("## When something")],
    re.M,
)
KEYS = {
    f"{name}.{key}"
    for name, field in Recipe.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    for key in field.annotation.model_fields
}


def test_the_readme_is_read_in_five_minutes() -> None:
    assert len(README.splitlines()) <= LINES


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


def _anchors(text: str) -> set[str]:
    """Of the headings, as the usual viewers make them."""
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_named_files_exist(document: str) -> None:
    text = DOCUMENTS[document]
    folder = (REPOSITORY / document).parent
    for link in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = (folder / path).resolve() if path else REPOSITORY / document
        assert target.exists(), f"{document}: {link}"
        if anchor:
            assert anchor in _anchors(target.read_text()), f"{document}: {link}"
    for path in re.findall(r"`((?:common|stages|workflows|data/models)/[\w./-]+)`", text):
        assert (REPOSITORY / path).exists(), f"{document}: {path}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_keys_of_the_recipe_exist(document: str) -> None:
    """Those of our column, where a table compares them with other frameworks."""
    text = re.sub(r"^(\|[^|\n]*\|).*\|.*\|.*\|$", r"\1", DOCUMENTS[document], flags=re.M)
    for section, key in re.findall(r"`(\w+)\.(\w+)[`= ]", text):
        if section in Recipe.model_fields and section != "data" and key != "py":
            assert f"{section}.{key}" in KEYS, f"{document}: {section}.{key}"


def test_arguments_of_trl_are_its_own() -> None:
    """Those of the table for people who come from there."""
    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        pytest.skip("TRL is not installed")
    trainer = Path(spec.origin).parent / "trainer"
    files = [*trainer.glob("grpo_*.py"), *trainer.glob("base_*.py"), *trainer.glob("_base*.py")]
    sources = "\n".join(path.read_text() for path in files)
    import transformers

    arguments = {field.name for field in fields(transformers.TrainingArguments)}
    rows = COMING[: next(i for i, row in enumerate(COMING) if row.startswith(" argument"))]
    words = re.findall(r"`(\w+)`", " ".join(row.split("|")[0] for row in rows))
    assert len(words) > 20
    for word in words:
        assert word in arguments or re.search(rf"\b{word}\b", sources), word


def test_the_tree_is_the_tree() -> None:
    tree = README[README.index("## The tree") :]
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
        assert f"`{path.name}`" in DOCUMENTS["workflows/README.md"]


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
    pieces = [
        (document, piece)
        for document, text in DOCUMENTS.items()
        for piece in re.findall(r"```toml\n(.*?)```", text, re.S)
    ]
    assert len(pieces) >= 3
    for document, piece in pieces:
        whole = "[model]" in piece
        parse_recipe(piece if whole else base + piece, origin=document)
