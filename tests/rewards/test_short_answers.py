"""The rules for short answers, case by case: a completion, its gold, and what it is worth."""

import pytest

from common.rewards.registry import judge

# completion, gold, reward
LAST_NUMBER = [
    ("The answer is 14.", "14", 1),
    ("14, or 15", "14", 0),
    ("1,234", "1234", 1),
    ("1,23,4", "1234", 0),
    ("total 1,234.50.", "1234.5", 1),
    ("range 3-5", "5", 1),
    ("−5", "-5", 1),
    ("1e3", "1000", 1),
    ("1e3000000", "5", 0),
    ("10²", "102", 0),
    ("10²", "10", 0),
    ("5²", "5", 0),
    ("3, then 10²", "3", 0),
    ("10⁻³", "10", 0),
    ("-1,234²", "-1234", 0),
    ("5 m²", "5", 1),
    ("5m²", "5", 1),
    ("x² = 5", "5", 1),
    ("10² is 100", "100", 1),
    ("１２", "12", 1),
    ("<think>13</think>14", "14", 1),
    ("<think>14", "14", 0),
    # The seed read "1,234" as 234.
    ("1,234", "234", 0),
    ("12,345,678", "12345678", 1),
    ("12,345,678", "678", 0),
    ("1{,}234{,}567", "1234567", 1),
    ("1,234", "1,234", 1),
    ("1234,567", "1234567", 0),
    ("0,123", "0.123", 0),
    ("(1,2)", "2", 1),
    ("we have 1, 234", "1234", 0),
    ("1 234", "1234", 0),
    ("1_000", "1000", 0),
    ("1_000", "0", 0),
    ("1_000", "1", 0),
    # exactly, as decimals
    ("9007199254740993", "9007199254740992", 0),
    ("9007199254740993", "9007199254740993.000", 1),
    ("0.1", "0.1000000000000000055511151231257827", 0),
    ("14.0", "14", 1),
    ("1.4e1", "14", 1),
    ("1.4E+1", "14", 1),
    ("140e-1", "14", 1),
    ("140e−1", "14", 1),
    ("0014", "14", 1),
    ("-0", "0", 1),
    ("0.000", "0", 1),
    ("0e9", "0", 1),
    (".5", "0.5", 1),
    ("-.5", "-0.5", 1),
    ("1e-10000", "1e-10000", 1),
    ("9" * 4096, "9" * 4096, 1),
    ("9" * 4097, "5", 0),
    ("5 or rather " + "9" * 4097, "5", 0),
    ("5 or rather 1e10001", "5", 0),
    # signs, dashes, points
    ("-5", "-5", 1),
    ("-5", "5", 0),
    ("+5", "5", 1),
    ("= -5", "-5", 1),
    ("$-5$", "-5", 1),
    ("3 - 5", "5", 1),
    ("3−5", "5", 1),
    ("10%-20%", "20", 1),
    ("- 14 days", "14", 1),
    ("wait--5", "5", 1),
    ("so...14", "14", 1),
    ("so...14", "0.14", 0),
    ("1.2.3", "3", 1),
    ("See page.5", "5", 1),
    # letters
    ("14days", "14", 1),
    ("14 then T3", "14", 1),
    ("14 then x2", "14", 1),
    ("14 then x2.5", "14", 1),
    ("14 then x_2", "14", 1),
    ("14 then GPT-4", "14", 1),
    ("14 then é3", "14", 1),
    ("T3", "3", 0),
    ("答案是14。", "14", 1),
    ("__14__", "14", 1),
    ("**14**", "14", 1),
    ("14em", "14", 1),
    ("2e", "2", 1),
    # money and per cent
    ("$14", "14", 1),
    ("it costs US$14.50", "14.5", 1),
    (r"\$1,000", "1000", 1),
    ("-$5", "-5", 1),
    ("$3-$5", "5", 1),
    ("50%", "50", 1),
    (r"50\%", "50", 1),
    ("50%", "0.5", 0),
    ("$18", "$18", 1),
    ("50", "50%", 1),
    # other scripts' digits are text
    ("١٢", "12", 0),
    ("12 ٣", "12", 1),
    ("१४", "14", 0),
    ("Ⅳ", "4", 0),
    ("½", "2", 0),
    # the answer part
    ("14", "14", 1),
    ("", "14", 0),
    ("no number", "14", 0),
    ("<think>14</think>", "14", 0),
    ("<think>14</think>none", "14", 0),
    ("13</think>14", "14", 1),
    ("<think>a</think>13<think>b</think>14", "14", 1),
    ("<think>a</think>14<think>15", "14", 0),
    ("<think><think>13</think>14", "14", 1),
    ("<answer>14</answer>", "14", 1),
]

BOXED_NUMERICAL = [
    (r"\boxed{12", "12", 0),
    (r"\boxed{5} wait, \boxed{6}", "6", 1),
    (r"\boxed{\boxed{4}}", "4", 1),
    (r"\boxed{}", "0", 0),
    (r"\boxed{" * 4000, "5", 0),
    (r"\boxed{5} wait, \boxed{6}", "5", 0),
    (r"\boxed{5} wait, \boxed{6", "5", 1),
    (r"\boxed{6 \boxed{7}}", "7", 0),
    (r"\boxed{6 \boxed{7}}", "6", 0),
    (r"\boxed{6 \boxed{7}", "7", 1),
    (r"\boxed{ \boxed{ 4 } }", "4", 1),
    (r"\boxed{4}}", "4", 1),
    (r"} \boxed{4}", "4", 1),
    (r"{ \boxed{4}", "4", 1),
    (r"\boxed {4}", "4", 1),
    (r"\\boxed{4}", "4", 1),
    (r"\\\boxed{4}", "4", 1),
    (r"\boxed{\{4\}}", "4", 0),
    (r"\boxed{4\}", "4", 0),
    (r"\boxed{1{,}234}", "1234", 1),
    (r"\boxed{1,234}", "1234", 1),
    (r"\boxed{-.5}", "-0.5", 1),
    (r"\boxed{１２}", "12", 1),
    (r"\boxed{14, 15}", "14", 0),
    (r"\boxed{14, 15}", "15", 0),
    (r"\boxed{1,2}", "12", 0),
    (r"\boxed{14 or 15}", "15", 0),
    (r"\boxed{x=14}", "14", 0),
    (r"\boxed{\text{14}}", "14", 0),
    (r"\boxed{3-5}", "5", 0),
    (r"\boxed{14} so the last number is 15", "14", 1),
    ("the answer is 14", "14", 0),
    ("boxed{14}", "14", 0),
    (r"<think>\boxed{14}</think>", "14", 0),
    (r"<think>\boxed{13}</think>\boxed{14}", "14", 1),
    (r"\boxed{1e3000000}", "5", 0),
]

ANSWER_TAG = [
    ("<answer>14</answer> hmm 15", "14", 1),
    ("<answer>13</answer><answer>14</answer>", "14", 0),
    ("<answer>14", "14", 0),
    ("<answer>13</answer><answer>14</answer>", "13", 0),
    ("<answer>14</answer><answer>14</answer>", "14", 0),
    ("<answer>14</answer><answer>", "14", 0),
    ("<answer><answer>14</answer></answer>", "14", 0),
    ("14</answer>", "14", 0),
    ("</answer>14<answer>", "14", 0),
    ("<answer></answer>", "14", 0),
    ("<answer>14 or 15</answer>", "14", 0),
    ("<answer>14 or 15</answer>", "15", 0),
    ("<answer> 14.0\n</answer>", "14", 1),
    ("<answer>1,234</answer>", "1234", 1),
    ("<answer>１４</answer>", "14", 1),
    ("<answer>9007199254740993</answer>", "9007199254740992", 0),
    ("<answer>14 days</answer>", "14", 0),
    ("<answer>Paris</answer>", "paris", 1),
    ("<answer> STRASSE </answer>", "Straße", 1),
    ("<answer>New  York</answer>", "New York", 0),
    ("<answer>Paris</answer>", "London", 0),
    ("<ANSWER>14</ANSWER>", "14", 0),
    ("<think><answer>13</answer></think><answer>14</answer>", "14", 1),
    ("<think><answer>14</answer></think>", "14", 0),
    ("<think><answer>14</answer>", "14", 0),
]

EXACT = [
    ("Paris", "Paris", 1),
    (" Paris\n", "Paris", 1),
    ("Paris", " Paris ", 1),
    ("paris", "Paris", 0),
    ("Paris.", "Paris", 0),
    ("14.0", "14", 0),
    ("a  b", "a b", 0),
    ("", "Paris", 0),
    ("<think>Rome?</think>\nParis", "Paris", 1),
    ("<think>Paris", "Paris", 0),
]

CASES = [
    (verify_type, completion, gold, reward)
    for verify_type, cases in {
        "LAST_NUMBER": LAST_NUMBER,
        "BOXED_NUMERICAL": BOXED_NUMERICAL,
        "ANSWER_TAG": ANSWER_TAG,
        "EXACT": EXACT,
    }.items()
    for completion, gold, reward in cases
]


@pytest.mark.parametrize(
    ("verify_type", "completion", "gold", "reward"),
    CASES,
    ids=[f"{v}-{c[:30]!r}-{g[:20]!r}" for v, c, g, _ in CASES],
)
def test_case(verify_type: str, completion: str, gold: str, reward: float) -> None:
    verdict = judge(completion, {"answer": gold, "verify_type": verify_type})
    assert verdict.reward == reward
    assert (verdict.verdict == "correct") == (reward == 1)
    assert verdict.verdict in ("correct", "wrong", "no_answer")


@pytest.mark.parametrize(
    ("verify_type", "completion", "outcome", "extracted"),
    [
        ("LAST_NUMBER", "13 and then 14 days", "wrong", "14"),
        ("LAST_NUMBER", "none", "no_answer", None),
        ("LAST_NUMBER", "<think>12", "no_answer", None),
        ("LAST_NUMBER", "1e3000000", "wrong", "1e3000000"),
        ("LAST_NUMBER", "12, then 12²", "wrong", "12²"),
        ("BOXED_NUMERICAL", r"\boxed{}", "no_answer", None),
        ("BOXED_NUMERICAL", r"\boxed{ a b }", "wrong", "a b"),
        ("BOXED_NUMERICAL", r"\boxed{12", "no_answer", None),
        ("ANSWER_TAG", "<answer>12", "no_answer", None),
        ("ANSWER_TAG", "<answer> </answer>", "no_answer", None),
        ("ANSWER_TAG", "<answer>12</answer> <answer>12</answer>", "wrong", "12</answer>"),
        ("EXACT", "  ", "no_answer", None),
        ("EXACT", "13", "wrong", "13"),
    ],
)
def test_outcome_says_whether_there_was_an_answer(
    verify_type: str, completion: str, outcome: str, extracted: str | None
) -> None:
    verdict = judge(completion, {"answer": "12", "verify_type": verify_type})
    assert verdict.verdict == outcome
    assert (extracted or "") in (verdict.extracted or "")
    assert (verdict.extracted is None) == (extracted is None)
