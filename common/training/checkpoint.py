"""Policies saved as Hugging Face directories, and trainer states that any mesh can read.

Every parameter is stored once, under its name in the whole model, by the first pipeline stage
that holds it. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from common.errors import UserError
from common.parallel.mesh import Mesh
from common.runs.hashing import CARD, description_files, sha256_of_file
from common.runs.manifest import sync_directory, write_atomically
from common.training.optimizer import MasterWeights, Optimizer

STATE = "state.json"
_MOMENTS = ("exp_avg", "exp_avg_sq")


def save_policy(folder: Path, weights: MasterWeights, *, source: Path) -> None:
    """Write the policy for `AutoModelForCausalLM.from_pretrained`, in compute dtype.

    It is called on every rank. Each rank of the first replica writes its own shard.

    Args:
        folder: an existing folder without weights.
        weights: the trained weights.
        source: the policy before; its configuration, tokenizer and licence are copied.

    Raises:
        UserError: the disk has no room, or the ranks do not share the file system.
    """
    tensors = {name: weights.model[name].detach() for name in weights.owned}
    _save_model(folder, tensors, weights.mesh, source)


def save_average(
    folder: Path,
    weights: MasterWeights,
    *,
    before: Mapping[str, Tensor],
    alpha: float,
    source: Path,
) -> None:
    """Write (1 - alpha) · before + alpha · policy as a model like the policy, but in float32.

    In bfloat16 the small step of an average would be lost in rounding. It is called on every rank.

    Args:
        folder: an existing folder without weights.
        weights: the weights of the policy.
        before: the float32 average so far, by name, of this rank's pipeline stage.
        alpha: the weight of the policy.
        source: as for `save_policy`.
    """
    tensors = {
        name: torch.lerp(before[name], weights.masters[name].detach().float(), alpha)
        for name in weights.owned
    }
    _save_model(folder, tensors, weights.mesh, source)


def _save_model(folder: Path, tensors: Mapping[str, Tensor], mesh: Mesh, source: Path) -> None:
    if mesh.is_main:
        _copy_description(source, folder, next(iter(tensors.values())).dtype)
    _save_shards(folder, "model", tensors, mesh)
    placed = _gathered(mesh, {name: tensor.nbytes for name, tensor in tensors.items()})
    if mesh.is_main and mesh.pp_degree > 1:
        index = {
            "metadata": {"total_size": sum(sum(sizes.values()) for sizes in placed)},
            "weight_map": {
                name: _shard("model", rank, mesh.pp_degree)
                for rank, sizes in enumerate(placed)
                for name in sizes
            },
        }
        _write_json(folder / "model.safetensors.index.json", index)
    mesh.barrier()


def save_trainer(
    folder: Path,
    optimizer: Optimizer,
    *,
    with_masters: bool,
    facts: Mapping[str, Any],
    checksums: bool = False,
) -> None:
    """Write optimizer and masters into an existing folder, `state.json` last.

    It is called on every rank.

    Args:
        folder: where to write.
        optimizer: the optimizer and its masters.
        with_masters: whether to store the masters; a float32 policy makes them superfluous.
        facts: further entries of `state.json`, which `read_state` returns.
        checksums: whether `state.json` lists each file's sha256, for want of a manifest.
    """
    weights, mesh = optimizer.weights, optimizer.weights.mesh
    tensors = {
        f"{kind}/{name}": tensor
        for name in weights.owned
        for kind, tensor in optimizer.state(name).items()
    }
    if with_masters:
        tensors |= {f"master/{name}": weights.masters[name].detach() for name in weights.owned}
    _save_shards(folder, "trainer", tensors, mesh)
    mesh.barrier()
    if mesh.is_main:
        state = {"steps": optimizer.steps, "masters": with_masters, **facts}
        if checksums:
            state["sha256"] = {p.name: sha256_of_file(p) for p in folder.glob("*.safetensors")}
        _write_json(folder / STATE, state)
    mesh.barrier()


def read_state(folder: Path) -> dict[str, Any]:
    """Read `state.json` of a trainer state: `steps`, `masters` and the facts saved with it."""
    return json.loads((folder / STATE).read_text(encoding="utf-8"))


def load_trainer(folder: Path, optimizer: Optimizer, *, as_policy: bool) -> bool:
    """Load the optimizer and the masters of a trainer state that any mesh has written.

    It is called on every rank.

    Args:
        folder: the trainer state.
        optimizer: takes its content.
        as_policy: whether the state must belong to the policy that is loaded: then the masters
            are taken only if, rounded to the policy's dtype, they equal it exactly on every rank.
            If False, they replace the model's content.

    Returns:
        Whether the state was loaded. It was not, and nothing has changed, if the masters are not
        those of the policy.

    Raises:
        UserError: the state lacks a parameter of the model.
    """
    weights, state = optimizer.weights, read_state(folder)
    kinds = (*(_MOMENTS if state["steps"] else ()), *(("master",) if state["masters"] else ()))
    wanted = {f"{kind}/{name}" for kind in kinds for name in weights.masters}
    tensors = _load(folder, wanted)
    if state["masters"]:
        stored = {name: tensors[f"master/{name}"] for name in weights.masters}
        if as_policy and not _all_agree(weights.mesh, _is_policy(weights, stored)):
            return False
        weights.fill(stored)
    if state["steps"]:
        moments = {
            name: {kind: tensors[f"{kind}/{name}"] for kind in _MOMENTS} for name in weights.masters
        }
        optimizer.restore(state["steps"], moments)
    return True


def _is_policy(weights: MasterWeights, stored: Mapping[str, Tensor]) -> bool:
    return all(
        torch.equal(stored[name].to(parameter.device, parameter.dtype), parameter.detach())
        for name, parameter in weights.model.items()
    )


def _all_agree(mesh: Mesh, mine: bool) -> bool:
    return all(mesh.gather_objects(mine))


def _gathered(mesh: Mesh, mine: dict[str, int]) -> list[dict[str, int]]:
    """Return the value of each pipeline stage of the first replica, in order."""
    return mesh.gather_objects(mine)[: mesh.pp_degree]


def _save_shards(folder: Path, kind: str, tensors: Mapping[str, Tensor], mesh: Mesh) -> None:
    """Write this rank's shard if it is in the first replica, and wait until it is on the disk.

    Raises:
        UserError: the disk has no room, or this rank does not see the folder.
    """
    mesh.barrier()
    if not folder.is_dir():
        raise UserError(
            f"{folder} was made by rank 0 but rank {mesh.rank} does not see it; all nodes need "
            "the run directory on a shared file system"
        )
    if mesh.dp_rank != 0:
        return
    size, free = sum(tensor.nbytes for tensor in tensors.values()), shutil.disk_usage(folder).free
    if size > free:
        raise UserError(f"{folder}: {size} bytes to write, {free} free on its disk; make room")
    path = folder / _shard(kind, mesh.pp_rank, mesh.pp_degree)
    path.touch()
    mode = path.stat().st_mode  # by the umask; safetensors replaces the file by one of mode 600
    save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, path, {"format": "pt"})
    path.chmod(mode)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    sync_directory(folder)


def _shard(kind: str, rank: int, ranks: int) -> str:
    """Return the name of a shard, as Hugging Face names those of a checkpoint."""
    if ranks == 1:
        return f"{kind}.safetensors"
    return f"{kind}-{rank + 1:05d}-of-{ranks:05d}.safetensors"


def _load(folder: Path, wanted: Iterable[str]) -> dict[str, Tensor]:
    """Read tensors by name, each from whichever shard has it.

    Raises:
        UserError: no shard has one of them.
    """
    missing, found = set(wanted), {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in missing & set(file.keys()):
                found[name] = file.get_tensor(name)
        missing -= found.keys()
    if missing:
        raise UserError(
            f"{folder}: no {', '.join(sorted(missing)[:5])}; this trainer state is of another "
            "model; train again from the policy with --fresh-optimizer"
        )
    return found


def _copy_description(source: Path, folder: Path, dtype: torch.dtype) -> None:
    for name in description_files(source):
        if name != CARD:
            shutil.copyfile(source / name, folder / name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # Both names: transformers before version 5 reads the second.
    for key in ("dtype", "torch_dtype"):
        if key == "dtype" or key in config:
            config[key] = str(dtype).removeprefix("torch.")
    _write_json(folder / "config.json", config)


def _write_json(path: Path, content: Any) -> None:
    write_atomically(path, json.dumps(content, indent=1, sort_keys=True).encode() + b"\n")
