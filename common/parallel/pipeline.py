"""A model split over processes: forward for logprobs, forward and backward for training.

Schedules come from torch.distributed.pipelining. With one pipeline stage, a plain loop over
microbatches does the same, so that a laptop needs no process group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from common.errors import UserError
from common.modeling.load import load_config, load_part, model_class
from common.modeling.packing import PackBatch
from common.modeling.split import split_layers
from common.parallel.architecture import check_architecture
from common.parallel.mesh import Mesh
from common.parallel.stage_module import StageModule, recompute_layers, stage_arguments

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

ScheduleName = Literal["1f1b", "gpipe"]
Microbatches = int | Literal["auto"]
Loss = Callable[[Tensor, Tensor], Tensor]


class Pipeline:
    """This rank's pipeline stage of a model, with methods that run all stages together.

    Every rank of a replica makes the same calls with the same packs. Each replica (dp) has packs of
    its own, and nothing here communicates between replicas.
    """

    def __init__(
        self,
        policy_dir: Path,
        mesh: Mesh,
        *,
        dtype: torch.dtype,
        temperature: float,
        schedule: ScheduleName = "1f1b",
        train: bool = False,
        activation_checkpointing: bool = False,
    ) -> None:
        """Load this rank's layers, in eval mode: dropout is off in training too.

        Args:
            temperature: temperature of the distribution whose logprobs are computed.
            train: keep what backward needs; otherwise parameters require no gradient.
            activation_checkpointing: keep less for backward, see `recompute_layers`.

        Raises:
            UserError: the model cannot be split, packed or loaded.
        """
        config = load_config(policy_dir)
        check_architecture(config, split=mesh.pp_degree > 1)
        self.mesh = mesh
        self.schedule: ScheduleName = schedule
        self.layers = split_model(config, mesh.pp_degree)
        self._policy_dir = policy_dir
        self.part = self._load(dtype)
        self.part.requires_grad_(train)
        if activation_checkpointing:
            recompute_layers(self.part)
        self.module = StageModule(
            self.part, first=mesh.is_first, last=mesh.is_last, temperature=temperature
        )
        self._hidden_size = config.get_text_config().hidden_size
        self._vocabulary = config.get_text_config().vocab_size

    def wide_parameters(self, folder: Path | None = None) -> dict[str, Tensor]:
        """Return this stage's parameters in float32, with all the precision that the files have.

        Args:
            folder: another model of the same architecture; by default the policy.
        """
        part = self._load(torch.float32, folder)
        return {name: parameter.detach() for name, parameter in part.named_parameters()}

    def packing(self, microbatches: Microbatches) -> dict[str, int]:
        """Return arguments of `pack` that make the number of packs fit `microbatches`.

        Raises:
            UserError: there are fewer microbatches than the schedule needs.
        """
        if microbatches == "auto":
            return {"min_packs": self.mesh.pp_degree}
        if self.schedule == "1f1b" and microbatches < self.mesh.pp_degree:
            raise UserError(
                f"train.microbatches = {microbatches}, but the 1f1b schedule needs at least one "
                f"for each of the {self.mesh.pp_degree} pipeline stages; use "
                f'{self.mesh.pp_degree} or more, "auto", or mesh.pipeline_schedule = "gpipe"'
            )
        return {"min_packs": microbatches, "multiple_of": microbatches}

    def run_forward(self, packs: PackBatch, microbatches: Microbatches = "auto") -> Tensor | None:
        """Return logprob and entropy [P, T, 2], float32 or wider, on the last pipeline rank.

        Other ranks get None. Values on padding are meaningless.
        """
        self._check_ids(packs)
        packs = packs.to(self.mesh.device)
        count = _count(packs, microbatches)
        with torch.no_grad():
            if self.mesh.pp_degree == 1:
                return torch.cat([self._run(part) for part in packs.microbatches(count)])
            # Without backward every schedule only fills and drains, as GPipe does.
            schedule = self._schedule("gpipe", packs, count, None)
            with _plain_errors():
                return schedule.eval(*self._inputs(packs), **stage_arguments(packs))

    def run_step(self, packs: PackBatch, microbatches: Microbatches, loss: Loss) -> None:
        """Run forward and backward of all packs, and add to the gradients of the parameters.

        Args:
            packs: their number must be a multiple of `microbatches`, see `packing`.
            loss: called on the last pipeline rank for each microbatch with its output [B, T, 2] and
                the indices [B] of its packs; returns the microbatch's share of the loss, a scalar.
                The shares are summed, never averaged.
        """
        self._check_ids(packs)
        packs = packs.to(self.mesh.device)
        count = _count(packs, microbatches)
        indices = torch.arange(packs.num_packs, device=self.mesh.device)
        if self.mesh.pp_degree == 1:
            for part, chosen in zip(packs.microbatches(count), indices.chunk(count), strict=True):
                loss(self._run(part), chosen).backward()
            return
        schedule = self._schedule(self.schedule, packs, count, loss)
        target = {"target": indices} if self.mesh.is_last else {}
        with _plain_errors():
            schedule.step(
                *self._inputs(packs), **target, **stage_arguments(packs), return_outputs=False
            )

    def _load(self, dtype: torch.dtype, folder: Path | None = None) -> PreTrainedModel:
        mesh = self.mesh
        return load_part(
            folder or self._policy_dir,
            self.layers[mesh.pp_rank],
            first=mesh.is_first,
            last=mesh.is_last,
            dtype=dtype,
            device=mesh.device,
        )

    def _check_ids(self, packs: PackBatch) -> None:
        """Refuse token ids beyond the vocabulary, which would fail as a bare index error."""
        largest = max(int(packs.input_ids.max()), int(packs.target_ids.max()))
        if largest >= self._vocabulary:
            raise UserError(
                f"token id {largest} is beyond the model's {self._vocabulary} tokens: the rollout "
                "was edited, or sampled with another tokenizer; sample it again"
            )

    def _run(self, packs: PackBatch) -> Tensor:
        return self.module(packs.input_ids, **stage_arguments(packs))

    def _inputs(self, packs: PackBatch) -> tuple[Tensor, ...]:
        return (packs.input_ids,) if self.mesh.is_first else ()

    def _schedule(self, name: ScheduleName, packs: PackBatch, count: int, loss: Loss | None) -> Any:
        """Make a schedule with a stage object for these shapes.

        Both are made anew for every call: kept stage objects would hold receive buffers, one per
        microbatch, for every shape that has occurred. All shapes are given, since the schedule
        would otherwise infer them by another forward, backward and loss on uninitialised data.
        """
        from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

        mesh, size = self.mesh, packs.num_packs // count
        hidden = torch.empty(
            (size, packs.input_ids.shape[1], self._hidden_size),
            dtype=self.part.dtype,
            device="meta",
            requires_grad=loss is not None,
        )
        logprobs = torch.empty(
            (size, packs.target_ids.shape[1], 2),
            dtype=torch.promote_types(self.part.dtype, torch.float32),
            device="meta",
            requires_grad=loss is not None,
        )
        stage = PipelineStage(
            self.module,
            mesh.pp_rank,
            mesh.pp_degree,
            mesh.device,
            input_args=packs.input_ids[:size].to("meta") if mesh.is_first else hidden,
            output_args=logprobs if mesh.is_last else hidden,
            group=mesh.group("pp"),
        )
        kind = {"1f1b": Schedule1F1B, "gpipe": ScheduleGPipe}[name]
        return kind(stage, count, loss_fn=loss, scale_grads=False)


def split_model(config: PretrainedConfig, pp_degree: int) -> list[range]:
    """Choose the layers of each pipeline stage, with embedding and head weighed against a layer.

    Costs are multiply-adds per token of the packed batch. The head is computed again in backward
    (`token_logprobs`), so it takes 4 products where a layer takes 3. The embedding multiplies
    nothing, but its dense gradient moves through memory once per microbatch; at a thousand tokens
    that costs as much as a tenth of its parameters would in a layer.
    """
    layers = config.get_text_config().num_hidden_layers
    if pp_degree == 1:
        return [range(layers)]
    with torch.device("meta"):
        model = model_class(config)(config)
    body = getattr(model.base_model, "layers", None)
    if body is None:
        return split_layers(layers, pp_degree)
    in_layer = sum(p.numel() for p in body.parameters()) / layers
    matrix = model.get_output_embeddings().weight.numel()
    return split_layers(
        layers,
        pp_degree,
        embed_cost=0.1 * matrix / in_layer,
        head_cost=4 / 3 * matrix / in_layer,
    )


def _count(packs: PackBatch, microbatches: Microbatches) -> int:
    count = packs.num_packs if microbatches == "auto" else microbatches
    assert packs.num_packs % count == 0, (packs.num_packs, count)
    return count


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise a failed stage's own error, since the schedule's only reports tensor shapes."""
    try:
        yield
    except RuntimeError as error:
        if error.__cause__ is not None:
            raise error.__cause__ from None
        raise
