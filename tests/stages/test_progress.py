"""What stages say without a terminal while they work; here at every step, not every minute."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from common import console
from common.runs.layout import Run
from common.training.loop import step_line
from stages import evaluate, logprobs, rollout, score

RATE = r"[\d.]+/(s|min), \d+ (s|min) left"


def test_long_stages_say_how_far_they_are(
    finished: Path,
    at: Callable[[Path], Run],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    at(finished)
    monkeypatch.setattr(console, "LINE_EVERY", 0.0)
    halves = ["rollout.groups_per_shard=2"]
    commands = {
        "rollout": lambda **o: rollout.main("a", 2, **o, overrides=halves, overwrite=True),
        "score": lambda **o: score.main("a", 2, **o, overwrite=True),
        "old policy": lambda **o: logprobs.main("a", 2, **o, overwrite=True),
        "evaluate": lambda **o: evaluate.main("a", 2, **o, overwrite=True),
    }
    for label, command in commands.items():
        capsys.readouterr()
        command()
        said = capsys.readouterr().out
        unit = "shards" if label == "old policy" else "completions"
        lines = re.findall(rf"^{label}: (\d+) of (\d+) {unit}, {RATE}$", said, re.M)
        assert lines, said
        assert all(0 < int(done) < int(total) for done, total, *_ in lines)
        command(quiet=True)
        assert capsys.readouterr().out == ""


def row(seconds: float, *, skipped: bool = False) -> dict[str, object]:
    numbers = ("loss", "reward_mean", "kl", "entropy", "ratio_mean", "grad_norm", "learning_rate")
    row: dict[str, object] = dict.fromkeys((*numbers, "tokens_per_second"), 0.5)
    return row | {"step": 1, "step_seconds": seconds, "skipped": skipped}


def test_a_step_says_how_long_the_others_will_take_if_that_is_long() -> None:
    assert step_line([row(20), row(40)], 6).endswith("  2 min left")
    assert step_line([row(20), row(40, skipped=True)], 6) == "step 2/6: left out  2 min left"
    assert not step_line([row(20), row(40)], 2).endswith("left")
    assert not step_line([row(0.1), row(0.1)], 6).endswith("left")
