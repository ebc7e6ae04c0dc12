"""Scores that a model has given, kept in a JSON Lines file by the content of the request.

Lines are only ever added, each by one write, so that several processes may use one file, and a
killed one leaves at most a broken last line, which is passed over.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from common.errors import UserError

Entry = dict[str, Any]
"""What a line holds: `key`, `score` and whatever else is worth reading later."""

FILE = "scores.jsonl"


class ReplyCache:
    """Entries by key; those that are being made are waited for, not made twice."""

    def __init__(self, folder: Path | None) -> None:
        """Read what is there.

        Args:
            folder: where the file is or will be; None keeps all in memory alone.

        Raises:
            UserError: the folder cannot be written to, or the file not be read.
        """
        self._lock = threading.Lock()
        self._entries: dict[str, Future[Entry]] = {}
        self._path = None if folder is None else folder / FILE
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            content = self._path.read_bytes() if self._path.exists() else b""
            with self._path.open("ab") as file:
                if content and not content.endswith(b"\n"):
                    file.write(b"\n")
        except OSError as error:
            raise UserError(
                f"{self._path}: {error.strerror}; rewards.judge.cache names another folder"
            ) from None
        for line in content.split(b"\n"):
            if (entry := _entry(line)) is not None:
                done: Future[Entry] = Future()
                done.set_result(entry)
                self._entries[entry["key"]] = done

    def get(self, key: str, make: Callable[[], Entry]) -> tuple[Entry, bool]:
        """Return the entry of a key, and whether it was there or is being made by another thread.

        Raises whatever `make` raises, for all threads that wait for it; a failure is not kept.
        """
        with self._lock:
            known = self._entries.get(key)
            mine: Future[Entry] = Future()
            if known is None:
                self._entries[key] = mine
        if known is not None:
            return known.result(), True
        try:
            entry = {"key": key, **make()}
            self._append(entry)
        except BaseException as error:
            with self._lock:
                del self._entries[key]
            mine.set_exception(error)
            raise
        mine.set_result(entry)
        return entry, False

    def _append(self, entry: Entry) -> None:
        if self._path is None:
            return
        line = json.dumps(entry).encode() + b"\n"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)


def _entry(line: bytes) -> Entry | None:
    """Return what a line holds, None if it is broken."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("key"), str):
        return None
    score = entry.get("score")
    if isinstance(score, bool) or not isinstance(score, (int, float)):
        return None
    return entry if 0 <= score <= 1 else None
