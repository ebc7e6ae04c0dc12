"""The native sampler: many completions at once from a Hugging Face decoder's own forward.

A prompt is computed once for its group, and its keys and values are stored once for all of its
samples (`attention.py`). A row of the batch has the keys and values of its own tokens. When its
sample ends, the next waiting sample takes the row. When none waits, the last row moves into the
gap, so that a step computes only rows in use.

Batch shape, admission and cache length follow from the requests of one `generate` call alone. A
shard is one call, so it is the same whichever process makes it and whatever was made before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from common.compat import attention_implementation
from common.console import warn
from common.engines.engine import Request, Sample, SamplingParams, check_lengths
from common.engines.native.attention import (
    NAME,
    NotSharedError,
    attending,
    check_cacheable,
    scores_dtype,
    step_masks,
)
from common.engines.native.cache import PromptCache, RowCache
from common.engines.native.rows import DecodeStep, Prefill, Rows
from common.engines.native.sampling import SampleBuffers
from common.modeling.load import set_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Most prompts of a prefill. It bounds the size of the logits, which are taken at [prompts, distinct
# prompt ends].
PREFILL_PROMPTS = 16


class Sampler:
    """The engine that samples from a decoder that is in eval mode and entirely on one device."""

    def __init__(
        self,
        model: PreTrainedModel,
        stop_ids: Sequence[int],
        *,
        max_concurrent: int = 64,
        prefill_tokens: int = 4096,
        look_every: int | None = None,
    ) -> None:
        """Check that the decoder can be sampled from, and set the sampler up.

        Args:
            model: any Hugging Face decoder with full or sliding attention, `sdpa` or `eager`.
            stop_ids: every token that ends a completion.
            max_concurrent: number of rows, so of completions decoded at once.
            prefill_tokens: most tokens of a prefill of several prompts, padding included.
            look_every: check every so many steps which samples have ended. A check makes the host
                wait for the device, so None means 1 on the CPU and 8 elsewhere.

        Raises:
            UserError: the decoder's state is more than keys and values by position, or its
                attention implementation takes no mask per row.
        """
        self.config = model.config.get_text_config()
        self._own_attention = attention_implementation(model)
        check_cacheable(self.config, self._own_attention)
        self._model = model
        self._stop_ids = list(stop_ids)
        self._max_concurrent = max_concurrent
        self._prefill_tokens = prefill_tokens
        self._shared = True
        self._look_every = look_every or (1 if model.device.type == "cpu" else 8)

    @torch.inference_mode()
    def generate(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        on_ended: Callable[[int], object] = lambda samples: None,
    ) -> list[list[Sample]]:
        """Return one `Sample` per seed of each request, in their order; see `Engine.generate`."""
        check_lengths(requests, params.max_completion_tokens, self.config)
        buffers = SampleBuffers(
            [seed for request in requests for seed in request.seeds],
            self._stop_ids,
            params,
            vocabulary=self._model.get_output_embeddings().weight.shape[0],
            device=self._model.device,
        )
        size = min(self._max_concurrent, buffers.count)
        rows = Rows(size, buffers.nobody, self._model.device)
        with self._attending(NAME, then=self._own_attention):
            self._decode(buffers, rows, self._prefills(requests, buffers, on_ended), on_ended)
        samples = iter(buffers.samples(self._model.name_or_path or "the policy"))
        return [[next(samples) for _ in request.seeds] for request in requests]

    def _decode(
        self,
        buffers: SampleBuffers,
        rows: Rows,
        prefills: Iterator[Prefill],
        on_ended: Callable[[int], object],
    ) -> None:
        """Decode until every sample has ended."""
        prefill = next(prefills, None)
        while True:
            # 1. Waiting samples enter free rows; prompts are computed when their turn comes.
            while prefill is not None and rows.free:
                rows.admit(prefill)
                if not prefill.waiting:
                    prefill = next(prefills, None)
            if not rows.active:
                return
            # 2. If none waits any more, the last rows move into the gaps and the batch shrinks.
            rows.compact()
            for _ in range(self._look_every):
                # 3. Forward: each row's newest token against its own keys and values.
                logits = self._step(rows)  # [n, V]
                # 4. Sample its next token and note it.
                tokens, ended = buffers.sample(logits, *rows.in_step())
                rows.end_step(tokens, ended)
            # 5. Rows whose samples have ended become free.
            on_ended(rows.release_ended())

    def _step(self, rows: Rows) -> Tensor:
        """Return the logits [n, V] after the newest token of each row."""
        try:
            return self._forward(rows.cache, rows.begin_step())
        except NotSharedError as reason:
            warn(
                f"{self.config.model_type}: its attention cannot read a prompt once for its whole "
                f"group ({reason}), so each sample reads a copy of its own, which is slower"
            )
            # Nothing has been sampled in this step yet, and the second forward stores keys and
            # values in the same places.
            self._shared = False
            set_attention(self._model, self._own_attention)
            return self._forward(rows.cache, rows.begin_step())

    def _attending(self, name: str, then: str) -> AbstractContextManager[None]:
        """Return `attending`, or a context that changes nothing if prompts cannot be shared."""
        return attending(self._model, name, then) if self._shared else nullcontext()

    def _forward(self, cache: RowCache, step: DecodeStep) -> Tensor:
        cache.shared = self._shared
        if self._shared:
            form = scores_dtype(self._model.dtype)
        else:
            form = torch.bool if self._own_attention == "sdpa" else self._model.dtype
        slots = cache.prompts.length, cache.own.length
        masks = step_masks(self.config, step.prompt_lengths, step.counts, slots, form)
        output = self._model(
            input_ids=step.tokens[:, None],
            position_ids=(step.prompt_lengths + step.counts - 1)[:, None],
            attention_mask=masks,
            past_key_values=cache,
            use_cache=True,
            **({"decoding": cache} if self._shared else {}),
        )
        cache.check_attended()
        return output.logits[:, -1]

    def _prefills(
        self, requests: Sequence[Request], buffers: SampleBuffers, on_ended: Callable[[int], object]
    ) -> Iterator[Prefill]:
        """Yield prefills in the order of the requests; each is computed when it is needed."""
        first = (0, 0)
        for batch in self._prefill_batches([request for request in requests if request.seeds]):
            counts = [len(request.seeds) for request in batch]
            prefill = self._prefill(batch, counts, first, buffers)
            first = first[0] + len(counts), first[1] + sum(counts)
            on_ended(sum(counts) - prefill.waiting)
            if prefill.waiting:
                yield prefill

    def _prefill_batches(self, requests: Sequence[Request]) -> Iterator[list[Request]]:
        batch: list[Request] = []
        longest = 0
        for request in requests:
            longest = max(longest, len(request.prompt_ids))
            full = (len(batch) + 1) * longest > self._prefill_tokens
            if batch and (full or len(batch) == PREFILL_PROMPTS):
                yield batch
                batch, longest = [], len(request.prompt_ids)
            batch.append(request)
        if batch:
            yield batch

    def _prefill(
        self,
        batch: list[Request],
        counts: list[int],
        first: tuple[int, int],
        buffers: SampleBuffers,
    ) -> Prefill:
        """Compute right-padded prompts, and sample the first token of each of their samples.

        Padding comes after everything that is used, so the model's own causal mask is enough.

        Args:
            counts: number of samples of each prompt.
            first: index of the first of these prompts, and of the first of these samples.
        """
        device = self._model.device
        lengths = torch.tensor([len(request.prompt_ids) for request in batch])  # [B]
        input_ids = torch.zeros((len(batch), int(lengths.max())), dtype=torch.int64)  # [B, L]
        for row, request in enumerate(batch):
            input_ids[row, : len(request.prompt_ids)] = torch.as_tensor(request.prompt_ids)
        cache = PromptCache()
        ends, which_end = torch.unique(lengths - 1, return_inverse=True)
        with self._attending(self._own_attention, then=NAME):
            output = self._model(
                input_ids=input_ids.to(device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=ends.to(device),
            )
        logits = output.logits[torch.arange(len(batch)), which_end]  # [B, V]
        prompts = torch.repeat_interleave(torch.tensor(counts))  # [K] prompt of each sample
        samples = first[1] + torch.arange(len(prompts))  # [K]
        tokens, ended = self._first_tokens(logits, prompts.to(device), samples.to(device), buffers)
        waiting = (~ended).cpu()
        return Prefill(
            cache=cache,
            first=first[0],
            samples=samples[waiting].to(device),
            prompts=prompts[waiting].numpy(),
            lengths=lengths[prompts[waiting]].numpy(),
            tokens=tokens[~ended],
        )

    def _first_tokens(
        self, logits: Tensor, prompts: Tensor, samples: Tensor, buffers: SampleBuffers
    ) -> tuple[Tensor, Tensor]:
        """Return each sample's first token [K], and whether it ends the sample [K].

        At most `max_concurrent` rows of logits are sampled from at once.
        """
        parts = [
            buffers.sample(logits[prompt], sample, torch.zeros_like(sample))
            for prompt, sample in zip(
                prompts.split(self._max_concurrent),
                samples.split(self._max_concurrent),
                strict=True,
            )
        ]
        tokens, ended = zip(*parts, strict=True)
        return torch.cat(tokens), torch.cat(ended)
