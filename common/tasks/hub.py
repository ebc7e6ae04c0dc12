"""Data sets read by the `datasets` library, from the hub or a folder of `Dataset.save_to_disk`.

The library takes seconds to import, so it is imported only when a data set needs it.
"""

from __future__ import annotations

import difflib
import os
import re
import socket
import sys
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from common.console import bars_wanted
from common.errors import UserError
from common.tasks.files import records_of
from common.tasks.records import Record

SECONDS_TO_ANSWER = 2.0
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


def is_hub_name(name: str) -> bool:
    """Return whether `name` could be a repository on the Hugging Face hub, as `openai/gsm8k` is."""
    return _HUB_NAME.fullmatch(name) is not None


def first_line(error: Exception) -> str:
    """Return an error's type and first line; some libraries' messages fill pages."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


@cache
def use_cache_if_unreachable() -> str:
    """Have this process take what it can from the hub's cache, if the hub cannot be reached.

    The hub's libraries would try for half a minute, and not all of them then look into the cache.

    Returns:
        Why only the cache was looked into; empty if the hub answers, or if a proxy is asked.
    """
    from huggingface_hub import constants

    address = urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set and the local cache does not have it"
    if address.scheme in getproxies() and not proxy_bypass(address.netloc):
        return ""
    try:
        port = address.port or {"http": 80}.get(address.scheme, 443)
        socket.create_connection((address.hostname or "", port), SECONDS_TO_ANSWER).close()
    except OSError as error:
        constants.HF_HUB_OFFLINE = True
        os.environ["HF_HUB_OFFLINE"] = "1"  # for `datasets`, if it is not imported yet
        if "datasets.config" in sys.modules:
            vars(sys.modules["datasets.config"])["HF_HUB_OFFLINE"] = True
        return (
            f"{constants.ENDPOINT} cannot be reached ({error.strerror}) and the local cache does "
            "not have it: download it elsewhere, and name its folder"
        )
    return ""


def is_saved_to_disk(path: Path) -> bool:
    """Return whether `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote this folder."""
    return (path / "dataset_dict.json").is_file() or (
        (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
    )


def read_saved(path: Path, split: str) -> list[Record]:
    """Return all rows of a saved data set, or those of `split` if it has several splits.

    Raises:
        UserError: the data set cannot be loaded, or has no such split.
    """
    from datasets import DatasetDict, load_from_disk

    try:
        loaded = load_from_disk(str(path))
    except Exception as error:
        raise UserError(f"{path}: cannot be loaded by `datasets`: {first_line(error)}") from None
    if isinstance(loaded, DatasetDict):
        if split not in loaded:
            near = difflib.get_close_matches(split, list(loaded), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"{path}: no split {split!r}; there are {', '.join(loaded)}{hint}")
        loaded = loaded[split]
    return _records(loaded, str(path))


def read_hub(name: str, configuration: str, split: str) -> list[Record]:
    """Return all rows of one split of a data set on the Hugging Face hub or in its local cache.

    Raises:
        UserError: there is no such data set, configuration or split, or the hub cannot be reached.
    """
    unreachable = use_cache_if_unreachable()
    from datasets import disable_progress_bars, load_dataset

    if not bars_wanted():
        disable_progress_bars()
    try:
        loaded = load_dataset(name, configuration or None, split=split)
    except Exception as error:  # a dozen types, from library, HTTP client and file system
        raise UserError(
            f"{name} (split {split!r}): not a local path, and "
            + (unreachable or f"the hub gives: {first_line(error)}")
        ) from None
    return _records(loaded, name)


def _records(rows: Any, where: str) -> list[Record]:
    # As Arrow, for `datasets` would decode images and sound, and needs further packages for that.
    return list(records_of(rows.with_format("arrow")[:], where))
