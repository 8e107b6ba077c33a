"""A confusion matrix as a picture."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

MOST_NUMBERED = 20  # classes up to which the counts stand in the cells
MOST_NAMED = 60  # names along an axis that can still be told apart
LONGEST = 24  # characters of a name


def draw_confusion(matrix: Int[np.ndarray, "classes classes"], names: Sequence[str], path: Path) -> None:
    """Writes the matrix as a PNG: a row per true class, a column per predicted one.

    The colour is a cell's share of its row, so that rare classes are as visible as frequent ones; up to 20 classes have
    their counts in the cells, and of more than 60 only some are named.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(matrix)
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    size = min(12.0, 2.6 + 0.42 * count)  # inches
    figure = Figure(figsize=(size + 0.9, size), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axis = figure.subplots()
    image = axis.imshow(share, "Blues", vmin=0, vmax=1)
    bar = figure.colorbar(image, ax=axis, shrink=0.8)
    bar.set_label("share of the true class", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    shown = range(0, count, -(-count // MOST_NAMED))
    font = 8 if count <= MOST_NUMBERED else 5.5
    labels = [_short(names[i]) for i in shown]
    axis.set_xticks(shown, labels, rotation=90, fontsize=font, parse_math=False)
    axis.set_yticks(shown, labels, fontsize=font, parse_math=False)
    axis.set_xlabel("predicted", fontsize=9)
    axis.set_ylabel("true", fontsize=9)
    if count <= MOST_NUMBERED:
        for (row, column), cell in np.ndenumerate(matrix):
            colour = "white" if share[row, column] > 0.5 else "black"
            axis.text(column, row, str(cell), ha="center", va="center", color=colour, fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph .* missing from", UserWarning
        )  # names in scripts that no font here has
        canvas.print_png(str(fresh))
    fresh.replace(path)


def _short(name: str) -> str:
    """Fit for a picture, whatever a folder was called."""
    clean = name.encode("utf-8", "backslashreplace").decode()
    clean = clean if clean.isprintable() else ascii(clean)[1:-1]
    return clean if len(clean) <= LONGEST else f"{clean[: LONGEST - 1]}…"
