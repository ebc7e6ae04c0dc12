"""From chat messages to the token ids that generation continues, and back to text.

A prompt is rendered to one string and then tokenized once, so that the ids are those the model
would see for that text. Completions stay ids; their text is for people and reward rules, and is
never tokenized again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.config import PromptConfig
from common.errors import UserError
from common.tasks.hub import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokens that end a turn in vocabularies that have the token beside them, which begins one. Alone it
# may mean something else: in harmony's, which has no <|assistant|>, <|end|> ends a message, and
# the turn goes on with the next channel.
TURN_ENDS = {
    "<|im_end|>": "<|im_start|>",  # ChatML: Qwen, SmolLM2
    "<|eot_id|>": "<|start_header_id|>",  # Llama 3
    "<|eom_id|>": "<|start_header_id|>",
    "<|eot|>": "<|header_start|>",  # Llama 4
    "<end_of_turn>": "<start_of_turn>",  # Gemma
    "<|end|>": "<|assistant|>",  # Phi 3
}
TEXT_ENDS = ("<|end_of_text|>", "<|endoftext|>")

# Table 1 of DeepSeek-R1 (arXiv 2501.12948), with a line break before each speaker.
R1_ZERO = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant "
    "solves it. The assistant first thinks about the reasoning process in the mind and then "
    "provides the user with the answer. The reasoning process and answer are enclosed within "
    "<think> </think> and <answer> </answer> tags, respectively, i.e., <think> reasoning process "
    "here </think> <answer> answer here </answer>."
)

_OPENED = re.compile(r"<think>\s*\Z")


def load_tokenizer(policy_dir: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a Hugging Face directory; nothing is fetched and none of its code runs.

    Raises:
        UserError: the directory has no tokenizer that transformers can use.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            policy_dir, local_files_only=True, trust_remote_code=False
        )
        if not isinstance(tokenizer.model_max_length, (int, float)):
            raise TypeError(f"model_max_length = {tokenizer.model_max_length!r} is no number")
    except Exception as error:  # files that are not what it expects give errors of a dozen types
        remedy = "; copy its files anew from where the model came from"
        raise UserError(
            f"{policy_dir}: no tokenizer that transformers can use: {first_line(error)}"
            + remedy * (not isinstance(error, ImportError))
        ) from None
    return tokenizer


def render(
    messages: Sequence[Mapping[str, str]], tokenizer: PreTrainedTokenizerBase, prompt: PromptConfig
) -> tuple[list[int], str]:
    """Return the token ids of a prompt up to where the completion begins, and its assistant prefix.

    If the chat template itself opens `<think>`, no second one is added, and the template's own
    becomes part of the prefix, since rules judge prefix and completion together.

    Args:
        messages: roles and contents; the last message must be the user's.

    Raises:
        UserError: the last message is not the user's, or the template is missing or refuses them.
    """
    if not messages or messages[-1]["role"] != "user":
        raise UserError("a prompt's last message must be the user's; nothing is to be answered")
    turns = _with_system(messages, prompt.system)
    if prompt.template == "chat" or (prompt.template == "auto" and tokenizer.chat_template):
        text, prefix = _join(_chat(turns, tokenizer), prompt.assistant_prefix)
        # The template has written the special tokens that the model expects.
        return tokenizer(text, add_special_tokens=False)["input_ids"], prefix
    ids = tokenizer(_r1_zero(turns, prompt.assistant_prefix))["input_ids"]
    if ids[-1] == tokenizer.eos_token_id:
        del ids[-1]
    return ids, prompt.assistant_prefix


def stop_ids(policy_dir: Path, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of all tokens that end a completion, in ascending order.

    These are the end-of-sequence tokens of config, generation config and tokenizer, those that end
    a text, and those that end a turn: the token that the chat template writes after an answer, or
    else those of the vocabulary that end turns in their families.

    Raises:
        UserError: there is none, so that no completion would ever stop, or one is no id.
    """
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        path = Path(policy_dir) / name
        if path.is_file():
            found.update(_eos_of(path))
    if tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    added = {token.content: id for id, token in tokenizer.added_tokens_decoder.items()}
    special = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    in_families = [end for end, begin in TURN_ENDS.items() if {end, begin} <= special]
    end = _end_of_turn(tokenizer)
    ends = {*special.intersection(TEXT_ENDS), *([end] if end else in_families)}
    found.update(added[content] for content in ends)
    if not found:
        raise UserError(
            f"{policy_dir}: no end-of-sequence token; set eos_token_id in generation_config.json"
        )
    return sorted(found)


def completion_text(
    completion_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, stops: Iterable[int]
) -> str:
    """Return a completion's text without the stop token that ended it, otherwise unchanged."""
    ids = list(completion_ids)
    if ids and ids[-1] in set(stops):
        del ids[-1]
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the added token that the chat template writes right after an answer, if there is one.

    Some checkpoints name only the end of a text as their eos, and chat with another token.
    """
    answer = "Forty-two"
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    try:
        rendered = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:  # there is none, or it refuses these turns; prompts are checked elsewhere
        return None
    _, found, behind = rendered.rpartition(answer)
    contents = [token.content for token in tokenizer.added_tokens_decoder.values()]
    after = [content for content in contents if behind.lstrip().startswith(content)]
    return max(after, key=len) if found and after else None


def _with_system(messages: Sequence[Mapping[str, str]], system: str) -> list[dict[str, str]]:
    """Put the recipe's system message first, joined with the data's own if there is one."""
    turns = [{"role": m["role"], "content": m["content"]} for m in messages]
    if not system:
        return turns
    if turns[0]["role"] == "system":
        system = f"{system}\n\n{turns.pop(0)['content']}"
    return [{"role": "system", "content": system}, *turns]


def _chat(turns: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> str:
    from jinja2 import TemplateError

    name = tokenizer.name_or_path
    if not tokenizer.chat_template:
        raise UserError(f'{name}: there is no chat template; use prompt.template = "r1_zero"')
    try:
        rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program
        roles = [turn["role"] for turn in turns]
        reason = str(error) if isinstance(error, TemplateError) else first_line(error)
        fix = "; if it takes no system message, leave prompt.system empty" * ("system" in roles)
        raise UserError(f"{name}: its chat template refuses roles {roles}: {reason}{fix}") from None
    assert isinstance(rendered, str)
    return rendered


def _join(rendered: str, prefix: str) -> tuple[str, str]:
    """Append the prefix to a rendered prompt; return the whole, and the assistant's part of it."""
    opened = _OPENED.search(rendered)
    if opened is None:
        return rendered + prefix, prefix
    rest = prefix.removeprefix("<think>")
    return rendered + rest, opened.group() + rest


def _r1_zero(turns: list[dict[str, str]], prefix: str) -> str:
    before = {"system": " ", "user": "\nUser: ", "assistant": "\nAssistant: "}
    text = R1_ZERO + "".join(before[turn["role"]] + turn["content"] for turn in turns)
    return f"{text}\nAssistant: {prefix}" if prefix else f"{text}\nAssistant:"


def _eos_of(path: Path) -> list[int]:
    eos = read_json_object(path).get("eos_token_id")
    ids = eos if isinstance(eos, list) else [eos] * (eos is not None)
    for id in ids:
        if not isinstance(id, int) or isinstance(id, bool) or id < 0:
            raise UserError(
                f"{path}: eos_token_id = {json.dumps(eos)} is no token id; write the number of the "
                "token that ends a completion, or a list of numbers"
            )
    return list(ids)


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a model.

    Raises:
        UserError: the file holds something else.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: not JSON: {error}; copy it anew from where the model came from"
        ) from None
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: holds {json.dumps(content)[:40]} and no JSON object; copy it anew from where "
            "the model came from"
        )
    return content
