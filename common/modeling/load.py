"""Models from disk: a whole causal language model, or the part that one pipeline stage needs.

Only safetensors are read, and no code of a checkpoint is run. A part is built by the model's own
class on the meta device, emptied of the modules that other ranks hold, and filled by
`from_pretrained`. This materialises only the remaining tensors, converts checkpoint names where a
family needs it (mixtures of experts), makes non-persistent buffers (rotary frequencies) and
restores ties.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import safe_open
from torch import nn

from common.errors import UserError
from common.modeling.linear import use_fast_products
from common.runs.layout import Output, Run
from common.runs.manifest import read_manifest
from common.tasks.hub import first_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def load_config(policy_dir: Path) -> PretrainedConfig:
    """Load the configuration of a Hugging Face directory.

    Raises:
        UserError: config.json is missing or unreadable, or the architecture needs remote code.
    """
    from transformers import AutoConfig

    path = Path(policy_dir) / "config.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; model.path must be a Hugging Face model directory")
    try:
        return AutoConfig.from_pretrained(
            policy_dir, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # values that it does not expect give errors of a dozen types
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: transformers cannot use it: {reason[:500] or type(error).__name__}"
        ) from error


def load_causal_lm(
    policy_dir: Path, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> PreTrainedModel:
    """Load the whole model in eval mode.

    Raises:
        UserError: there are no safetensors, or their tensors are not those of the model.
    """
    model = _from_pretrained(model_class(load_config(policy_dir)), policy_dir, dtype)
    return _to(model, device)


def check_checkpoint(policy_dir: Path) -> None:
    """Refuse a checkpoint that `load_causal_lm` would refuse.

    The model is made in the dtype of its files, so that weights are mapped into memory and not
    read, except those that a family converts (mixtures of experts).

    Raises:
        UserError: as `load_causal_lm`.
    """
    cls = model_class(load_config(policy_dir))
    try:
        _from_pretrained(cls, policy_dir, "auto")
    except (UserError, MemoryError):
        raise
    except Exception as error:  # a value in a configuration gives whatever its use leads to
        raise UserError(
            f"{policy_dir}: transformers cannot make a model of config.json and "
            f"generation_config.json: {first_line(error)}"
        ) from error


def load_part(
    policy_dir: Path,
    layers: range,
    *,
    first: bool,
    last: bool,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> PreTrainedModel:
    """Load a part of a model in eval mode: only `layers`, given by their global indices.

    All other modules become placeholders. The first part keeps the embedding, the last one the
    final norm and the head. With tied embeddings both keep the matrix, under the embedding's name.

    Raises:
        UserError: as `load_causal_lm`, or the architecture has no pipeline plan to split it by.
    """
    config = load_config(policy_dir)
    whole = model_class(config)
    if first and last:
        return load_causal_lm(policy_dir, dtype, device)
    plan = pipeline_plan(config)
    part = _from_pretrained(_part_class(whole, plan, layers, first, last), policy_dir, dtype)
    if not last:
        # Kept only while loading, because a tied matrix may be stored under the head's name.
        part.set_output_embeddings(PassThrough())
    _check_all_planned(part, plan)
    return _to(part, device)


def compute_dtype(
    name: Literal["auto", "float32", "bfloat16"], device: torch.device
) -> torch.dtype:
    """Return the dtype that the recipe's `model.dtype` means on this device."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return getattr(torch, name)


def model_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """Return the class that `AutoModelForCausalLM` would use; `UserError` if there is none."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    found: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if found is None:
        raise UserError(f"model_type {config.model_type!r} is no causal language model")
    return found[0] if isinstance(found, tuple) else found


def pipeline_plan(config: PretrainedConfig) -> list[str]:
    """Return the base model's modules in order: embedding, `layers`, then those after the layers.

    Raises:
        UserError: transformers has no plan for this architecture.
    """
    plan = list(getattr(config, "base_model_pp_plan", None) or ())
    if "layers" not in plan[1:]:
        raise UserError(
            f"transformers has no pipeline plan (base_model_pp_plan) for model_type "
            f"{config.model_type!r}; use mesh.pp_degree = 1"
        )
    return plan


def tied_embeddings(config: PretrainedConfig) -> bool:
    """Whether head and embedding are one matrix."""
    return bool(getattr(config, "tie_word_embeddings", False))


class PassThrough(nn.Module):
    """Placeholder for a module of another rank, so that global layer indices stay valid."""

    def __init__(self, replaced: nn.Module | None = None) -> None:
        super().__init__()
        # Some families choose a layer's mask by this attribute.
        self.attention_type = getattr(replaced, "attention_type", None)

    def forward(self, hidden: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        return hidden


def _part_class(
    whole: type[PreTrainedModel], plan: list[str], layers: range, first: bool, last: bool
) -> type[PreTrainedModel]:
    """Derive a class from `whole` that drops the modules of other ranks as it is constructed.

    The loader then sees only the modules that are left.
    """
    embedding, final = plan[0], plan[plan.index("layers") + 1 :]

    def construct(self: Any, config: PretrainedConfig, *args: Any, **kwargs: Any) -> None:
        tied = tied_embeddings(config)
        if tied and not (first or last):
            # This part holds neither of the two matrices, so there is nothing to tie.
            config = copy.deepcopy(config)
            config.tie_word_embeddings = False
        whole.__init__(self, config, *args, **kwargs)
        base = self.base_model
        for index, layer in enumerate(base.layers):
            if index not in layers:
                base.layers[index] = PassThrough(layer)
        if not (first or (tied and last)):
            setattr(base, embedding, PassThrough())
        if not last:
            for name in final:
                setattr(base, name, PassThrough())
        if not (last or (tied and first)):
            self.set_output_embeddings(PassThrough())

    # transformers looks up weight conversions by the class's name and module.
    return type(whole.__name__, (whole,), {"__init__": construct, "__module__": whole.__module__})


def _from_pretrained(
    cls: type[PreTrainedModel], policy_dir: Path, dtype: torch.dtype | Literal["auto"]
) -> PreTrainedModel:
    """Load strictly: every parameter comes from the checkpoint, and no tensor is left over."""
    with quiet_transformers():
        try:
            loaded: Any = cls.from_pretrained(
                policy_dir,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
        except OSError as error:
            raise UserError(f"{policy_dir}: no safetensors to read: {error}") from error
        except RuntimeError as error:
            # If shapes differ, the loader gives the details only in its log.
            if faults := _wrong_shapes(policy_dir):
                raise _other_architecture(policy_dir, faults) from error
            raise
    model, info = loaded
    faults = [f"{name} is missing" for name in sorted(info["missing_keys"])]
    if info["unexpected_keys"]:
        # For a part of a model, these are mostly the tensors of other ranks.
        stray = info["unexpected_keys"] - _on_meta(policy_dir).state_dict().keys()
        faults += [f"{name} has no place in the model" for name in sorted(stray)]
    if faults:
        raise _other_architecture(policy_dir, faults)
    _check_tie(model, policy_dir)
    return model.eval()


def _other_architecture(policy_dir: Path, faults: list[str]) -> UserError:
    return UserError(
        f"{policy_dir}: the checkpoint is not of the architecture in its config.json, "
        f"{len(faults)} tensors differ: {'; '.join(faults[:5])}"
    )


def _on_meta(policy_dir: Path) -> Any:
    """Build the whole model on the meta device, without values."""
    config = load_config(policy_dir)
    with torch.device("meta"):
        return model_class(config)(config)


def _ties(policy_dir: Path) -> bool:
    """Whether head and embedding are one matrix in the model that this configuration makes."""
    model = _on_meta(policy_dir)
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight


def _wrong_shapes(policy_dir: Path) -> list[str]:
    """Describe each tensor whose shape in the files differs from the model's."""
    expected, faults = _on_meta(policy_dir).state_dict(), []
    for path in sorted(Path(policy_dir).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in sorted(expected.keys() & set(file.keys())):
                found, wanted = file.get_slice(name).get_shape(), list(expected[name].shape)
                if found != wanted:
                    faults.append(f"{name} has shape {found}, the configuration says {wanted}")
    return faults


def _check_tie(model: PreTrainedModel, policy_dir: Path) -> None:
    """Refuse a tied configuration if the checkpoint has two different matrices.

    transformers unties such a model, and the ranks of a pipeline could not agree.
    """
    if not tied_embeddings(model.config):
        return
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if isinstance(embedding, PassThrough) or isinstance(head, PassThrough):
        return
    if embedding.weight is not head.weight and _ties(policy_dir):
        raise UserError(
            f"{policy_dir}: the configuration ties head and embedding (tie_word_embeddings), but "
            "the checkpoint has two different matrices; set tie_word_embeddings to false"
        )


def _check_all_planned(part: PreTrainedModel, plan: list[str]) -> None:
    """Refuse a parameter outside the plan, which would exist on every rank and drift apart."""
    planned = {f"{part.base_model_prefix}.{name}" for name in plan}
    head = part.get_output_embeddings()
    of_head = {id(p) for p in head.parameters()} if isinstance(head, nn.Module) else set()
    for name, parameter in part.named_parameters():
        if not any(name.startswith(f"{p}.") for p in planned) and id(parameter) not in of_head:
            raise UserError(
                f"model_type {part.config.model_type!r} has the parameter {name} outside its "
                "pipeline plan; use mesh.pp_degree = 1"
            )


def _to(model: Any, device: torch.device | str) -> PreTrainedModel:
    """Move a model to a device and make its linear layers fast.

    It is typed as `Any` because type checkers cannot follow the decorated `model.to`.
    """
    return use_fast_products(model.to(device))


def set_attention(model: PreTrainedModel, name: str) -> None:
    """Make a model compute attention by another function of transformers' `AttentionInterface`.

    A family that does not look up its attention there stays as it is.
    """
    with quiet_transformers():
        model.set_attn_implementation(name)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide transformers' progress bars and its reports of tensors that belong to other ranks."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def precision(dtype: Literal["auto", "float32", "bfloat16"], device: torch.device) -> str:
    """Return dtype and kind of device that `model.dtype` means here, such as `float32 on cpu`."""
    return f"{compute_dtype(dtype, device)} on {device.type}".removeprefix("torch.")


def require_precision(rollout: Output, here: str) -> None:
    """Refuse a rollout that was sampled in another dtype or on another kind of device than here.

    Args:
        here: `precision` of the trainer.

    Raises:
        UserError: the rollout's manifest states another precision, or none.
    """
    sampled = read_manifest(rollout).facts.get("precision")
    logprobs = Run(rollout.run).logprobs(rollout.iteration)
    if sampled != here:
        raise UserError(
            f'{rollout.path}: logprobs.old_logprobs_from = "sampler" takes its logprobs for the '
            f"trainer's, but they were sampled in {sampled or 'a type that no manifest has'} "
            f"and training is in {here}; set model.dtype and sample again ({rollout.command}), or "
            f'make logprobs with logprobs.old_logprobs_from = "policy": {logprobs.command}'
        )
