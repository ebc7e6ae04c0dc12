"""MATH: what is mathematically the gold and what is not, where it is looked for, within limits.

The pairs of answers and golds are in math_cases.txt. math-verify 0.9 by itself judges many of
them otherwise: it passes more than 40 that are marked ≠, such as 0.3333333333 for 1/3 and 5 m for
5 cm.
"""

import builtins
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from unittest.mock import patch

import pytest
import sympy.parsing.sympy_parser
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import RewardsConfig
from common.rewards.answer_part import answer_part, last_box
from common.rewards.math_answer import find_answer, judge, open_rule, read_gold
from common.rewards.verdict import GoldError, Verdict

CASES = [
    (*line[2:].split(" ‖ "), line[0] == "=")
    for line in Path(__file__).with_name("math_cases.txt").read_text("utf-8").splitlines()
    if line[:2] in ("= ", "≠ ")
]


def verdict_on(text: str, gold: str) -> Verdict:
    return judge(text, {"answer": gold, "verify_type": "MATH"})


@pytest.mark.parametrize(("answer", "gold", "is_same"), CASES)
def test_answer_is_the_gold_or_not(answer: str, gold: str, is_same: bool) -> None:
    verdict = verdict_on(f"So it is \\boxed{{{answer}}}.", gold)
    assert verdict.reward == is_same
    assert verdict.verdict in ("correct", "wrong", "no_answer")


def test_there_are_many_cases_of_both_kinds() -> None:
    assert sum(is_same for *_, is_same in CASES) > 250
    assert sum(not is_same for *_, is_same in CASES) > 150


@pytest.mark.parametrize("gold", sorted({gold for _, gold, _ in CASES}))
def test_every_gold_is_its_own_answer(gold: str) -> None:
    assert verdict_on(rf"\boxed{{{gold}}}", gold).reward == 1
    assert verdict_on(f"The answer is ${gold}$.", rf"\boxed{{{gold}}}").reward == 1


# completion, gold, reward
PLACES = [
    # the last complete box
    (r"\boxed{5} \boxed{6}", "6", 1),
    (r"\boxed{5} \boxed{6}", "5", 0),
    (r"\boxed{5} \boxed{6", "5", 1),
    (r"\boxed{\boxed{5}}", "5", 1),
    (r"\boxed{}", "0", 0),
    (r"\boxed{ }", "5", 0),
    (r"\boxed{$\frac{1}{2}$}", "0.5", 1),
    (r"\[ \boxed{x = 5} \]", "5", 1),
    # the single answer tag
    ("<answer>5</answer>", "5", 1),
    ("<answer>5</answer><answer>5</answer>", "5", 0),
    (r"<answer>$\frac{1}{2}$</answer>", "0.5", 1),
    (r"<answer>\boxed{5}</answer>", "5", 1),
    (r"<answer>5</answer> \boxed{6}", "6", 1),
    (r"<answer>5</answer> \boxed{6}", "5", 0),
    ("<answer></answer>", "5", 0),
    ("<answer>5 or 6</answer>", "5", 0),
    ("<answer>The answer is 5</answer>", "5", 1),
    # the last formula
    ("The answer is $5$.", "5", 1),
    (r"So we get \[ x = 5 \]", "5", 1),
    (r"So \( 5 \) is it", "5", 1),
    (r"$$ \frac{1}{2} $$", "0.5", 1),
    ("First $3$, then $5$", "5", 1),
    ("First $3$, then $5$", "3", 0),
    ("$5$ and then $6", "5", 1),
    ("We get $x=2$ or $x=3$", "3", 1),
    ("It is $5.$", "5", 1),
    ("It costs $5 and $6", "5", 0),
    ("It costs $5.", "5", 1),
    # the text itself
    (r"\sqrt{8}", "2√2", 1),
    ("(1,2)", "(2,1)", 0),
    ("[0,1)", "(0,1]", 0),
    ("x=6=5", "5", 0),
    ("10^{10^{10}}", "5", 0),
    ("The answer is 5.", "5", 1),
    ("The answer is even.", "even", 1),
    ("**Answer: 5**", "5", 1),
    ("#### 5", "5", 1),
    ("Final answer: x = 5.", "5", 1),
    ("The result is -5.", "-5", 1),
    ("The result is 1,234.", "1234", 1),
    ("The result is 5%.", "0.05", 1),
    ("There are 5 apples.", "5", 1),
    ("It is 14 or 15", "14", 0),
    ("It is 14 or 15", "15", 0),
    ("x = 2 or x = 3", "2,3", 1),
    ("So the probability is 2/3.", r"\frac{2}{3}", 1),
    (r"so x = \frac{1}{2} is the result", "1/2", 1),
    (r"so x = \frac{1}{2} is the result", "2", 0),
    ("There are 5 million apples.", "5", 0),
    ("There are 5 million apples.", r"5\text{ million}", 1),
    ("The answer is 5 squared.", "5", 0),
    ("The answer is 5 percent.", "0.05", 1),
    ("The answer is 5 percent.", "5", 0),
    ("The answer is not 5.", "5", 0),
    ("The answer is negative 5.", "5", 0),
    ("The answer is about 5.", "5", 0),
    ("The answer is at most 5.", "5", 0),
    ("The answer is less than 5.", "5", 0),
    ("It is not 4 but 5.", "5", 1),
    ("The answer is equal to 5.", "5", 1),
    ("The answer is 5 over the reals.", "5", 1),
    ("The answer is 5, about which we are sure.", "5", 1),
    ("The answer is 5...", "5", 0),
    (r"So $x \approx 5$.", "5", 0),
    (r"It is $6 \mathrm{~m}$.", "6", 1),
    ("I don't know", "5", 0),
    # the answer part
    (r"<think>\boxed{7}</think> don't know", "7", 0),
    (r"<think>\boxed{6}</think>\boxed{5}", "5", 1),
    ("<think>5", "5", 0),
    ("", "5", 0),
]


@pytest.mark.parametrize(("text", "gold", "reward"), PLACES)
def test_where_the_answer_is_looked_for(text: str, gold: str, reward: int) -> None:
    assert verdict_on(text, gold).reward == reward


@pytest.mark.parametrize(
    ("text", "outcome", "extracted"),
    [
        (r"so \boxed{ 6 }", "wrong", "6"),
        (r"so \boxed{5}", "correct", "5"),
        (r"\boxed{}", "no_answer", None),
        ("", "no_answer", None),
        ("<think>5", "no_answer", None),
        (r"\boxed{\frac{1}{}}", "wrong", r"\frac{1}{}"),
        ("it is unknown", "wrong", "it is unknown"),
    ],
)
def test_outcome_says_what_was_compared(text: str, outcome: str, extracted: str | None) -> None:
    verdict = verdict_on(text, "5")
    assert (verdict.verdict, verdict.extracted) == (outcome, extracted)


UNREADABLE = ["", " ", "$$", r"\boxed{}", r"\frac{1", r"\frac{1}", "1 +", "(1, 2", "1/0", "?"]
UNREADABLE += [r"\frac{0}{0}", r"\hello", r"\sum_{", "x2"]
UNREADABLE += [r"x \equiv 3 \pmod 7", "1 2", "5!!", "=", "x =", "1" * 9000, "{" * 500 + "}" * 500]


@pytest.mark.parametrize("gold", UNREADABLE)
def test_unreadable_gold_is_an_error(gold: str) -> None:
    with pytest.raises(GoldError):
        read_gold(gold)
    with pytest.raises(GoldError):
        verdict_on(r"\boxed{5}", gold)


@pytest.mark.parametrize(
    ("answer", "gold", "reward"),
    [
        (r"\sum_{k=1}^n k^2", r"\sum_{k=1}^{n} k^2", 1),
        (r"\frac{n(n+1)(2n+1)}{6}", r"$\sum_{k=1}^n k^2$", 1),
        (r"\frac{n(n+1)(2n+1)}{5}", r"\sum_{k=1}^n k^2", 0),
        (r"\frac13", r"\int_0^1 x^2 dx", 1),
        (r"\frac12", r"\int_0^1 x^2 dx", 0),
        (r"\frac12 = \frac13", r"\int_0^1 x^2 dx", 0),
        ("1", r"\lim_{x \to 0} \frac{\sin x}{x}", 1),
        ("6", r"\gcd(12, 18)", 1),
        ("12", r"\gcd(12, 18)", 0),
        (r"\max(b, a)", r"\max(a, b)", 1),
        (r"\min(a, b)", r"\max(a, b)", 0),
        ("__import__('os').getpid()", r"\gcd(12, 18)", 0),
        ("1" * 5000, r"\gcd(12, 18)", 0),
    ],
)
def test_sums_integrals_and_the_like_are_math_verifys(answer: str, gold: str, reward: int) -> None:
    assert verdict_on(rf"\boxed{{{answer}}}", gold).reward == reward


@pytest.mark.parametrize(
    "gold",
    [r"\frac{1}{2}", r"$\frac{1}{2}$", r"\boxed{\frac{1}{2}}", r"Thus $\boxed{0.5}$.", r"\(1/2\)"],
)
def test_gold_may_be_marked_as_mathematics(gold: str) -> None:
    assert verdict_on(r"\boxed{\frac12}", gold).reward == 1


FINITE = st.decimals(allow_nan=False, allow_infinity=False, places=6)
RATIONALS = st.fractions(max_denominator=10**9)


@given(RATIONALS, RATIONALS)
def test_fractions_are_equal_exactly_when_they_are(one: Fraction, other: Fraction) -> None:
    ways = rf"\frac{{{one.numerator}}}{{{one.denominator}}}", f"{one.numerator}/{one.denominator}"
    for way in ways:
        assert verdict_on(rf"\boxed{{{way}}}", str(other)).reward == (one == other)
        assert verdict_on(rf"\boxed{{{way}}}", str(one)).reward == 1


SMALL = st.integers(-9, 9)


@settings(max_examples=40, deadline=None)
@given(SMALL, SMALL, SMALL, st.integers(-2, 2))
def test_polynomials_are_equal_exactly_when_they_are(a: int, b: int, c: int, more: int) -> None:
    factored = f"({a}x+({b}))(x-({c}))"
    expanded = f"{a}x^2 + ({b - a * c})x + ({-b * c + more})"
    assert verdict_on(rf"\boxed{{{factored}}}", expanded).reward == (more == 0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(0, 3))
def test_sums_of_roots_are_told_apart(radicands: list[int], more: int) -> None:
    """An independent check to 15 digits, which small roots that differ do in the first ten."""
    forward = "+".join(rf"\sqrt{{{n}}}" for n in radicands)
    backward = "+".join(rf"\sqrt{{{4 * n}}}/2" for n in reversed(radicands)) + f"+{more}"
    assert verdict_on(rf"\boxed{{{forward}}}", backward).reward == (more == 0)


# What is quick to write and takes long to work out, or more memory than there is.
EXPENSIVE = {
    "a tower": "10^{10^{10}}",
    "a higher tower": "9^{9^{9^9}}",
    "a tower of e": "e^{e^{e^{e^{e^{e}}}}}",
    "a tower of x": "e^{e^{e^{e^x}}}",
    "an exponent": "2^{1000000}",
    "an exponent without braces": "2^999999999",
    "a negative exponent": "2^{-1000000000}",
    "a sum's exponent": "(x+y+z)^{500}",
    "a factorial": "1000000!",
    "a factorial's factorial": "((3000!)!)!",
    "a binomial": r"\binom{1000000}{500000}",
    "a function of much": r"\sin(10^{3000})",
    "a hyperbolic function": r"\cosh(10^{3000})",
    "an exponential": "e^{10^{100}}",
    "nested fractions": r"\frac{1}{" * 3000 + "2" + "}" * 3000,
    "25 nested fractions": r"\frac{1}{1+" * 25 + "x" + "}" * 25,
    "nested roots": r"\sqrt{2+" * 12 + "x" + "}" * 12,
    "a root to factor": r"\sqrt{" + "7" * 3000 + "}",
    "a root's degree": r"\sqrt[10^{10}]{2}",
    "many roots": "+".join(rf"\sqrt{{{n}}}" for n in range(2, 60)),
    "many terms": "+".join(f"x^{{{n}}}" for n in range(90)),
    "many factors": "".join(f"(x+{n})" for n in range(80)),
    "digits": "1" * 4000,
    "more digits": "1" * 100_000,
    "decimals": "1." + "3" * 3000,
    "an exponent of ten": "1e999999999",
    "parentheses": "(" * 2000 + "5" + ")" * 2000,
    "braces": "{" * 3000 + "5" + "}" * 3000,
    "signs": "-" * 3001 + "5",
    "plus and minus": r"\pm" * 12 + "5",
    "a list": "1," * 4000,
    "a chain": "x=" * 2000 + "5",
    "indices": "a_{" * 900 + "}" * 900,
    "a whole part": r"\lfloor \pi^{1000} \rfloor",
    "functions": r"\sin " * 200 + "x",
    "a matrix": r"\begin{pmatrix}" + "1 & " * 2000 + r"1 \end{pmatrix}",
    "absolute values": "|" * 1000 + "x" + "|" * 1000,
    "repeated digits": r"0.\overline{" + "3" * 3000 + "}",
    "nested binomials": "{" * 500 + "5" + r" \choose 2}" * 500,
    "a tower of binomials": "{" * 5 + "99" + r" \choose 9}" * 5,
    "words": r"6\text{ a}" * 190,
    "upright units": r"6\mathrm{m}" + r"/\mathrm{m}" * 300 + r"/\text{million}",
    "points left out": r"\mathbb{R}\setminus\{" + ",".join(map(str, range(64))) + r"\}",
    "logarithms": r"\log_{" * 20 + "2" + "}" * 20 + "8",
}


@pytest.mark.parametrize("gold", ["5", "x+1", r"\sqrt{2}", "y=2x+1", "x>1"])
@pytest.mark.parametrize("answer", EXPENSIVE.values(), ids=EXPENSIVE)
def test_expensive_answers_are_wrong_at_once(answer: str, gold: str) -> None:
    """Without any time limit but the rule's own guards; the best of two, as memory is warm then."""
    seconds = []
    for _ in range(2):
        began = time.thread_time()
        verdict = verdict_on(rf"\boxed{{{answer}}}", gold)
        seconds.append(time.thread_time() - began)
        assert (verdict.reward, verdict.verdict) == (0, "wrong")
    assert min(seconds) < 1
    assert verdict_on(rf"\boxed{{{gold}}}", gold).reward == 1


def test_worker_is_usable_after_an_expensive_answer() -> None:
    """In the process that judges in a run, where the parent would kill what takes too long."""
    rows = [("10^{10^{10}}", "5"), ("5", "5"), ("1000000!", "5"), (r"\sqrt{8}", "2√2")]
    requests = [{"rule": "MATH", "rewards": RewardsConfig().model_dump()}] + [
        {"text": rf"\boxed{{{answer}}}", "row": {"answer": gold}} for answer, gold in rows
    ]
    done = subprocess.run(
        [sys.executable, "-m", "common.rewards.worker"],
        input="".join(json.dumps(request) + "\n" for request in requests),
        capture_output=True,
        text=True,
        timeout=60,
    )
    opened, *answers = map(json.loads, done.stdout.splitlines())
    assert opened == {}
    assert [answer[0] for answer in answers] == [0, 1, 0, 1]


CODE = [
    "__import__('os').system('touch {file}')",
    "__import__('pathlib').Path('{file}').touch()",
    "eval(\"open('{file}', 'w')\")",
    'exec(\'open("{file}", "w")\')',
    "open('{file}','w')",
    "().__class__.__base__.__subclasses__()",
    "lambda: open('{file}', 'w')",
    "Symbol('x').__class__.__init__.__globals__",
    "f(__import__('os').system('touch {file}'))",
    "x_{{__import__('os').system('touch {file}')}}",
    "\\operatorname{{__import__('os').system}}('touch {file}')",
    "\\vec{{open('{file}','w')}}",
    "\\mathbf{{open}}('{file}', 'w')",
    "\\sqrt[open('{file}','w')]{{2}}",
    "2 + open('{file}','w')",
    "`touch {file}`; $(touch {file})",
    "\\input{{|touch {file}}} \\write18{{touch {file}}}",
]
WRAPPERS = [r"\boxed{%s}", "$%s$", r"\(%s\)", "<answer>%s</answer>", "%s", "The answer is %s."]
WRAPPERS += [r"\boxed{\text{%s}}", r"\boxed{x = %s}", r"\boxed{(%s, 1)}", r"\boxed{1, %s}"]


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every text that Python or SymPy is asked to evaluate."""
    seen: list[str] = []
    for owner, name in [(builtins, "eval"), (builtins, "exec"), (builtins, "compile")] + [
        (sympy.parsing.sympy_parser, name) for name in ("parse_expr", "eval_expr", "stringify_expr")
    ]:
        original = getattr(owner, name)

        def spy(source, *arguments, original=original, **named):
            if isinstance(source, str):
                seen.append(source)
            return original(source, *arguments, **named)

        monkeypatch.setattr(owner, name, spy)
    yield seen


@pytest.mark.parametrize("code", CODE)
def test_model_text_is_never_evaluated(code: str, evaluated: list[str], tmp_path: Path) -> None:
    open_rule(RewardsConfig())
    marker = tmp_path / "m"
    text = code.format(file=marker)
    for wrapper in WRAPPERS:
        for gold in ("5", "x+1", "f(x)"):
            assert verdict_on(wrapper % text, gold).reward == 0
    assert not marker.exists()
    assert [source for source in evaluated if "touch" in source or "open" in source] == []


def test_the_spy_would_see_an_evaluation(evaluated: list[str]) -> None:
    sympy.parsing.sympy_parser.parse_expr("1 + open_2")
    assert any("open_2" in source for source in evaluated)


SIGNS = [*"{}()[]^_x+-*/!=<,;:|$%°½√²&\\'\"fei \n\x00\ud800", r"\{", r"\}", "1", "2.5", "or"]
COMMANDS = r"\frac \sqrt \pi \sin \pm \cup \infty \left \log \text{cm} \text{or} \begin{pmatrix}"
PIECES = st.sampled_from([*SIGNS, *COMMANDS.split(), r"\end{pmatrix}"])
TEXTS = st.one_of(st.text(), st.lists(PIECES, max_size=14).map("".join))


@settings(max_examples=400, deadline=None)
@given(TEXTS, st.sampled_from(["5", "x+1", "(1,2)", "x=5", "even", r"\{1,2\}", "[0,1)", r"5\%"]))
def test_no_text_breaks_the_rule(text: str, gold: str) -> None:
    for completion in (text, rf"\boxed{{{text}}}", f"${text}$"):
        verdict = verdict_on(completion, gold)
        assert verdict.verdict in ("correct", "wrong", "no_answer")
        assert verdict.reward == (verdict.verdict == "correct")


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_what_a_gold_may_be_is_its_own_answer(text: str) -> None:
    try:
        read_gold(text)
    except GoldError:
        return
    if last_box(rf"\boxed{{{text}}}") == text:
        assert verdict_on(rf"\boxed{{{text}}}", text).reward == 1


LONG = ["$", "$x$", "$x ", "$$", r"\[", r"\]", r"\(x\)", r"\text{", r"\frac", r"\frac{", r"\boxed{"]
LONG += ["answer is ", "answer: ", " and ", "1 ", "1,", "x=", "word ", "\n", " ", "<answer>", "\\"]
LONG += [r"\mathrm{~m}", r"6\mathrm{m}", r"\choose", r"{1\choose", "..", r"\color{red}", "5² "]
LONG += [r"\left(", "^{", "_", "½", "①", "²", "好", "😀", "{,}", "1{,}000", r"\,", '"', "'", "a "]


@pytest.mark.parametrize("piece", LONG)
def test_100_kb_are_searched_in_50_ms(piece: str) -> None:
    """Quadratic scanners need seconds here. The best of three, as the machine may be busy."""
    text = piece * (100_000 // len(piece.encode()))
    for search in (_search, lambda text: verdict_on(text, "5")):
        seconds = []
        for _ in range(3):
            began = time.thread_time()
            search(text)
            seconds.append(time.thread_time() - began)
        assert min(seconds) < 0.05


def _search(text: str) -> str | None:
    part = answer_part(text) or ""
    box = last_box(part)
    return find_answer(part) if box is None else box


def test_a_thousand_completions_take_seconds() -> None:
    """The project promises 60 s for them with start-up; here are all cases twice, without it."""
    open_rule(RewardsConfig())
    steps = " ".join(f"We have $x_{{{i}}} = {i}^2$." for i in range(30))
    began = time.thread_time()
    for answer, gold, _ in CASES * 2:
        verdict_on(rf"{steps} \boxed{{{answer}}}", gold)
    assert time.thread_time() - began < 15


@pytest.mark.parametrize("error", [RecursionError, MemoryError])
def test_an_exhausted_answer_is_a_timeout(error: type[Exception]) -> None:
    """Not reached by any text we know, so it is made to happen."""
    with patch("common.rewards.math_answer.same", side_effect=error):
        verdict = verdict_on(r"\boxed{6}", "5")
    assert (verdict.reward, verdict.verdict) == (0, "timeout")
    assert error.__name__ in verdict.reason
