"""A process that is killed while it writes shards, simulated by an exception."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from common.runs.shards import OutputWriter


@contextmanager
def killed_at_second_shard() -> Iterator[list[str]]:
    """Raise KeyboardInterrupt in the block when a second shard is written; it must come to that.

    Yields:
        Names of the shards that were written.
    """
    written: list[str] = []
    write = OutputWriter.write

    def killed_at_second(self, name, table):
        if written:
            raise KeyboardInterrupt
        written.append(name)
        write(self, name, table)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(OutputWriter, "write", killed_at_second)
        yield written
