"""length: the soft overlong punishment of DAPO, 0 down to -1 as a completion nears its limit."""

from __future__ import annotations

from common.config import RewardsConfig
from common.errors import UserError
from common.rewards.rule import Reward, Row


def open_rule(rewards: RewardsConfig) -> Reward:
    """Reward by the completion's number of sampled tokens, column `completion_tokens`.

    With M `max_tokens`, B `buffer_tokens` and n the completion's tokens (arXiv 2503.14476, eq. 13):
    0 for n ≤ M - B, (M - B - n) / B up to n = M, -1 beyond.

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
