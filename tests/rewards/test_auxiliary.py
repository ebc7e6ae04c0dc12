"""The built-in auxiliary rewards: format, length, repetition."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.measured import QUICK, best_seconds

from common.config import RewardsConfig
from common.config.rewards import LengthReward, RepetitionReward
from common.errors import UserError
from common.rewards.auxiliary import format_reward, open_length, open_repetition
from common.rewards.rule import Reward

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
    assert format_reward(text, {}) == reward


def length_reward(max_tokens: int | None, buffer_tokens: int) -> Reward:
    section = LengthReward(weight=1.0, max_tokens=max_tokens, buffer_tokens=buffer_tokens)
    return open_length(RewardsConfig(length=section))


def repetition_reward(ngram: int) -> Reward:
    return open_repetition(RewardsConfig(repetition=RepetitionReward(ngram=ngram)))


@pytest.mark.parametrize(
    ("tokens", "reward"),
    [(0, 0), (60, 0), (80, 0), (81, -0.05), (90, -0.5), (99, -0.95), (100, -1), (101, -1)],
)
def test_length_falls_linearly_over_the_buffer(tokens: int, reward: float) -> None:
    """DAPO, arXiv 2503.14476, equation 13, with a limit of 100 and a buffer of 20 tokens."""
    assert length_reward(100, 20)("any text", {"completion_tokens": tokens}) == reward


def test_length_counts_tokens_and_not_text() -> None:
    reward = length_reward(100, 20)
    assert reward("x" * 10_000, {"completion_tokens": 3}) == 0
    assert reward("", {"completion_tokens": 100}) == -1


@given(st.integers(1, 500), st.integers(1, 500), st.integers(0, 1500))
def test_length_is_the_papers_formula(limit: int, buffer: int, tokens: int) -> None:
    if buffer > limit:
        return
    if tokens <= limit - buffer:
        expected = 0.0
    elif tokens <= limit:
        expected = ((limit - buffer) - tokens) / buffer
    else:
        expected = -1.0
    assert length_reward(limit, buffer)("", {"completion_tokens": tokens}) == expected


@pytest.mark.parametrize(
    ("limit", "buffer", "field"),
    [(None, 20, "rewards.length.max_tokens"), (10, 20, "rewards.length.buffer_tokens")],
)
def test_length_without_a_sensible_limit_is_refused(
    limit: int | None, buffer: int, field: str
) -> None:
    with pytest.raises(UserError, match=field):
        length_reward(limit, buffer)


@pytest.mark.parametrize(
    ("text", "ngram", "reward"),
    [
        ("", 1, 0),
        ("a b c", 4, 0),
        ("a b c d", 4, 0),
        ("one two three four five six seven", 4, 0),
        ("a a", 1, -1 / 2),
        ("a b a b", 2, -1 / 3),
        ("a b a b", 4, 0),
        ("a b c d a b c d", 4, -1 / 5),
        ("A b a B", 2, -1 / 3),
        ("a, a, a, a", 2, -4 / 6),
        ("so so so so so", 2, -3 / 4),
        ("x " * 1000, 4, -996 / 997),
        # without spaces
        ("ha" * 800, 2, -98 / 99),
        ("!" * 103, 4, -99 / 100),
        ("好" * 103, 4, -99 / 100),
        ("今日は今日は", 3, -1 / 4),
        ("天地玄黄宇宙洪荒", 4, 0),
        ("ไทย" * 160, 4, -24 / 27),
        # all that is written once
        ("The quick brown fox jumps over the lazy dog", 2, 0),
        ("3 + 4 = 7 and 7 - 4 = 3", 3, 0),
    ],
)
def test_repetition_is_the_share_of_ngrams_seen_before(
    text: str, ngram: int, reward: float
) -> None:
    assert repetition_reward(ngram)(text, {}) == pytest.approx(reward)


def naive_repetition(words: list[str], ngram: int) -> float:
    """The definition, word for word."""
    grams = [tuple(words[i : i + ngram]) for i in range(len(words) - ngram + 1)]
    again = [gram for i, gram in enumerate(grams) if gram in grams[:i]]
    return -len(again) / len(grams) if grams else 0.0


@given(st.lists(st.sampled_from(["a", "B", "b", "ab", "7", "!"]), max_size=40), st.integers(1, 6))
def test_repetition_is_its_definition(words: list[str], ngram: int) -> None:
    expected = naive_repetition([word.lower() for word in words], ngram)
    assert repetition_reward(ngram)(" ".join(words), {}) == pytest.approx(expected)


@given(st.text(), st.integers(1, 8))
def test_repetition_lies_between_minus_one_and_zero(text: str, ngram: int) -> None:
    assert -1 <= repetition_reward(ngram)(text, {}) <= 0


@pytest.mark.parametrize("piece", ["a ", "a", "!", "好", "ab, ", "1 2 3 ", " ", "\n", "😀", "ß"])
def test_100_kb_take_a_fraction_of_a_second(piece: str) -> None:
    text = piece * (100_000 // len(piece.encode()))
    reward = repetition_reward(4)
    assert best_seconds(lambda: reward(text, {})) < QUICK
