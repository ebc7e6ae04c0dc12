"""Policies and trainer states: read by transformers, by any mesh, never by guess."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.two_ranks import open_training, outcome, save, take_step
from transformers import AutoModelForCausalLM

from common.errors import UserError
from common.parallel.mesh import Mesh
from common.runs.hashing import model_hashes, tensors_content_hash
from common.training.checkpoint import load_trainer, read_state


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder; the same name in two files is an error."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        part = load_file(path)
        assert not found.keys() & part.keys()
        found |= part
    return found


def content(folder: Path) -> str:
    return tensors_content_hash(sorted(folder.glob("*.safetensors")))


@pytest.mark.parametrize("ranks", [1, 2])
def test_transformers_loads_a_policy_and_ties_it(ranks: int) -> None:
    folder = outcome() / f"policy-{ranks}"
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    stored = tensors(folder)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, stored[name])
    assert len(stored) == len(list(model.named_parameters()))


def test_each_rank_writes_its_own_shard() -> None:
    folder = outcome() / "policy-2"
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert sorted(p.name for p in folder.glob("*.safetensors")) == shards
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for name in shards:
        held = {key for key, shard in index["weight_map"].items() if shard == name}
        assert held == load_file(folder / name).keys()
    total = sum(t.nbytes for t in tensors(folder).values())
    assert index["metadata"]["total_size"] == total


def test_what_describes_the_model_goes_along() -> None:
    source, made = outcome() / "source", outcome() / "policy-2"
    old, new = (json.loads((f / "config.json").read_text()) for f in (source, made))
    assert new == old
    assert (made / "generation_config.json").read_bytes() == (
        source / "generation_config.json"
    ).read_bytes()


def test_tokenizer_and_licence_go_along_and_the_card_of_other_weights_does_not(
    tmp_path: Path,
) -> None:
    source = tmp_path / "source"
    shutil.copytree(outcome() / "source", source)
    kept = {"vocab.txt", "merges.txt", "tekken.json", "a.tiktoken", "a.model", "LICENSE.txt"}
    for name in (*kept, "README.md", "model.safetensors.index.json", "manifest.json", "a.py"):
        (source / name).write_text("[1]")
    _, optimizer = open_training(outcome() / "source", Mesh())
    save(tmp_path, "next", optimizer, source)
    made = tmp_path / "policy-next"
    weights_and_config = {"model.safetensors", "config.json", "generation_config.json"}
    assert {path.name for path in made.iterdir()} == kept | weights_and_config
    assert model_hashes(made)["tokenizer"] == model_hashes(source)["tokenizer"]


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_files_have_the_permissions_of_the_umask(tmp_path: Path, mask: int) -> None:
    pipeline, optimizer = open_training(outcome() / "source", Mesh())
    take_step(pipeline, optimizer, 0)
    before = os.umask(mask)
    try:
        save(tmp_path, "new", optimizer, outcome() / "source")
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"model.safetensors", "trainer.safetensors"} <= {path.name for path in files}
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~mask}


@pytest.mark.parametrize("kind", ["policy", "trainer"])
def test_two_ranks_make_what_one_makes(kind: str) -> None:
    one, two = tensors(outcome() / f"{kind}-1"), tensors(outcome() / f"{kind}-2")
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-4, rtol=1e-3, msg=name)


def test_continuing_is_the_same_as_not_stopping_bit_for_bit() -> None:
    """Two steps, saved, loaded, one more: the content of three steps in one go."""
    for kind in ("policy", "trainer"):
        assert content(outcome() / f"{kind}-continued-1") == content(outcome() / f"{kind}-1")
    assert read_state(outcome() / "trainer-continued-1")["steps"] == 3


def test_another_mesh_continues_within_rounding() -> None:
    """One rank's two steps continued by two ranks; without the moments Adam would be far off."""
    one = tensors(outcome() / "policy-1")
    two = tensors(outcome() / "policy-continued-2")
    start = tensors(outcome() / "policy-two-steps")
    for name, value in one.items():
        moved = (value - start[name]).abs().max()
        assert (two[name] - value).abs().max() < 0.02 * moved, name


@pytest.fixture
def narrow(tmp_path: Path) -> Path:
    """A bfloat16 policy with its trainer state, after two steps."""
    source = outcome() / "source"
    pipeline, optimizer = open_training(source, Mesh(), torch.bfloat16)
    for seed in range(2):
        take_step(pipeline, optimizer, seed)
    save(tmp_path, "narrow", optimizer, source)
    return tmp_path


def test_bfloat16_policies_say_so_and_their_masters_are_kept(narrow: Path) -> None:
    config = json.loads((narrow / "policy-narrow/config.json").read_text())
    assert config["dtype"] == "bfloat16"
    policy, state = tensors(narrow / "policy-narrow"), tensors(narrow / "trainer-narrow")
    for name, value in policy.items():
        assert value.dtype == torch.bfloat16
        master = state[f"master/{name}"]
        assert master.dtype == torch.float32
        assert torch.equal(master.to(torch.bfloat16), value)
    assert any(not torch.equal(state[f"master/{n}"], v.float()) for n, v in policy.items())


def test_masters_are_taken_only_if_they_are_the_policy(narrow: Path) -> None:
    def opened():
        return open_training(narrow / "policy-narrow", Mesh(), torch.bfloat16)[1]

    state = tensors(narrow / "trainer-narrow")
    optimizer = opened()
    assert load_trainer(narrow / "trainer-narrow", optimizer, as_policy=True)
    for name, master in optimizer.weights.masters.items():
        assert torch.equal(master, state[f"master/{name}"])
    assert optimizer.steps == 2

    path = narrow / "policy-narrow/model.safetensors"
    edited = load_file(path)
    edited["model.norm.weight"] = edited["model.norm.weight"] * 1.5
    save_file(edited, path, {"format": "pt"})
    optimizer = opened()
    assert not load_trainer(narrow / "trainer-narrow", optimizer, as_policy=True)
    assert optimizer.steps == 0
    for name, master in optimizer.weights.masters.items():
        assert torch.equal(master, edited[name].float())


def test_a_float32_state_does_not_store_the_policy_again() -> None:
    state = tensors(outcome() / "trainer-1")
    assert {name.partition("/")[0] for name in state} == {"exp_avg", "exp_avg_sq"}


def test_a_state_of_another_model_names_what_it_lacks(tmp_path: Path) -> None:
    _, optimizer = open_training(outcome() / "untied", Mesh())
    with pytest.raises(UserError, match=r"exp_avg.*lm_head.*another model"):
        load_trainer(outcome() / "trainer-1", optimizer, as_policy=True)


def test_a_full_disk_is_said_before_writing(tmp_path: Path, monkeypatch) -> None:
    _, optimizer = open_training(outcome() / "source", Mesh())
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"\d+ bytes to write, 1000 free"):
        save(tmp_path, "full", optimizer, outcome() / "source")
    assert not list(tmp_path.rglob("*.safetensors"))
