"""The curves of a run's report: metrics.jsonl as charts, drawn here as SVG."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxaudio.runtime.report_page import number, text

UNITS = {
    "steps_per_second": "steps per second",
    "audio_per_second": "seconds per second",
    "input_wait": "share of the time",
}
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 176, 46, 10, 8, 32  # of a chart, in its own units
BINS = 180  # of a long curve; each shows its lowest and its highest value
POINTS = 24_000  # of all curves: many of them are drawn with fewer bins
MOST_CHARTS = 150
MARKED = 30  # points up to which each gets a mark
LONG = "Of long curves the pale line runs through the lowest and highest values, the strong one through means."
HUGE = 1e300  # beyond it a range overflows: it counts as infinite


class Curve(NamedTuple):
    """One metric over the steps."""

    steps: np.ndarray
    values: np.ndarray  # NaN or infinite where the run's value was

    def finite(self) -> "Curve":
        """Without what is not finite."""
        there = np.isfinite(self.values)
        return Curve(self.steps[there], self.values[there])


def read(path: Path) -> dict[str, Curve]:
    """Every metric of a metrics.jsonl, in the order of the file; damaged lines are skipped."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return {}
    for line in lines:
        try:
            entries = json.loads(line)
        except (ValueError, RecursionError):
            continue
        step = entries.pop("step", None) if isinstance(entries, dict) else None
        if not isinstance(step, int) or not 0 <= step < 1 << 53:
            continue
        for name, value in entries.items():
            try:
                value = float(value)
            except (ValueError, TypeError, OverflowError):
                continue
            steps, values = found.setdefault(name, ([], []))
            steps.append(step)
            values.append(math.copysign(math.inf, value) if abs(value) > HUGE else value)
    curves = {}
    for name, (steps, values) in found.items():
        order = np.argsort(steps, kind="stable")
        curves[name] = Curve(np.array(steps)[order], np.array(values)[order])
    return curves


def skipped(curves: Mapping[str, Curve]) -> dict[str, tuple[int, str]]:
    """How many updates of each network were skipped, and when: a line holds their share since the line before."""
    found = {}
    for name, curve in curves.items():
        if name.endswith("skipped"):
            shares = np.clip(np.nan_to_num(curve.values), 0, 1)
            some = curve.steps[shares > 0]
            when = (
                f"between steps {curve.steps[curve.steps < some[0]].max(initial=0):,} and {some[-1]:,}"
                if len(some)
                else ""
            )
            count = round(float((shares * np.diff(curve.steps, prepend=0)).sum()))
            found[name.rpartition("/")[0] or name] = (count, when)
    return found


def groups(names: Sequence[str]) -> dict[str, list[list[str]]]:
    """Which charts there are: {heading: [names in one chart, ...]}, a held-out metric with its namesake in training."""
    charts = {name: [name] for name in names if not name.startswith("valid/") and not name.endswith("skipped")}
    alone = []
    for name in names:
        if name.startswith("valid/"):
            short = name.removeprefix("valid/")
            same = [short] if short in charts else [other for other in charts if other.endswith(f"/{short}")]
            if len(same) == 1 and len(charts[same[0]]) == 1:
                charts[same[0]].append(name)
            else:
                alone.append([name])
    grouped: dict[str, list[list[str]]] = {"held out": alone, "training": []}
    for name, chart in charts.items():
        network, _, _ = name.rpartition("/")
        grouped.setdefault("speed" if name in UNITS else network or "training", []).append(chart)
    if "speed" in grouped:
        grouped["speed"] = grouped.pop("speed")  # last
    by_importance = lambda chart: chart[0].rpartition("/")[2] != "loss"
    return {heading: sorted(charts, key=by_importance) for heading, charts in grouped.items() if charts}


def section(curves: Mapping[str, Curve]) -> str:
    """All charts under their headings, then every metric's numbers as a table."""
    if not curves:
        return "<p>metrics.jsonl holds nothing yet.</p>"
    last = max(1, max(int(curve.steps[-1]) for curve in curves.values()))
    bins = max(10, min(BINS, POINTS // (2 * len(curves))))
    skips = [f"{text(name)} {count:,} {when}" for name, (count, when) in skipped(curves).items() if when]
    note = f'<p class="bad">Updates skipped, as their gradient was not finite: {"; ".join(skips)}.</p>'
    parts, drawn = [note] if skips else [], 0
    for heading, charts in groups(list(curves)).items():
        charts = charts[: max(0, MOST_CHARTS - drawn)]
        drawn += len(charts)
        if charts:
            each = "".join(chart({name: curves[name] for name in names}, last, bins) for names in charts)
            parts.append(f'<h3>{text(heading)}</h3><div class="charts">{each}</div>')
    if drawn == MOST_CHARTS:
        parts.append(f'<p class="soft">The first {MOST_CHARTS} charts; the table has every metric.</p>')
    if max(len(curve.steps) for curve in curves.values()) > 2 * bins:
        parts.append(f'<p class="soft">{LONG}</p>')
    return "".join(parts) + _table(curves)


class Scale(NamedTuple):
    """Where steps and values lie in a chart."""

    last: int  # step at the right edge
    low: float
    high: float

    def x(self, step: int) -> float:
        return LEFT + step / self.last * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return TOP + (self.high - value) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)


def chart(curves: Mapping[str, Curve], last: int, bins: int) -> str:
    """One chart over the steps 0 to `last`: a curve of training, and what it is compared with."""
    names, colours = list(curves), ("one", "two")
    low, high, ticks = _range(np.concatenate([curve.finite().values for curve in curves.values()]))
    scale, drawn, lines = Scale(last, low, high), _grid(Scale(last, low, high), ticks), []
    for name, colour in zip(names, colours, strict=False):
        kept = thin(curves[name].values, bins)
        drawn += f'<g class="{colour}">{_line(curves[name], kept, scale)}<circle class="at" r="3.5"/></g>'
        steps, values = curves[name].steps[kept], curves[name].values[kept]
        lines.append({"name": _role(name), "steps": steps.tolist(), "values": [float(f"{v:.5g}") for v in values]})
    frame = [LEFT, WIDTH - LEFT - RIGHT, TOP, HEIGHT - TOP - BOTTOM]
    data = json.dumps({"frame": frame, **scale._asdict(), "lines": lines}, separators=(",", ":"))
    readable = all(line["steps"] for line in lines)  # a readout needs a point to stand at
    legend = "".join(
        f'<span><i class="key {colour}"></i>{_role(name)}: {text(name)}</span>'
        for colour, name in zip(colours, names, strict=False)
    )
    unit = f" <small>{UNITS[names[0]]}</small>" if names[0] in UNITS else ""
    return (
        f'<figure class="chart"{f" data-chart={_quoted(data)}" if readable else ""}>'
        f"<figcaption>{text(names[0])}{unit}</figcaption>"
        + (f'<p class="legend">{legend}</p>' if len(names) > 1 else "")
        + f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label={_quoted(_words(curves))}>'
        f'{drawn}<line class="rule" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/></svg>'
        f'<p class="readout">{_latest(curves)}</p>{_gaps(curves)}</figure>'
    )


def thin(values: np.ndarray, bins: int) -> np.ndarray:
    """Indices of the finite values that a curve is drawn through: of a long one the first, the last, and the lowest and
    the highest of each of `bins` stretches, so that no spike is lost."""
    finite = np.flatnonzero(np.isfinite(values))
    if len(finite) <= 2 * bins:
        return finite
    per = -(-len(values) // bins)
    padded = np.full(per * bins, np.nan)
    padded[: len(values)] = values
    padded = padded.reshape(bins, per)
    missing = ~np.isfinite(padded)
    starts = np.arange(bins) * per
    lowest = starts + np.where(missing, np.inf, padded).argmin(1)
    highest = starts + np.where(missing, -np.inf, padded).argmax(1)
    kept = np.unique(np.concatenate([lowest, highest, finite[[0, -1]]]))
    return kept[np.isin(kept, finite)]


def means(curve: Curve, bins: int) -> Curve:
    """The mean of what is finite in each of `bins` stretches of a longer curve. NaN where nothing is."""
    edges = np.linspace(0, len(curve.values), bins + 1).astype(int)
    there = np.isfinite(curve.values)
    with np.errstate(invalid="ignore"):
        sums = np.add.reduceat(np.where(there, curve.values, 0), edges[:-1])
        values = sums / np.add.reduceat(there, edges[:-1], dtype=float)
    return Curve(curve.steps[(edges[:-1] + edges[1:]) // 2], values)


def _line(curve: Curve, kept: np.ndarray, scale: Scale) -> str:
    """The curve through these of its points, each marked if they are few; pale under its mean if it has many more."""
    if len(kept) < np.isfinite(curve.values).sum():
        course = means(curve, len(kept) // 6)
        points = np.flatnonzero(np.isfinite(course.values))
        return f'<path class="range" d="{_path(curve, kept, scale)}"/><path d="{_path(course, points, scale)}"/>'
    marks = [f'<circle cx="{scale.x(step):.1f}" cy="{scale.y(value):.1f}" r="2"/>'
             for step, value in zip(curve.steps[kept].tolist(), curve.values[kept].tolist(), strict=True)]  # fmt: skip
    return f'<path d="{_path(curve, kept, scale)}"/>{"".join(marks) if len(marks) <= MARKED else ""}'


def _path(curve: Curve, kept: np.ndarray, scale: Scale) -> str:
    """A line through these of its points, with a gap where a value between two of them is not finite."""
    gaps = np.diff(np.cumsum(~np.isfinite(curve.values))[kept], prepend=-1) > 0
    points = zip(curve.steps[kept].tolist(), curve.values[kept].tolist(), gaps.tolist(), strict=True)
    return "".join(
        f"M{scale.x(step):.1f} {scale.y(value):.1f}h0" if gap else f"L{scale.x(step):.1f} {scale.y(value):.1f}"
        for step, value, gap in points
    )


def _grid(scale: Scale, ticks: Sequence[tuple[float, str]]) -> str:
    """Both axes with their labels."""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = [
        f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{scale.y(value):.1f}" y2="{scale.y(value):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{scale.y(value) + 3.5:.1f}" text-anchor="end">{label}</text>'
        for value, label in ticks
    ]
    for step, label in _steps(scale.last):
        anchor = "end" if scale.x(step) > WIDTH - 24 else "middle"
        parts.append(f'<text x="{scale.x(step):.1f}" y="{bottom + 15}" text-anchor="{anchor}">{label}</text>')
    parts.append(f'<line class="axis-line" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(f'<text x="{(LEFT + right) / 2}" y="{bottom + 28}" text-anchor="middle">step</text>')
    return "".join(parts)


def _range(values: np.ndarray) -> tuple[float, float, list[tuple[float, str]]]:
    """The lowest and highest value that a chart has room for, and the ticks between them with their labels."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    size = max(abs(low), abs(high))
    if high - low <= max(1e-6 * size, 1e-30):  # constant, but for rounding
        middle, half = (low + high) / 2, 0.05 * size if size > 1e-20 else 0.5
        low, high = middle - half, middle + half
    low, high = low - 0.04 * (high - low), high + 0.04 * (high - low)
    size = _round_up((high - low) / 6)
    ticks = [i * size for i in range(math.ceil(low / size), math.floor(high / size) + 1)]
    digits = max(0, -math.floor(math.log10(size)))
    plain = digits <= 4 and max(abs(low), abs(high)) < 1e5
    significant = max(1, math.floor(math.log10(max(abs(low), abs(high)) / size)) + 2)
    return low, high, [(t, f"{t:.{digits}f}" if plain else f"{t:.{significant}g}") for t in ticks]


def _steps(last: int) -> list[tuple[int, str]]:
    """Ticks of the axis of steps."""
    size = max(1, round(_round_up(last / 4)))
    return [(t, f"{t / 1e6:g}M" if t >= 1e6 else f"{t / 1e3:g}k" if t >= 1e4 else str(t))
            for t in range(0, last + 1, size)]  # fmt: skip


def _round_up(size: float) -> float:
    """The next of 1, 2, 5, 10 ..."""
    power = 10.0 ** math.floor(math.log10(size))
    return power * next(n for n in (1, 2, 5, 10) if n * power >= size * (1 - 1e-9))


def _role(name: str) -> str:
    return "held out" if name.startswith("valid/") else "training"


def _quoted(content: str) -> str:
    return f'"{text(content)}"'


def _words(curves: Mapping[str, Curve]) -> str:
    """A chart in words."""
    each = []
    for name, curve in curves.items():
        finite = curve.finite()
        if len(finite.values):
            low, high = number(finite.values.min()), number(finite.values.max())
            each.append(f"{name} over steps {finite.steps[0]} to {finite.steps[-1]}: lowest {low}, highest {high}, "
                        f"last {number(finite.values[-1])}")  # fmt: skip
        else:
            each.append(f"{name}: no finite value")
    return "; ".join(each)


def _latest(curves: Mapping[str, Curve]) -> str:
    """The last values, where the readout of the pointer appears."""
    each = []
    for name, curve in curves.items():
        each.append(f"{_role(name)} {number(curve.values[-1])}" if len(curves) > 1 else number(curve.values[-1]))
    return "last: " + " · ".join(each)


def _gaps(curves: Mapping[str, Curve]) -> str:
    """A note on what is not finite, and so not drawn."""
    notes = []
    for name, curve in curves.items():
        bad = curve.steps[~np.isfinite(curve.values)]
        if len(bad):
            notes.append(f'<p class="bad">{text(name)}: {len(bad)} of {len(curve.steps)} values are not finite, '
                         f"the first at step {bad[0]:,}</p>")  # fmt: skip
    return "".join(notes)


def _table(curves: Mapping[str, Curve]) -> str:
    """The numbers behind the charts."""
    rows = []
    for name, curve in curves.items():
        finite, cells = curve.finite(), ["", "", ""]
        if len(finite.values):
            lowest, highest = finite.values.argmin(), finite.values.argmax()
            cells = [number(finite.values[0])] + [
                f"{number(finite.values[i])} <small>at {finite.steps[i]:,}</small>" for i in (lowest, highest)
            ]
        cells += [f"{number(curve.values[-1])} <small>at {curve.steps[-1]:,}</small>"]
        rows.append(
            f"<tr><td>{text(name)}</td>" + "".join(f'<td class="number">{cell}</td>' for cell in cells) + "</tr>"
        )
    head = "".join(f'<th class="number">{name}</th>' for name in ("first", "lowest", "highest", "last"))
    return (
        f"<details><summary>All {len(curves)} metrics as numbers</summary>"
        f'<div class="scroll"><table><tr><th>metric</th>{head}</tr>{"".join(rows)}</table></div></details>'
    )
