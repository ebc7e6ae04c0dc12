"""What an engine is: prompts and seeds in, sampled tokens with their logprobs out.

`rollout` and `evaluate` ask for completions through `Engine` only. Whoever samples must give what
training relies on: the ids that were sampled, the stop token included, and for each of them its
logprob under the distribution that it was sampled from. `logprobs` then compares these with the
trainer's own numbers, so that an engine whose numbers are off is found out before it is trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from common.config import Recipe
from common.errors import UserError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Request:
    """A prompt and the seeds of its samples; None instead of a seed asks for greedy decoding."""

    prompt_ids: Sequence[int]
    seeds: Sequence[int | None]


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are sampled: temperature, then top-k, then top-p."""

    max_completion_tokens: int
    """The stop token included."""
    temperature: float = 1.0
    top_p: float = 1.0
    """Smallest mass of most likely tokens to sample from; 1 leaves the distribution whole."""
    top_k: int = 0
    """Most likely tokens to sample from; 0 leaves the distribution whole."""

    @property
    def truncated(self) -> bool:
        """Whether some tokens are never sampled."""
        return self.top_k > 0 or self.top_p < 1


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion."""

    completion_ids: list[int]
    """The stop token included."""
    sampler_logprobs: list[float]
    """float32, nats, of the distribution sampled from; 0 throughout when greedy."""
    finish_reason: Literal["stop", "length"]


class Engine(Protocol):
    """Samples completions of a policy."""

    def generate(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        on_ended: Callable[[int], object] = lambda samples: None,
    ) -> list[list[Sample]]:
        """One `Sample` for each seed of each request, in their order.

        The result is a function of the requests, the parameters and the policy alone: one call
        makes one shard, which must come out the same whoever makes it.

        Args:
            on_ended: told how many samples have ended since it was last told.

        Raises:
            UserError: a prompt is empty or leaves no room for `params.max_completion_tokens`.
            NonFiniteError: the policy's logits are not finite.
        """
        ...


def load_engine(
    policy_dir: Path, recipe: Recipe, stop_ids: Sequence[int], device: torch.device
) -> Engine:
    """The engine that samples a policy on this device, its weights loaded.

    Args:
        policy_dir: a Hugging Face directory.
        stop_ids: every token that ends a completion.
    """
    from common.engines.native.sampler import Sampler
    from common.modeling.load import compute_dtype, load_causal_lm

    model = load_causal_lm(policy_dir, compute_dtype(recipe.model.dtype, device), device)
    return Sampler(model, stop_ids, max_concurrent=recipe.rollout.max_concurrent)


def check_lengths(requests: Sequence[Request], max_completion_tokens: int, config: Any) -> None:
    """Refuse prompts that are empty or leave no room in the context for the longest completion.

    Raises:
        UserError: the first such request, with the numbers.
    """
    for index, request in enumerate(requests):
        length = len(request.prompt_ids)
        if not length:
            raise UserError(f"prompt {index} has no token; nothing predicts its first one")
        if fault := beyond_context(length, max_completion_tokens, config):
            raise UserError(f"prompt {index} {fault}")


def beyond_context(prompt_tokens: int, max_completion_tokens: int, config: Any) -> str | None:
    """What is wrong with a prompt that leaves no room for the longest completion, else None.

    Also None where the text configuration does not say how many positions the model was made for.
    """
    context = getattr(config, "max_position_embeddings", None)
    if context is None or prompt_tokens + max_completion_tokens <= context:
        return None
    return (
        f"has {prompt_tokens} tokens; with max_completion_tokens = {max_completion_tokens} that is "
        f"beyond the context of {context}; lower it, or leave such prompts out with "
        'rollout.on_long = "drop"'
    )
