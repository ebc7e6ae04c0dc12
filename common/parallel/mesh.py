"""The processes that torchrun started, as data-parallel replicas of a pipeline.

Rank r is pipeline stage r mod pp_degree of replica r div pp_degree, so that the stages of one
pipeline are neighbours. One process needs neither torchrun nor a process group: every collective
below is then a no-op.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from common.config import MeshConfig
from common.console import clean, stdout_to_stderr
from common.errors import UserError
from common.parallel import failure

_SECONDS_FOR_THE_FIRST_TO_SPEAK = 0.5

_MESHES = itertools.count()

Over = Literal["world", "pp", "dp", "embedding"]


@dataclass
class Mesh:
    """The place of this process among the others; a context manager that ends the process group."""

    rank: int = 0
    world_size: int = 1
    pp_degree: int = 1
    dp_degree: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    timeout_seconds: int = 600
    position: str = "starting"
    """What this rank is doing, for the message of a failure: `mesh.at(...)` sets it."""
    _groups: dict[Over, dist.ProcessGroup] = field(default_factory=dict)
    _store: Store | None = None
    _ending: bool = False

    @classmethod
    def from_environment(cls, config: MeshConfig) -> Mesh:
        """Build the recipe's mesh from the processes that torchrun started, or from this one alone.

        Raises:
            UserError: the number of processes does not fit the mesh, or there are too few GPUs.
        """
        rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        pp, dp = degrees(config, world)
        mesh = cls(rank, world, pp, dp, _device(), config.timeout_seconds)
        if world > 1:
            mesh._join()
        return mesh

    @property
    def pp_rank(self) -> int:
        return self.rank % self.pp_degree

    @property
    def dp_rank(self) -> int:
        return self.rank // self.pp_degree

    @property
    def is_first(self) -> bool:
        """Whether this rank holds the first pipeline stage."""
        return self.pp_rank == 0

    @property
    def is_last(self) -> bool:
        """Whether this rank holds the last pipeline stage."""
        return self.pp_rank == self.pp_degree - 1

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes what must be written only once."""
        return self.rank == 0

    def group(self, over: Over) -> dist.ProcessGroup | None:
        """Return this rank's process group for `over`; None if it shares none with another rank."""
        return self._groups.get(over)

    def all_reduce(
        self, tensor: torch.Tensor, over: Over, op: Any = dist.ReduceOp.SUM
    ) -> torch.Tensor:
        """Reduce `tensor` in place over this rank's group; all its ranks get the same bits."""
        group = self.group(over)
        if group is not None:
            dist.all_reduce(tensor, op=op, group=group)
        return tensor

    def gather_objects(self, value: Any) -> list[Any]:
        """Return the `value` of every rank, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered

    def broadcast_from_rank0(self, ask: Callable[[], Any]) -> Any:
        """Return on every rank what `ask` returns on rank 0.

        Use it to look at the disk, since what one rank sees may change while the others start.
        """
        return self.gather_objects(ask() if self.is_main else None)[0]

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def at(self, position: str) -> None:
        """Note what this rank is about to do; other ranks name it when this one fails."""
        self.position = position
        if self._store is not None:
            failure.announce_position(self._store, self.rank, position)

    def __enter__(self) -> Mesh:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._store is None:
            return
        self._ending = True
        if error is None:
            dist.barrier()
        another_was_first = error is not None and self._report(error)
        if error is None or self.device.type == "cpu":
            # After an error NCCL would wait here for ranks that are gone; without this call, gloo
            # aborts at exit.
            dist.destroy_process_group()
        if another_was_first and "--debug" not in sys.argv:
            # The launcher ends all ranks once one has ended: give the first to fail time to report.
            time.sleep(_SECONDS_FOR_THE_FIRST_TO_SPEAK)
            raise SystemExit(getattr(error, "exit_code", 1))

    def _join(self) -> None:
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        timeout = timedelta(seconds=self.timeout_seconds)
        store, _, _ = next(rendezvous("env://", self.rank, self.world_size, timeout=timeout))
        # The launcher's store outlives a mesh, so each mesh of these processes has its own keys.
        number = next(_MESHES)
        self._store = PrefixStore(f"mesh-{number}", store)
        with stdout_to_stderr():  # gloo tells of its connections in some versions of torch
            dist.init_process_group(
                backend,
                store=PrefixStore(f"groups-{number}", store),
                rank=self.rank,
                world_size=self.world_size,
                timeout=timeout,
                device_id=self.device if backend == "nccl" else None,
            )
            self._groups["world"] = dist.group.WORLD  # type: ignore[assignment]
            by_replica = [
                [replica * self.pp_degree + stage for stage in range(self.pp_degree)]
                for replica in range(self.dp_degree)
            ]
            # Every rank takes part in making every group, even those it is not in.
            self._make("pp", by_replica, timeout)
            self._make("dp", [list(ranks) for ranks in zip(*by_replica, strict=True)], timeout)
            self._make("embedding", [[ranks[0], ranks[-1]] for ranks in by_replica], timeout)
        failure.announce_process(self._store, self.rank)
        self.at(self.position)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._end)

    def _end(self, *_: object) -> None:
        """Raise an error when torchrun ends this rank, so that the first failure is reported."""
        if not self._ending:
            raise RuntimeError(failure.ENDED_BY_LAUNCHER)

    def _report(self, error: BaseException) -> bool:
        """Say which rank failed first, where and why, and return whether it was another rank."""
        assert self._store is not None
        reason = f"{type(error).__name__}: {error}"
        try:
            if failure.is_of_a_peer(error):
                first = failure.cause(
                    self._store, self.rank, self.world_size, self.position, reason
                )
            else:
                mine = failure.Failure(self.rank, self.position, reason)
                first = failure.claim(self._store, mine)
        except (dist.DistError, RuntimeError):
            # The store went down with the launcher: only this rank's own error is known.
            return False
        another = first.rank != self.rank
        if another or not isinstance(error, UserError):
            where = f"rank {first.rank} {self._place(first.rank)} failed first, at "
            line = f"rank {self.rank}: {where}{first.position}: {first.reason}"
            print(clean(line), file=sys.stderr, flush=True)
        return another

    def _place(self, rank: int) -> str:
        stage, replica = rank % self.pp_degree, rank // self.pp_degree
        return f"(pipeline stage {stage} of {self.pp_degree}, replica {replica})"

    def _make(self, over: Over, members: list[list[int]], timeout: timedelta) -> None:
        for ranks in members:
            if len(set(ranks)) == 1:
                continue
            group = dist.new_group(ranks, timeout=timeout)
            if self.rank in ranks:
                self._groups[over] = group


def degrees(config: MeshConfig, world_size: int) -> tuple[int, int]:
    """Return (pp_degree, dp_degree) for `world_size` processes.

    Raises:
        UserError: their product is not `world_size`.
    """
    dp = config.dp_degree
    pp = world_size // dp if config.pp_degree == "auto" else config.pp_degree
    if pp * dp != world_size or pp == 0:
        wanted = f"dp_degree {dp}" if config.pp_degree == "auto" else f"{pp} x {dp} (pp x dp)"
        fix = (
            f"start a multiple of {dp} processes"
            if config.pp_degree == "auto"
            else f"start {pp * dp} (NPROC={pp * dp})"
        )
        raise UserError(
            f"mesh: {world_size} processes do not make {wanted}; {fix} or change [mesh] "
            'of the recipe (pp_degree = "auto" takes what is there)'
        )
    return pp, dp


def _device() -> torch.device:
    """Choose this process's own GPU if there are any, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local, found = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if local >= found:
        raise UserError(
            f"mesh: local rank {local} has no GPU, {found} found; start at most {found} processes "
            "on this machine, or set CUDA_VISIBLE_DEVICES= to use the CPU"
        )
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device
