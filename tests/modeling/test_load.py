"""Loading a model whole and in parts: exact, complete, nothing of other ranks, nothing executed."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_models import tiny_model

from common.errors import UserError
from common.modeling.load import (
    check_checkpoint,
    compute_dtype,
    load_causal_lm,
    load_config,
    load_part,
)

CUTS = [0, 2, 3, 5]
"""Five layers on three pipeline stages."""


@pytest.fixture(scope="module", params=["qwen2-tied", "llama-untied", "qwen3-tied", "gemma2-tied"])
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, tied = request.param.split("-")
    folder = tmp_path_factory.mktemp(family)
    tiny_model(family, tied=tied == "tied", num_hidden_layers=5).save_pretrained(folder)
    return folder


@pytest.fixture
def tied_policy(tmp_path: Path) -> Path:
    folder = tmp_path / "policy"
    tiny_model("qwen2", tied=True).save_pretrained(folder)
    return folder


def parts(policy: Path, dtype: torch.dtype = torch.float32):
    return [
        load_part(policy, range(start, stop), first=start == 0, last=stop == CUTS[-1], dtype=dtype)
        for start, stop in pairwise(CUTS)
    ]


def test_parts_hold_every_parameter_once_and_tied_embeddings_twice(policy: Path) -> None:
    whole = load_causal_lm(policy, torch.float32)
    expected = dict(whole.named_parameters())
    seen: list[str] = []
    for part in parts(policy):
        assert not part.training
        for name, parameter in part.named_parameters():
            assert torch.equal(parameter, expected[name]), name
            seen.append(name)
    twice = [whole.get_input_embeddings().weight is whole.get_output_embeddings().weight]
    assert sorted(seen) == sorted([*expected, *(["model.embed_tokens.weight"] if twice[0] else [])])


def test_buffers_that_no_file_has_are_made(policy: Path) -> None:
    """Rotary frequencies are in no checkpoint; from the meta device they would be garbage."""
    expected = dict(load_causal_lm(policy, torch.float32).named_buffers())
    seen: set[str] = set()
    for part in parts(policy, torch.bfloat16):
        found = dict(part.named_buffers())
        assert "model.rotary_emb.inv_freq" in found
        seen |= found.keys()
        for name, buffer in found.items():
            assert torch.equal(buffer.float(), expected[name].to(buffer.dtype).float()), name
            if "inv_freq" in name:
                assert buffer.dtype == torch.float32
    assert seen == expected.keys()


def test_only_own_tensors_are_read(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.modeling_utils as loader

    read: set[str] = set()
    original = loader.safe_open

    class Watched:
        def __init__(self, *args, **kwargs):
            self.file = original(*args, **kwargs)

        def keys(self):
            return self.file.keys()

        def get_slice(self, name):
            return WatchedSlice(name, self.file.get_slice(name))

        def __exit__(self, *args):
            return self.file.__exit__(*args)

    class WatchedSlice:
        def __init__(self, name, tensor):
            self.name, self.tensor = name, tensor

        def __getattr__(self, attribute):
            return getattr(self.tensor, attribute)

        def __getitem__(self, index):
            read.add(self.name)
            return self.tensor[index]

    monkeypatch.setattr(loader, "safe_open", Watched)
    part = load_part(policy, range(2, 3), first=False, last=False, dtype=torch.float32)
    assert read == {name for name, _ in part.named_parameters()}
    assert all(name.startswith("model.layers.2.") for name in read)


def test_a_tied_matrix_stored_as_the_head_is_found(tied_policy: Path) -> None:
    path = tied_policy / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, path, {"format": "pt"})
    first = load_part(tied_policy, range(1), first=True, last=False, dtype=torch.float32)
    last = load_part(tied_policy, range(1, 3), first=False, last=True, dtype=torch.float32)
    for part in (first, last):
        weight = dict(part.named_parameters())["model.embed_tokens.weight"]
        assert torch.equal(weight, tensors["lm_head.weight"])


def test_two_matrices_in_a_tied_model_are_refused(tied_policy: Path) -> None:
    path = tied_policy / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(UserError, match="two different matrices"):
        load_causal_lm(tied_policy, torch.float32)


def test_checkpoint_of_another_architecture_names_five_tensors(
    tied_policy: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    tiny_model("llama", hidden_size=16, intermediate_size=20).save_pretrained(other)
    shutil.copy(other / "model.safetensors", tied_policy / "model.safetensors")
    with pytest.raises(UserError, match="not of the architecture") as caught:
        load_causal_lm(tied_policy, torch.float32)
    assert str(caught.value).count("has shape") == 5
    with pytest.raises(UserError, match="not of the architecture"):
        load_part(tied_policy, range(2), first=True, last=False, dtype=torch.float32)


def test_missing_tensors_are_never_random(tied_policy: Path) -> None:
    """transformers would fill them with new random values and a warning."""
    path = tied_policy / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        load_causal_lm(tied_policy, torch.float32)
    load_part(tied_policy, range(1), first=True, last=False, dtype=torch.float32)


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_layers_that_the_configuration_does_not_ask_for_are_never_cut_off(tmp_path: Path) -> None:
    """transformers would load the first two of four layers and mention the others in its log."""
    tiny_model("llama", num_hidden_layers=4).save_pretrained(tmp_path)
    change_config(tmp_path, num_hidden_layers=2)
    named = (
        r"18 tensors differ: model\.layers\.2\.input_layernorm\.weight has no place in the model; "
    )
    with pytest.raises(UserError, match=named) as caught:
        load_causal_lm(tmp_path, torch.float32)
    assert str(caught.value).count("has no place") == 5
    with pytest.raises(UserError, match=named):
        check_checkpoint(tmp_path)
    with pytest.raises(UserError, match=named):
        load_part(tmp_path, range(1), first=True, last=False, dtype=torch.float32)


def test_tensors_of_a_mixture_are_known_by_their_names_in_the_file(tmp_path: Path) -> None:
    """The file has a tensor an expert, the model one of all experts."""
    small = {"num_local_experts": 2, "num_experts_per_tok": 1}
    tiny_model("mixtral", num_hidden_layers=3, **small).save_pretrained(tmp_path)
    check_checkpoint(tmp_path)
    load_part(tmp_path, range(1), first=True, last=False, dtype=torch.float32)
    change_config(tmp_path, num_hidden_layers=2)
    for check in (check_checkpoint, lambda path: load_causal_lm(path, torch.float32)):
        with pytest.raises(UserError, match=r"model\.layers\.2\..* has no place"):
            check(tmp_path)


def test_what_old_checkpoints_store_besides_is_no_fault(tied_policy: Path) -> None:
    path = tied_policy / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors |= {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(3)}
    save_file(tensors, path, {"format": "pt"})
    check_checkpoint(tied_policy)
    load_causal_lm(tied_policy, torch.float32)
    for start, stop in ((0, 1), (1, 2), (2, 3)):
        ends = {"first": start == 0, "last": stop == 3}
        load_part(tied_policy, range(start, stop), **ends, dtype=torch.float32)


def test_a_check_finds_what_loading_would(tied_policy: Path) -> None:
    change_config(tied_policy, intermediate_size=20)
    with pytest.raises(UserError, match=r"9 tensors differ: .*has shape"):
        check_checkpoint(tied_policy)
    change_config(
        tied_policy,
        intermediate_size=48,
        num_hidden_layers=4,
        layer_types=["full_attention"] * 4,
    )
    with pytest.raises(UserError, match=r"model\.layers\.3\..* is missing"):
        check_checkpoint(tied_policy)


def test_pickles_are_refused(tied_policy: Path) -> None:
    (tied_policy / "model.safetensors").rename(tied_policy / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        load_causal_lm(tied_policy, torch.float32)


def test_no_configuration_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        load_config(tmp_path)


def test_code_in_a_checkpoint_is_not_run(tied_policy: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tied_policy / "modeling.py").write_text(f"open({str(marker)!r}, 'w')\n")
    config = json.loads((tied_policy / "config.json").read_text())
    config |= {
        "model_type": "unheard_of",
        "auto_map": {"AutoConfig": "modeling.C", "AutoModelForCausalLM": "modeling.M"},
    }
    (tied_policy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config\.json"):
        load_causal_lm(tied_policy, torch.float32)
    assert not marker.exists()


def test_a_configuration_that_contradicts_itself_is_said_so(tied_policy: Path) -> None:
    change_config(tied_policy, num_hidden_layers=2)
    with pytest.raises(UserError, match=r"config\.json: .*`num_hidden_layers` \(2\) must be equal"):
        load_config(tied_policy)


def test_an_encoder_is_no_policy(tmp_path: Path) -> None:
    from transformers import T5Config

    T5Config(num_layers=1).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no causal language model"):
        load_causal_lm(tmp_path, torch.float32)


def test_compute_dtype() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert compute_dtype("auto", cpu) == torch.float32
    assert compute_dtype("auto", gpu) == torch.bfloat16
    assert compute_dtype("float32", gpu) == torch.float32
    assert compute_dtype("bfloat16", cpu) == torch.bfloat16
