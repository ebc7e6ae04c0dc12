"""Content hashes say what is in a table or a model, not how it was cut."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from common.errors import UserError
from common.runs.hashing import (
    TableHasher,
    model_hashes,
    table_content_hash,
    tensors_content_hash,
)

SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("ids", pa.list_(pa.int32())),
        ("score", pa.float64()),
        ("kept", pa.bool_()),
        ("chat", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
    ]
)

ROWS = st.fixed_dictionaries(
    {
        "name": st.none() | st.text(max_size=5),
        "ids": st.none() | st.lists(st.integers(0, 99), max_size=4),
        "score": st.none() | st.floats(allow_nan=False),
        "kept": st.none() | st.booleans(),
        "chat": st.lists(
            st.fixed_dictionaries({"role": st.text(max_size=3), "content": st.text(max_size=3)}),
            max_size=2,
        ),
    }
)


@given(st.lists(ROWS, min_size=1, max_size=8), st.data())
def test_table_hash_does_not_depend_on_the_cut(rows: list[dict[str, object]], data: object) -> None:
    whole = pa.Table.from_pylist(rows, SCHEMA)
    cut = data.draw(st.integers(0, len(rows)))  # type: ignore[attr-defined]
    pieces = TableHasher(SCHEMA)
    pieces.update(whole.slice(0, cut))
    pieces.update(pa.Table.from_pylist(rows[cut:], SCHEMA))
    assert pieces.hexdigest() == table_content_hash(whole)


@given(st.lists(ROWS, min_size=1, max_size=4), st.lists(ROWS, min_size=1, max_size=4))
def test_table_hash_tells_different_tables_apart(
    left: list[dict[str, object]], right: list[dict[str, object]]
) -> None:
    tables = [pa.Table.from_pylist(rows, SCHEMA) for rows in (left, right)]
    same_bits = [_bits(table) for table in tables]
    hashes = [table_content_hash(table) for table in tables]
    assert (hashes[0] == hashes[1]) == (same_bits[0] == same_bits[1])


def _bits(table: pa.Table) -> str:
    """Content as text; repr keeps -0.0 apart from 0.0."""
    return repr(table.to_pylist())


def test_boundaries_between_texts_count() -> None:
    schema = pa.schema([("t", pa.string())])
    first = pa.Table.from_pylist([{"t": "ab"}, {"t": "c"}], schema)
    second = pa.Table.from_pylist([{"t": "a"}, {"t": "bc"}], schema)
    assert table_content_hash(first) != table_content_hash(second)


def test_tensor_hash_is_independent_of_files_and_sees_every_part(tmp_path: Path) -> None:
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(4, dtype=np.int64)
    save_file({"a": a, "b": b}, tmp_path / "one.safetensors")
    save_file({"b": b}, tmp_path / "two-1.safetensors")
    save_file({"a": a}, tmp_path / "two-2.safetensors")
    whole = tensors_content_hash([tmp_path / "one.safetensors"])
    assert whole == tensors_content_hash(sorted(tmp_path.glob("two-*")))
    for changed in ({"a": a + 1}, {"a": a.reshape(3, 2)}, {"c": a}, {"a": a.view(np.int32)}):
        save_file({"b": b, **changed}, tmp_path / "other.safetensors")
        assert tensors_content_hash([tmp_path / "other.safetensors"]) != whole


@pytest.mark.parametrize("keep", [0, 4, 20, -3])
def test_a_cut_tensor_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": np.zeros(100, dtype=np.float32)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"x\.safetensors"):
        tensors_content_hash([path])


def test_model_hash_ignores_stamps_and_sees_the_chat_template(
    tmp_path: Path, tiny_policy: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tiny_policy, folder)
    before = model_hashes(folder)
    assert before == model_hashes(tiny_policy)
    config = json.loads((folder / "config.json").read_text())
    config["transformers_version"] = "0.0"
    (folder / "config.json").write_text(json.dumps(config, indent=7))
    assert model_hashes(folder) == before
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    after = model_hashes(folder)
    assert after["tokenizer"] != before["tokenizer"]
    assert after["tensors"] == before["tensors"]
    assert after["model"] != before["model"]


def test_every_file_of_a_tokenizer_is_hashed_and_card_and_licence_are_not(
    tmp_path: Path, tiny_policy: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tiny_policy, folder)
    before = model_hashes(folder)
    for name in (
        *("README.md", "LICENSE", "LICENSE.txt", "NOTICE.txt", "USE_POLICY.md"),
        ".a.json",
    ):
        (folder / name).write_text("text")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    (folder / "manifest.json").write_text("{}")
    assert model_hashes(folder) == before
    hashes = {before["tokenizer"]}
    others = ("vocab.txt", "tekken.json", "qwen.tiktoken", "spiece.model", "no.json")
    for name in others:
        (folder / name).write_text("[")
        after = model_hashes(folder)
        hashes.add(after["tokenizer"])
        assert (after["tensors"], after["config"]) == (before["tensors"], before["config"])
    assert len(hashes) == 1 + len(others)
