"""repetition: minus the share of n-grams that occurred before in the text, 0 down to -1."""

from __future__ import annotations

import re

from common.config import RewardsConfig
from common.rewards.rule import Reward, Row

# Kana, hangul and Chinese characters are written without spaces. A run of more than 16 characters
# is cut, or "hahahaha…" would be one word that never repeats.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]{{1,16}}|[^\s\w]")


def open_rule(rewards: RewardsConfig) -> Reward:
    """Reward by the text itself, in any language; 0 for fewer than `ngram` words.

    A word is a run of up to 16 letters, digits and underscores; every kana, hangul or Chinese
    character and every other sign is a word by itself. Case does not matter.
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
