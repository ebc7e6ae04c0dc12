"""TRL's GRPOTrainer as a partner: one optimizer step whenever it is told to.

A step is all that TRL does for one batch: it generates the completions, computes the reference's
logprobs, scores, and takes one optimizer step. Its start-up (imports, model, trainer) is reported
separately. Settings are TRL's own but for those that would make it do other work than ours, and
activation checkpointing, which is off as in ours: TRL is faster without it.

    python -m workflows.bench.trl SPEC.json         (started by `make bench`)
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()

BATCH = 8
"""Samples in one forward and backward, TRL's own default."""


def main(spec: Mapping[str, Any]) -> None:
    """Train on the spec's prompts in their order, taking each step when told to."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer  # type: ignore[attr-defined]

    from common.config import RewardsConfig
    from common.rewards.auxiliary import open_repetition
    from workflows.bench.process import connect

    reward = open_repetition(RewardsConfig.model_validate(spec["rewards"]))

    class Turns(TrainerCallback):
        """A callback that waits to be told before each step, and tells its seconds after it."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.channel = connect({"startup_seconds": time.perf_counter() - STARTED})

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if not self.channel.wait():
                os._exit(0)  # the trainer would take this step before it looks whether to stop
            self.started = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seconds = time.perf_counter() - self.started
            self.channel.tell({"seconds": seconds, "tokens": seen["tokens"]})

    seen = {"tokens": 0}

    def rewards(
        completions: list[str], completion_ids: list[list[int]], **_: Any
    ) -> list[float | None]:
        seen["tokens"] = sum(map(len, completion_ids))
        return [reward(text, {}) for text in completions]

    trainer = GRPOTrainer(
        model=_model(spec),
        reward_funcs=rewards,
        args=GRPOConfig(**_settings(spec)),
        train_dataset=Dataset.from_dict({"prompt": spec["prompts"]}),
        processing_class=_tokenizer(spec),
        callbacks=[Turns()],
    )
    trainer.train()


def _settings(spec: Mapping[str, Any]) -> dict[str, Any]:
    prompts, size, tokens = spec["iteration"]
    batch = min(BATCH, prompts * size)
    return {
        "output_dir": tempfile.mkdtemp(dir=spec["scratch"]),
        "max_steps": len(spec["prompts"]) // prompts,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": prompts * size // batch,
        "num_generations": size,
        "max_completion_length": tokens,
        # No completion ends earlier, so both sides compute the same number of tokens.
        "generation_kwargs": {"min_new_tokens": tokens},
        "shuffle_dataset": False,
        "beta": spec["kl_coef"],
        "temperature": 1.0,
        "learning_rate": spec["learning_rate"],
        "gradient_checkpointing": False,
        "bf16": spec["device"] == "cuda",
        "use_cpu": spec["device"] == "cpu",
        "save_strategy": "no",
        "report_to": "none",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }


def _model(spec: Mapping[str, Any]) -> Any:
    import torch

    from workflows.bench.plain import plain_model

    # Ours trains float32 masters too; autocast computes in bfloat16 on a GPU.
    return plain_model(Path(spec["model"]), torch.float32)


def _tokenizer(spec: Mapping[str, Any]) -> Any:
    from common.modeling.chat import load_tokenizer

    return load_tokenizer(Path(spec["model"]))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
