"""Progress without a terminal: a line now and then, with the rate and the time left."""

from __future__ import annotations

import json

import pytest

from common import console
from common.console import ProgressLines, bar, duration_text, rate_text, set_quiet, track


class Clock:
    """A clock that only moves when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_line_a_minute_and_none_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    lines = ProgressLines("rollout", 40, "completions", every=60, clock=clock)
    for _ in range(40):
        clock.now += 15
        lines.advance(1)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 9, "after every fourth, except the last: then the stage says its result"
    assert said[0] == "rollout: 4 of 40 completions, 4.0/min, 9 min left"
    assert said[-1] == "rollout: 36 of 40 completions, 4.0/min, 60 s left"


def test_by_default_a_minute_passes_between_two_lines() -> None:
    assert console.LINE_EVERY == 60


def test_with_several_processes_a_line_says_whose_part_it_counts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "LINE_EVERY", 0.0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert list(track("abc", "reference", 3, "shards")) == ["a", "b", "c"]
    said = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in said] == [
        "reference: 1 of 3 shards on rank 0",
        "reference: 2 of 3 shards on rank 0",
    ]


def test_quiet_is_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "LINE_EVERY", 0.0)
    set_quiet(True)
    with bar("score", 3) as shown:
        shown.advance()
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_there_is_a_bar_and_no_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "LINE_EVERY", 0.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with bar("score", 3) as shown:
        shown.advance(2)
    captured = capsys.readouterr()
    assert captured.out == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (99, "99 s"), (100, "2 min"), (3 * 3600, "3 h 0 min"), (5999, "1 h 40 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_rates() -> None:
    assert rate_text(50, 20) == "2.5/s"
    assert rate_text(1, 24) == "2.5/min"


def test_json_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json({"text": "\x1b[2J\u202e\nä"})
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {"text": "\x1b[2J\u202e\nä"}
    assert "\x1b" not in line and "\u202e" not in line
