"""The prompt ledger: what was solved how often, and what a rollout makes of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from support.dynamic_runs import RECIPE, sayings
from support.scored_runs import completion, start_scored_run, write_rollout

from common.errors import UserError
from common.reporting.ledger_tables import read_ledger
from common.rollout.ledger import attempts, last_pass_rates
from common.runs.freshness import input_hashes, status_of
from common.runs.layout import Run, shard_name
from common.runs.manifest import read_manifest
from common.runs.schemas import KEY, ROLLOUT, score_schema
from common.runs.shards import OutputWriter, read_output
from stages import logprobs, rollout, score, show, train


@pytest.fixture(scope="module")
def whole(prepared: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Three iterations drawn by the ledger, two of them trained; not to be changed."""
    folder = tmp_path_factory.mktemp("ledger")
    settings = [
        'rollout.sampling="ledger"',
        "rollout.dynamic_sampling=false",
        "rollout.ledger_revisit=0.5",
        "rollout.prompts_per_iteration=8",
        "train.learning_rate=1e-6",
    ]
    rows = sayings([7, 7, 7, 12345] * 3 + [7])
    shutil.copytree(prepared(RECIPE, *settings, rows=rows), folder / "runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAGED_GRPO_RUNS", str(folder / "runs"))
        run = Run.named("a")
        for iteration in (1, 2, 3):
            for stage in (rollout, score, logprobs, train)[: 4 if iteration < 3 else 1]:
                stage.main("a", iteration, quiet=True)
        yield run


def drawn(run: Run, iteration: int) -> list[str]:
    frame = pl.DataFrame(read_output(run.rollout(iteration), ["prompt_id", "group_id"]).to_pylist())
    return frame.unique("group_id", maintain_order=True)["prompt_id"].to_list()


def test_drawings_are_counted_from_the_files(whole: Run) -> None:
    for iteration in (1, 2):
        rows = pl.DataFrame(read_output(whole.rollout(iteration), ["prompt_id"]).to_pylist())
        verdicts = read_output(whole.score(iteration), ["verdict"])["verdict"].to_pylist()
        found = attempts(whole, iteration)
        assert found["prompt_id"].to_list() == list(dict.fromkeys(rows["prompt_id"]))
        for row in found.to_dicts():
            own = [
                v for p, v in zip(rows["prompt_id"], verdicts, strict=True) if p == row["prompt_id"]
            ]
            assert (row["samples"], row["correct"]) == (len(own), own.count("correct"))
            assert row["pass_rate"] == own.count("correct") / len(own)


def test_prompts_solved_in_part_come_again_and_solved_ones_pass(whole: Run) -> None:
    manifests = [read_manifest(whole.rollout(n)) for n in (1, 2, 3)]
    assert [sorted(n for n in m.inputs if n.endswith("score")) for m in manifests] == [
        [],
        ["iterations/0001/score"],
        ["iterations/0001/score", "iterations/0002/score"],
    ]
    assert manifests[0].facts["revisited"] == manifests[0].facts["passed_over"] == 0
    rates: dict[str, float] = {}
    for iteration in (2, 3):
        rates |= dict(attempts(whole, iteration - 1).select("prompt_id", "pass_rate").iter_rows())
        partly = {prompt for prompt, rate in rates.items() if 0 < rate < 1}
        solved = {prompt for prompt, rate in rates.items() if rate == 1}
        facts = manifests[iteration - 1].facts
        prompts = drawn(whole, iteration)
        assert len(set(prompts)) == len(prompts) == 8
        assert facts["revisited"] == min(4, len(partly)) > 0
        assert set(prompts[: facts["revisited"]]) <= partly
        turn = facts["cursor_end"] - facts["cursor_start"]
        assert turn == 8 - facts["revisited"] + facts["passed_over"]
        assert solved, "else the fixture shows nothing"
    assert manifests[2].facts["passed_over"] > 0
    assert len({*drawn(whole, 1), *drawn(whole, 2)}) == 12, "whose turn it is, comes"


def test_another_score_makes_rollouts_that_read_it_stale(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole.root.parent, tmp_path / "runs")
    monkeypatch.setenv("STAGED_GRPO_RUNS", str(tmp_path / "runs"))
    run = Run.named("a")
    assert status_of(run, run.rollout(3)).state == "fresh"
    score.main("a", 1, quiet=True, overwrite=True, overrides=["rewards.answer.weight=2"])
    assert status_of(run, run.rollout(1)).state == "fresh"
    for iteration in (2, 3):
        assert status_of(run, run.rollout(iteration)).reason == "iterations/0001/score changed"
    rollout.main("a", 1, quiet=True, overwrite=True, overrides=["run.seed=1"])
    with pytest.raises(UserError, match=r"0001/score is stale.*\"ledger\" reads it.*stages\.score"):
        last_pass_rates(run, drawn(run, 1), 2)


def test_show_ledger(whole: Run, capsys: pytest.CaptureFixture[str]) -> None:
    show.ledger("a", as_json=True)
    found = json.loads(capsys.readouterr().out)
    (task,) = found["tasks"]
    states = [task[name] for name in ("never", "in_part", "always", "not_attempted")]
    assert task["task"] == "sayings" and sum(states) == task["prompts"] == 12
    never = [row["question"] for row in found["never_solved"]]
    assert len(never) == task["never"] > 0
    assert all(int(question.removeprefix("Say ")) % 4 == 3 for question in never)
    assert [row["times_attempted"] for row in found["never_solved"]] == sorted(
        (row["times_attempted"] for row in found["never_solved"]), reverse=True
    )
    assert {row["iteration"] for row in found["attempts"]} == {1, 2}
    show.ledger("a", limit=1)
    shown = capsys.readouterr().out
    listed = f"prompts never solved: 1 of {len(never)} (--limit 0 shows all)"
    assert never[0] in shown and listed in shown
    with pytest.raises(UserError, match="--task 'sums': there is 'sayings'"):
        show.ledger("a", task="sums")


def test_infra_errors_are_no_evidence(runs: Path) -> None:
    """A completion that could not be judged counts nowhere; a prompt without any is unknown."""
    run = start_scored_run()
    rows = [completion(group, sample) for group in range(30) for sample in range(4)]
    write_rollout(run, rows)
    score.main("a", 1, quiet=True)
    assert attempts(run, 1).filter(prompt_id="p1").to_dicts()[0]["pass_rate"] == 1
    path = run.score(1).path / "shard-00000.parquet"
    failed = pl.col("rollout_id").is_in(["0001-00001-0000"]) | pl.col("rollout_id").str.starts_with(
        "0001-00002"
    )
    frame = pl.read_parquet(path)
    frame.with_columns(
        verdict=pl.when(failed).then(pl.lit("infra_error")).otherwise(pl.col("verdict"))
    ).write_parquet(path)
    score.main("a", 1, accept_edits=True, quiet=True)
    found = attempts(run, 1)
    assert found.filter(prompt_id="p1").select("samples", "pass_rate").row(0) == (3, 1.0)
    assert found.filter(prompt_id="p2").select("samples", "pass_rate").row(0) == (0, None)
    last = last_pass_rates(run, ["p1", "p2"], 2)
    assert last.pass_rates == {"p1": 1.0} and last.scores == ["iterations/0001/score"]


def test_the_past_is_read_only_as_far_as_it_matters(whole: Run) -> None:
    newest = attempts(whole, 2)
    last = last_pass_rates(whole, newest["prompt_id"].to_list(), 3)
    assert last.scores == ["iterations/0002/score"]
    assert last.pass_rates == dict(newest.select("prompt_id", "pass_rate").iter_rows())


def test_a_prompt_that_never_fits_does_not_make_every_rollout_read_the_whole_run(
    runs: Path,
) -> None:
    """Three prompts, one of them too long, three turns an iteration, a recheck in each epoch: six
    turns have one of every prompt that fits. What rested longer under a former recipe counts."""
    run = start_scored_run()
    ids = ["p1", "p2", "too long"]
    write_drawings(run, [[1, 2]] * 5, recheck_epochs=[1, 1, 1, 1, 1])
    last = last_pass_rates(run, ids, 6)
    assert last.scores == ["iterations/0004/score", "iterations/0005/score"]
    assert last.pass_rates == {"p1": 1.0, "p2": 0.0}
    write_drawings(run, [[1, 2], [2], [2], [2], [2]], recheck_epochs=[1, 1, 1, 3, 1])
    assert last_pass_rates(run, ids, 6).scores == [
        f"iterations/{n:04d}/score" for n in (2, 3, 4, 5)
    ]
    assert last_pass_rates(run, ids, 5).pass_rates == {"p1": 1.0, "p2": 0.0}


def test_all_solved_is_said_in_words(
    prepared: Callable[..., Path],
    at: Callable[[Path], Run],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = at(prepared(RECIPE, rows=sayings([7, 7, 7])))
    show.ledger("a")
    said = "every prompt that was drawn has been solved"
    assert said not in capsys.readouterr().out, "nothing is drawn yet"
    prompt_id = read_ledger(run).prompts["prompt_id"][0]
    rows = [completion(1, sample, prompt_id=prompt_id) for sample in range(4)]
    write_rollout(run, rows, shards=1)
    score.main("a", 1, overrides=["rewards.format.weight=0"], quiet=True)
    show.ledger("a")
    shown = capsys.readouterr().out
    assert said in shown and "never solved" not in shown


def write_drawings(run: Run, drawn: list[list[int]], recheck_epochs: list[int]) -> None:
    """Rollouts of three turns each, and scores; group 1 is solved, group 2 never."""
    for iteration, groups in enumerate(drawn, start=1):
        for output in (run.rollout(iteration), run.score(iteration)):
            shutil.rmtree(output.path, ignore_errors=True)
        rows = [completion(group, sample) for group in groups for sample in range(2)]
        turns = {"cursor_start": 3 * iteration - 3, "cursor_end": 3 * iteration}
        rollout_of = OutputWriter(
            run.rollout(iteration),
            inputs={},
            recipe={"rollout": {"ledger_recheck_epochs": recheck_epochs[iteration - 1]}},
            seed=0,
            names=[shard_name(0)],
            schema=ROLLOUT,
        ).open()
        rollout_of.write(shard_name(0), pa.Table.from_pylist(rows, schema=ROLLOUT))
        rollout_of.commit(turns)
        scored = [
            dict.fromkeys(score_schema([]).names, 0.0)
            | {KEY: row[KEY], "extracted_answer": ""}
            | {"verdict": "correct" if row["group_id"] == 1 else "wrong"}
            for row in rows
        ]
        score_of = OutputWriter(
            run.score(iteration),
            inputs=input_hashes(run, [run.rollout(iteration).name]),
            recipe={},
            seed=0,
            names=[shard_name(0)],
            schema=score_schema([]),
        ).open()
        score_of.write(shard_name(0), pa.Table.from_pylist(scored, schema=score_schema([])))
        score_of.commit()


def test_ledger_without_anything_drawn(
    prepared: Callable[..., Path], at: Callable[[Path], Run]
) -> None:
    run = at(prepared(RECIPE, rows=sayings([7, 7, 7])))
    ledger = read_ledger(run)
    assert ledger.tasks().to_dicts() == [
        {"task": "sayings", "prompts": 2, "never": 0, "in_part": 0, "always": 0, "not_attempted": 2}
    ]
    assert ledger.never_solved().is_empty() and ledger.attempts.is_empty()
