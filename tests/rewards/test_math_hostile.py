"""MATH: answers that take long, that would do harm, or that make no sense."""

import builtins
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import sympy.parsing.sympy_parser
from hypothesis import given, settings
from hypothesis import strategies as st
from support.math_cases import CASES, verdict_on
from support.measured import QUICK, best_seconds

from common.config import RewardsConfig
from common.rewards.answer_part import answer_part, last_box
from common.rewards.math_answer import find_answers, open_rule, read_gold
from common.rewards.rule import GoldError

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
    opening = {"rule": "MATH", "rewards": RewardsConfig().model_dump(), "beside": []}
    requests = [opening] + [
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
    assert opened == {"needs": []}
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


@settings(max_examples=400)
@given(TEXTS, st.sampled_from(["5", "x+1", "(1,2)", "x=5", "even", r"\{1,2\}", "[0,1)", r"5\%"]))
def test_no_text_breaks_the_rule(text: str, gold: str) -> None:
    for completion in (text, rf"\boxed{{{text}}}", f"${text}$"):
        verdict = verdict_on(completion, gold)
        assert verdict.verdict in ("correct", "wrong", "no_answer")
        assert verdict.reward == (verdict.verdict == "correct")


@settings(max_examples=200)
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
def test_100_kb_are_searched_in_a_fraction_of_a_second(piece: str) -> None:
    text = piece * (100_000 // len(piece.encode()))
    assert best_seconds(lambda: _search(text)) < QUICK
    assert best_seconds(lambda: verdict_on(text, "5")) < QUICK


def _search(text: str) -> object:
    part = answer_part(text) or ""
    box = last_box(part)
    return find_answers(part) if box is None else box


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
