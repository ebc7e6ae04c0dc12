"""Tables on a terminal of 80 columns."""

from __future__ import annotations

import polars as pl
import pytest

from common.reporting.terminal import Table, first_rows, print_table


@pytest.fixture
def lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> pytest.CaptureFixture[str]:
    monkeypatch.setattr("common.reporting.terminal._width", lambda drawn: 80)
    return capsys


def test_ids_and_numbers_stay_whole_and_texts_wrap(lines: pytest.CaptureFixture[str]) -> None:
    frame = pl.DataFrame(
        {
            "prompt_id": ["f988a10c78809027de0cb27a"],
            "variant": ["dr_grpo-of-a-long-name"],
            "question": ["How often is there the letter e in banana and in ananas?"],
            "pass_rate": [0.25],
        }
    )
    print_table(frame)
    shown = lines.readouterr().out
    assert all(len(line) <= 80 for line in shown.splitlines())
    (row,) = [line for line in shown.splitlines() if "f988a10c78809027de0cb27a" in line]
    assert "dr_grpo-of-a-long-name" in row and "0.250" in row
    assert "ananas?" in shown and "ananas?" not in row


def test_a_title_is_as_wide_as_the_terminal_and_says_what_is_left_out(
    lines: pytest.CaptureFixture[str],
) -> None:
    whole = Table(
        "x", "tokens that occur 10 times or more, by mean gap", pl.DataFrame({"n": [1, 2]})
    )
    assert first_rows(whole, None) == first_rows(whole, 2) == whole
    cut = first_rows(whole, 1)
    print_table(cut.frame, title=cut.title)
    title = "tokens that occur 10 times or more, by mean gap: 1 of 2 (--limit 0 shows all)"
    assert lines.readouterr().out.splitlines()[0] == title
    assert first_rows(whole, 2, count=9).title.endswith(": 2 of 9 (--limit 0 shows all)")
