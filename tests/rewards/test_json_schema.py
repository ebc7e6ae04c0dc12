"""JSON_SCHEMA: the answer's JSON is found, read strictly and validated; nothing is fetched."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from common.config import RewardsConfig
from common.config.rewards import JsonSchemaLimits
from common.errors import MissingToolError
from common.rewards import json_schema
from common.rewards.rule import GoldError, Verdict
from common.rewards.scorer import Scorer

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^[A-Z]"}, "age": {"type": "integer"}},
    "required": ["name"],
    "additionalProperties": False,
}
TREE = {"$defs": {"n": {"properties": {"k": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"}
ADA = '{"name": "Ada", "age": 36}'


def verdict(text: str, schema: Any = PERSON) -> Verdict:
    row = {"answer": json.dumps(schema), "verify_type": "JSON_SCHEMA"}
    return json_schema.judge(text, row)


@pytest.mark.parametrize(
    "text",
    [
        ADA,
        f"Here:\n```json\n{ADA}\n```\nas asked",
        f"```\n{ADA}\n```",
        f'```json\n{{"name": 1}}\n```\nno:\n```json\n{ADA}\n```',
        f"```json\n{ADA}\n```\n```python\nprint(1)\n```",
        f"<answer>{ADA}</answer>",
        f"<think>{{}}</think>\n{ADA}\n",
    ],
)
def test_the_answers_json_is_found(text: str) -> None:
    assert verdict(text).verdict == "correct"


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "ada"}',
        '{"age": 36}',
        '{"name": "Ada", "age": "36"}',
        '{"name": "Ada", "more": 1}',
        '{"name": "Ada", "name": "Bo"}',
        f"{ADA} {ADA}",
        f"The answer is {ADA}",
        f"<answer>{ADA}</answer><answer>{ADA}</answer>",
        f"```json\n{ADA}",
        "[" * 100_000,
        '{"name": "Ada", "age": NaN}',
        '{"name": "Ada", "age": 1e999}',
        '{"name": "Ada", "age": ' + "9" * 5000 + "}",
    ],
)
def test_other_json_and_no_json_are_wrong(text: str) -> None:
    found = verdict(text)
    assert (found.verdict, found.reward) == ("wrong", 0)


@pytest.mark.parametrize("text", ["", "<think>{}", "<answer>{}", "```json\n```"])
def test_nothing_is_no_answer(text: str) -> None:
    assert verdict(text, {}).verdict == "no_answer"


@pytest.mark.parametrize("depth", [10, 400, 5000])
def test_a_deep_answer_to_a_recursive_schema_is_judged(depth: int) -> None:
    """It is wrong when it is deeper than can be judged, and never a fault of the rule."""
    found = verdict('{"k":' * depth + "{}" + "}" * depth, TREE)
    assert found.verdict == ("correct" if depth == 10 else "wrong")


def test_numbers_that_cannot_be_divided_are_wrong_and_no_fault() -> None:
    assert verdict("9" * 4000, {"multipleOf": 0.5}).verdict == "wrong"


@pytest.mark.parametrize(
    "draft", ["http://json-schema.org/draft-07/schema#", "http://json-schema.org/draft-04/schema#"]
)
def test_the_schemas_own_draft_holds(draft: str) -> None:
    schema = {"$schema": draft, "items": [{"type": "string"}], "additionalItems": False}
    assert [verdict(text, schema).reward for text in ('["a"]', '["a", 1]')] == [1, 0]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("{", "is not JSON"),
        ('{"a": 1, "a": 2}', "an object has a key twice"),
        ("[1]", "is no schema: give an object"),
        ('{"type": "objct"}', "is no schema: 'objct' is not valid .* at \\$.type"),
        ('{"properties": {"a": {"pattern": "("}}}', r"at \$.properties.a.pattern"),
        ('{"$schema": "http://my.own/schema"}', "has the unknown \\$schema"),
        ('{"$ref": "#"}', "refers to itself without end"),
        ('{"$ref": "http://127.0.0.1:9/a"}', "which is not in it"),
        ('{"properties": {"a": {"$ref": "file:///etc/passwd"}}}', "which is not in it"),
        ('{"$defs": {"a": {"items": {"$ref": "#/$defs/b"}}}}', "which is not in it"),
    ],
)
def test_schemas_that_are_refused(answer: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object) -> None:
        raise AssertionError("something was fetched")

    monkeypatch.setattr(socket, "create_connection", no_network)
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(GoldError, match=why):
        json_schema.read_gold(answer)


def test_references_within_the_schema_are_followed() -> None:
    schema = {
        "$id": "http://a.example/b",
        "$defs": {"c": {"$id": "c", "type": "integer"}},
        "properties": {"x": {"$ref": "c"}},
    }
    assert [verdict(text, schema).reward for text in ('{"x": 1}', '{"x": "1"}')] == [1, 0]


def test_a_pattern_that_runs_for_ever_is_a_timeout_and_the_next_is_judged() -> None:
    schema = json.dumps({"pattern": "^(a|b|ab)*c$"})
    rows = [
        (json.dumps(text), {"answer": schema, "verify_type": "JSON_SCHEMA"})
        for text in ("ab" * 200, "ababc")
    ]
    limits = JsonSchemaLimits(seconds=1)
    with Scorer(RewardsConfig(json_schema=limits, workers=1)) as scorer:
        slow, quick = scorer.answers(rows)
    assert (slow.reward, slow.verdict) == (0, "timeout")
    assert quick.verdict == "correct"


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_schema, "find_spec", lambda name: None)
    with pytest.raises(MissingToolError, match="jsonschema: `make extras`"):
        json_schema.require(RewardsConfig())
