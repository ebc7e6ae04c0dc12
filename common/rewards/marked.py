"""What a completion marks as its answer: fenced blocks, answer tags, boxes.

All scanners here are linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from common.rewards.answer_part import ANSWER_OPEN, last_box, tagged_answer

# An answer tag may stand on the fence's line. `*+` tries nothing twice: lines may be long.
_OPENING = re.compile(r"[ \t]*+(?:<answer>[ \t]*+)?(`{3,}+|~{3,}+)[ \t]*+([^\s`]*+)[^`]*+")
_CLOSING = re.compile(r"[ \t]*+(`{3,}+|~{3,}+)[ \t]*+(?:</answer>.*)?")


def marked_or_whole(part: str) -> str:
    """Return the content of the answer tag, else of the last box, else the whole answer part.

    Args:
        part: an answer part with at most one answer tag. A tag that is not closed holds nothing.
    """
    if ANSWER_OPEN in part:
        return (tagged_answer(part) or "").strip()
    boxed = last_box(part)
    return (part if boxed is None else boxed).strip()


def last_block(part: str, languages: Sequence[str]) -> str | None:
    """Return the last fenced block in one of `languages`, else the last without a language.

    The result is None if there is neither. A fence that is never closed makes no block: what it
    holds may be half an answer.

    Args:
        part: any text.
        languages: in lower case.
    """
    said: str | None = None
    unsaid: str | None = None
    for language, content in _blocks(part):
        if language in languages:
            said = content
        elif not language:
            unsaid = content
    return unsaid if said is None else said


def _blocks(text: str) -> Iterator[tuple[str, str]]:
    """Yield (language in lower case, content) of each closed block, as Markdown reads fences."""
    fence, language = "", ""
    lines: list[str] = []
    for line in text.replace("\r\n", "\n").split("\n"):
        if not fence:
            if opening := _OPENING.fullmatch(line):
                fence, language = opening[1], opening[2].lower()
                lines = []
        elif (closing := _CLOSING.fullmatch(line)) and closing[1].startswith(fence):
            yield language, "\n".join(lines)
            fence = ""
        else:
            lines.append(line)
