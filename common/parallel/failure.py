"""Agreement among ranks on which one failed first, where and why.

When a rank dies, the others fail in turn with a closed connection or a timeout, and torchrun's
own report may name any of them. So the ranks share the launcher's store: the first failure is
entered there, and a rank that only lost its peer looks for the cause there and among the
processes. A killed rank enters nothing, but the others see that its process is gone.
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from torch.distributed import Store  # type: ignore[attr-defined]

ENDED_BY_LAUNCHER = "ended by the launcher"

# What gloo and NCCL report when the other side has failed.
_OF_A_PEER = (
    "connection closed by peer",
    "connection reset",
    "connection refused",
    "broken pipe",
    "timed out",
    "timeout",
    "socket closed",
    "remote process exited",
    ENDED_BY_LAUNCHER,
)
_SECONDS_TO_LEARN_THE_CAUSE = 2.0


@dataclass(frozen=True)
class Failure:
    """The first failure among the processes of a run."""

    rank: int
    position: str
    reason: str


def claim(store: Store, failure: Failure) -> Failure:
    """Enter `failure` unless another rank was first, and return the failure that is entered."""
    text = json.dumps(asdict(failure))
    return Failure(**json.loads(store.compare_set("failure", "", text)))


def is_of_a_peer(error: BaseException) -> bool:
    """Whether an exception only says that another rank does not answer."""
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(text in message for text in _OF_A_PEER)


def cause(store: Store, rank: int, world_size: int, position: str, symptom: str) -> Failure:
    """Find the first failure, on behalf of a rank that lost its peer at `position`."""
    deadline = time.monotonic() + _SECONDS_TO_LEARN_THE_CAUSE
    while time.monotonic() < deadline:
        if store.check(["failure"]):
            return Failure(**json.loads(store.get("failure")))
        for other in range(world_size):
            if other != rank and _is_gone(store, other):
                reason = "the process is gone without a message: killed, or out of memory"
                return claim(store, Failure(other, _last_position(store, other), reason))
        time.sleep(0.01)
    others = "; ".join(
        f"rank {other} was at {_last_position(store, other)}"
        for other in range(world_size)
        if other != rank
    )
    return claim(store, Failure(rank, position, f"no answer from its peer ({symptom}); {others}"))


def announce_process(store: Store, rank: int) -> None:
    """Tell the others which process this rank is."""
    store.set(f"process/{rank}", f"{socket.gethostname()} {os.getpid()}")


def announce_position(store: Store, rank: int, position: str) -> None:
    store.set(f"position/{rank}", position)


def _last_position(store: Store, rank: int) -> str:
    key = f"position/{rank}"
    return store.get(key).decode() if store.check([key]) else "its start"


def _is_gone(store: Store, rank: int) -> bool:
    """Whether another rank's process has ended, as far as this host can see."""
    key = f"process/{rank}"
    if not store.check([key]):
        return False
    host, pid = store.get(key).decode().split()
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)
        # A killed process stays in the table until its launcher has read its exit status.
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return state == "Z"
