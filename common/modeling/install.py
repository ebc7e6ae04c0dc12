"""Policy 0: finding a model by path or hub name, checking its files, putting them into a run.

Only safetensors are installed. Pickled weights (.bin, .pt) run code when they are read.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.console import bars_wanted
from common.errors import UserError
from common.runs.hashing import DESCRIPTIONS, description_files, tokenizer_files
from common.tasks.hub import first_line, is_hub_name

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"

# One of these makes a tokenizer; the other files refine it.
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "tekken.json", "*.model", "*.tiktoken")


@dataclass(frozen=True)
class Model:
    """A Hugging Face directory whose files have been checked."""

    folder: Path
    files: list[Path]
    """What is to be installed."""
    parameters: int


def find_model(name: str) -> Model:
    """The model at a local path, or of that name on the Hugging Face hub.

    Raises:
        UserError: there is none, it has no safetensors, or a file of it is cut.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return check_model(path)
    if path.exists():
        raise UserError(f"model.path = {name!r} is a file; name the folder that holds it")
    if not is_hub_name(name):
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, beside, n=1)
        hint = f"; did you mean {str(path.parent / near[0])!r}?" if near else ""
        raise UserError(f"model.path = {name!r}: no such folder{hint}")
    return check_model(_download(name))


def check_model(folder: Path) -> Model:
    """Check that a folder has a configuration, a tokenizer and all its safetensors, whole.

    The safetensors must hold what the configuration asks for, no less and no more.

    Raises:
        UserError: it has not.
    """
    from common.modeling.load import check_checkpoint

    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no config.json; model.path must be a Hugging Face directory")
    if not any(Path(name).match(v) for name in tokenizer_files(folder) for v in VOCABULARIES):
        # transformers would make an empty one without a word.
        raise UserError(f"{folder}: no tokenizer; there is none of {', '.join(VOCABULARIES)}")
    weights = _weights(folder)
    parameters = sum(_parameters(path) for path in weights)
    check_checkpoint(folder)
    index = [folder / INDEX] if (folder / INDEX).is_file() else []
    others = [folder / name for name in description_files(folder)]
    return Model(folder, [*weights, *index, *others], parameters)


def install(model: Model, folder: Path) -> None:
    """Put the model's files into `folder`, which is made anew: hard links, else copies."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    for path in model.files:
        target = folder / path.name
        source = path.resolve()  # the hub's cache holds links to blobs
        try:
            os.link(source, target)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(source, target)


def _weights(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        names = sorted(set(_index(folder / INDEX).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise UserError(f"{folder / INDEX} names files that are not there: {missing[:5]}")
        return [folder / name for name in names]
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
    found = f"{', '.join(pickles[:3])} would run code when read. " if pickles else ""
    raise UserError(
        f"{folder}: no {WHOLE}. {found}Save the model as safetensors, with "
        "save_pretrained(folder, safe_serialization=True)"
    )


def _index(path: Path) -> dict[str, str]:
    try:
        names: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        # A name with a path in it could point out of the folder.
        if all(Path(name).name == name for name in names.values()):
            return names
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise UserError(f"{path}: not an index of safetensors files")


def _parameters(path: Path) -> int:
    """Number of parameters in a safetensors file; its header is read, its size compared."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length < size else b""
    try:
        content: dict[str, Any] = json.loads(header)
        content.pop("__metadata__", None)
        end = 8 + length + max(tensor["data_offsets"][1] for tensor in content.values())
        parameters = sum(math.prod(tensor["shape"]) for tensor in content.values())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: not a safetensors file") from None
    if size != end:
        raise UserError(f"{path}: {size} bytes where its header says {end}; the file is cut")
    return parameters


def _download(name: str) -> Path:
    """A snapshot in the hub's cache of the files that would be installed."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    if not bars_wanted():
        disable_progress_bars()
    patterns = ["*.safetensors", *DESCRIPTIONS]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=["*/*"]))
    except Exception as error:  # of a dozen types: of the library, its HTTP client, the file system
        raise UserError(
            f"model.path = {name!r}: not a local folder, and the hub gives: {first_line(error)}"
        ) from None
