"""Policy 0: finding a model by path or hub name, checking its files, installing them into a run.

Only safetensors are installed, since pickled weights (.bin, .pt) run code when they are read.
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
from common.tasks.hub import first_line, is_hub_name, use_cache_if_unreachable

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"

TARGETS = {
    Path("data/models/smollm2-135m-instruct"): "make smollm2",
    Path("data/models/arithmetic-base"): "make base",
}
"""Models of the recipes, and what makes them."""

# One of these makes a tokenizer; the other files refine it.
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "tekken.json", "*.model", "*.tiktoken")


# transformers meets other content with an error of its own code, which names no file.
JSON_OBJECTS = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json"),
)


@dataclass(frozen=True)
class Model:
    """A Hugging Face directory whose files have been checked."""

    folder: Path
    files: list[Path]
    """The files to install."""
    parameters: int


def find_model(name: str) -> Model:
    """Find a model by its local path or its name on the Hugging Face hub, and check its files.

    Raises:
        UserError: there is none, it has no safetensors, or one of its files is truncated.
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
        if path in TARGETS:
            hint = f"; make it with: {TARGETS[path]}"
        raise UserError(f"model.path = {name!r}: no such folder{hint}")
    return check_model(_download(name))


def check_model(folder: Path) -> Model:
    """Check that a folder has a configuration, a tokenizer and complete safetensors.

    The safetensors must hold exactly the tensors that the configuration asks for.

    Raises:
        UserError: any of these is missing, damaged or different.
    """
    from common.modeling.chat import read_json_object
    from common.modeling.load import check_checkpoint

    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no config.json; model.path must be a Hugging Face directory")
    if not any(Path(name).match(v) for name in tokenizer_files(folder) for v in VOCABULARIES):
        # transformers would silently make an empty one.
        raise UserError(f"{folder}: no tokenizer; there is none of {', '.join(VOCABULARIES)}")
    for name in JSON_OBJECTS:
        if (folder / name).is_file():
            read_json_object(folder / name)
    weights = _weights(folder)
    parameters = sum(_parameters(path) for path in weights)
    check_checkpoint(folder)
    index = [folder / INDEX] if (folder / INDEX).is_file() else []
    others = [folder / name for name in description_files(folder)]
    return Model(folder, [*weights, *index, *others], parameters)


def install(model: Model, folder: Path) -> None:
    """Put the model's files into `folder`, which is made anew, as hard links or else as copies."""
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
        # A name that contains a path could point out of the folder.
        if all(Path(name).name == name for name in names.values()):
            return names
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise UserError(f"{path}: not an index of safetensors files")


def _parameters(path: Path) -> int:
    """Count the parameters in a safetensors file by its header, and check the file's size."""
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
    """Download the files to install into the hub's cache, and return the snapshot's folder."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    if not bars_wanted():
        disable_progress_bars()
    patterns = ["*.safetensors", *DESCRIPTIONS]
    unreachable = use_cache_if_unreachable()
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=["*/*"]))
    except Exception as error:  # a dozen types, from the library, its HTTP client and file system
        raise UserError(
            f"model.path = {name!r}: not a local folder, and "
            + (unreachable or f"the hub gives: {first_line(error)}")
        ) from None
