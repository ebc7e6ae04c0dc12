"""The format reward: thinking, then an answer, whole and once."""

import pytest

from common.rewards import format

FORMAT = [
    ("<think>a</think><answer>b</answer>", 1),
    ("<think>a</think>\n<answer>b</answer>\n", 1),
    (" <think>\na\n</think>\n\n<answer> b </answer>", 1),
    ("<think></think><answer>b</answer>", 1),
    ("a</think><answer>b</answer>", 0),
    ("<think>a</think><answer>b", 0),
    ("<think>a</think><answer>b</answer> and more", 0),
    ("So: <think>a</think><answer>b</answer>", 0),
    ("<think>a</think> so <answer>b</answer>", 0),
    ("<think>a</think><answer>b</answer><answer>c</answer>", 0),
    ("<think><think>a</think><answer>b</answer>", 0),
    ("<think>a</think></think><answer>b</answer>", 0),
    ("<think>a<answer>b</answer></think>", 0),
    ("<answer>b</answer><think>a</think>", 0),
    ("<think>a</answer></think><answer>b", 0),
    ("", 0),
]


@pytest.mark.parametrize(("text", "reward"), FORMAT)
def test_format_is_whole_and_once(text: str, reward: float) -> None:
    assert format.reward(text, {}) == reward
