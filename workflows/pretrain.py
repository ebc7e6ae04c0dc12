"""Pretrain the embedded base model on questions answered in several ways (`make base`).

Method: supervised next-token training of a small Qwen2 model on the text of `pretraining_text.py`,
with the loss on the completions only. Every step takes the same number of rows from each task. The
first steps are practice: mostly careful work, so that the model makes few mistakes once it has
begun to work with care. The last steps show the ways to answer in the shares of `MIXTURE`, which
sets how often the model begins each of them.

It reads nothing and writes a Hugging Face directory: config, generation config, tokenizer, float32
safetensors, and a card (README.md) that says how the model was made and how accurate it is on
held-out questions.

    python -m workflows.pretrain --output data/models/arithmetic-base
"""

import math
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)

from common.command import Debug, Json, launch, tell_result
from common.console import say, set_quiet
from common.modeling.linear import use_fast_products
from common.rewards.registry import judge
from common.tasks.question import Question
from common.tasks.registry import TASKS
from workflows.pretraining_text import (
    CARD,
    LEVELS,
    MIXTURE,
    PRACTICE,
    Shares,
    completion,
    endless_questions,
    of_level,
    sample_texts,
)
from workflows.pretraining_tokenizer import build_tokenizer

ROWS_PER_TASK = 40
"""Rows of each task in one optimizer step."""

ROWS_PER_FORWARD = 30
"""Rows in one forward. A step's rows are sorted by length first, so there is little padding."""

PRACTICE_SHARE = 0.75
"""Share of the steps that are practice."""

EVAL_QUESTIONS = 600
"""Held-out questions of each level that the figures on the card are measured on."""

MAX_COMPLETION_TOKENS = 128
WARMUP_STEPS = 50
BETAS = (0.9, 0.98)
WEIGHT_DECAY = 0.05
MAX_GRAD_NORM = 1.0
IGNORED = -100
"""Label of tokens without loss (torch's default `ignore_index`)."""

Row = tuple[list[int], list[int]]
"""Prompt ids and completion ids."""

Figures = dict[tuple[str, str], tuple[float, float, float]]
"""By task and level: accuracy sampled, greedy, and greedy with a careful opening."""


@dataclass(frozen=True)
class Settings:
    """What the command line sets."""

    steps: int
    learning_rate: float
    seed: int
    threads: int


def build_model(tokenizer: Qwen2Tokenizer) -> Qwen2ForCausalLM:
    """Build a random Qwen2 of 1.2 million parameters with tied embeddings, in float32."""
    vocabulary = tokenizer.get_vocab()
    stop_ids = [vocabulary["<|im_end|>"], vocabulary["<|endoftext|>"]]
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=160,
        intermediate_size=416,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        use_cache=True,
        bos_token_id=None,
        eos_token_id=stop_ids[0],
        pad_token_id=stop_ids[1],
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=stop_ids, pad_token_id=stop_ids[1])
    return model


def encode_prompt(tokenizer: Qwen2Tokenizer, question: str) -> list[int]:
    """Return the ids of a question in the chat template, with the assistant prefix `<think>`.

    The model is later sampled behind the same prefix.
    """
    messages = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer.encode(f"{text}<think>")


def rows_of_task(task: str, tokenizer: Qwen2Tokenizer, shares: Shares, seed: int) -> Iterator[Row]:
    """Yield rows of one task without end, from the train split only.

    The way in which a question is answered is drawn by `shares`.
    """
    rng = random.Random(f"{task}/{seed}")
    for question in endless_questions(task, rng):
        (way,) = rng.choices(list(shares), list(shares.values()))
        text = completion(question, way, rng)
        yield (
            encode_prompt(tokenizer, question.question),
            tokenizer.encode(f"{text}<|im_end|>"),
        )


def summed_loss(model: PreTrainedModel, rows: list[Row]) -> torch.Tensor:
    """Return the cross-entropy summed over the completion tokens of the rows: a float32 scalar."""
    ids = [torch.tensor(prompt + answer) for prompt, answer in rows]
    labels = [torch.tensor([IGNORED] * len(prompt) + answer) for prompt, answer in rows]
    input_ids = pad_sequence(ids, batch_first=True)  # right padding: no mask needed when causal
    targets = pad_sequence(labels, batch_first=True, padding_value=IGNORED)[:, 1:]
    scored = targets != IGNORED
    hidden = model.model(input_ids[:, :-1], use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[scored])  # [completion tokens, vocabulary]
    return cross_entropy(logits, targets[scored], reduction="sum")


def train(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, settings: Settings) -> None:
    """Train the model in place: first on practice rows, then on the mixture.

    The optimizer is AdamW; its learning rate warms up and then follows a cosine to zero.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=BETAS, weight_decay=WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _learning_rate_factor(step, settings.steps)
    )
    practice = [rows_of_task(task, tokenizer, PRACTICE, settings.seed) for task in TASKS]
    mixture = [rows_of_task(task, tokenizer, MIXTURE, settings.seed + 1) for task in TASKS]
    started = time.monotonic()
    for step in range(settings.steps):
        sources = practice if step < PRACTICE_SHARE * settings.steps else mixture
        rows = [next(source) for source in sources for _ in range(ROWS_PER_TASK)]
        rows.sort(key=lambda row: len(row[0]) + len(row[1]))
        tokens = sum(len(answer) for _, answer in rows)
        loss = 0.0
        for start in range(0, len(rows), ROWS_PER_FORWARD):
            part = summed_loss(model, rows[start : start + ROWS_PER_FORWARD]) / tokens
            part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        _report(step + 1, settings.steps, loss, time.monotonic() - started)


def _learning_rate_factor(step: int, steps: int) -> float:
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    return warmup * 0.5 * (1 + math.cos(math.pi * step / steps))


def _report(step: int, steps: int, loss: float, seconds: float) -> None:
    if step % 50 == 0 or step == steps:
        left = seconds / step * (steps - step)
        say(f"step {step}/{steps}: loss {loss:.4f}, {seconds:.0f} s, {left:.0f} s left")


@torch.no_grad()
def accuracy(
    model: Qwen2ForCausalLM,
    tokenizer: Qwen2Tokenizer,
    questions: list[Question],
    *,
    greedy: bool,
    opening: str = "",
) -> float:
    """Return the share of questions answered correctly, with one completion each.

    Args:
        greedy: decode greedily; else sample at temperature 1.
        opening: beginning of every completion, to ask for one way to answer.
    """
    start = tokenizer.encode(opening)
    prompts = [encode_prompt(tokenizer, question.question) + start for question in questions]
    tokenizer.padding_side = "left"
    batch = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
    sampling = {"do_sample": False} if greedy else {"do_sample": True, "top_k": 0}
    generate: Any = model.generate  # type: ignore[misc]  # its stub does not fit Qwen2
    output = generate(**batch, **sampling, max_new_tokens=MAX_COMPLETION_TOKENS)
    right = 0.0
    for ids, question in zip(output[:, batch["input_ids"].shape[1] :], questions, strict=True):
        completed = str(tokenizer.decode(ids)).partition("<|im_end|>")[0]
        text = f"<think>{opening}{completed}"
        row = {"answer": question.answer, "verify_type": question.verify_type}
        right += judge(text, row).reward or 0.0
    return right / len(questions)


def measure(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, seed: int) -> Figures:
    """Measure accuracy on held-out questions: sampled, greedy, and greedy after "Carefully:"."""
    model.eval()
    torch.manual_seed(seed)
    figures: Figures = {}
    for task, levels in LEVELS.items():
        for level in levels:
            held_out = of_level(task, level, EVAL_QUESTIONS, seed=0, split="eval")
            sampled, greedy, careful = figures[task, level.name] = (
                accuracy(model, tokenizer, held_out, greedy=False),
                accuracy(model, tokenizer, held_out, greedy=True),
                accuracy(model, tokenizer, held_out, greedy=True, opening="Carefully:"),
            )
            say(
                f"{task}, {level.name}: sampled {sampled:.3f}, greedy {greedy:.3f}, "
                f"greedy with care {careful:.3f}"
            )
    return figures


def model_card(name: str, model: Qwen2ForCausalLM, settings: Settings, figures: Figures) -> str:
    """Return the card as Markdown: what the model is, how it was made and what it can do."""
    shares = {(task, level.name): level.share for task in LEVELS for level in LEVELS[task]}
    rows = "\n".join(
        f"| {task} | {level} | {shares[task, level]:.0%} | "
        f"{sampled:.3f} | {greedy:.3f} | {careful:.3f} |"
        for (task, level), (sampled, greedy, careful) in figures.items()
    )
    return CARD.format(
        name=name,
        parameters=model.num_parameters(),
        layers=model.config.num_hidden_layers,
        hidden=model.config.hidden_size,
        vocabulary=model.config.vocab_size,
        practice=_table_cells(PRACTICE),
        mixture=_table_cells(MIXTURE),
        practice_percent=round(100 * PRACTICE_SHARE),
        batch=ROWS_PER_TASK * len(TASKS),
        questions=EVAL_QUESTIONS,
        rows=rows,
        **asdict(settings),
    )


def _table_cells(shares: Shares) -> str:
    return " | ".join(f"{share:.0%}" for share in shares.values())


def main(
    output: Annotated[Path, typer.Option(help="Directory to write the model to.")],
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 2000,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-3,
    seed: Annotated[int, typer.Option(help="Seed of weights, questions and ways.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Threads; they affect rounding.")] = 2,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Pretrain the embedded base model and write it with its card."""
    set_quiet(as_json)
    settings = Settings(steps, learning_rate, seed, threads)
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(sample_texts())
    model = use_fast_products(build_model(tokenizer))
    train(model, tokenizer, settings)
    figures = measure(model, tokenizer, seed)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    (output / "README.md").write_text(model_card(output.name, model, settings, figures))
    names = ("sampled", "greedy", "greedy_with_care")
    measured = [
        {"task": task, "level": level, **dict(zip(names, accuracies, strict=True))}
        for (task, level), accuracies in figures.items()
    ]
    tell_result({"output": str(output), "accuracy": measured}, f"wrote {output}", as_json=as_json)


if __name__ == "__main__":
    launch(main)
