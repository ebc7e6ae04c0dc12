"""Whatever a model writes, every rule answers, and at once."""

import time
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.measured import QUICK, best_seconds

from common.config import RewardsConfig
from common.rewards.number import find_last_number, parse_number
from common.rewards.registry import AUX_REWARDS, VERIFY, judge

SCANNERS = [name for name, rule in VERIFY.items() if rule.place == "here"]
GOLD = dict.fromkeys(SCANNERS, "5") | {
    "MULTIPLE_CHOICE": "B",
    "IFEVAL": '[{"id": "startend:quotation"}]',
}
OPENED = {name: aux.open(RewardsConfig().with_limit(100)) for name, aux in AUX_REWARDS.items()}
LOWEST = {"format": 0, "length": -1, "repetition": -1}

MARKS = ["<think>", "</think>", "<answer>", "</answer>", r"\boxed{", "{", "}", r"\{", r"\}", "\\"]
SIGNS = [",", "{,}", ".", "-", "−", "+", "_", "$", r"\$", "%", " ", "\n", "\x00", "\ud800"]
NUMBERS = ["1", "23", "456", "１２", "²", "٣", ".5", "1e9", "1e99999", "nan", "e", "T", "é", "是"]
FRAGMENTS = st.sampled_from([*MARKS, *SIGNS, *NUMBERS])
TEXTS = st.one_of(st.text(), st.lists(FRAGMENTS, max_size=60).map("".join))


@given(TEXTS)
def test_no_text_breaks_a_rule(text: str) -> None:
    for verify_type, gold in GOLD.items():
        verdict = judge(text, {"answer": gold, "verify_type": verify_type})
        assert verdict.verdict in ("correct", "wrong", "no_answer")
        assert verdict.reward == (verdict.verdict == "correct")
    for name, aux_reward in OPENED.items():
        reward = aux_reward(text, {"completion_tokens": len(text)})
        assert reward is not None
        assert LOWEST[name] <= reward <= LOWEST[name] + 1


@given(TEXTS)
def test_what_is_found_in_prose_stands_in_it(text: str) -> None:
    found = find_last_number(text)
    assert found is None or found.lstrip("-+−") in text


FINITE = st.decimals(allow_nan=False, allow_infinity=False)


@given(FINITE)
def test_a_decimal_survives_every_way_to_write_it(value: Decimal) -> None:
    for written in (f"{value}", f"{value:f}", f"{value:e}", f"{value:,f}"):
        assert _same(parse_number(written), value)
        assert _same(parse_number(find_last_number(f"So it is {written}.") or ""), value)


@given(FINITE, FINITE)
def test_numbers_are_equal_when_their_decimals_are(one: Decimal, other: Decimal) -> None:
    assert (parse_number(str(one)) == parse_number(str(other))) == (one == other)


def _same(number: object, value: Decimal) -> bool:
    return number is not None and number == parse_number(str(value))


BYTES = 100_000


def _fill(piece: str) -> str:
    return piece * (BYTES // len(piece.encode()))


ADVERSARIAL = {
    "open boxes": _fill(r"\boxed{"),
    "nested boxes": r"\boxed{" * (BYTES // 8) + "5" + "}" * (BYTES // 8),
    "boxes in boxes beside boxes": _fill(r"\boxed{\boxed{1} "),
    "complete boxes": _fill(r"\boxed{5}"),
    "boxed and spaces": r"\boxed" + " " * BYTES,
    "many boxed and spaces": _fill(r"\boxed      "),
    "open braces": r"\boxed{" + "{" * BYTES,
    "pairs of braces": r"\boxed{" + "{}" * (BYTES // 2),
    "closed braces": "}" * BYTES,
    "backslashes": "\\" * BYTES,
    "digits": "1" * BYTES,
    "full-width digits": _fill("１"),
    "numbers": _fill("1 "),
    "excluded numbers": _fill("x1"),
    "commas": _fill("1,"),
    "thousands": "1" + ",000" * (BYTES // 4),
    "thousands and a letter": "1" + ",000" * (BYTES // 4) + ",00",
    "LaTeX commas": _fill("1{,}"),
    "underscores": _fill("1_"),
    "points": _fill("1."),
    "only points": "." * BYTES,
    "exponents": _fill("1e"),
    "signs": "-" * BYTES,
    "dollars": "$" * BYTES,
    "open think": _fill("<think>"),
    "think pairs": _fill("<think></think>"),
    "open answers": _fill("<answer>"),
    "answer pairs": _fill("<answer>5</answer>"),
    "broken tags": _fill("<answer</answer"),
    "spaces": " " * BYTES,
    "spaces in an answer": "<answer>" + " " * BYTES + "</answer>",
    "case-folding": "<answer>" + "ß" * (BYTES // 2) + "</answer>",
    "letters": "a" * BYTES,
}


@pytest.mark.parametrize("text", ADVERSARIAL.values(), ids=ADVERSARIAL)
def test_100_kb_take_a_fraction_of_a_second(text: str) -> None:
    for verify_type, gold in GOLD.items():
        row = {"answer": gold, "verify_type": verify_type}
        assert best_seconds(lambda row=row: judge(text, row)) < QUICK, verify_type
    for name, aux_reward in OPENED.items():
        row = {"completion_tokens": 1000}
        assert best_seconds(lambda aux=aux_reward, row=row: aux(text, row)) < QUICK, name


def test_ten_thousand_completions_take_about_a_second() -> None:
    steps = "\n".join(f"Step {i}: {i} * 17 = {i * 17}, so {i * 3.5} are left." for i in range(12))
    text = f"<think>\n{steps}\n</think>\n<answer>1,234</answer>, so \\boxed{{1234}}"
    began = time.thread_time()
    for i in range(10_000):
        row = {"answer": "1234", "verify_type": list(VERIFY)[i % 3]}
        assert judge(text, row).reward == 1
        OPENED["format"](text, row)
    assert time.thread_time() - began < 2
