"""The sampler against transformers' `generate`, and against the bare steps of the model.

All process the same number of tokens from the same prompts, since none has a stop token. `generate`
is given each prompt once for each of its samples, as TRL does; ours also notes the logprob of every
token, which `generate` does not. The bare steps are the model's forwards of the same batch over a
static cache of the same length, without drawing and without bookkeeping; the prompts are computed
before the clock starts. They are measured twice: with the model as transformers has it, and with
its matrix products made as in ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from common.engines.engine import Request, SamplingParams
from common.engines.native.sampler import Sampler
from common.modeling.load import load_causal_lm
from workflows.bench.floor import Shape
from workflows.bench.measure import Bench, Measurement, rounds
from workflows.bench.plain import plain_model

AGAINST_GENERATE = {64: 2.5, 32: 2.0}
"""Least ratio that is wanted, by the number of samples at once."""
BARE_OURS = "bare steps, products as ours"
AGAINST_BARE = 0.8
DEFAULT_AGAINST_GENERATE = 4.0

Prompts = list[list[int]]


def measure(bench: Bench) -> Iterator[Measurement]:
    """Measure several numbers of samples at once; then the default recipe's model at its own."""
    sizes = bench.sizes
    models = Models.load(bench, bench.model)
    for count in sizes.concurrent:
        prompts = random_prompts(
            models.ours, max(count // sizes.group_size, 1), sizes.prompt_tokens
        )
        targets = {BARE_OURS: AGAINST_BARE}
        if count in AGAINST_GENERATE:
            targets["generate"] = AGAINST_GENERATE[count]
        yield from compare(bench, models, "sampler", prompts, count, sizes.sampler_tokens, targets)
    yield from _default(bench)


def _default(bench: Bench) -> list[Measurement]:
    sizes = bench.sizes
    models = Models.load(bench, bench.default_model)
    prompts = random_prompts(
        models.ours, max(sizes.default_concurrent // 16, 1), sizes.prompt_tokens
    )
    return compare(
        bench,
        models,
        f"sampler, {Path(bench.default_model).name}",
        prompts,
        sizes.default_concurrent,
        sizes.default_tokens,
        {"generate": DEFAULT_AGAINST_GENERATE},
    )


@dataclass(frozen=True)
class Models:
    """The same weights, loaded twice."""

    ours: Any
    plain: Any
    """The model as transformers alone loads it."""

    @classmethod
    def load(cls, bench: Bench, folder: Path) -> Models:
        """Load both models from a Hugging Face directory."""
        place = folder, bench.dtype, bench.device
        return cls(load_causal_lm(*place), plain_model(*place))


def compare(
    bench: Bench,
    models: Models,
    name: str,
    prompts: Prompts,
    count: int,
    tokens: int,
    targets: dict[str, float],
) -> list[Measurement]:
    """Measure ours against transformers' `generate` and the model's bare steps, in the same rounds.

    Args:
        count: samples at once, the same number for each prompt.
        tokens: length of each sample.
        targets: least ratio that is wanted, by name of the baseline.
    """
    ids = torch.tensor(prompts, device=bench.device).repeat_interleave(count // len(prompts), 0)
    taken = rounds(
        {
            "ours": bench.clock(lambda: sample(models.ours, prompts, len(ids), tokens)),
            "generate": bench.clock(lambda: generate(models.plain, ids, tokens)),
            "bare steps": lambda: bare_steps(bench, models.plain, ids, tokens),
            BARE_OURS: lambda: bare_steps(bench, models.ours, ids, tokens),
        },
        bench.pairs,
    )
    phases = Shape.of(models.ours.config, bench.dtype).sample(
        len(prompts), len(prompts[0]), len(ids), tokens
    )
    drawn = len(ids) * tokens
    rates = {other: drawn / median(seconds) for other, seconds in taken.items()}
    return [
        Measurement(
            part="sampler",
            name=f"{name}: {len(ids)} samples at once, {len(prompts[0])} + {tokens} tokens",
            against=other,
            unit="s",
            ours=taken["ours"],
            baseline=taken[other],
            target=targets.get(other),
            phases=phases,
            note=f"{rates['ours']:.0f} and {rates[other]:.0f} tokens/s",
        )
        for other in list(taken)[1:]
    ]


def sample(model: Any, prompts: Prompts, count: int, tokens: int) -> list[list[int]]:
    """Draw `count` completions of `tokens` tokens by our sampler, prompt after prompt."""
    each = count // len(prompts)
    requests = [
        Request(prompt, [number * each + index for index in range(each)])
        for number, prompt in enumerate(prompts)
    ]
    sampler = Sampler(model, stop_ids=[], max_concurrent=count)
    sampled = sampler.generate(requests, SamplingParams(tokens))
    return [sample.completion_ids for samples in sampled for sample in samples]


def generate(model: Any, ids: Tensor, tokens: int) -> Tensor:
    """Draw [rows, tokens] by transformers from the whole distribution; no token ends a row.

    Args:
        ids: [rows, prompt tokens], int64.
    """
    from transformers import GenerationConfig

    # What a call's configuration leaves open comes from the model's own, so replace that one too.
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        drawn = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=GenerationConfig(
                do_sample=True, top_k=0, max_new_tokens=tokens, pad_token_id=0, disable_compile=True
            ),
        )
    finally:
        model.generation_config = own
    return drawn[:, ids.shape[1] :]


@torch.inference_mode()
def bare_steps(bench: Bench, model: Any, ids: Tensor, tokens: int) -> float:
    """Return the seconds of the `tokens` - 1 forwards after the prompts' own; nothing is drawn."""
    from transformers import StaticCache

    cache = StaticCache(config=model.config, max_cache_len=ids.shape[1] + tokens)
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    newest = ids[:, -1:]

    def steps() -> None:
        for _ in range(tokens - 1):
            model(input_ids=newest, past_key_values=cache, use_cache=True)

    return bench.clock(steps)()


def random_prompts(model: Any, count: int, tokens: int) -> Prompts:
    """Return prompts of equal length, of any tokens that the model has; the same in every run."""
    return random_rows(count, tokens, model.config.get_text_config().vocab_size)


def random_rows(count: int, tokens: int, vocabulary: int, seed: int = 0) -> list[list[int]]:
    """Return `count` lists of `tokens` random tokens, the same in every run."""
    generator = torch.Generator().manual_seed(seed)
    drawn: Sequence[list[int]] = torch.randint(
        vocabulary, (count, tokens), generator=generator
    ).tolist()
    return list(drawn)
