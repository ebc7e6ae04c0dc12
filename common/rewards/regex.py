r"""REGEX: the whole answer matches the row's regular expression.

The answer is the content of the single `<answer>…</answer>`, else of the last `\boxed{…}`, else the
whole answer part, without surrounding white space. All of it must match: a completion that writes
everything down would hold any short match somewhere. A pattern that may stand within other text
says so: `(?s).*\bParis\b.*`.

Patterns are matched by RE2 (https://github.com/google/re2), whose time is linear in the text
whatever the pattern: with Python's own `re` a harmless pattern such as `(a|b|ab)*c` runs for hours
on a text that a model may well write. So the rule needs no process that can be killed. RE2 has
neither backreferences nor lookaround; patterns that use them are refused when they are read.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from common.config import RewardsConfig
from common.errors import MissingToolError
from common.rewards.answer_part import answer_part, several_answers
from common.rewards.marked import marked_or_whole
from common.rewards.rule import NO_ANSWER, GoldError, Row, Verdict, graded

INSTALL = "`make extras`"
MAX_MEMORY = 64 << 20
"""Bytes that one pattern may take, compiled."""


def require(rewards: RewardsConfig) -> None:
    """Check that RE2 is installed.

    Raises:
        MissingToolError: it is not.
    """
    if find_spec("re2") is None:
        raise MissingToolError(f"REGEX needs the package google-re2: {INSTALL}")


@lru_cache(1024)
def read_gold(answer: str) -> Any:
    """Return the pattern, compiled.

    Raises:
        GoldError: it is empty, or no regular expression that RE2 reads.
        MissingToolError: RE2 is not installed.
    """
    require(RewardsConfig())
    import re2

    pattern = answer.strip()
    if not pattern:
        raise GoldError("is empty")
    options = re2.Options()
    options.log_errors = False
    options.max_mem = MAX_MEMORY
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        said = error.args[0]
        reason = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
        raise GoldError(f"is no regular expression of RE2: {reason}") from None


def judge(text: str, row: Row) -> Verdict:
    """Match the whole answer with the pattern."""
    pattern = read_gold(row["answer"])
    part = answer_part(text) or ""
    if (several := several_answers(part)) is not None:
        return graded(False, several)
    answer = marked_or_whole(part)
    if not answer:
        return NO_ANSWER
    # Half a character, which JSON can say, has no UTF-8.
    return graded(pattern.fullmatch(answer.encode(errors="replace").decode()) is not None, answer)
