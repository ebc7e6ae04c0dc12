"""Policies as Hugging Face directories, and trainer states that any mesh can read.

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
    """Write the policy as `AutoModelForCausalLM.from_pretrained` reads it, in compute dtype.

    Called on every rank of the mesh; each writes its own shard.

    Args:
        folder: exists and is empty of weights.
        source: the policy before; its configuration, tokenizer and licence are copied.

    Raises:
        UserError: no room on the disk, or ranks that do not share the file system.
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

    In bfloat16 the small step of an average would be lost in rounding. Called on every rank.

    Args:
        before: float32 by name, of this rank's pipeline stage.
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

    Called on every rank.

    Args:
        with_masters: store the masters too; the policy alone suffices if it is float32.
        facts: JSON, found again by `read_state`.
        checksums: note each file's sha256, where no manifest will.
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
    """`state.json` of a trainer state: `steps`, `masters` and the facts it was saved with."""
    return json.loads((folder / STATE).read_text(encoding="utf-8"))


def load_trainer(folder: Path, optimizer: Optimizer, *, as_policy: bool) -> bool:
    """Continue with the optimizer and the masters of a trainer state, written by any mesh.

    Called on every rank.

    Args:
        as_policy: the state belongs to the policy that is loaded: take the masters only if
            rounded to the policy's type they are exactly that policy, on every rank. Otherwise
            they replace the model's content.

    Returns:
        Whether it was loaded; False: masters that are not the policy's, nothing changed.

    Raises:
        UserError: a parameter of the model is not in the state.
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
    """One value for each pipeline stage of the first replica."""
    return mesh.gather_objects(mine)[: mesh.pp_degree]


def _save_shards(folder: Path, kind: str, tensors: Mapping[str, Tensor], mesh: Mesh) -> None:
    """This rank's shard, written by the first replica and on the disk when this returns."""
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
    mode = path.stat().st_mode  # of the umask; the library replaces the file by one of mode 600
    save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, path, {"format": "pt"})
    path.chmod(mode)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    sync_directory(folder)


def _shard(kind: str, rank: int, ranks: int) -> str:
    """Hugging Face's names for the shards of a checkpoint."""
    if ranks == 1:
        return f"{kind}.safetensors"
    return f"{kind}-{rank + 1:05d}-of-{ranks:05d}.safetensors"


def _load(folder: Path, wanted: Iterable[str]) -> dict[str, Tensor]:
    """Tensors by name out of whichever shard has them."""
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
