"""The built-in auxiliary rewards: `format`, `length` and `repetition`.

An auxiliary reward adds to the answer's reward with a weight that the recipe gives it. Functions of
the user's own are the others; see `registry.py`.
"""

from __future__ import annotations

import re

from common.config import RewardsConfig
from common.errors import UserError
from common.rewards.answer_part import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN
from common.rewards.rule import Reward, Row

# Kana, hangul and Chinese characters are written without spaces. A run of more than 16 characters
# is cut, or "hahahaha…" would be one word that never repeats.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]{{1,16}}|[^\s\w]")


def format_reward(text: str, row: Row) -> float:
    """Return 1 for `<think>…</think><answer>…</answer>`, whole and once, and else 0.

    White space is allowed around the two parts; any other text there, or a tag that comes twice,
    gives 0. `text` includes the assistant prefix, so that a template which opens `<think>` itself
    counts. The parts may be empty: the row's verify type judges what they hold.
    """
    text = text.strip()
    if any(text.count(tag) != 1 for tag in (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)):
        return 0.0
    thinking, _, answering = text.partition(THINK_CLOSE)
    answering = answering.lstrip()
    whole = (
        thinking.startswith(THINK_OPEN)
        and answering.startswith(ANSWER_OPEN)
        and answering.endswith(ANSWER_CLOSE)
    )
    return 1.0 if whole else 0.0


def open_length(rewards: RewardsConfig) -> Reward:
    """Return DAPO's soft overlong punishment, for completions near their length limit.

    The reward depends on the number of sampled tokens n, column `completion_tokens`. With
    M = `max_tokens` and B = `buffer_tokens` (arXiv 2503.14476, eq. 13) it is 0 for n ≤ M - B,
    (M - B - n) / B up to n = M, and -1 beyond.

    Raises:
        UserError: `max_tokens` is not known, or less than `buffer_tokens`.
    """
    limit = rewards.length.max_tokens
    if limit is None:
        raise UserError(
            "rewards.length.max_tokens: not given, and there is no rollout to take it from; "
            "set it to the number of tokens at which the reward is to reach -1"
        )
    given = rewards.length.buffer_tokens
    buffer = max(1, limit // 5) if given == "auto" else given
    if buffer > limit:
        raise UserError(
            f"rewards.length.buffer_tokens is {buffer}, more than max_tokens, {limit}: every "
            f"completion would be punished; set it to {limit} or less"
        )

    def reward(text: str, row: Row) -> float:
        overlong = int(row["completion_tokens"]) - (limit - buffer)
        return -min(overlong / buffer, 1.0) if overlong > 0 else 0.0

    return reward


def open_repetition(rewards: RewardsConfig) -> Reward:
    """Return the punishment of repetition: minus the share of n-grams that occurred before.

    It reads the text alone, in any language, and gives a number from -1 to 0; for fewer than
    `ngram` words it gives 0. A word is a run of up to 16 letters, digits and underscores; every
    kana, hangul or Chinese character, and every other sign, is a word by itself. Case does not
    count.
    """
    n = rewards.repetition.ngram

    def reward(text: str, row: Row) -> float:
        words = _WORD.findall(text.casefold())
        count = len(words) - n + 1
        if count < 1:
            return 0.0
        distinct = len(set(zip(*(words[start:] for start in range(n)), strict=False)))
        return distinct / count - 1.0

    return reward
