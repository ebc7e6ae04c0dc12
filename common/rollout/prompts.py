"""The policy that is sampled, with prompts rendered for it and its samples as table rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from common.config import PromptConfig, Recipe
from common.engines.engine import Engine, Sample, beyond_context, load_engine
from common.errors import UserError
from common.modeling.chat import completion_text, load_tokenizer, render, stop_ids
from common.modeling.load import load_config

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class RenderedPrompt:
    """A row of `prompts/`, rendered."""

    row: Mapping[str, Any]
    ids: list[int]
    prefix: str
    """The part of the prompt's text that already belongs to the assistant's turn."""


class SamplingPolicy:
    """A policy to sample: its tokenizer, its stop tokens, and an engine when asked for."""

    def __init__(self, policy_dir: Path, prompt: PromptConfig) -> None:
        """Load tokenizer, stop tokens and configuration, but no weights.

        Raises:
            UserError: tokenizer or configuration cannot be used, or no token ends a completion.
        """
        self.policy_dir = policy_dir
        self.tokenizer = load_tokenizer(policy_dir)
        self.config = load_config(policy_dir).get_text_config()
        self._prompt = prompt
        self._stops = stop_ids(policy_dir, self.tokenizer)
        if min(self._stops) >= self.config.vocab_size:
            raise UserError(
                f"{policy_dir}: the tokens that end a completion ({self._stops}) are beyond the "
                f"{self.config.vocab_size} of the model; set eos_token_id in generation_config.json"
            )

    def render(self, row: Mapping[str, Any]) -> RenderedPrompt:
        """Render a row of `prompts/`."""
        ids, prefix = render(row["messages"], self.tokenizer, self._prompt)
        return RenderedPrompt(row, ids, prefix)

    def has_room(self, prompt_tokens: int, max_completion_tokens: int) -> bool:
        """Return whether a prompt of so many tokens and the longest completion fit the context."""
        return beyond_context(prompt_tokens, max_completion_tokens, self.config) is None

    def fits(
        self, prompt: RenderedPrompt, max_completion_tokens: int, on_long: Literal["error", "drop"]
    ) -> bool:
        """Return whether the longest completion stays within the model's context.

        Raises:
            UserError: it does not, and `on_long` is "error".
        """
        fault = beyond_context(len(prompt.ids), max_completion_tokens, self.config)
        if fault and on_long == "error":
            raise UserError(f"prompt {prompt.row['prompt_id']} ({prompt.row['task']}) {fault}")
        return fault is None

    def engine(self, recipe: Recipe, device: torch.device) -> Engine:
        """Load the weights, and return the engine that samples this policy."""
        return load_engine(self.policy_dir, recipe, self._stops, device)

    def text(self, sample: Sample) -> str:
        """Return a completion's text without the stop token that ended it."""
        return completion_text(sample.completion_ids, self.tokenizer, self._stops)

    def columns(self, prompt: RenderedPrompt, sample: Sample) -> dict[str, Any]:
        """Return the columns that rollouts and evaluations share, for one completion."""
        return {
            "prompt_id": prompt.row["prompt_id"],
            "task": prompt.row["task"],
            "prompt_ids": prompt.ids,
            "completion_ids": sample.completion_ids,
            "assistant_prefix": prompt.prefix,
            "completion_text": self.text(sample),
            "finish_reason": sample.finish_reason,
            "question": prompt.row["question"],
            "answer": prompt.row["answer"],
            "verify_type": prompt.row["verify_type"],
        }
