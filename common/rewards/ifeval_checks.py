r"""The 25 instructions of IFEval that a program can check (arXiv 2311.07911, table 1).

`CHECKS` has them by their published ids, with the arguments of each under their published names.
They are written anew from the paper and count as its own checker does, but for these points, where
that one passes what a reader would not, or fails what a reader would pass:

- A bullet is `*` or `-` and a space at the beginning of a line: neither a rule `---` nor
  `*emphasis*`.
- Keywords are text, not patterns: `c++` is one.
- JSON is an object or a list.
- A text without letters is in no language.
- Sentences end at `.`, `!`, `?` or `…` that no small letter follows and no abbreviation precedes,
  and at `。`, `！`, `？`. (That checker uses a model of English abbreviations.)

All of them are linear in the answer. The language of a text is found by py3langid, which has no
opinion on code or on a few words: such texts are of whatever language it says.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from common.rewards.json_schema import read_json

RELATIONS = ("less than", "at least")
OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")

LANGUAGE_CHARACTERS = 20_000
"""How much of a text its language is judged by, from the beginning."""

_WORD = re.compile(r"\w+")
_SPELLED = re.compile(r"[^\W_]+(?:[-.&][^\W_]+)*")
_BULLET = re.compile(r"^[ \t]*[*-][ \t]+\S", re.MULTILINE)
_HIGHLIGHT = re.compile(r"\*\*(?!\s)[^\n*]+\*\*|\*(?!\s)[^\n*]+\*")
_TITLE = re.compile(r"<<([^\n<>]+)>>")
_PLACEHOLDER = re.compile(r"\[[^\[\]\n]+\]")
_BLANK_LINES = re.compile(r"\n[ \t]*\n")
_DIVIDER = re.compile(r"(?<!\*)\*{3}(?!\*)")
_FENCE = re.compile(r"```[A-Za-z]*\n?(.*)```", re.DOTALL)
# Possessive, and from the first of several points on: a run of points is looked at once.
_SENTENCE_END = re.compile(
    r"(?<![.!?…])[.!?…]++[\"'”’»)\]*_]*+(?=\s|$)|(?<![。！？])[。！？]++[”’」』）]*+"
)
_ABBREVIATION = re.compile(
    r"(?:\b(?:mr|mrs|ms|dr|prof|st|sr|jr|vs|etc|e\.g|i\.e|no|inc|ltd|co|fig|cf|al|approx|dept|gen"
    r"|col|sen|rep|u\.s|a\.m|p\.m|[a-z])|(?:^|\n)[ \t]*\d{1,3})\.$",
    re.IGNORECASE,
)
_FIRST_WORD = re.compile(r"\s*[\"'“‘*_]*([^\s.,?!'\"”’*_:;]+)")


class ArgumentError(ValueError):
    """An instruction's arguments are not as it needs them; the message says which and why."""


@dataclass(frozen=True)
class Check:
    """One instruction: whether an answer follows it, given its arguments."""

    follows: Callable[..., bool]
    """Called with the answer and the arguments."""
    arguments: Mapping[str, Callable[[Any], Any]]
    """For each argument, what reads its value; raises `ArgumentError`."""

    def read(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments, read. A null is as good as missing: tables are full of them.

        Raises:
            ArgumentError: one is missing, unknown, or not as it is needed.
        """
        given = {name: value for name, value in given.items() if value is not None}
        if unknown := sorted(set(given) - set(self.arguments)):
            raise ArgumentError(f"has no argument {unknown[0]!r}")
        if missing := [name for name in self.arguments if name not in given]:
            raise ArgumentError(f"needs the argument {missing[0]!r}")
        arguments = {}
        for name, read in self.arguments.items():
            try:
                arguments[name] = read(given[name])
            except ArgumentError as error:
                raise ArgumentError(f"needs {name!r} as {error}") from None
        return arguments


def _count(value: Any) -> int:
    """Read a number from 0 on; tables make 3 a 3.0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
        raise ArgumentError("a number from 0 on")
    if value != int(value):
        raise ArgumentError("a whole number")
    return int(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ArgumentError("text")
    return value.strip()


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not value:
        raise ArgumentError("a list of texts")
    return [_text(item) for item in value]


def _letter(value: Any) -> str:
    if not isinstance(value, str) or len(value.strip()) != 1:
        raise ArgumentError("one character")
    return value.strip().lower()


def _relation(value: Any) -> str:
    if value not in RELATIONS:
        raise ArgumentError(" or ".join(map(repr, RELATIONS)))
    return str(value)


def _language(value: Any) -> str:
    if not isinstance(value, str) or value not in _identifier().labels:
        raise ArgumentError("an ISO 639-1 code such as 'en'")
    return value


def _holds(count: int, relation: str, wanted: int) -> bool:
    return count < wanted if relation == "less than" else count >= wanted


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE)


def language_of(text: str) -> str | None:
    """Return the ISO 639-1 code of a text's language; None for a text without letters."""
    text = text[:LANGUAGE_CHARACTERS]
    if not any(character.isalpha() for character in text):
        return None
    # In capitals, words are others to the model. Half a character has no UTF-8.
    lower = text.lower().encode(errors="replace").decode()
    return str(_identifier().classify(lower)[0])


def count_sentences(text: str) -> int:
    """Return the number of sentences; what follows the last full stop is one if it has a word."""
    count, begin = 0, 0
    for end in _SENTENCE_END.finditer(text):
        if _goes_on(text, begin, end):
            continue
        count += _WORD.search(text, begin, end.end()) is not None
        begin = end.end()
    return count + (_WORD.search(text, begin) is not None)


def _goes_on(text: str, begin: int, end: re.Match[str]) -> bool:
    """Return whether a sentence goes on after points: an abbreviation, or a small letter next."""
    if "!" in end[0] or "?" in end[0]:
        return False
    if end[0] == "." and _ABBREVIATION.search(text, max(begin, end.end() - 12), end.end()):
        return True
    return text[end.end() : end.end() + 3].lstrip(" \t")[:1].islower()


def existence(answer: str, keywords: list[str]) -> bool:
    lower = answer.lower()
    return all(keyword.lower() in lower for keyword in keywords)


def keyword_frequency(answer: str, keyword: str, frequency: int, relation: str) -> bool:
    return _holds(answer.lower().count(keyword.lower()), relation, frequency)


def forbidden_words(answer: str, forbidden_words: list[str]) -> bool:
    words = "|".join(map(re.escape, forbidden_words))
    return re.search(rf"(?<!\w)(?:{words})(?!\w)", answer, re.IGNORECASE) is None


def letter_frequency(answer: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _holds(answer.lower().count(letter), let_relation, let_frequency)


def response_language(answer: str, language: str) -> bool:
    return language_of(answer) == language


def number_sentences(answer: str, num_sentences: int, relation: str) -> bool:
    return _holds(count_sentences(answer), relation, num_sentences)


def number_paragraphs(answer: str, num_paragraphs: int) -> bool:
    """Paragraphs are divided by `***`, and none between two dividers is empty."""
    first, *others = (part.strip() for part in _DIVIDER.split(answer))
    parts = [part for part in [first] if part] + others
    if parts and not parts[-1]:
        parts.pop()
    return all(parts) and len(parts) == num_paragraphs


def number_words(answer: str, num_words: int, relation: str) -> bool:
    return _holds(len(_WORD.findall(answer)), relation, num_words)


def nth_paragraph_first_word(
    answer: str, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> bool:
    """Paragraphs are divided by blank lines here, and counted from 1."""
    paragraphs = [part for part in _BLANK_LINES.split(answer) if part.strip()]
    if len(paragraphs) != num_paragraphs or not 1 <= nth_paragraph <= num_paragraphs:
        return False
    found = _FIRST_WORD.match(paragraphs[nth_paragraph - 1])
    return found is not None and found[1].lower() == first_word.lower()


def number_placeholders(answer: str, num_placeholders: int) -> bool:
    return len(_PLACEHOLDER.findall(answer)) >= num_placeholders


def postscript(answer: str, postscript_marker: str) -> bool:
    """`P.S.` and `P.P.S` may have spaces within; a text must follow."""
    letters = {"P.S.": r"p\.\s?s\.?", "P.P.S": r"p\.\s?p\.\s?s\.?", "P.P.S.": r"p\.\s?p\.\s?s\.?"}
    marker = letters.get(postscript_marker, re.escape(postscript_marker))
    return re.search(rf"(?<!\w){marker}[^\w]*+\w", answer, re.IGNORECASE) is not None


def number_bullet_lists(answer: str, num_bullets: int) -> bool:
    return len(_BULLET.findall(answer)) == num_bullets


def constrained_response(answer: str) -> bool:
    return any(option in answer for option in OPTIONS)


def number_highlighted_sections(answer: str, num_highlights: int) -> bool:
    """The star of a bullet opens none."""
    return len(_HIGHLIGHT.findall(answer)) >= num_highlights


def multiple_sections(answer: str, section_spliter: str, num_sections: int) -> bool:
    """A section begins with a word and its number: `Section 1`."""
    pattern = rf"(?<!\w){re.escape(section_spliter)}\s?\d"
    return len(re.findall(pattern, answer)) >= num_sections


def json_format(answer: str) -> bool:
    answer = answer.strip()
    fenced = _FENCE.fullmatch(answer)
    try:
        return isinstance(read_json(fenced[1] if fenced else answer), (dict, list))
    except ValueError:
        return False


def title(answer: str) -> bool:
    return any(found.strip() for found in _TITLE.findall(answer))


def two_responses(answer: str) -> bool:
    """Two different responses, divided by `******`."""
    parts = [part.strip() for part in answer.split("******")]
    inner = parts[1:-1]
    given = [part for part in parts if part]
    return all(inner) and len(given) == 2 and given[0] != given[1]


def repeat_prompt(answer: str, prompt_to_repeat: str) -> bool:
    """The request is repeated word for word, and something follows it."""
    answer, prompt = answer.strip().lower(), prompt_to_repeat.lower()
    return answer.startswith(prompt) and bool(answer.removeprefix(prompt).strip())


def end_checker(answer: str, end_phrase: str) -> bool:
    return answer.strip().strip('"').rstrip().lower().endswith(end_phrase.lower())


def quotation(answer: str) -> bool:
    answer = answer.strip()
    return len(answer) > 1 and answer[0] == answer[-1] == '"'


def capital_word_frequency(answer: str, capital_frequency: int, capital_relation: str) -> bool:
    """Words with a hyphen are one word."""
    capitals = Counter(word.isupper() for word in _SPELLED.findall(answer))[True]
    return _holds(capitals, capital_relation, capital_frequency)


def english_capital(answer: str) -> bool:
    return answer.isupper() and language_of(answer) == "en"


def english_lowercase(answer: str) -> bool:
    return answer.islower() and language_of(answer) == "en"


def no_comma(answer: str) -> bool:
    return "," not in answer


CHECKS: dict[str, Check] = {
    "keywords:existence": Check(existence, {"keywords": _texts}),
    "keywords:frequency": Check(
        keyword_frequency, {"keyword": _text, "frequency": _count, "relation": _relation}
    ),
    "keywords:forbidden_words": Check(forbidden_words, {"forbidden_words": _texts}),
    "keywords:letter_frequency": Check(
        letter_frequency, {"letter": _letter, "let_frequency": _count, "let_relation": _relation}
    ),
    "language:response_language": Check(response_language, {"language": _language}),
    "length_constraints:number_sentences": Check(
        number_sentences, {"num_sentences": _count, "relation": _relation}
    ),
    "length_constraints:number_paragraphs": Check(number_paragraphs, {"num_paragraphs": _count}),
    "length_constraints:number_words": Check(
        number_words, {"num_words": _count, "relation": _relation}
    ),
    "length_constraints:nth_paragraph_first_word": Check(
        nth_paragraph_first_word,
        {"num_paragraphs": _count, "nth_paragraph": _count, "first_word": _text},
    ),
    "detectable_content:number_placeholders": Check(
        number_placeholders, {"num_placeholders": _count}
    ),
    "detectable_content:postscript": Check(postscript, {"postscript_marker": _text}),
    "detectable_format:number_bullet_lists": Check(number_bullet_lists, {"num_bullets": _count}),
    "detectable_format:constrained_response": Check(constrained_response, {}),
    "detectable_format:number_highlighted_sections": Check(
        number_highlighted_sections, {"num_highlights": _count}
    ),
    "detectable_format:multiple_sections": Check(
        multiple_sections, {"section_spliter": _text, "num_sections": _count}
    ),
    "detectable_format:json_format": Check(json_format, {}),
    "detectable_format:title": Check(title, {}),
    "combination:two_responses": Check(two_responses, {}),
    "combination:repeat_prompt": Check(repeat_prompt, {"prompt_to_repeat": _text}),
    "startend:end_checker": Check(end_checker, {"end_phrase": _text}),
    "startend:quotation": Check(quotation, {}),
    "change_case:capital_word_frequency": Check(
        capital_word_frequency, {"capital_frequency": _count, "capital_relation": _relation}
    ),
    "change_case:english_capital": Check(english_capital, {}),
    "change_case:english_lowercase": Check(english_lowercase, {}),
    "punctuation:no_comma": Check(no_comma, {}),
}
