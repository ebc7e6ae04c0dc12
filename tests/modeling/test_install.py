"""Models as policy 0: which are taken, with which files, and which are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.prepared_sums import refusal, write_data, write_recipe, written

from common.errors import UserError
from common.modeling.install import check_model, find_model, install
from common.runs.hashing import model_hashes


@pytest.fixture
def recipe(tmp_path: Path, tiny_policy: Path) -> Path:
    return write_recipe(tmp_path, tiny_policy, write_data(tmp_path))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", None, "no config.json"),
        ("model.safetensors", None, "no model.safetensors"),
        ("model.safetensors", b"", "not a safetensors file"),
        ("model.safetensors", b"\xff" * 100, "not a safetensors file"),
        ("model.safetensors", 0.5, "the file is cut"),
        ("tokenizer.json", None, "no tokenizer"),
        ("tokenizer.json", b"{", "tokenizer.json: not JSON: Expecting property name"),
        ("tokenizer.json", b"{}", "no tokenizer that transformers can use"),
        (
            "tokenizer_config.json",
            b"[]",
            "tokenizer_config.json: holds [] and no JSON object; copy",
        ),
        ("tokenizer_config.json", b'{"eos_token": 5}', "no tokenizer that transformers can use"),
        ("tokenizer_config.json", b'{"model_max_length": "x"}', "no tokenizer that transformers"),
        ("generation_config.json", b"", "generation_config.json: not JSON: Expecting value"),
        ("generation_config.json", b'{"eos_token_id": "x"}', 'eos_token_id = "x" is no token id'),
        ("generation_config.json", b'{"eos_token_id": [1, true]}', "is no token id; write the num"),
        ("generation_config.json", b'{"pad_token_id": {}}', "transformers cannot make a model of"),
        ("config.json", b"null", "config.json: holds null and no JSON object"),
        ("config.json", b'{"model_type": "no-such-model"}', "transformers cannot use it"),
        ("config.json", b'{"model_type": []}', "transformers cannot use it"),
    ],
)
def test_models_that_cannot_be_used(
    name: str,
    change: bytes | float | None,
    message: str,
    runs: Path,
    recipe: Path,
    tiny_policy: Path,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_policy, folder)
    if change is None:
        (folder / name).unlink()
    elif isinstance(change, bytes):
        (folder / name).write_bytes(change)
    else:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * change)])
    text = refusal(recipe, f"model.path={folder}")
    assert message in text
    assert str(folder) in text
    assert written(runs) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_attention_heads", 0),
        ("num_key_value_heads", -1),
        ("hidden_act", "no_such_function"),
        ("dtype", "no_such_type"),
        ("quantization_config", 5),
        ("pad_token_id", 10**9),
    ],
)
def test_values_that_no_model_can_have(
    key: str, value: object, runs: Path, recipe: Path, tiny_policy: Path, tmp_path: Path
) -> None:
    """Each of them ended in a traceback of transformers or torch."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_policy, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    text = refusal(recipe, f"model.path={folder}")
    assert "transformers cannot " in text
    assert str(folder) in text
    assert written(runs) == []


def test_pickles_are_not_taken(tiny_policy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_policy, folder)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "modeling_own.py").write_text("raise SystemExit")
    (folder / "manifest.json").write_text("{}")
    names = {path.name for path in check_model(folder).files}
    assert names == {path.name for path in tiny_policy.iterdir()}
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"pytorch_model.bin would run code when read\. Save the"):
        check_model(folder)


def test_what_describes_a_model_is_installed(tiny_policy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_policy, folder)
    others = {"vocab.txt", "tekken.json", "a.tiktoken", "b.model", "LICENSE.txt", "README.md"}
    for name in (*others, "run.py", ".hidden.json", "adapter_config.json", "a.bin.index.json"):
        (folder / name).write_text("x")
    install(check_model(folder), tmp_path / "installed")
    installed = {path.name for path in (tmp_path / "installed").iterdir()}
    assert installed == {path.name for path in tiny_policy.iterdir()} | others


def test_layers_beyond_the_configuration_are_refused(
    runs: Path, recipe: Path, make_policy: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(make_policy("llama", layers=4), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    text = refusal(recipe, f"model.path={folder}")
    assert f"{folder}: the checkpoint is not of the architecture in its config.json, 18" in text
    assert "model.layers.2.input_layernorm.weight has no place in the model" in text
    assert written(runs) == []


def test_models_in_several_files(tiny_policy: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "model"
    whole = AutoModelForCausalLM.from_pretrained(tiny_policy)
    whole.save_pretrained(folder, max_shard_size="20KB")
    shutil.copy(tiny_policy / "tokenizer.json", folder)
    weights = sorted(folder.glob("*.safetensors"))
    assert len(weights) > 1
    (folder / "consolidated.safetensors").write_bytes(b"the same again, for other programs")
    model = check_model(folder)
    assert [p for p in model.files if p.suffix == ".safetensors"] == weights
    assert model.parameters == check_model(tiny_policy).parameters
    install(model, tmp_path / "installed")
    assert model_hashes(tmp_path / "installed")["tensors"] == model_hashes(tiny_policy)["tensors"]
    weights[0].unlink()
    with pytest.raises(UserError, match="names files that are not there"):
        check_model(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "../secret.safetensors"}}')
    with pytest.raises(UserError, match="not an index of safetensors files"):
        check_model(folder)


def test_paths_that_are_no_model(tiny_policy: Path) -> None:
    with pytest.raises(UserError, match="is a file; name the folder"):
        find_model(str(tiny_policy / "config.json"))
    near = tiny_policy.with_name(tiny_policy.name + "x")
    with pytest.raises(UserError, match=f"no such folder; did you mean '{tiny_policy}'"):
        find_model(str(near))
