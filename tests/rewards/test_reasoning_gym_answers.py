"""REASONING_GYM: entries that survive the journey through a row, and how answers are scored."""

import ast
import json
import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import RewardsConfig
from common.rewards.reasoning_gym import judge, read_gold, read_structure
from common.rewards.rule import GoldError
from common.rewards.scorer import Scorer
from common.tasks.reasoning_gym import (
    NONSENSE,
    Entry,
    fault_of,
    make_dataset,
    read_entry,
    score,
)

EVALUATING = {
    "n_queens": "[[{}]]",
    "binary_matrix": "[{}]",
    "spiral_matrix": "{}",
    "string_insertion": "[{}]",
    "countdown": "1 + {}",
    "puzzle24": "{}",
    "polynomial_multiplication": "x**2 + {}",
    "simple_integration": "{} + C",
    "intermediate_integration": "sin({})",
}
"""Data sets that evaluate answers, and where in one a hostile expression may stand."""

SAMPLE = [
    "arc_agi",  # boards of tuples
    "gsm_symbolic",  # fractions
    "graph_color",  # integers as keys, a dict as the answer
    "knights_knaves",  # strings of numpy
    "propositional_logic",  # an example instead of an answer
    "boxnet",  # no answer at all
    "chain_sum",
    "word_ladder",
    "rubiks_cube",
    *EVALUATING,
]


def made(name: str, count: int = 4, **config: Any) -> list[Entry]:
    """Entries as the package makes them, without going through the row's text."""
    dataset = make_dataset(name, config, seed=5, size=count)
    return [Entry(dataset[index], config) for index in range(count)]


def alike(first: Any, second: Any) -> bool:
    """Equal, and tuples are tuples and lists are lists, all the way down."""
    if isinstance(first, dict):
        same_keys = isinstance(second, dict) and list(first) == list(second)
        return same_keys and all(alike(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        same = type(first) is type(second) and len(first) == len(second)
        return same and all(map(alike, first, second))
    return bool(first == second)


@pytest.mark.parametrize("name", SAMPLE)
def test_an_entry_is_read_back_as_it_was_and_scores_the_same(name: str) -> None:
    entries = made(name, 25 if name == "gsm_symbolic" else 4)
    # No real answer: the package could not integrate.
    entries = [entry for entry in entries if "Integral" not in str(entry.values["answer"])]
    dataset = make_dataset(name, {}, seed=5, size=1)
    owns = [own for entry in entries if (own := entry.own_answer()) is not None]
    for entry in entries:
        read = read_entry(entry.write())
        assert alike(entry.values, read.values)
        assert read.dataset == name
        assert fault_of(read) is None
        # puzzle24 accepts the answers to its other questions, and we do not.
        for answer in owns if name != "puzzle24" else [entry.own_answer()]:
            assert score(read, answer) == dataset.score_answer(answer, deepcopy(dict(entry.values)))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.sampled_from(["$tuple", "$dict"]), inner)
        | st.dictionaries(st.integers() | st.tuples(st.text(), st.integers()), inner)
        | st.fractions()
    ),
)


@given(values)
@settings(max_examples=150)
def test_any_metadata_survives(value: Any) -> None:
    metadata = {"source_dataset": "chain_sum", "value": value}
    entry = Entry({"question": "q", "answer": "a", "metadata": metadata}, {"min_terms": 2})
    read = read_entry(entry.write())
    assert alike(entry.values, read.values)
    assert read.config == {"min_terms": 2}


def test_what_json_cannot_say_is_refused_rather_than_written_as_something_else() -> None:
    with pytest.raises(TypeError, match="set cannot be written"):
        Entry({"question": "q", "answer": "a", "metadata": {"value": {1}}}, {}).write()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("14", "is no JSON object"),
        ("{", "is no JSON: "),
        ("[" * 100_000, "is no JSON: "),
        ('{"question": "q", "answer": "a"}', "is no JSON object with question, answer and"),
        ('{"question": "", "answer": "", "metadata": {}}', "metadata.source_dataset"),
        ('{"$tuple": 3}', "is no JSON: "),
        ('{"$fraction": [1, 0]}', "is no JSON: "),
        ('{"$dict": [[[], 1]]}', "is no JSON: "),
    ],
)
def test_golds_that_are_no_entries(answer: str, says: str) -> None:
    with pytest.raises(GoldError, match=says.replace("[", r"\[")):
        read_structure(answer)


def test_golds_that_cannot_tell_right_from_wrong() -> None:
    (entry,) = made("chain_sum", 1)
    read_gold(entry.write())
    wrong = json.loads(entry.write()) | {"answer": "no number"}
    wrong["metadata"]["source_dataset"] = "rectangle_count"
    with pytest.raises(GoldError, match="scores its own answer 0, not 1"):
        read_gold(json.dumps(wrong))
    wrong["metadata"]["source_dataset"] = "chain_sums"
    with pytest.raises(GoldError, match="data set 'chain_sums', which reasoning-gym does not"):
        read_gold(json.dumps(wrong))
    refused = json.loads(entry.write()) | {"config": {"min_terms": 0}}
    with pytest.raises(GoldError, match="has a config that chain_sum refuses: min_terms"):
        read_gold(json.dumps(refused))
    (halting,) = made("game_of_life_halting", 1)
    with pytest.raises(GoldError, match="scores any answer 1"):
        read_gold(halting.write())


def test_the_config_of_an_entry_decides_its_score() -> None:
    for places, expected in ((2, 1.0), (6, 0.0)):
        (entry,) = made("decimal_arithmetic", 1, min_num_decimal_places=2)
        config = {"min_num_decimal_places": 2, "max_num_decimal_places": places}
        entry = read_entry(Entry(entry.values, config).write())
        near = f"{float(entry.values['answer']) + 0.001:.6f}"
        assert score(entry, near) == expected


JUDGED = [
    ("<think>5</think><answer>{}</answer>", 1.0, "correct"),
    ("<answer> {} </answer> as I said", 1.0, "correct"),
    ("so it is \\boxed{{7}}, no, \\boxed{{{}}}", 1.0, "correct"),
    ("{}", 1.0, "correct"),
    (" {}.0\n", 1.0, "correct"),
    ("<answer>{}</answer><answer>{}</answer>", 0.0, "wrong"),
    ("<answer>{}</answer> \\boxed{{0}}", 1.0, "correct"),
    ("<answer>{}", 0.0, "no_answer"),
    ("<answer> </answer>{}", 0.0, "no_answer"),
    ("<think>{}", 0.0, "no_answer"),
    ("", 0.0, "no_answer"),
    ("<answer>nothing</answer>{}", 0.0, "wrong"),
]


@pytest.mark.parametrize(("text", "reward", "verdict"), JUDGED)
def test_where_the_answer_is_looked_for(text: str, reward: float, verdict: str) -> None:
    (entry,) = made("chain_sum", 1)
    own = entry.values["answer"]
    found = judge(text.replace("{}", own).format(), {"answer": entry.write()})
    assert (found.reward, found.verdict) == (reward, verdict)


def test_part_of_an_answer_is_worth_part_and_is_not_correct() -> None:
    (entry,) = made("chain_sum", 1)
    said = f"It is {entry.values['answer']}"
    found = judge(f"<answer>{said}</answer>", {"answer": entry.write()})
    assert found.reward == len(str(entry.values["answer"])) / len(said)
    assert found.verdict == "wrong"


@pytest.mark.parametrize("name", EVALUATING)
def test_nothing_of_an_answer_is_run(name: str, tmp_path: Path) -> None:
    for number, trick in enumerate(
        [
            "__import__('pathlib').Path('{}').touch()",
            "[c for c in ().__class__.__base__.__subclasses__() if open('{}', 'w')]",
            "(lambda: open('{}', 'w'))()",
            'sympify(\'open("{}", "w")\')',
            "eval(chr(111)+chr(112))",
        ]
    ):
        canary = tmp_path / f"{number}"
        hostile = EVALUATING[name].format(trick.format(canary))
        (entry,) = made(name, 1)
        assert score(entry, hostile) == 0
        assert not canary.exists()


def test_the_library_would_have_run_it(tmp_path: Path) -> None:
    dataset = make_dataset("n_queens", {}, seed=5, size=1)
    dataset.score_answer(f"open('{tmp_path}/canary', 'w')", dataset[0])
    assert (tmp_path / "canary").exists()


def test_no_other_data_set_evaluates_answers() -> None:
    """A release that evaluates more has to be looked at before it is let in."""
    import reasoning_gym

    root = Path(reasoning_gym.__file__).parent
    evaluating = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = node.func
                name = called.attr if isinstance(called, ast.Attribute) else ast.unparse(called)
                if name in ("eval", "exec", "parse_expr", "sympify"):
                    evaluating.add((path.stem, name))
    assert evaluating == {
        *((name, "eval") for name in list(EVALUATING)[:4]),
        *((name, "parse_expr") for name in list(EVALUATING)[4:]),
        ("propositional_logic", "parse_expr"),  # its own parser, which evaluates nothing
        # Of their own questions, not of answers:
        ("codeio", "exec"),
        ("basic_arithmetic", "eval"),
        ("bitwise_arithmetic", "eval"),
        ("number_sorting", "eval"),
        ("generators_00_49", "eval"),
        ("generators_50_99", "eval"),
    }


def test_answers_that_trick_the_library() -> None:
    (numbers,) = made("number_sorting", 1)
    tricks = {
        "number_sorting": json.dumps([math.nan] * len(ast.literal_eval(numbers.values["answer"])))
    }
    tricks |= {"complex_arithmetic": "nan+nanj", "puzzle24": "6*4*1*1"}
    tricks["intermediate_integration"] = "Integral({}, x)"
    tricks["countdown"] = "{}e0 # {}"
    for name, trick in tricks.items():
        (entry,) = made(name, 1)
        metadata = entry.values["metadata"]
        if name == "countdown":
            trick = trick.format(metadata["target"], metadata["numbers"])
        trick = trick.format(metadata.get("integrand"))
        theirs = make_dataset(name, {}, seed=5, size=1).score_answer(
            trick, deepcopy(dict(entry.values))
        )
        assert (theirs, score(entry, trick)) == (1, 0), name


def test_an_answer_that_a_scorer_chokes_on_is_wrong() -> None:
    (entry,) = made("prime_factorization", 1)
    with pytest.raises(ValueError, match="invalid literal"):
        make_dataset("prime_factorization", {}, seed=5).score_answer(NONSENSE, dict(entry.values))
    found = judge(NONSENSE, {"answer": entry.write()})
    assert (found.reward, found.verdict) == (0.0, "wrong")


def test_scoring_does_not_change_the_entry() -> None:
    (entry,) = made("knight_swap", 1, min_nodes=6, max_nodes=6)
    before = entry.write()
    assert score(entry, entry.own_answer() or "") == 1
    assert entry.write() == before


def test_judged_in_the_sandbox(tmp_path: Path) -> None:
    queens, factors = made("n_queens", 1) + made("prime_factorization", 1)
    canary = tmp_path / "canary"
    asked = [
        (queens, f"<answer>{queens.own_answer()}</answer>", "correct"),
        (queens, f"<answer>open('{canary}', 'w')</answer>", "wrong"),
        (factors, factors.own_answer() or "", "correct"),
        (factors, "abc", "wrong"),
    ]
    rows = [
        (text, {"answer": entry.write(), "verify_type": "REASONING_GYM"})
        for entry, text, _ in asked
    ]
    with Scorer(RewardsConfig(workers=1)) as scorer:
        golds = [("REASONING_GYM", row["answer"]) for _, row in rows]
        golds.append(("REASONING_GYM", made("game_of_life_halting", 1)[0].write()))
        *fine, faulty = scorer.unreadable_golds(golds)
        assert fine == [None] * 4
        assert faulty and "scores any answer 1" in faulty
        verdicts = scorer.answers(rows)
    assert [found.verdict for found in verdicts] == [verdict for *_, verdict in asked], verdicts
    assert not canary.exists()
