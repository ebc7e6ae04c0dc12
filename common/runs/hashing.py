"""Two hashes: `sha256` of a file's bytes (integrity) and `content_hash` of its data (freshness).

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

# A policy's folder has weights, configuration, licences and a card. Every other description counts
# as part of the tokenizer, whose files have no common names.
CONFIG_FILES = ("config.json", "generation_config.json")
CARD = "README.md"
_LICENCES = ("LICEN[SC]E*", "NOTICE*", "USE_POLICY*")
DESCRIPTIONS = ("*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja", CARD, *_LICENCES)
# A run's own manifest, indices of weight files, an adapter's configuration (which would change the
# weights when loaded), and hidden files.
_NO_DESCRIPTIONS = ("manifest.json", "*.index.json", "adapter_config.json", ".*")

# Libraries stamp these into JSON files; they say nothing about the model.
_STAMPS = {"transformers_version", "_name_or_path", "name_or_path", "tokenizer_file"}

# These columns are measured, not determined by the inputs, so content hashes leave them out.
MEASURED_COLUMNS = frozenset({"tokens_per_second", "peak_memory_bytes", "step_seconds"})

_BLOCK = 1 << 20


def sha256_of_bytes(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of_parts(parts: Iterable[str]) -> str:
    """Return the hash of a sequence of strings, in which their boundaries count."""
    return sha256_of_bytes(json.dumps(list(parts), ensure_ascii=True).encode())


class TableHasher:
    """Content hash of a table that arrives in pieces.

    Every leaf of every column has up to three running digests (validity, lengths, values), each
    over the concatenation of all pieces, so the hash does not depend on how the table was cut.
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
    """Content hashes of an output and its parts, which are shards with the same name up to `-`."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._hashers: dict[str, TableHasher] = {}

    def update(self, name: str, table: pa.Table) -> None:
        """Add the next shard; its file name says to which part it belongs."""
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
    """Return the content hash of the tensors in safetensors files, in whichever file each lies.

    Headers and raw bytes are read as the format lays them out, so no tensor library is loaded.

    Raises:
        UserError: a file is not a safetensors file, or is shorter than its header says.
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
    """Return the sorted names of the files beside the weights in a Hugging Face directory.

    All are installed with a model. All are copied from policy to policy but the `CARD`, since it
    describes the weights that it came with.
    """
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.is_file() and _is_any(path.name, DESCRIPTIONS)
        if not _is_any(path.name, _NO_DESCRIPTIONS)
    )


def tokenizer_files(folder: Path) -> list[str]:
    """Return the sorted names of the tokenizer's files: descriptions that are nothing else."""
    others = (*CONFIG_FILES, CARD, *_LICENCES)
    return [name for name in description_files(folder) if not _is_any(name, others)]


def _is_any(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def model_hashes(folder: Path) -> dict[str, str]:
    """Return hashes of a Hugging Face directory: `tensors`, `tokenizer`, `config`, and `model`.

    The last is over the other three. Card and licences are in none of them.

    Raises:
        UserError: the folder has no safetensors file or no config.json, or a damaged one.
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
    """Return a JSON file in canonical form without stamps; of any other file, the sha256."""
    try:
        content = json.loads(path.read_bytes()) if path.suffix == ".json" else None
    except ValueError:  # a file that no model needs: loading the model has been tried before
        content = None
    if content is None:
        return sha256_of_file(path)
    if isinstance(content, dict):
        content = {k: v for k, v in content.items() if k not in _STAMPS}
    return json.dumps(content, sort_keys=True)
