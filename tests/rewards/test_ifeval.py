"""IFEVAL: each instruction, followed and not; golds that are refused; texts of any kind."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.measured import QUICK, best_seconds

from common.config import RewardsConfig
from common.config.rewards import IFEvalReward
from common.errors import MissingToolError
from common.rewards import ifeval
from common.rewards.ifeval_checks import CHECKS, count_sentences, language_of
from common.rewards.registry import judge
from common.rewards.rule import GoldError, Verdict
from common.rewards.scorer import Scorer

LESS, LEAST = "less than", "at least"
WORDS = "Plants use light. They make sugar! Do they sleep?"

# id, arguments, an answer that follows it, one that does not
CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["C++", "sugar"]}, "c++ and Sugar", "c and sugar"),
    (
        "keywords:frequency",
        {"keyword": "war", "frequency": 2, "relation": LEAST},
        "War and war.",
        "War.",
    ),
    ("keywords:frequency", {"keyword": "war", "frequency": 1, "relation": LESS}, "no", "war"),
    ("keywords:forbidden_words", {"forbidden_words": ["rock", "c++"]}, "rocks, c", "Rock!"),
    ("keywords:forbidden_words", {"forbidden_words": ["c++"]}, "c+", "in c++, too"),
    (
        "keywords:letter_frequency",
        {"letter": "T", "let_frequency": 2, "let_relation": LESS},
        "To go",
        "To the",
    ),
    (
        "keywords:letter_frequency",
        {"letter": "!", "let_frequency": 2, "let_relation": LEAST},
        "a! b!",
        "a!",
    ),
    (
        "language:response_language",
        {"language": "de"},
        "Der schnelle braune Fuchs springt über den faulen Hund.",
        "The quick brown fox jumps over the lazy dog.",
    ),
    ("language:response_language", {"language": "kn"}, "ವೇಗದ ಕಂದು ನರಿ ಸೋಮಾರಿ ನಾಯಿಯ ಮೇಲೆ.", "42"),
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": LEAST}, WORDS, "One."),
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": LESS}, "One.", WORDS),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a\n\nb"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a *** b\n***", "a\n***\n***b"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 1}, "***bold***", "a\n***\nb"),
    ("length_constraints:number_words", {"num_words": 3, "relation": LEAST}, "a b, c", "a-b"),
    ("length_constraints:number_words", {"num_words": 3, "relation": LESS}, "a-b", "a b, c"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"},
        'First.\n \n"then, it was',
        "First.\n\nSo then",
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        "a\n\n**Then** b",
        "a\n\nthen\n\nc",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] [b c]", "[a] [] ["),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Hi\nP. S. Write", "Hi P.S."),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "p.p.s. Write", "P.S. Write"),
    ("detectable_content:postscript", {"postscript_marker": "N.B."}, "n.b. Write", "nb Write"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n  - b", "* a\n---\n*b*"),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", "Maybe."),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        "* *a* and **b c**",
        "* a\n* b and ** ** and *c",
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1\na\nSection 2\nb",
        "Section one\nSection 2",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', 'Here: {"a": 1}'),
    ("detectable_format:json_format", {}, "[1]", '"text"'),
    ("detectable_format:title", {}, "<<Joy>>\na", "<< >>\n<<a\n>>"),
    ("combination:two_responses", {}, "a\n******\nb", "a\n******\na"),
    ("combination:two_responses", {}, "a****** b ******", "a\n******\n******\nb"),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Write a poem. "},
        "write a poem.\nRoses",
        "Write a poem.",
    ),
    ("startend:end_checker", {"end_phrase": "Any more?"}, '"Yes. any more?"', "Any more? Yes."),
    ("startend:quotation", {}, '"a"', '"a'),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": LEAST},
        "A WELL-KNOWN thing",
        "A Thing",
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 1, "capital_relation": LESS},
        "No More",
        "NO more",
    ),
    (
        "change_case:english_capital",
        {},
        "THE LAW IS BAD AND SHOULD NOT BE FOLLOWED.",
        "THE LAW is BAD AND SHOULD NOT BE FOLLOWED.",
    ),
    ("change_case:english_capital", {}, "THE CAT SAT ON THE MAT", "DER HUND IST IM GARTEN UND"),
    (
        "change_case:english_lowercase",
        {},
        "please go and vote, my friend.",
        "Please go and vote, my friend.",
    ),
    ("punctuation:no_comma", {}, "a; b", "a, b"),
]


def gold(*instructions: dict[str, Any]) -> str:
    return json.dumps(list(instructions))


def verdict(text: str, answer: str) -> Verdict:
    return judge(text, {"answer": answer, "verify_type": "IFEVAL"})


@pytest.mark.parametrize(("name", "arguments", "followed", "missed"), CASES)
def test_an_instruction_is_followed_or_not(
    name: str, arguments: dict[str, Any], followed: str, missed: str
) -> None:
    answer = gold({"id": name, **arguments})
    assert verdict(followed, answer).reward == 1
    assert verdict(missed, answer).reward == 0


def test_there_are_the_25_of_the_paper_and_each_has_a_case() -> None:
    assert len(CHECKS) == 25
    assert {name for name, *_ in CASES} == set(CHECKS)


LANGUAGES = {
    "ar": "الثعلب البني السريع يقفز فوق الكلب الكسول.",
    "bg": "Бързата кафява лисица прескача мързеливото куче.",
    "bn": "দ্রুত বাদামী শিয়াল অলস কুকুরের উপর দিয়ে লাফ দেয়।",
    "fa": "روباه قهوه‌ای سریع از روی سگ تنبل می‌پرد.",
    "fi": "Nopea ruskea kettu hyppää laiskan koiran yli.",
    "gu": "ઝડપી ભૂરું શિયાળ આળસુ કૂતરા પર કૂદકો મારે છે.",
    "hi": "तेज भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है।",
    "it": "La veloce volpe marrone salta sopra il cane pigro.",
    "ko": "빠른 갈색 여우가 게으른 개를 뛰어넘습니다.",
    "mr": "चपळ तपकिरी कोल्हा आळशी कुत्र्यावर उडी मारतो आणि पळून जातो.",
    "ne": "छिटो खैरो फ्याउरो अल्छी कुकुरमाथि हाम फाल्छ र भाग्छ।",
    "pa": "ਤੇਜ਼ ਭੂਰੀ ਲੂੰਬੜੀ ਆਲਸੀ ਕੁੱਤੇ ਉੱਤੇ ਛਾਲ ਮਾਰਦੀ ਹੈ।",
    "pt": "A rápida raposa marrom pula sobre o cão preguiçoso.",
    "ru": "Быстрая коричневая лиса перепрыгивает через ленивую собаку.",
    "sw": "Mbweha mwepesi wa kahawia anaruka juu ya mbwa mvivu.",
    "ta": "வேகமான பழுப்பு நரி சோம்பேறி நாயின் மேல் குதிக்கிறது.",
    "te": "వేగవంతమైన గోధుమ నక్క సోమరి కుక్కపై దూకుతుంది.",
    "th": "สุนัขจิ้งจอกสีน้ำตาลกระโดดข้ามสุนัขขี้เกียจ",
    "ur": "تیز بھوری لومڑی سست کتے کے اوپر سے چھلانگ لگاتی ہے۔",
    "vi": "Con cáo nâu nhanh nhẹn nhảy qua con chó lười biếng.",
}


@pytest.mark.parametrize(("code", "text"), LANGUAGES.items(), ids=LANGUAGES)
def test_languages_of_the_data_set_are_told_apart(code: str, text: str) -> None:
    assert language_of(text) == code


@pytest.mark.parametrize("text", ["", "42", "!?", "\n", "123 + 4 = 127"])
def test_a_text_without_letters_is_in_no_language(text: str) -> None:
    assert language_of(text) is None


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("One", 1),
        ("One. Two! Three? Four…", 4),
        ("Really?! Yes.", 2),
        ('"Go." He went.', 2),
        ("Dr. Smith met Mr. J. Doe, e.g. at 3 p.m. in the U.S. today.", 1),
        ("It costs 3.50 and 1.2.3 is a version.", 1),
        ("1. Plan.\n2. Do.", 2),
        ("That is it... and more.", 1),
        ("これは本です。「はい！」そうですか？", 3),
        ("...", 0),
    ],
)
def test_sentences_are_counted(text: str, count: int) -> None:
    assert count_sentences(text) == count


def test_all_must_be_followed_unless_the_recipe_gives_parts() -> None:
    answer = gold({"id": "punctuation:no_comma"}, {"id": "startend:quotation"})
    assert verdict('"a"', answer) == Verdict(1.0, "correct", '"a"')
    assert verdict("a", answer) == Verdict(0.0, "wrong", "a")
    partial = ifeval.open_rule(RewardsConfig(ifeval=IFEvalReward(partial=True)))
    row = {"answer": answer, "verify_type": "IFEVAL"}
    assert [partial(text, row).reward for text in ('"a"', "a", "a,")] == [1, 0.5, 0]
    assert partial("a", row).verdict == "wrong"


@pytest.mark.parametrize("text", ["", " \n", "<think>a b", "<think>a</think>\n"])
def test_nothing_follows_no_instruction(text: str) -> None:
    """Silence has no commas."""
    found = verdict(text, gold({"id": "punctuation:no_comma"}))
    assert (found.reward, found.verdict) == (0, "no_answer")


def test_thoughts_may_have_commas() -> None:
    assert verdict("<think>a, b</think>c", gold({"id": "punctuation:no_comma"})).reward == 1


def test_the_columns_of_the_data_set_are_a_gold() -> None:
    """With the nulls and floats that tables make of them."""
    row = {
        "key": 1000,
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [
            {"num_words": None, "relation": None, "num_highlights": None},
            {"num_words": 3.0, "relation": "at least", "num_highlights": None},
        ],
    }
    assert verdict("a b c", json.dumps(row)).reward == 1
    assert verdict("a b", json.dumps(row)).reward == 0


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("no comma", "is not JSON"),
        ("[]", "has no instructions"),
        ("3", 'is to be an object with "instruction_id_list"'),
        ('[{"name": "a"}]', 'a list of "id"s'),
        ('{"instruction_id_list": [], "kwargs": []}', "has no instructions"),
        ('{"instruction_id_list": "a", "kwargs": []}', "is to have lists"),
        ('{"instruction_id_list": ["punctuation:no_comma"]}', "arguments for 0"),
        (gold({"id": "punctuation:no_coma"}), "did you mean 'punctuation:no_comma'"),
        (gold({"id": ["a"]}), "has the unknown instruction"),
        (gold({"id": "length_constraints:number_words"}), "needs the argument 'num_words'"),
        (gold({"id": "punctuation:no_comma", "n": 1}), "has no argument 'n'"),
        (gold({"id": "keywords:existence", "keywords": "a"}), "'keywords' as a list of texts"),
        (gold({"id": "keywords:existence", "keywords": [""]}), "'keywords' as text"),
        (gold({"id": "language:response_language", "language": "xx"}), "an ISO 639-1 code"),
        (gold({"id": "detectable_format:number_bullet_lists", "num_bullets": -1}), "from 0 on"),
        (gold({"id": "detectable_format:number_bullet_lists", "num_bullets": 1.5}), "whole"),
        (
            gold({"id": "length_constraints:number_words", "num_words": 3, "relation": "most"}),
            "'less than' or 'at least'",
        ),
    ],
)
def test_golds_that_cannot_be_read(answer: str, why: str) -> None:
    with pytest.raises(GoldError, match=why):
        ifeval.read_gold(answer)


ALL = [
    {"id": name, **arguments}
    for name, (_, arguments, *_) in {case[0]: case for case in CASES}.items()
]
PIECES = ["a", " ", "\n", "*", "**", "***", ". ", ".", "!", "-", "- ", "[", "]", "<<", ">>", "```"]
PIECES += ['"', "p.s.", "Section 1", "e.g.", ")", "。", "水", "A", "1.", "{", "\u0301", "\ud800"]


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("end", ["", "x"])
def test_100_kb_take_a_fraction_of_a_second(piece: str, end: str) -> None:
    text = "x" + piece * (100_000 // len(piece)) + end
    instructions = ifeval.read_gold(gold(*ALL))
    for check, arguments in instructions:
        seconds = best_seconds(lambda c=check, a=arguments: c.follows(text, **a))  # type: ignore[misc]
        assert seconds < QUICK, check


@given(st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=60).map("".join)))
def test_no_text_breaks_an_instruction(text: str) -> None:
    for check, arguments in ifeval.read_gold(gold(*ALL)):
        assert check.follows(text, **arguments) in (True, False)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ifeval, "find_spec", lambda name: None)
    ifeval.read_gold.cache_clear()
    with pytest.raises(MissingToolError, match="py3langid: `make extras`"):
        ifeval.require(RewardsConfig())
    with Scorer(RewardsConfig()) as scorer, pytest.raises(MissingToolError, match="py3langid"):
        scorer.unreadable_golds([("IFEVAL", gold({"id": "punctuation:no_comma"}))])
