r"""What stands beside an answer belongs to it: no rule pays an answer that its sentence changes.

The styles of right and of changed answers are `data/suites/styles.toml`. Most of these cases were
judged otherwise while only the content of a box or formula was read.
"""

from __future__ import annotations

import pytest
from support.math_cases import verdict_on
from support.measured import QUICK, best_seconds

from common.rewards.math_answer import judge as judge_math
from common.rewards.math_answer import read_gold
from common.rewards.registry import VERIFY
from common.rewards.rule import GoldError
from workflows.suite_files import (
    MARKED,
    RULES,
    Case,
    changed_cases,
    own_golds,
    right_styles,
    style_cases,
)


def passes(case: Case) -> bool:
    judge = judge_math if case.rule == "MATH" else VERIFY[case.rule].open(None)
    return judge(case.text, {"answer": case.gold, "verify_type": case.rule}).reward == 1


@pytest.mark.parametrize("rule", RULES)
def test_changed_answers_are_never_paid(rule: str) -> None:
    """50 ways to change an answer in up to 7 marks, which every rule reads that can."""
    cases = changed_cases(rule)
    assert len(cases) >= 250
    assert [case.text for case in cases if passes(case)] == []


@pytest.mark.parametrize("rule", RULES)
def test_plain_styles_of_a_right_answer_pass(rule: str) -> None:
    failed = [(case.text, case.gold) for case in style_cases(rule, own_golds()) if not passes(case)]
    assert failed == []


def test_styles_tell_right_from_wrong() -> None:
    """In no style does another number pass: what passes there is the answer itself."""
    assert len(right_styles()) >= 20
    for rule in RULES:
        cases = style_cases(rule, ["35"])
        assert len(cases) >= 4
        assert not any(passes(Case(case.text, "36", False, rule)) for case in cases)
    assert set(MARKED) < set(RULES)


# completion, gold
CHANGED = [
    (r"$\boxed{5}\text{ million}$", "5"),
    (r"$x \le \boxed{5}$", "5"),
    (r"$2\boxed{5}$", "5"),
    (r"$1\boxed{5}$", "5"),
    (r"1\boxed{5}", "5"),
    (r"$\boxed{5}0$", "5"),
    (r"\boxed{5}0", "5"),
    (r"$\boxed{5}^2$", "5"),
    (r"$\boxed{5}\%$", "5"),
    ("$5$ %", "5"),
    (r"$-\boxed{5}$", "5"),
    (r"$3 + \boxed{5}$", "5"),
    (r"$\boxed{5} + 3$", "5"),
    (r"$\boxed{5}\pm 1$", "5"),
    (r"$\sqrt{\boxed{5}}$", "5"),
    (r"$\frac{\boxed{5}}{2}$", "5"),
    (r"$\neq \boxed{5}$", "5"),
    (r"$x \approx \boxed{5}$", "5"),
    (r"$\text{at most }\boxed{5}$", "5"),
    (r"$\boxed{5} \times 10^3$", "5"),
    (r"\boxed{5} = 6", "5"),
    (r"\boxed{5}!", "120"),
    (r"\boxed{5}k", "5"),
    ("$5$M", "5"),
    ("$5$ M", "5"),
    (r"\boxed{5}K", "5"),
    (r"\boxed{5\text{ M}}", "5"),
    ("$5$ bn", "5"),
    ("log of $5$", "5"),
    (r"\boxed{5} to 6", "5"),
    ("no more than \\boxed{5}", "5"),
    ("~~5~~", "5"),
    ("~~$5$~~", "5"),
    (r"$\boxed{5}\text{ m}$", r"5\text{ cm}"),
    (r"\boxed{5} m²", r"5\text{ cm}"),
    # a second answer
    (r"\boxed{5} or \boxed{6}", "6"),
    (r"\boxed{5} and \boxed{6}", "6"),
    (r"\boxed{5}, \boxed{6}", "6"),
    (r"$x = \boxed{5}, y = \boxed{6}$", "6"),
    (r"$\boxed{5} \text{ or } \boxed{6}$", "6"),
    (r"\[\boxed{5}\]" + "\nor \\[6\\]", "5"),
    (r"5 or \boxed{6}", "6"),
    ("$5$-$6$", "5"),
    ("**5** (or 6)", "5"),
    ("The answer is between 5 and 6", "6"),
    ("\\boxed{5}\n<answer>6</answer>", "5"),
    ("<answer>5</answer> The answer is 6", "5"),
    ("The answer is 5. The answer is 6.", "5"),
    (r"x=\boxed{2}, y=\boxed{1}", "x=1,y=2"),
]


@pytest.mark.parametrize(("text", "gold"), CHANGED)
def test_what_stands_beside_an_answer_changes_it(text: str, gold: str) -> None:
    assert verdict_on(text, gold).verdict == "wrong"


SAID = [
    ("The answer is **42**.", "42"),
    ("A: 14", "14"),
    ("the largest $n$ is 34", "34"),
    ("It costs $5, then $6.\n#### 11", "11"),
    ("The area is 5 m²", "5"),
    ("It is 5 cm^2.", "5"),
    ("5 cm^2", r"5\text{ cm}^2"),
    ("5 m²", r"5\text{ m}^2"),
    ("so it is 1,000.99m²", "1000.99"),
    (r"\boxed{11,\! 111}", "11111"),
    ("11111", r"11,\! 111"),
    ("The answer is `42`.", "42"),
    ("The answer is 42. I hope this helps!", "42"),
    ("42</s>", "42"),
    ("42<|eot_id|>\n<|im_end|>", "42"),
    (r"\boxed{\sqrt{1/m}}", r"1/\sqrt m"),
    (r"1/\sqrt m", r"\sqrt{1/m}"),
    ("1 000 000", "1000000"),
    (r"\boxed{1 000 000}", "1000000"),
    ("1000000", "1 000 000"),
    (r"\boxed{5}!", "5"),
    (r"$\boxed{5}$ apples, since $2+3=5$.", "5"),
    (r"$3+2=\boxed{5}$", "5"),
    (r"\begin{align*} x &= 2+3 \\ &= \boxed{5} \end{align*}", "5"),
    (r"$n \equiv \boxed{9} \pmod{11}$", "9"),
    (r"$x \in \boxed{(1,2)}$", "(1,2)"),
    (r"$x \approx \boxed{1.6}$", "1.6"),
    (r"about \boxed{1.6} cm", "1.6"),
    (r"\boxed{1} and \boxed{2}", "1,2"),
    (r"\boxed{1} \quad \text{and} \quad \boxed{2}", "1,2"),
    ("1,2", r"\boxed{1} and \boxed{2}"),
    (r"$x=\boxed{1}$, $y=\boxed{2}$", "x=1,y=2"),
    (r"\boxed{5} + C", "5+C"),
    (r"$\boxed{50}\%$", r"50\%"),
    (r"\boxed{50} percent", "0.5"),
    ("28 pct", r"28\%"),
    (r"\boxed{\\frac{1}{2}}", "0.5"),
    ("The probability is $\\frac12$ or 50%.", r"\frac12"),
    ("- \\boxed{5}", "5"),
    ("He ran 5 times.", "5"),
    ("So n is not 4 but 5.", "5"),
    ("The answer is $x+y$.", "x+y"),
    ("The answer is even.", "even"),
    (r"The answer is $\text{(B)}$.", "B"),
    ("2+3=5\nTrue", "True"),
    ("The answer is June 20.", r"\text{June 20}"),
    ("The answer is 4:30 p.m.", r"\text{4:30 p.m.}"),
    ("$$x=5$$\nHope this helps", "5"),
    ("the answer is –3", "-3"),
    ("The roots are $2$ and $3$.", "2,3"),
    ("The answer is $5$ (see $x=2$ above).", "5"),
    ("Answer: 5 (five)", "5"),
    ("### Final Answer\n5", "5"),
    ("= 18", "18"),
    ("It takes 30 minutes per widget.", "30"),
    ("That leaves $20 four months from now.", "20"),
    ("So 20 = A.", "20"),
    ("The area is 12 square units.", "12"),
    ("5 miles per hour", "5"),
]


@pytest.mark.parametrize(("text", "gold"), SAID)
def test_plain_answers_are_found(text: str, gold: str) -> None:
    assert verdict_on(text, gold).reward == 1


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("-221_3", "-221_3"),
        (r"\approx 3.2", "3.2"),
        (r"(n-2) 2^{n}+1", r"2^n(n-2)+1"),
        (r"\hbar \omega", r"\omega\hbar"),
        (r"\dot{x}_{0} t", r"t\dot{x}_0"),
        (r"\bar{x}=\bar{y}=\frac{1}{5}", r"\bar{x}=\bar{y}=\frac{1}{5}"),
        (r"\frac{1}{5}, or $\boxed{20}$ percent", "0.2"),
        (r"Thus $\boxed{5}$ million", r"5\text{ million}"),
    ],
)
def test_golds_of_data_sets_are_read(gold: str, answer: str) -> None:
    assert verdict_on(rf"\boxed{{{answer}}}", gold).reward == 1


@pytest.mark.parametrize("gold", [r"\boxed{1}\boxed{2}", r"\boxed{1} papers, then \boxed{2} bins"])
def test_a_gold_with_boxes_that_differ_is_an_error(gold: str) -> None:
    with pytest.raises(GoldError, match="several boxes that differ"):
        read_gold(gold)


LONG = [
    "5 or ",
    "$5$ or ",
    r"\boxed{5}, ",
    r"\boxed{5} or ",
    "The answer is 5. ",
    "wait, 5 ",
    "A: ",
]
LONG += [
    "answer is $n$ is ",
    "~~",
    "<|im_end|>",
    "<|a|>",
    "</s> ",
    "3/",
    "1 000 ",
    "5 cm^2 ",
    r"\frac",
]
LONG += [
    r"\text{",
    "$-",
    "≈",
    "½",
    "5^",
    "×10^",
    "- ",
    "####",
    "answer\n",
    "is not ",
    "$ ",
    "x=$5$, ",
]


@pytest.mark.parametrize("piece", LONG)
def test_100_kb_beside_an_answer_take_a_fraction_of_a_second(piece: str) -> None:
    text = piece * (100_000 // len(piece.encode()))
    for rule in RULES:
        case = Case(text, "7", False, rule)
        assert best_seconds(lambda case=case: passes(case)) < QUICK, rule
        assert not passes(case)
