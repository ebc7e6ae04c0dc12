"""The tracked base model as users load it: size, tokenizer, stop tokens, and what it can do."""

import json
import unicodedata
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import REPOSITORY
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.config import PromptConfig
from common.modeling.chat import render
from common.tasks.registry import TASKS
from workflows import pretrain
from workflows.pretraining_text import sample_texts
from workflows.pretraining_tokenizer import TAGS, build_tokenizer

BASE = REPOSITORY / "data/models/arithmetic-base"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(BASE, local_files_only=True)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(BASE, local_files_only=True).eval()


def test_size_and_dtype(model: Any) -> None:
    assert 500_000 <= model.num_parameters() <= 2_000_000
    assert model.config.model_type == "qwen2"
    assert model.config.tie_word_embeddings
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert sum(file.stat().st_size for file in BASE.iterdir()) <= 8_000_000


def test_no_weights_but_safetensors() -> None:
    assert {file.suffix for file in BASE.iterdir()} <= {".json", ".safetensors", ".jinja", ".md"}


@settings(max_examples=150)
@given(text=st.text(max_size=60))
def test_any_text_round_trips(tokenizer: Any, text: str) -> None:
    """Up to NFC, which Qwen2's normaliser applies; every byte is a token, so none is unknown."""
    ids = tokenizer.encode(text)
    decoded = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert decoded == unicodedata.normalize("NFC", text)


def test_task_text_round_trips_with_the_ids_it_was_pretrained_on(tokenizer: Any) -> None:
    """AutoTokenizer must give the very ids of the tokenizer that pretraining used."""
    texts = sample_texts()
    made = build_tokenizer(texts)
    for text in texts:
        ids = tokenizer.encode(text)
        assert ids == made.encode(text)
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_counted_words_are_spelled_and_template_words_are_whole(tokenizer: Any) -> None:
    for question in TASKS["counting"].generate(200, split="eval", seed=0):
        pieces = [tokenizer.decode([i]) for i in tokenizer.encode(question.question)]
        word = question.metadata["word"]
        start = len(pieces) - 1 - len(word)
        assert pieces[start:-1] == list(word)
    assert len(tokenizer.encode(" smallest total number of days")) == 5


def test_tags_are_ordinary_tokens_and_chat_marks_special(tokenizer: Any) -> None:
    text = "<think>a</think><answer>1</answer>"
    ids = tokenizer.encode(text)
    assert len(ids) == len(TAGS) + 2
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.decode(tokenizer.encode("<|im_start|>a<|im_end|>"), True) == "a"


def test_chat_template_adds_no_system_prompt(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "What is 2 * 34?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == ("<|im_start|>user\nWhat is 2 * 34?<|im_end|>\n<|im_start|>assistant\n")


def test_pretraining_prompts_are_those_of_rollout(tokenizer: Any) -> None:
    """Pretraining and `rollout` each render prompts; a difference would leave the model lost."""
    prompt = PromptConfig(assistant_prefix="<think>")
    for task in TASKS.values():
        for question in task.generate(20, split="eval", seed=0):
            messages = [{"role": "user", "content": question.question}]
            ids, prefix = render(messages, tokenizer, prompt)
            assert ids == pretrain.encode_prompt(tokenizer, question.question)
            assert prefix == "<think>"


def test_stop_ids(tokenizer: Any) -> None:
    generation = json.loads((BASE / "generation_config.json").read_text())
    stops = [tokenizer.decode([i]) for i in generation["eos_token_id"]]
    assert stops == ["<|im_end|>", "<|endoftext|>"]
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"


@pytest.mark.parametrize("task", TASKS)
def test_sampled_accuracy_leaves_room_to_learn(model: Any, tokenizer: Any, task: str) -> None:
    """0.05 to 0.5 at temperature 1 on held-out questions, with 4 standard errors of 200 allowed."""
    questions = TASKS[task].generate(200, split="eval", seed=2)
    torch.manual_seed(0)
    sampled = pretrain.accuracy(model, tokenizer, questions, greedy=False)
    assert 0.05 <= sampled <= 0.5 + 4 * 0.035
    card = (BASE / "README.md").read_text()
    stated = next(line for line in card.splitlines() if line.startswith(f"| {task} |"))
    assert sampled == pytest.approx(float(stated.split("|")[4]), abs=4 * 0.035 * 1.2)


@pytest.mark.parametrize("task", TASKS)
def test_careful_work_is_mostly_right(model: Any, tokenizer: Any, task: str) -> None:
    """The way that reinforcement is to find is there: once begun, it solves the task."""
    questions = TASKS[task].generate(60, split="eval", seed=3)
    right = pretrain.accuracy(model, tokenizer, questions, greedy=True, opening="Carefully:")
    assert right >= 0.8
