"""The visual language of all pictures: colours for light and dark, one legend, the same bytes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from common.errors import MissingToolError, UserError
from common.reporting.plotting import (
    DARK,
    GRID,
    HUES,
    INK,
    MUTED,
    SURFACE,
    check_file,
    finish,
    legend_below,
    look,
    panels,
    require_matplotlib,
)
from common.runs.layout import REPOSITORY

PICTURES = sorted((REPOSITORY / "data" / "results").glob("*.svg"))
COLOURS = re.compile(r"(fill|stroke): (#[0-9a-f]{6})")


def luminance(colour: str) -> float:
    """Relative luminance after WCAG 2."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_text_and_lines_stand_out_from_the_background(dark: bool) -> None:
    """WCAG 2 asks for 4.5 to 1 of text, and for 3 to 1 of what a picture is made of."""
    shown = DARK if dark else {colour: colour for colour in DARK}
    background = shown[SURFACE]
    assert contrast(shown[INK], background) >= 7 and contrast(shown[MUTED], background) >= 4.5
    assert all(contrast(shown[hue], background) >= 3 for hue in HUES)
    assert contrast(shown[GRID], background) < 2, "a grid stays behind"


def drawn(path: Path) -> str:
    with panels(path, 1, 2, title="a <b> title") as (figure, (one, other)):
        for panel in (one, other):
            for index, label in enumerate(("x", "y")):
                panel.plot([1, 2], [index, 2], label=label, **look(index))
            panel.fill_between([1, 2], [0, 1], [1, 2], color=HUES[0], alpha=0.2)
            finish(panel, "a panel", "step")
        legend_below(figure, [one, other])
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["x", "y"]
    return path.read_text()


def parts_of(picture: str) -> tuple[str, str]:
    """Return the style sheet for dark pages, and the rest."""
    start = picture.index("<style>@media (prefers-color-scheme:dark)")
    end = picture.index("</style>", start)
    return picture[start:end], picture[:start] + picture[end:]


def test_a_picture_has_its_own_background_and_exchanges_all_its_colours(tmp_path: Path) -> None:
    sheet, body = parts_of(drawn(tmp_path / "a.svg"))
    used = set(COLOURS.findall(body))
    assert {("fill", SURFACE), ("fill", INK), ("stroke", HUES[0])} <= used
    for kind, colour in used:
        assert f'[style*="{kind}: {colour}"]{{{kind}:{DARK[colour]}!important}}' in sheet
    assert "<text" not in body


def test_the_same_bytes_and_no_text_as_markup(tmp_path: Path) -> None:
    one, other = drawn(tmp_path / "1.svg"), drawn(tmp_path / "2.svg")
    assert one == other
    assert not [text for text in ("<b>", "<script", "<dc:date>", "@font-face") if text in one]


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.name)
def test_tracked_pictures_speak_this_language(picture: Path) -> None:
    sheet, body = parts_of(picture.read_text())
    used = set(COLOURS.findall(body))
    assert ("fill", SURFACE) in used
    for kind, colour in used:
        assert f'"{kind}: {colour}"]{{{kind}:{DARK[colour]}' in sheet
    assert len(re.findall(r'id="legend_\d+"', body)) == 1
    assert not re.findall(r"<text|<image|url\((?!#)", body), "nothing is loaded from elsewhere"


def test_a_picture_needs_matplotlib_and_a_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_file("--svg", tmp_path / "a.svg", ".svg")
    for path in (tmp_path / "a.png", tmp_path / "nowhere" / "a.svg"):
        with pytest.raises(UserError, match=r"name a \.svg file in a folder that exists"):
            check_file("--svg", path, ".svg")
    monkeypatch.setattr("common.reporting.plotting.find_spec", lambda name: None)
    with pytest.raises(MissingToolError, match=r"--svg needs matplotlib: make extras$"):
        require_matplotlib()
