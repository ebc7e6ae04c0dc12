"""The Makefile as a user calls it: what it prints, what it refuses, what it never executes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from support import REPOSITORY


@pytest.fixture
def make(runs: Path):  # type: ignore[no-untyped-def]
    """`make("-n", "iteration", "N=2")` with the environment that is there taken as ready."""

    def call(*arguments: str, expect: int = 0) -> str:
        done = subprocess.run(
            ["make", *arguments],
            cwd=REPOSITORY,
            env=os.environ | {"STAGED_GRPO_RUNS": str(runs)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == expect, f"{done.returncode}: {done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    return call


def stage_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if re.search(r" -m (-- )?stages\.", line)]


def test_help_lists_every_public_target(make) -> None:  # type: ignore[no-untyped-def]
    text = make("help")
    makefile = (REPOSITORY / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: ((?:.*\\\n)*.*)", makefile, re.M)
    assert phony
    for target in phony.group(1).replace("\\\n", " ").split():
        assert re.search(rf"^  {target} +\S", text, re.M), f"{target} is not in `make help`"


def test_dry_run_prints_the_commands_one_would_type(make) -> None:  # type: ignore[no-untyped-def]
    lines = stage_lines(make("-n", "iteration", "N=2", "RUN=new"))
    assert [re.sub(r".*stages\.", "", line) for line in lines] == [
        "prepare --run new",
        "evaluate --run new --iteration 0",
        *(
            f"{stage} --run new --iteration {n}"
            for n in (1, 2)
            for stage in ("rollout", "score", "logprobs", "train")
        ),
    ]
    assert not any("--nproc" in line for line in lines)


def test_ranks_go_to_the_stages_that_run_a_model(make) -> None:  # type: ignore[no-untyped-def]
    lines = stage_lines(make("-n", "iteration", "N=1", "NPROC=2"))
    parallel = [
        line for line in lines if "torchrun --standalone --nproc-per-node 2 -m -- stages" in line
    ]
    assert [re.sub(r".*stages\.(\w+).*", r"\1", line) for line in parallel] == [
        "evaluate",
        "rollout",
        "logprobs",
        "train",
    ]


def test_recipe_and_settings_reach_the_first_stage_quoted(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    recipe = tmp_path / "it's mine.toml"
    recipe.write_text((REPOSITORY / "workflows/recipes/arithmetic.toml").read_text())
    text = make("-n", "prepare", f"RECIPE={recipe}", "SET=train.epochs=2 rollout.group_size=4")
    (line,) = stage_lines(text)
    settings = ["--set", "train.epochs=2", "--set", "rollout.group_size=4"]
    assert shlex.split(line)[-6:] == ["--recipe", str(recipe), *settings]


def test_one_stage_by_hand(make) -> None:  # type: ignore[no-untyped-def]
    (line,) = stage_lines(make("-n", "score", "N=2", "RUN=new"))
    assert line.endswith("-m stages.score --run new --iteration 2 --overwrite")
    assert "N=3" in make("score", expect=2)


def test_compare_quotes_what_it_hands_on(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    attack = f"$(shell touch {tmp_path}/mark)"
    given = [f"{name}=it's {attack}" for name in ("PRESETS", "PP", "VARIANTS", "ARGS")]
    line = make("-n", "compare", "N=2", "RUN=a", *given).splitlines()[-1]
    assert "compare --run a --iteration 2 --preset 'it'\\''s' --preset '$(shell'" in line
    assert "--variant 'ppit'\\''s:mesh.pp_degree=it'\\''s'" in line
    assert not (tmp_path / "mark").exists()


def test_compare_refuses_what_it_would_ignore(make) -> None:  # type: ignore[no-untyped-def]
    given = ("-n", "compare", "N=2", "PRESETS=grpo dapo")
    assert make(*given) == make(*given, "NPROC=1")
    assert 'ARGS="--recipe FILE"' in make(*given, "RECIPE=a.toml", expect=2)
    assert 'PP="1 2"' in make(*given, "NPROC=2", expect=2)


def test_learn_and_ablation_refuse_what_belongs_to_a_single_run(make) -> None:  # type: ignore[no-untyped-def]
    for target in ("learn", "ablation"):
        line = make("-n", target, "ARGS=--seeds 0 --recipe a.toml").splitlines()[-1]
        assert line.endswith(f"-m workflows.{target} '--seeds' '0' '--recipe' 'a.toml'")
        for given in ("N=3", "FROM=2", "RECIPE=a.toml", "SET=run.seed=1"):
            refusal = f"{target} takes no {given.partition('=')[0]}=: see make {target} ARGS=--help"
            assert refusal in make("-n", target, given, expect=2)


def test_ask_quotes_the_question_and_names_a_policy_only_if_told(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    attack = f"it's $(shell touch {tmp_path}/mark) `touch {tmp_path}/mark`"
    (line,) = stage_lines(make("-n", "ask", "RUN=a", f"QUESTION={attack}"))
    assert shlex.split(line)[-4:] == ["--run", "a", "--question", attack]
    (line,) = stage_lines(make("-n", "ask", "N=2"))
    assert line.endswith("-m stages.ask --run demo --iteration 2")
    (line,) = stage_lines(make("-n", "runs"))
    assert line.endswith("-m stages.show runs")
    assert not (tmp_path / "mark").exists()


def test_tokens_takes_no_recipe_since_it_records_what_has_trained(make) -> None:  # type: ignore[no-untyped-def]
    (line,) = stage_lines(make("-n", "tokens", "N=2", "RUN=new"))
    assert line.endswith("-m stages.tokens --run new --iteration 2")
    for given in ("RECIPE=x.toml", "SET=objective.clip_low=0.1"):
        refusal = f"tokens takes no {given.partition('=')[0]}=: the recipe is the one that trained"
        assert refusal in make("-n", "tokens", "N=2", given, expect=2)


@pytest.mark.parametrize(("name", "least"), [("N", 0), ("FROM", 1), ("NPROC", 1)])
@pytest.mark.parametrize("value", ["00", "01", "-1", "x", "1x", "1 2", "12345", "1.5", "1;ls"])
def test_numbers_are_checked(make, name: str, least: int, value: str) -> None:  # type: ignore[no-untyped-def]
    arguments = {"N": "2"} | {name: value}
    text = make("-n", "iteration", *(f"{k}={v}" for k, v in arguments.items()), expect=2)
    assert f"{name}={value}: a whole number from {least} to 9999" in text


def test_n_0_prepares_and_evaluates_the_base(make) -> None:  # type: ignore[no-untyped-def]
    assert stage_lines(make("-n", "iteration", "N=0", "SET=evaluate.every=1"))[0].endswith(
        "--set evaluate.every=1"
    )
    assert "NPROC=0" in make("-n", "iteration", "N=1", "NPROC=0", expect=2)


@pytest.mark.parametrize("value", ["../x", "a b", ".a", "-a", "a;b", "a/b", "a$$b"])
def test_run_names_are_checked(make, value: str) -> None:  # type: ignore[no-untyped-def]
    assert "a run is named with" in make("-n", "iteration", "N=1", f"RUN={value}", expect=2)


@pytest.mark.parametrize("variable", ["N", "FROM", "RUN", "NPROC", "SET", "RECIPE"])
@pytest.mark.parametrize(
    "attack", ["$(shell touch {})", "`touch {}`", "';touch {};'", "$(touch {})"]
)
def test_values_are_never_executed(make, tmp_path: Path, variable: str, attack: str) -> None:  # type: ignore[no-untyped-def]
    mark = tmp_path / "mark"
    arguments = {"N": "1"} | {variable: attack.format(mark)}
    make("-n", "iteration", *(f"{k}={v}" for k, v in arguments.items()), expect=2)
    assert not mark.exists()


def test_a_faulty_recipe_stops_make_before_anything_is_made(make, runs: Path) -> None:  # type: ignore[no-untyped-def]
    text = make("iteration", "N=1", "SET=rollout.group_sise=2", expect=2)
    assert "did you mean 'group_size'" in text
    assert not list(runs.iterdir())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("run=ux", "run= is no variable of this Makefile (did you mean RUN=?); there are N RUN"),
        ("n=3", "did you mean N=?"),
        ("ITERATION=3", "ITERATION= is no variable of this Makefile; there are N RUN"),
    ],
)
def test_variables_that_no_target_knows_are_refused(make, given: str, said: str) -> None:  # type: ignore[no-untyped-def]
    assert said in make("-n", "iteration", "N=1", given, expect=2)
