r"""LaTeX and plain notation as one list of tokens, so that equal meanings are written alike.

A token is a number (`1234`, `0.5`), a letter, a sign (`+`, `(`, `°`), a command (`\frac`, `\pi`) or
text, which starts with a quotation mark (`"cm`). Unicode signs become commands, spacing and sizing
disappear, correct thousands groups become one number, and arguments without braces get them.
Everything is linear in the text.
"""

from __future__ import annotations

import re
from fractions import Fraction

from common.rewards.latex.vocabulary import (
    DROPPED,
    FUNCTION_WORDS,
    SHORT_WORDS,
    SUBSCRIPTS,
    SUPERSCRIPTS,
    SYNONYMS,
    TEXT_COMMANDS,
    TO_LATEX,
    unit_name,
)
from common.rewards.number import parse_number

MAX_CHARACTERS = 8192
MAX_TOKENS = 800

TEXT = '"'
OPENING = frozenset({"(", "[", r"\{", r"\langle"})
CLOSING = frozenset({")", "]", r"\}", r"\rangle"})

_TOKEN = re.compile(
    r"\\(?:begin|end)\s*\{[a-z]+\*?\}"
    r"|\\(?:text)?color\s*\{[A-Za-z]+\}"
    r"|\\(?:mathbb|Bbb)\s*\{?\s*[A-Z]\s*\}?"
    r"|\\[A-Za-z]+|\\.|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[^\W\d_]+|\s+|.",
    re.DOTALL,
)
_SUPERSCRIPTS = re.compile("[" + "".join(map(chr, SUPERSCRIPTS)) + "]+")
_SUBSCRIPTS = re.compile("[" + "".join(map(chr, SUBSCRIPTS)) + "]+")
_LATEX_THOUSANDS = re.compile(
    r"(?<![\d.,}])(?<!\d )[0-9]{1,3}(?:(?: ?\{, ?\}|,\\! ?|\\,| )[0-9]{3})+(?! ?\d)"
)
_HALF_DAY = re.compile(r"(?<![A-Za-z])([ap])\. ?m(?![A-Za-z])\.?")
_ELLIPSIS = re.compile(r"\.{2,}|…")
_COLORS = (r"\color", r"\textcolor")
_LETTER_UNITS = frozenset("msghlL")
_UNIT_SIGNS = frozenset({"/", "*", r"\cdot", r"\times"})
_SPACES = frozenset({"~", r"\,", r"\;", r"\:", r"\!", "\\ "})
_PER_CENT = frozenset(TEXT + word for word in ("percent", "per cent", "percentage", "pct"))
# `\\frac` is a row's end and a word nowhere: it is a command that JSON has escaped twice.
_ESCAPED_TWICE = re.compile(r"(?<!\\)\\(?=\\[A-Za-z]{2})")
_NUMERAL = re.compile(r"[-+]?[0-9]")


class UnreadableError(ValueError):
    """The text is not mathematics that this package reads; the message completes "it …"."""


class TooLargeError(UnreadableError):
    """The mathematics would take too long to work out."""


def is_number(token: str) -> bool:
    """Return whether the token is an unsigned number in plain digits."""
    return token[0] in "0123456789" or (token[0] == "." and len(token) > 1)


def is_letter(token: str) -> bool:
    """Return whether the token is one letter, a variable."""
    return len(token) == 1 and token.isalpha()


def fraction_of(token: str) -> Fraction:
    """Return the exact value of a number's token.

    Raises:
        TooLargeError: it has too many digits.
    """
    number = parse_number(token)
    if number is None:
        raise TooLargeError("has a number that is too large")
    value = Fraction(int(number.digits or "0"))
    value *= Fraction(10) ** (number.exponent - len(number.digits))
    return -value if number.negative else value


def tokens_of(latex: str) -> list[str]:
    """Return the tokens of `latex`, without space and size commands.

    Raises:
        TooLargeError: there are more than 8,192 characters or 800 tokens.
    """
    if len(latex) > MAX_CHARACTERS:
        raise TooLargeError(f"is longer than {MAX_CHARACTERS} characters")
    latex = _ESCAPED_TWICE.sub("", latex)
    latex = _SUPERSCRIPTS.sub(lambda run: f"^{{{run[0].translate(SUPERSCRIPTS)}}}", latex)
    latex = _SUBSCRIPTS.sub(lambda run: f"_{{{run[0].translate(SUBSCRIPTS)}}}", latex)
    latex = _ELLIPSIS.sub(r"\\ldots ", latex.translate(TO_LATEX))
    latex = _HALF_DAY.sub(r"\1m", latex)
    latex = _LATEX_THOUSANDS.sub(lambda number: re.sub(r"\D", "", number[0]), latex)
    tokens = _without_space(_thousands(_with_text(_TOKEN.findall(latex))))
    tokens = _with_braces(_with_binomials(_joined(tokens)))
    if len(tokens) > MAX_TOKENS:
        raise TooLargeError(f"has more than {MAX_TOKENS} signs")
    return tokens


def written(tokens: list[str]) -> str:
    """Return the tokens as one text, which is equal for equal tokens."""
    return " ".join(tokens)


def _with_text(raw: list[str]) -> list[str]:
    r"""Replace `\text{…}` and its kin by a text token.

    If it contains a number or a variable, that takes its place instead.
    """
    tokens: list[str] = []
    after_text = False
    i = 0
    while i < len(raw):
        token = raw[i]
        start = i + 1
        while start < len(raw) and raw[start].isspace():
            start += 1
        if token not in TEXT_COMMANDS or start >= len(raw) or raw[start] != "{":
            tokens.append(token)
            i += 1
            continue
        end, depth = start, 0
        while end < len(raw):
            depth += (raw[end] == "{") - (raw[end] == "}")
            if depth == 0:
                break
            end += 1
        inside = raw[start + 1 : end]
        inside = [t for t in inside if t not in ("{", "}", *TEXT_COMMANDS)]
        text = _unit(token, inside, tokens, after_text) or _text(token, inside)
        after_text |= any(t.startswith(TEXT) for t in text)
        tokens += text
        i = end + 1
    return tokens


def _unit(command: str, inside: list[str], before: list[str], after_text: bool) -> list[str]:
    r"""Return a unit of one letter as text: `\mathrm{~m}`, or `\mathrm{m}` at a number or unit."""
    content = "".join(inside)
    letter = content.replace(r"\ ", " ").replace(r"\,", " ").replace("~", " ").strip()
    if command != r"\mathrm" or len(letter) != 1 or not letter.isalpha():
        return []
    if content != letter:
        return [TEXT + letter]
    last = next((t for t in reversed(before) if t not in _SPACES and not t.isspace()), " ")
    follows = is_number(last) or last == "}" or last.startswith(TEXT)
    if letter in _LETTER_UNITS and (follows or (after_text and last in _UNIT_SIGNS)):
        return [TEXT + letter]
    return []


def _text(command: str, inside: list[str]) -> list[str]:
    content = "".join(inside).replace(r"\ ", " ").replace(r"\,", " ").replace("~", " ").strip()
    if not content:
        return [" "]
    if _NUMERAL.match(content) or any(token.startswith("\\") for token in inside):
        return inside
    if content in FUNCTION_WORDS:
        return ["\\" + FUNCTION_WORDS[content]]
    if len(content) == 1 and command in (r"\mathrm", r"\mathit", r"\mathsf", r"\operatorname"):
        return [content]
    if len(content) == 1 and command in (r"\mathbf", r"\boldsymbol", r"\bm"):
        return [rf"\mathbf{content}"]
    return _separators(content)


def _separators(content: str) -> list[str]:
    r"""Return text with `\lor` in the place of each "and", "or" and comma."""
    tokens: list[str] = []
    for part in re.split(r"(?<!\w)(and|or)(?!\w)|(,)", content):
        if part in ("and", "or", ","):
            tokens.append(r"\lor")
        elif part and part.strip():
            tokens.append(TEXT + part.strip())
    return tokens


def _thousands(raw: list[str]) -> list[str]:
    """Join 1,234,567 into one number, outside of brackets, where commas separate."""
    tokens: list[str] = []
    depth = 0
    i = 0
    while i < len(raw):
        depth += (raw[i] in OPENING) - (raw[i] in CLOSING)
        end = i + 1
        if depth <= 0 and re.fullmatch("[1-9][0-9]{0,2}", raw[i]):
            while raw[end : end + 1] == [","] and re.fullmatch(
                r"[0-9]{3}(?:\.[0-9]*)?", "".join(raw[end + 1 : end + 2])
            ):
                end += 2
                if "." in raw[end - 1]:
                    break
            follows = raw[end : end + 1] == [","] and is_number(
                "".join(raw[end + 1 : end + 2]) or " "
            )
            if follows:
                end = i + 1
        tokens.append("".join(raw[i:end]).replace(",", "") if end > i + 1 else raw[i])
        i = end
    return tokens


def _without_space(raw: list[str]) -> list[str]:
    """Give each sign one name, tell words from variables, and drop space."""
    tokens: list[str] = []
    for token in raw:
        if token.isspace() or token in DROPPED or token.startswith(_COLORS):
            continue
        token = SYNONYMS.get(token, token)
        if token.startswith((r"\mathbb", r"\Bbb")):
            tokens.append(rf"\mathbb{token.strip(' {}')[-1]}")
        elif token[0].isalpha() and len(token) > 1:
            tokens += _word(token, tokens[-1] if tokens else "")
        else:
            tokens.append(token)
    return tokens


def _word(word: str, before: str) -> list[str]:
    """Read a run of letters: a function's name, a unit, text, or variables side by side."""
    if word in FUNCTION_WORDS:
        return ["\\" + FUNCTION_WORDS[word]]
    if word in ("and", "or"):
        return [r"\lor"]
    unit_follows = before.startswith(TEXT) or is_number(before or " ") or before == "}"
    half_day = unit_follows and word in ("am", "pm", "pct")
    if (
        len(word) > 3
        or word.lower() in SHORT_WORDS
        or (unit_follows and unit_name(word))
        or half_day
    ):
        return [TEXT + word]
    return list(word)


def _joined(raw: list[str]) -> list[str]:
    r"""Join text with the text after it, and signs that are one: `^\circ`, `**`, `^\prime`."""
    tokens: list[str] = []
    for token in raw:
        if token.startswith(TEXT) and tokens and tokens[-1].startswith(TEXT):
            tokens[-1] += " " + token[1:]
        elif token in (r"\circ", "°") and tokens[-1:] == ["^"]:
            tokens[-1] = "°"
        elif token == "}" and tokens[-3:] in (["^", "{", r"\circ"], ["^", "{", "°"]):
            tokens[-3:] = ["°"]
        elif token == "'" and tokens[-1:] == ["^"]:
            tokens[-1] = "'"
        elif token == "}" and tokens[-3:] == ["^", "{", "'"]:
            tokens[-3:] = ["'"]
        elif token == "*" and tokens[-1:] == ["*"]:
            tokens[-1] = "^"
        elif token == "=" and tokens[-1:] in (["<"], [">"]):
            tokens[-1] = r"\le" if tokens[-1] == "<" else r"\ge"
        elif token == "=" and tokens[-1:] == ["!"] and not _ends_number(tokens[:-1]):
            tokens[-1] = r"\ne"
        elif token.lower() in _PER_CENT:
            tokens.append("%")
        elif token.lower() in (TEXT + "degrees", TEXT + "degree"):
            tokens.append("°")
        else:
            tokens.append(token)
    return tokens


def _ends_number(tokens: list[str]) -> bool:
    """Return whether `!` after these tokens is a factorial: in `5! = 120`, but not in `x != 3`."""
    return bool(tokens) and (is_number(tokens[-1]) or tokens[-1] in (")", "}"))


def _with_binomials(raw: list[str]) -> list[str]:
    r"""Write `{n \choose k}` as `\binom{n}{k}`."""
    tokens: list[str] = []
    opened: list[int] = []
    chosen: set[int] = set()  # braces that hold a binomial
    for token in raw:
        if token == "{":
            opened.append(len(tokens))
        elif token == r"\choose" and opened and opened[-1] not in chosen:
            chosen.add(opened[-1])
            tokens += ["}", "{"]
            continue
        elif token == "}" and opened:
            opened.pop()
        tokens.append(token)
    return [
        piece
        for i, token in enumerate(tokens)
        for piece in ([r"\binom", token] if i in chosen else [token])
    ]


def _with_braces(raw: list[str]) -> list[str]:
    r"""Write `\frac12` and `\frac1{2}` as `\frac{1}{2}`; of a number LaTeX takes one digit."""
    tokens: list[str] = []
    missing = 0  # arguments that the last fraction lacks
    depth = 0
    inside: list[tuple[int, int]] = []  # (depth, missing) of groups that are arguments
    for token in raw:
        pieces = [token]
        if missing and token.isdecimal() and len(token) > 1:
            pieces = [*token[:missing], token[missing:]]
        for piece in filter(None, pieces):
            if missing and piece not in ("{", r"\frac", r"\binom") and piece not in "+-":
                tokens += ["{", piece, "}"]
                missing -= 1
                continue
            tokens.append(piece)
            if piece == "{":
                depth += 1
                inside.append((depth, max(missing - 1, 0)))
                missing = 0
            elif piece == "}" and inside:
                depth -= 1
                missing = inside.pop()[1]
            if piece in (r"\frac", r"\binom"):
                missing = 2
    return tokens
