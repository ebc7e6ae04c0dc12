"""Measuring in pairs: contenders take turns, so that other load on the machine meets all alike.

A figure is the ratio of two things in one run: the median, over rounds, of what the other one took
divided by what ours took. Seconds by themselves hold only for that machine at that hour.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from common.console import say
from workflows.bench.floor import Machine, Phase, floor_seconds

Contender = Callable[[], float]
"""Does its work once and returns the seconds (or bytes) that it took."""


@dataclass(frozen=True)
class Sizes:
    """How much work is measured."""

    prompt_tokens: int = 64
    group_size: int = 8
    concurrent: tuple[int, ...] = (8, 32, 64)
    sampler_tokens: int = 64
    default_concurrent: int = 512
    default_tokens: int = 128
    completion_tokens: int = 64
    """Tokens of each completion in packs and in the pipeline."""
    microbatches: int = 8
    iteration: tuple[int, int, int] = (16, 8, 128)
    """Prompts, samples of each, tokens of each sample."""
    loss: tuple[int, int, int] = (151_936, 2_048, 896)
    """Vocabulary, tokens and hidden size of the loss whose memory is measured: Qwen2.5-0.5B's."""
    scored_rows: int = 4096
    scale_rows: tuple[int, ...] = (8, 16, 32, 64)
    scale_tokens: tuple[int, ...] = (16, 32, 64, 128)
    scale_layers: tuple[int, ...] = (2, 4, 8, 16)
    machine: int = 2048
    """Side of the square matrices that are multiplied to find the machine's speed."""


SMALL = Sizes(
    concurrent=(8, 32),
    sampler_tokens=16,
    default_concurrent=128,
    default_tokens=32,
    microbatches=4,
    iteration=(4, 4, 16),
    loss=(32_768, 1_024, 256),
    scored_rows=512,
    scale_rows=(4, 8, 16),
    scale_tokens=(8, 16, 32),
    scale_layers=(1, 2, 4),
    machine=1024,
)
"""Sizes for trying the harness in minutes; the ratios at these sizes answer no question."""


@dataclass(frozen=True)
class Bench:
    """What all parts of one run have in common."""

    model: Path
    """Hugging Face directory."""
    default_model: Path
    """The model of the default recipe."""
    device: torch.device
    dtype: torch.dtype
    threads: int
    """Threads of one process; two ranks have half of them each."""
    pairs: int
    sizes: Sizes
    machine: Machine
    scratch: Path
    """A folder that is removed when the run ends."""

    def clock(self, work: Callable[[], object]) -> Contender:
        """Return `work` as a contender, timed until the device has finished it."""

        def timed() -> float:
            self.synchronize()
            started = time.perf_counter()
            work()
            self.synchronize()
            return time.perf_counter() - started

        return timed

    def synchronize(self) -> None:
        """Wait until the device has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class Measurement:
    """One line of the table: ours against one other thing."""

    part: str
    name: str
    against: str
    """What the baseline is; empty where ours stands alone."""
    unit: str
    """Unit of `ours` and `baseline`: `s` or `bytes`."""
    ours: list[float]
    """By round; the warm-up is left out."""
    baseline: list[float]
    """By the same rounds, or empty."""
    target: float | None = None
    """Least ratio that is wanted."""
    phases: list[Phase] = field(default_factory=list)
    """The operations and bytes that the work cannot do without."""
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        """Return baseline over ours by round: above 1 where ours takes less."""
        return (
            [b / o for o, b in zip(self.ours, self.baseline, strict=True)] if self.against else []
        )

    def line(self) -> str:
        """Return a line for the terminal, to be shown as soon as it is known."""
        if not self.against:
            return f"{self.name}: {median(self.ours):.3g} {self.unit}"
        return f"{self.name}: {median(self.ratios):.2f} x {self.against}"

    def record(self, machine: Machine) -> dict[str, Any]:
        """Return what the JSON has of it: medians, ratios, and the floor on this machine.

        `floor_ratio` is ours over the floor, 1 at best. `matmul_share` is the share of the measured
        matmul speed that the needed operations reached (the model FLOPs utilisation).
        """
        ratios, seconds = self.ratios, median(self.ours)
        floor = floor_seconds(self.phases, machine)
        operations = 2 * sum(phase.multiply_adds for phase in self.phases)
        ratio = median(ratios) if ratios else None
        return asdict(self) | {
            "ours_median": seconds,
            "baseline_median": median(self.baseline) if self.baseline else None,
            "ratio": ratio,
            "ratio_low": min(ratios, default=None),
            "ratio_high": max(ratios, default=None),
            "pairs": len(self.ours),
            "reached": None if self.target is None or ratio is None else ratio >= self.target,
            "floor_seconds": floor or None,
            "floor_ratio": seconds / floor if floor else None,
            "matmul_share": operations / seconds / machine.matmul_flops if floor else None,
        }


LONG_ROUND_SECONDS = 60
"""Rounds that take longer are reported one by one."""


def rounds(contenders: Mapping[str, Contender], count: int) -> dict[str, list[float]]:
    """Return what each contender took by round: A B C, A B C, … after one round of warm-up.

    A long round is reported at once, so that a run which is stopped has shown something.
    """
    assert count >= 1, count
    for contender in contenders.values():
        contender()
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(1, count + 1):
        started = time.monotonic()
        for name, contender in contenders.items():
            taken[name].append(contender())
        if time.monotonic() - started > LONG_ROUND_SECONDS:
            last = ", ".join(f"{name} {found[-1]:.3g}" for name, found in taken.items())
            say(f"  round {number} of {count}: {last}")
    return taken
