"""What the pictures have in common: panels of small multiples in an SVG file.

The same table gives the same bytes. Text is drawn as outlines, so no text can act as markup.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common.errors import MissingToolError, UserError
from common.runs.manifest import write_atomically

# Okabe and Ito's colours, which colour-blind readers can tell apart. Lines also differ by dash and
# marker.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
MARKERS = "osD^vPX"


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

    with (
        style.context("default"),
        rc_context({"svg.hashsalt": "staged-grpo", "svg.fonttype": "path", "font.size": 9}),
    ):
        figure = Figure(figsize=(3.1 * columns, 2.4 * rows + 0.6), layout="constrained")
        yield figure, list(figure.subplots(rows, columns, squeeze=False).flatten())
        figure.suptitle(title)
        figure.draw_without_rendering()  # tick labels get their width in the first drawing
        sink = io.BytesIO()
        figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None})
    write_atomically(path, sink.getvalue())


def look(index: int) -> dict[str, Any]:
    """Return the colour, dash and marker of the line with this index."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": DASHES[index % len(DASHES)],
        "marker": MARKERS[index % len(MARKERS)],
        "markersize": 3,
        "linewidth": 1.4,
    }


def finish(panel: Any, name: str, x_label: str) -> None:
    """Set the title, label and grid of a panel whose x axis holds whole numbers."""
    from matplotlib.ticker import MaxNLocator

    panel.set_title(name, fontsize=9)
    panel.set_xlabel(x_label, fontsize=8)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)


def legend_below(figure: Any, panel: Any) -> None:
    """Draw one legend for all panels, with the lines of this one."""
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
