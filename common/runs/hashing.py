"""Two hashes: `sha256` of a file (integrity) and `content_hash` of what it says (freshness).

The content hash covers columns or tensors by name, type, shape and bytes, so it is the same
however the rows are cut into shards or the tensors into files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.errors import UserError

# A policy's folder: weights, configuration, licences, a card; every other description counts as
# tokenizer, whose files have no common names.
CONFIG_FILES = ("config.json", "generation_config.json")
CARD = "README.md"
_LICENCES = ("LICEN[SC]E*", "NOTICE*", "USE_POLICY*")
DESCRIPTIONS = ("*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja", CARD, *_LICENCES)
# A run's own, names of weights in files, what would change the weights when loaded.
_NO_DESCRIPTIONS = ("manifest.json", "*.index.json", "adapter_config.json", ".*")

# Libraries stamp these into JSON files; they say nothing about the model.
_STAMPS = {"transformers_version", "_name_or_path", "name_or_path", "tokenizer_file"}

# Measured, not determined by the inputs; left out of content hashes.
MEASURED_COLUMNS = frozenset({"tokens_per_second", "peak_memory_bytes", "step_seconds"})

_BLOCK = 1 << 20


def sha256_of_bytes(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of_parts(parts: Iterable[str]) -> str:
    """Hash of a sequence of strings; their boundaries count."""
    return sha256_of_bytes(json.dumps(list(parts), ensure_ascii=True).encode())


class TableHasher:
    """Content hash of a table that arrives in pieces.

    Every leaf of every column has three running digests (validity, lengths, values), each over
    the concatenation of all pieces: where the pieces were cut leaves no trace.
    """

    def __init__(self, schema: pa.Schema, *, without: Collection[str] = ()) -> None:
        self._schema = schema
        self._without = set(without)
        self._digests: dict[str, Any] = {}

    def update(self, table: pa.Table) -> None:
        for field in self._schema:
            if field.name in self._without:
                continue
            for chunk in table.column(field.name).chunks:
                self._add(field.name, chunk)

    def hexdigest(self) -> str:
        kinds = [f"{f.name}:{f.type}" for f in self._schema if f.name not in self._without]
        leaves = [f"{leaf}={digest.hexdigest()}" for leaf, digest in self._digests.items()]
        return hash_of_parts(kinds + sorted(leaves))

    def _add(self, leaf: str, array: pa.Array) -> None:
        self._feed(f"{leaf}/valid", np.asarray(array.is_valid()).tobytes())
        kind = array.type
        if pa.types.is_struct(kind):
            for position in range(kind.num_fields):
                self._add(f"{leaf}/{kind.field(position).name}", pc.struct_field(array, position))
        elif pa.types.is_list(kind):
            self._feed(f"{leaf}/lengths", _as_int64(pc.list_value_length(array)))
            self._add(f"{leaf}/items", array.flatten())
        elif pa.types.is_string(kind):
            filled = pc.fill_null(array, "")
            self._feed(f"{leaf}/lengths", _as_int64(pc.binary_length(filled)))
            self._feed(f"{leaf}/values", _text_bytes(filled))
        else:
            zero = pa.scalar(False if pa.types.is_boolean(kind) else 0, kind)
            values = pc.fill_null(array, zero).to_numpy(zero_copy_only=False)
            self._feed(f"{leaf}/values", values.tobytes())

    def _feed(self, leaf: str, data: bytes) -> None:
        self._digests.setdefault(leaf, hashlib.sha256()).update(data)


class PartHashes:
    """Content hashes of an output and of its parts: the shards whose names begin alike."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._hashers: dict[str, TableHasher] = {}

    def update(self, name: str, table: pa.Table) -> None:
        """Add the next shard, by its file name."""
        part = name.partition("-")[0]
        fresh = TableHasher(self._schema, without=MEASURED_COLUMNS)
        self._hashers.setdefault(part, fresh).update(table)

    def parts(self) -> dict[str, str]:
        return {part: hasher.hexdigest() for part, hasher in self._hashers.items()}

    def whole(self) -> str:
        return hash_of_parts(f"{part}={found}" for part, found in sorted(self.parts().items()))


def _as_int64(lengths: pa.Array) -> bytes:
    return pc.fill_null(lengths, 0).to_numpy(zero_copy_only=False).astype(np.int64).tobytes()


def _text_bytes(array: pa.Array) -> bytes:
    _, offsets_buffer, data = array.buffers()
    if data is None or len(array) == 0:
        return b""
    offsets = np.frombuffer(offsets_buffer, np.int32)[array.offset : array.offset + len(array) + 1]
    return data[int(offsets[0]) : int(offsets[-1])].to_pybytes()


def table_content_hash(table: pa.Table, *, without: Collection[str] = ()) -> str:
    hasher = TableHasher(table.schema, without=without)
    hasher.update(table)
    return hasher.hexdigest()


def tensors_content_hash(files: Iterable[Path]) -> str:
    """Content hash of the tensors in safetensors files, whatever file each lies in.

    Reads headers and raw bytes by the format's own layout, so no tensor library is loaded.

    Raises:
        UserError: a file is no safetensors file, or is shorter than its header says.
    """
    lines: list[str] = []
    for path in files:
        with path.open("rb") as file:
            header = _safetensors_header(path, file.read(8), file)
            start = file.tell()
            for name, entry in header.items():
                begin, end = entry["data_offsets"]
                file.seek(start + begin)
                digest = _digest_of_next(file, end - begin, path)
                lines.append(f"{name}:{entry['dtype']}:{entry['shape']}={digest}")
    return hash_of_parts(sorted(lines))


def _safetensors_header(path: Path, length: bytes, file: Any) -> dict[str, Any]:
    try:
        size = int.from_bytes(length, "little")
        if len(length) < 8 or size > path.stat().st_size:
            raise ValueError("header is cut")
        header = json.loads(file.read(size))
    except ValueError as error:
        raise UserError(f"{path}: not a safetensors file ({error})") from None
    header.pop("__metadata__", None)
    return header


def _digest_of_next(file: Any, size: int, path: Path) -> str:
    digest = hashlib.sha256()
    while size:
        block = file.read(min(size, _BLOCK))
        if not block:
            raise UserError(f"{path}: shorter than its header says; the file is cut")
        digest.update(block)
        size -= len(block)
    return digest.hexdigest()


def description_files(folder: Path) -> list[str]:
    """Names of what is no weights in a Hugging Face directory, sorted.

    All are installed with a model. All but the `CARD`, which describes the weights that came with
    it, go along from policy to policy.
    """
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.is_file() and _is_any(path.name, DESCRIPTIONS)
        if not _is_any(path.name, _NO_DESCRIPTIONS)
    )


def tokenizer_files(folder: Path) -> list[str]:
    """Names of the tokenizer's files: the descriptions that are nothing else, sorted."""
    others = (*CONFIG_FILES, CARD, *_LICENCES)
    return [name for name in description_files(folder) if not _is_any(name, others)]


def _is_any(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def model_hashes(folder: Path) -> dict[str, str]:
    """Hashes of a Hugging Face directory: `tensors`, `tokenizer`, `config` and, over all, `model`.

    Card and licences are in none of them.

    Raises:
        UserError: the folder has no safetensors or no config.
    """
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UserError(f"{folder}: no *.safetensors; save the model with save_pretrained")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no config.json; this is no Hugging Face model directory")
    hashes = {
        "tensors": tensors_content_hash(weights),
        "tokenizer": _hash_of_files(folder, tokenizer_files(folder)),
        "config": _hash_of_files(folder, CONFIG_FILES),
    }
    return hashes | {"model": hash_of_parts(hashes.values())}


def _hash_of_files(folder: Path, names: Iterable[str]) -> str:
    present = [folder / name for name in names if (folder / name).is_file()]
    return hash_of_parts(part for path in present for part in (path.name, _without_stamps(path)))


def _without_stamps(path: Path) -> str:
    """JSON in one form; the sha256 of any other file."""
    try:
        content = json.loads(path.read_bytes()) if path.suffix == ".json" else None
    except ValueError:  # of no file that a model needs: loading it has been tried before
        content = None
    if content is None:
        return sha256_of_file(path)
    if isinstance(content, dict):
        content = {k: v for k, v in content.items() if k not in _STAMPS}
    return json.dumps(content, sort_keys=True)
