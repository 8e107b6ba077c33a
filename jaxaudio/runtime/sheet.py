"""A contact sheet: the spectrograms of many sounds on one page."""

from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxaudio.dsp.stft import magnitudes

FLOOR_DB = -80.0  # below the loudest bin of the sheet


def draw(
    sounds: np.ndarray, sample_rate: int, titles: Sequence[str], path: Path | None = None, columns: int | None = None
) -> np.ndarray:
    """Spectrograms of sounds [n, time, channels], each under its title; saved as PNG at `path`. columns: if none
    are given, as many as make the page about square.

    One scale for the whole page (decibels below the loudest bin), time to the right, frequency up to half the sample
    rate. Returns the picture [height, width, 3], uint8.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = 512 if sounds.shape[1] < 2 * sample_rate else 1024
    level = 20 * np.log10(np.asarray(magnitudes(jnp.asarray(sounds.mean(-1)), size, size // 4)) + 1e-9)
    level -= level.max()
    columns = columns or min(len(sounds), max(4, int(np.ceil(np.sqrt(len(sounds))))))
    rows = -(-len(sounds) // columns)
    figure = Figure(figsize=(2.4 * columns, 1.7 * rows + 0.5), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    extent = (0, sounds.shape[1] / sample_rate, 0, sample_rate / 2000)
    for axis in axes.flat[len(sounds) :]:
        axis.set_axis_off()
    for axis, picture, title in zip(axes.flat, level, titles, strict=False):
        axis.imshow(picture.T, "magma", origin="lower", aspect="auto", extent=extent, vmin=FLOOR_DB, vmax=0)
        axis.set_title(title, fontsize=8, pad=2, parse_math=False)
        axis.tick_params(labelsize=6)
    figure.supxlabel("seconds", fontsize=8)
    figure.supylabel("kHz", fontsize=8)
    canvas.draw()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        canvas.print_png(str(fresh))
        fresh.replace(path)
    return np.asarray(canvas.buffer_rgba())[..., :3]
