"""The interface of an engine: prompts and seeds in, sampled tokens with their logprobs out.

`rollout` and `evaluate` ask for completions through `Engine` only. Every engine must return what
training relies on: the ids that were sampled, the stop token included, and for each its logprob
under the distribution that it was sampled from. `logprobs` then compares these with the trainer's
own numbers, so that an engine with wrong numbers is noticed before anything is trained on them.
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
    """A prompt and one seed per sample; None instead of a seed asks for greedy decoding."""

    prompt_ids: Sequence[int]
    seeds: Sequence[int | None]


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are sampled: temperature, then top-k, then top-p."""

    max_completion_tokens: int
    """Longest completion in tokens, the stop token included."""
    temperature: float = 1.0
    top_p: float = 1.0
    """Sample from the fewest most likely tokens that have this mass; 1 for all tokens."""
    top_k: int = 0
    """Sample from this many most likely tokens; 0 for all tokens."""

    @property
    def truncated(self) -> bool:
        """Whether some tokens are never sampled."""
        return self.top_k > 0 or self.top_p < 1


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion."""

    completion_ids: list[int]
    """Sampled tokens, the stop token included."""
    sampler_logprobs: list[float]
    """Logprobs under the distribution sampled from, float32, in nats; all 0 if greedy."""
    finish_reason: Literal["stop", "length"]


class Engine(Protocol):
    """A sampler of completions of one policy."""

    def generate(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        on_ended: Callable[[int], object] = lambda samples: None,
    ) -> list[list[Sample]]:
        """Return one `Sample` per seed of each request, in the order of requests and seeds.

        The result must depend on the requests, the parameters and the policy alone: one call makes
        one shard, which must be the same whichever process makes it.

        Args:
            on_ended: called with the number of samples that have ended since its last call.

        Raises:
            UserError: a prompt is empty or leaves no room for `params.max_completion_tokens`.
            NonFiniteError: the policy's logits are not finite.
        """
        ...


def load_engine(
    policy_dir: Path, recipe: Recipe, stop_ids: Sequence[int], device: torch.device
) -> Engine:
    """Return an engine that samples a policy on this device, with the weights loaded.

    Args:
        policy_dir: a Hugging Face directory.
        stop_ids: every token that ends a completion.
    """
    from common.engines.native.sampler import Sampler
    from common.modeling.load import compute_dtype, load_causal_lm

    model = load_causal_lm(policy_dir, compute_dtype(recipe.model.dtype, device), device)
    return Sampler(model, stop_ids, max_concurrent=recipe.rollout.max_concurrent)


def check_lengths(requests: Sequence[Request], max_completion_tokens: int, config: Any) -> None:
    """Check that no prompt is empty or leaves too little context for the longest completion.

    Raises:
        UserError: there is such a prompt; the message names the first, with the numbers.
    """
    for index, request in enumerate(requests):
        length = len(request.prompt_ids)
        if not length:
            raise UserError(f"prompt {index} has no token; nothing predicts its first one")
        if fault := beyond_context(length, max_completion_tokens, config):
            raise UserError(f"prompt {index} {fault}")


def beyond_context(prompt_tokens: int, max_completion_tokens: int, config: Any) -> str | None:
    """Return why a prompt leaves no room for the longest completion, or None if it leaves room.

    Also return None if the text configuration does not say how many positions the model has.
    """
    context = getattr(config, "max_position_embeddings", None)
    if context is None or prompt_tokens + max_completion_tokens <= context:
        return None
    return (
        f"has {prompt_tokens} tokens; with max_completion_tokens = {max_completion_tokens} that is "
        f"beyond the context of {context}; lower it, or leave such prompts out with "
        'rollout.on_long = "drop"'
    )
