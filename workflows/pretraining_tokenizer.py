"""The embedded base model's tokenizer: byte-level BPE whose merges are chains of whole words.

`AutoTokenizer` builds Qwen2's own normaliser and pre-tokenizer for `model_type: qwen2`, whatever
the file says, so the merges are made for exactly those. They are not learned by frequency: each
word of the wordings, say " takes", is merged from the left (" t", " ta", …), and nothing else is.
A chain whose first merge could occur in a counted word is left out, so counted words stay single
letters and counting needs no knowledge of spelling. Qwen2 splits numbers into digits by itself.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from common.tasks.counting import LETTERS

if TYPE_CHECKING:
    from transformers import Qwen2Tokenizer

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def build_tokenizer(texts: Iterable[str]) -> "Qwen2Tokenizer":
    """Build a tokenizer whose merges cover the words of `texts`; its ids depend on these alone."""
    from tokenizers import AddedToken, pre_tokenizers
    from transformers import Qwen2Tokenizer

    words = _words(texts)
    merges = _merge_chains(words)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(left + right for left, right in merges)]
    tokenizer = Qwen2Tokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=merges,  # type: ignore[arg-type]  # pairs are taken too, and are what a file holds
        unk_token=None,  # type: ignore[arg-type]  # bytes leave nothing unknown
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
    )
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return tokenizer


def _words(texts: Iterable[str]) -> list[str]:
    """Return the distinct pre-tokens of the texts, in the byte alphabet, as Qwen2 cuts them."""
    from transformers import Qwen2Tokenizer

    pre_tokenizer = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    assert pre_tokenizer is not None
    found = {word for text in texts for word, _ in pre_tokenizer.pre_tokenize_str(text)}
    # Words after a space come first, so their merges win over those of words that open a line.
    return sorted(found, key=lambda word: (not word.startswith("Ġ"), word))


def _merge_chains(words: Iterable[str]) -> list[tuple[str, str]]:
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        if not set(word[:2]) <= set(LETTERS):
            merges.update({(word[:i], word[i]): None for i in range(1, len(word))})
    return list(merges)
