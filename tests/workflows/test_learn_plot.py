"""The picture of what was learned: a hue for each meaning, and one legend."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from common.reporting.opening_tables import OTHERS, quoted
from common.runs.layout import REPOSITORY
from workflows.learn import tables
from workflows.learn.plot import ALL, draw, looks_of, title_of, ways_of
from workflows.results import read_results

RESULTS = REPOSITORY / "data" / "results"


@pytest.mark.parametrize("name", ["learn", "sums-smollm2"])
def test_no_look_stands_for_two_things(name: str) -> None:
    """Families of tasks and openings share no hue; tasks of a family differ by dash."""
    found = read_results(RESULTS / name, tables.COLUMNS)
    tasks = found["evaluations"]["task"].unique(maintain_order=True).to_list()
    ways = ways_of(found["curves"])
    looks = looks_of(tasks, ways)
    assert set(looks) == {*tasks, *ways, ALL}
    assert len({(look["color"], str(look["linestyle"])) for look in looks.values()}) == len(looks)
    families = {task.partition("-")[0] for task in tasks}
    hues = {look["color"] for look in looks.values()}
    assert len(hues) == len(families) + len(ways) + 1


def test_tasks_of_a_family_stand_together() -> None:
    looks = looks_of(["sums", "products", "sums-of-3"], [quoted("The"), quoted(OTHERS)])
    assert list(looks)[:3] == ["sums", "sums-of-3", "products"]
    assert looks["sums"]["color"] == looks["sums-of-3"]["color"] != looks["products"]["color"]
    assert looks["sums"]["linestyle"] != looks["sums-of-3"]["linestyle"]


def test_the_title_names_the_runs() -> None:
    assert title_of(["a"]) == "a"
    assert title_of(["a", "b"]).startswith("a, b: the mean")


def test_the_tracked_picture_is_drawn_from_the_tracked_tables(tmp_path: Path) -> None:
    """The same lines, point by point, whatever the version of matplotlib made of the letters."""
    found = read_results(RESULTS / "learn", tables.COLUMNS)
    draw(found["curves"], found["evaluations"], tmp_path / "learn.svg")
    hues = {look["color"] for look in looks_of(["a"], ways_of(found["curves"])).values()}
    written, tracked = (
        lines((folder / "learn.svg").read_text(), hues) for folder in (tmp_path, RESULTS)
    )
    assert written == tracked and len(written) > 10


def lines(picture: str, hues: set[str]) -> list[tuple[str, int]]:
    """Return hue and number of points of each line."""
    paths = re.findall(r'<path d="([^"]+)"[^>]*style="fill: none; stroke: (#\w+)', picture)
    return [(hue, len(re.findall(r"[ML]", path))) for path, hue in paths if hue in hues]
