"""What the pictures have in common: panels of small multiples in an SVG file, for light and dark.

The same table gives the same bytes. Text is drawn as outlines, so no text can act as markup, and a
picture looks alike everywhere. Its colours are written for a light page; a style sheet inside the
file exchanges them where the reader prefers dark pages, the background included.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common.errors import MissingToolError, UserError
from common.runs.manifest import write_atomically

SURFACE, INK, MUTED, GRID = "#ffffff", "#1f2328", "#59636e", "#e4e8ec"

HUES = (
    *("#0072b2", "#d55e00", "#00805e", "#8c5a2b"),
    *("#7b4fc9", "#a87900", "#c2378c", "#0e8fa8"),
)
"""Colours of what is compared, at least 3 to 1 against the background, after Okabe and Ito's. Lines
also differ by dash and marker, for readers who cannot tell the colours apart."""

_APART = (0, 1, 2, 6, 4, 7, 5, 3)
"""Indices of `HUES` in an order in which the first few differ most."""

DARK = {
    SURFACE: "#0d1117",
    INK: "#f0f6fc",
    MUTED: "#9198a1",
    GRID: "#2a313c",
    "#0072b2": "#58a6e8",
    "#d55e00": "#ff8f4a",
    "#00805e": "#3fc79a",
    "#8c5a2b": "#d2a679",
    "#7b4fc9": "#b392f0",
    "#a87900": "#e3b341",
    "#c2378c": "#f285c1",
    "#0e8fa8": "#4fd0e6",
}
"""For each colour the one that takes its place on a dark page."""

DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
MARKERS = "osD^vPX"

_STYLE: Any = {
    "svg.hashsalt": "staged-grpo",
    "svg.fonttype": "path",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 8.5,
    "axes.edgecolor": MUTED,
    "axes.facecolor": SURFACE,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.5,
    "figure.facecolor": SURFACE,
    "savefig.facecolor": SURFACE,
    "legend.frameon": False,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.08,
}


def require_matplotlib() -> None:
    """Raise `MissingToolError` where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise MissingToolError("--svg needs matplotlib: make extras")


def check_file(option: str, path: Path | None, suffix: str) -> None:
    """Refuse a file that could not be written at the end, and a picture without matplotlib."""
    if path is not None and (path.suffix != suffix or not path.parent.is_dir()):
        raise UserError(f"{option} {path}: name a {suffix} file in a folder that exists")
    if path is not None and suffix == ".svg":
        require_matplotlib()


@contextmanager
def panels(path: Path, rows: int, columns: int, *, title: str) -> Iterator[tuple[Any, list[Any]]]:
    """Yield the figure and its panels, row by row, to draw on; write them to `path` at the end."""
    from matplotlib import rc_context, style
    from matplotlib.figure import Figure

    with style.context("default"), rc_context(_STYLE):
        # As wide for two columns as for three: documents show all pictures at the same width.
        figure = Figure(figsize=(8.7, 2.35 * rows + 0.7), layout="constrained")
        yield figure, list(figure.subplots(rows, columns, squeeze=False).flatten())
        figure.suptitle(title, x=0.012, ha="left", fontsize=10.5, fontweight="bold")
        figure.draw_without_rendering()  # tick labels get their width in the first drawing
        sink = io.BytesIO()
        figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None})
    write_atomically(path, _with_dark(sink.getvalue().decode()).encode())


def look(index: int) -> dict[str, Any]:
    """Return the colour, dash and marker of the line with this index."""
    return {
        "color": HUES[_APART[index % len(HUES)]],
        "linestyle": DASHES[index % len(DASHES)],
        "marker": MARKERS[index % len(MARKERS)],
    }


def finish(panel: Any, name: str, x_label: str) -> None:
    """Set the title, label and grid of a panel whose x axis holds whole numbers."""
    from matplotlib.ticker import MaxNLocator

    panel.set_title(name)
    panel.set_xlabel(x_label)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    panel.grid(True)
    panel.set_axisbelow(True)


def legend_below(figure: Any, drawn: Sequence[Any], columns: int = 5) -> None:
    """Draw one legend for the whole figure: every label of these panels once, in their order."""
    entries: dict[str, Any] = {}
    for panel in drawn:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(
        list(entries.values()), list(entries), loc="outside lower left", ncols=columns, fontsize=8.5
    )


def _with_dark(svg: str, exchanged: Mapping[str, str] = DARK) -> str:
    """Return the picture with a style sheet that exchanges its colours on dark pages."""
    rules = "".join(
        f'[style*="{kind}: {light}"]{{{kind}:{dark}!important}}'
        for light, dark in exchanged.items()
        for kind in ("fill", "stroke")
    )
    sheet = f"<style>@media (prefers-color-scheme:dark){{{rules}}}</style>"
    start = svg.index(">", svg.index("<svg")) + 1
    return svg[:start] + "\n " + sheet + svg[start:]
