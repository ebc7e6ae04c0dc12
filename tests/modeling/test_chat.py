"""Prompts as the ids that generation continues, every way a completion may stop, and texts back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.config import PromptConfig
from common.errors import UserError
from common.modeling.chat import completion_text, load_tokenizer, render, stop_ids

QUESTION = [{"role": "user", "content": "What is 12 * 3?"}]


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: Path) -> Any:
    return load_tokenizer(tiny_tokenizer)


@pytest.fixture(scope="module")
def word_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Factory of plain word tokenizers with given special tokens, as other families save them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    def make(special: list[str], *, bos: str = "", chat_template: str = "", **names: str) -> Path:
        words = ["<unk>", "a", "b", "User", "Assistant", ":", "question"]
        tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **names)
        fast.add_special_tokens({"additional_special_tokens": special})
        if bos:
            fast.bos_token = bos
            pair = (bos, fast.convert_tokens_to_ids(bos))
            fast.backend_tokenizer.post_processor = processors.TemplateProcessing(
                single=f"{bos} $A", special_tokens=[pair]
            )
        fast.chat_template = chat_template or None
        folder = tmp_path_factory.mktemp("words")
        fast.save_pretrained(folder)
        return folder

    return make


def test_a_chat_prompt_is_the_template_then_the_prefix(tokenizer: Any) -> None:
    ids, prefix = render(QUESTION, tokenizer, PromptConfig(assistant_prefix="<think>"))
    assert tokenizer.decode(ids) == (
        "<|im_start|>user\nWhat is 12 * 3?<|im_end|>\n<|im_start|>assistant\n<think>"
    )
    assert prefix == "<think>"
    assert ids[-1] == tokenizer.convert_tokens_to_ids("<think>")
    assert ids[0] == tokenizer.convert_tokens_to_ids("<|im_start|>"), "special tokens, not letters"


def test_prompt_and_completion_are_what_one_tokenization_gives(tokenizer: Any) -> None:
    """The boundary is where the model continues: tokenizing prompt and answer together, as in
    pretraining, gives the prompt's ids and then the answer's."""
    ids, _ = render(QUESTION, tokenizer, PromptConfig(assistant_prefix="<think>"))
    whole = tokenizer(tokenizer.decode(ids) + " 36</think>", add_special_tokens=False)["input_ids"]
    assert whole[: len(ids)] == ids


def test_the_system_message_comes_first_and_joins_the_datas_own(tokenizer: Any) -> None:
    config = PromptConfig(system="Be brief.", assistant_prefix="")
    text = tokenizer.decode(render(QUESTION, tokenizer, config)[0])
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    own = [{"role": "system", "content": "You are a clerk."}, *QUESTION]
    text = tokenizer.decode(render(own, tokenizer, config)[0])
    assert text.startswith("<|im_start|>system\nBe brief.\n\nYou are a clerk.<|im_end|>\n")
    assert text.count("system") == 1


@pytest.mark.parametrize("prefix", ["<think>", "", "<think>\nFirst,"])
def test_a_template_that_opens_think_is_not_given_a_second_one(
    word_tokenizer: Callable[..., Path], prefix: str
) -> None:
    template = "{{ messages[0]['content'] }}{% if add_generation_prompt %} <think>\n{% endif %}"
    tokenizer = load_tokenizer(word_tokenizer(["<think>"], chat_template=template))
    ids, found = render(
        [{"role": "user", "content": "a b"}], tokenizer, PromptConfig(assistant_prefix=prefix)
    )
    assert ids.count(tokenizer.convert_tokens_to_ids("<think>")) == 1
    assert found.startswith("<think>") and found.count("<think>") == 1
    assert found.endswith(prefix.removeprefix("<think>"))


def test_r1_zero_is_plain_text_behind_the_models_own_beginning(
    word_tokenizer: Callable[..., Path], tokenizer: Any
) -> None:
    config = PromptConfig(template="r1_zero", system="Be brief.", assistant_prefix="<think>")
    ids, prefix = render(QUESTION, tokenizer, config)
    text = tokenizer.decode(ids)
    assert text.startswith("A conversation between User and Assistant.")
    assert text.endswith("</answer>. Be brief.\nUser: What is 12 * 3?\nAssistant: <think>")
    assert prefix == "<think>"
    without = tokenizer.decode(
        render(QUESTION, tokenizer, PromptConfig(template="r1_zero", assistant_prefix=""))[0]
    )
    assert without.endswith("\nAssistant:"), "a space here would be a token no text has there"
    # A base model whose tokenizer begins every text with a special token gets it once.
    plain = load_tokenizer(word_tokenizer(["<s>"], bos="<s>"))
    ids, _ = render([{"role": "user", "content": "a"}], plain, PromptConfig(template="auto"))
    assert ids.count(plain.bos_token_id) == 1 and ids[0] == plain.bos_token_id


def test_a_chat_template_that_writes_the_beginning_is_not_given_a_second_one(
    word_tokenizer: Callable[..., Path],
) -> None:
    template = "<s>{{ messages[0]['content'] }}"
    tokenizer = load_tokenizer(word_tokenizer(["<s>"], bos="<s>", chat_template=template))
    ids, _ = render(
        [{"role": "user", "content": "a"}], tokenizer, PromptConfig(assistant_prefix="")
    )
    assert ids.count(tokenizer.bos_token_id) == 1


def test_what_a_template_cannot_render_is_said(word_tokenizer: Callable[..., Path]) -> None:
    template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{{ messages[0]['content'] }}"
    )
    gemma = load_tokenizer(word_tokenizer([], chat_template=template))
    message = [{"role": "user", "content": "a"}]
    with pytest.raises(UserError, match=r"System role not supported.*prompt\.system"):
        render(message, gemma, PromptConfig(system="Be brief."))
    broken = load_tokenizer(word_tokenizer([], chat_template="{{ 1 / 0 }}"))
    with pytest.raises(UserError, match=r"chat template refuses .*: ZeroDivisionError: division"):
        render(message, broken, PromptConfig())
    plain = load_tokenizer(word_tokenizer([]))
    with pytest.raises(UserError, match=r"no chat template.*r1_zero"):
        render(message, plain, PromptConfig(template="chat"))
    with pytest.raises(UserError, match="last message"):
        render([{"role": "assistant", "content": "a"}], plain, PromptConfig())


def test_every_kind_of_stop_is_found(word_tokenizer: Callable[..., Path]) -> None:
    """trl#7039: one id is not enough. Qwen2.5's base says <|endoftext|> and chats with <|im_end|>;
    Llama 3 lists several in its generation config."""
    begins = ["<|im_start|>", "<|start_header_id|>"]
    special = ["<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<x>", "<y>", "<z>", *begins]
    folder = word_tokenizer(special, eos_token="<z>")
    tokenizer = load_tokenizer(folder)

    def id_of(token: str) -> int:
        found = tokenizer.convert_tokens_to_ids(token)
        assert isinstance(found, int)
        return found

    named = {id_of(t) for t in ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<z>")}
    assert set(stop_ids(folder, tokenizer)) == named
    (folder / "config.json").write_text(json.dumps({"eos_token_id": id_of("<x>")}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [id_of("<y>"), 1]}))
    found = stop_ids(folder, tokenizer)
    assert found == sorted(named | {id_of("<x>"), id_of("<y>"), 1})


HARMONY = (
    "{% for m in messages %}<|start|>{{ m['role'] }}"
    "{% if m['role'] == 'assistant' %}<|channel|>final{% endif %}<|message|>{{ m['content'] }}"
    "{% if m['role'] == 'assistant' and loop.last %}<|return|>{% else %}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
PHI = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
OWN = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }} <turn>{% endfor %}"
HARMONYS = ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|endoftext|>"]
PHIS = ["<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"]


@pytest.mark.parametrize(
    ("special", "template", "stops"),
    [
        (HARMONYS, HARMONY, ["<|return|>", "<|endoftext|>"]),
        (HARMONYS, "", ["<|endoftext|>"]),
        (PHIS, PHI, ["<|end|>", "<|endoftext|>"]),
        (PHIS, "", ["<|end|>", "<|endoftext|>"]),
        # The template says which of several families this one is.
        ([*PHIS, "<|im_start|>", "<|im_end|>"], PHI, ["<|end|>", "<|endoftext|>"]),
        (["<turn>", "<|im_end|>"], OWN, ["<turn>"]),
        (["<turn>", "<turn>ed"], OWN, ["<turn>"]),
        # Nothing follows the answer, or the template refuses: the vocabulary decides.
        (["<|im_start|>", "<|im_end|>"], "{{ messages[-1]['content'] }}", ["<|im_end|>"]),
        (["<|im_start|>", "<|im_end|>"], "{{ raise_exception('no') }}", ["<|im_end|>"]),
        (["<|im_start|>", "<|im_end|>"], "{{ 1 / 0 }}", ["<|im_end|>"]),
    ],
)
def test_a_token_stops_only_where_it_ends_turns(
    special: list[str], template: str, stops: list[str], word_tokenizer: Callable[..., Path]
) -> None:
    """<|end|> ends Phi's turns, and in harmony's only a message: an answer follows its analysis."""
    folder = word_tokenizer([*special, "</s>"], eos_token="</s>", chat_template=template)
    tokenizer = load_tokenizer(folder)
    assert stop_ids(folder, tokenizer) == sorted(
        tokenizer.convert_tokens_to_ids(token) for token in ["</s>", *stops]
    )


def test_a_word_that_looks_like_a_stop_is_none(word_tokenizer: Callable[..., Path]) -> None:
    folder = word_tokenizer(["<e>"], eos_token="<e>")
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(["<|im_end|>"])  # ordinary text that this model may well write
    assert stop_ids(folder, tokenizer) == [tokenizer.eos_token_id]


def test_no_stop_at_all_is_refused(word_tokenizer: Callable[..., Path]) -> None:
    folder = word_tokenizer([])
    with pytest.raises(UserError, match=r"no end-of-sequence token.*generation_config\.json"):
        stop_ids(folder, load_tokenizer(folder))


def test_text_loses_the_final_stop_and_nothing_else(tokenizer: Any) -> None:
    """No clean-up, no skipped tokens, no stripped padding strings: each of them loses text."""
    end, pad = (tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>"))
    written = " 4 , 5 . do n't  <|endoftext|> x </think>\n"
    ids = tokenizer(written, add_special_tokens=False)["input_ids"]
    assert pad in ids
    assert completion_text([*ids, end], tokenizer, [end, pad]) == written
    assert completion_text(ids, tokenizer, [end, pad]) == written
    assert completion_text([*ids, end, end], tokenizer, [end]) == written + "<|im_end|>"
    assert completion_text([end], tokenizer, [end]) == ""


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer"):
        load_tokenizer(tmp_path)
