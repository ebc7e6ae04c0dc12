"""Measurements, as tables on the terminal and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl

from common.reporting.terminal import ALL_COLUMNS, Shown, bytes_text, print_table
from common.runs.manifest import write_atomically
from workflows.bench.measure import Bench, Measurement
from workflows.bench.scale import Law

PACKAGES = ("torch", "transformers")
WHOLE = Shown(columns=(ALL_COLUMNS,))


def show(bench: Bench, measurements: Sequence[Measurement], laws: Sequence[Law]) -> None:
    """Print the ratios, the floors, and the laws, with all columns however narrow the terminal."""
    if measurements:
        records = [m.record(bench.machine) for m in measurements]
        title = "ratios: the other's time (or bytes) over ours, medians of rounds in this run"
        print_table(pl.DataFrame([ratio_row(r) for r in records]), title=title, shown=WHOLE)
        floors = [floor_row(r) for r in records if r["floor_seconds"]]
        speeds = (
            f"floor: what operations and bytes need at this machine's measured "
            f"{bench.machine.matmul_flops / 1e9:.0f} GFLOP/s "
            f"(torch's own product: {bench.machine.torch_flops / 1e9:.0f}) and "
            f"{bench.machine.copy_bytes / 1e9:.1f} GB/s"
        )
        if floors:
            frame = pl.DataFrame(floors).unique(maintain_order=True)
            print_table(frame, title=speeds, shown=WHOLE)
    if laws:
        rows = [{k: v for k, v in asdict(law).items() if k != "points"} for law in laws]
        print_table(pl.DataFrame(rows), title="how time grows: seconds = a + b n", shown=WHOLE)


def ratio_row(record: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a measurement in the table of ratios."""
    low, high = record["ratio_low"], record["ratio_high"]
    reached = {None: "", True: "yes", False: "no"}[record["reached"]]
    return {
        "measured": record["name"],
        "ours": _amount(record["ours_median"], record["unit"]),
        "against": record["against"],
        "other": _amount(record["baseline_median"], record["unit"]),
        "ratio": record["ratio"],
        "range": "" if low is None else f"{low:.2f} to {high:.2f}",
        "wanted": record["target"],
        "reached": reached,
        "note": record["note"],
    }


def floor_row(record: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a measurement in the table of floors; its baselines do not change it."""
    return {
        "measured": record["name"],
        "giga_multiply_adds": sum(p["multiply_adds"] for p in record["phases"]) / 1e9,
        "gigabytes": sum(p["bytes"] for p in record["phases"]) / 1e9,
        "floor_s": record["floor_seconds"],
        "ours_s": record["ours_median"],
        "ours_over_floor": record["floor_ratio"],
        "share_of_matmul_speed": record["matmul_share"],
    }


def everything(
    bench: Bench, measurements: Sequence[Measurement], laws: Sequence[Law]
) -> dict[str, Any]:
    """Return all rounds of all measurements, and what they were made with."""
    return {
        "model": bench.model.name,
        "device": bench.device.type,
        "dtype": str(bench.dtype).removeprefix("torch."),
        "threads": bench.threads,
        "pairs": bench.pairs,
        "sizes": asdict(bench.sizes),
        "machine": asdict(bench.machine),
        "packages": {name: version(name) for name in PACKAGES},
        "measurements": [m.record(bench.machine) for m in measurements],
        "laws": [asdict(law) for law in laws],
    }


def write(
    path: Path, bench: Bench, measurements: Sequence[Measurement], laws: Sequence[Law]
) -> None:
    """Write `everything` as JSON."""
    content = everything(bench, measurements, laws)
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def _amount(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    return bytes_text(int(value)) if unit == "bytes" else f"{value:.3g} s"
