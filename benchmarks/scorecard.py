"""A table of scores: what benchmarks.quality and benchmarks.pairs print, and what a run's report shows."""

import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.rows import append
from jaxaudio.data.audio import shown
from jaxaudio.runtime.versions import revision, versions


class Row(NamedTuple):
    """A line of the scorecard. `better`: higher, lower, or nothing where the value is to be compared."""

    metric: str
    value: float
    low: float | None
    high: float | None
    n: int
    unit: str = ""
    better: str = ""
    note: str = ""


class Card(NamedTuple):
    """A table of scores: `pictures` are file names in the run's folder `scores`. All its words are fit to be printed:
    names from files have gone through `shown`."""

    name: str
    title: str
    rows: list[Row]
    left_out: list[str]
    pictures: Mapping[str, Callable[[Path], Any]] = {}


def origin(program: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Where scores come from: command, time, versions."""
    words = shlex.join(["python", "-m", program, *arguments])
    return {"command": shown(words), "when": time.strftime("%Y-%m-%d %H:%M"), "versions": versions(), "git": revision()}


def deliver(card: Card, about: Mapping[str, Any], folder: Path | None, lines: Path | None) -> None:
    """Prints the card; writes folder/NAME.json with its pictures, and appends a line to the file `lines`."""
    print(table(card), flush=True)
    if folder:
        write(folder, card, about)
    if lines:
        append(lines, as_json(card, about))


def as_json(card: Card, about: Mapping[str, Any]) -> dict[str, Any]:
    """What report.html and programs read."""
    rows = [{**row._asdict(), "value": float(row.value)} for row in card.rows]
    return {"title": card.title, **about, "rows": rows, "left_out": card.left_out, "pictures": list(card.pictures)}


def write(folder: Path, card: Card, about: Mapping[str, Any]) -> None:
    """NAME.json and its pictures, in a run's folder of scores."""
    folder.mkdir(exist_ok=True)
    for name, draw in card.pictures.items():
        draw(folder / name)
    fresh = folder / f"{card.name}.new"
    fresh.write_text(json.dumps(as_json(card, about), indent=1) + "\n", encoding="ascii")
    fresh.replace(folder / f"{card.name}.json")


def table(card: Card) -> str:
    """The card for people."""
    width = max([len(row.metric) for row in card.rows] or [0])
    lines = [card.title]
    for row in card.rows:
        bounds = "" if row.low is None else f"[{row.low:.4g}, {row.high:.4g}]"
        sign = {"higher": "+", "lower": "-"}.get(row.better, " ")
        lines.append(f"  {row.metric:{width}} {sign} {row.value:9.4g} {bounds:22} {row.unit:7} n {row.n:5}  {row.note}")
    lines += [f"  left out: {reason}" for reason in shortened(card.left_out)]
    return "\n".join(lines)


def shortened(reasons: Sequence[str], most: int = 8) -> list[str]:
    """The first reasons, and how many more there are."""
    return [*reasons[:most], *([f"and {len(reasons) - most} more"] if len(reasons) > most else [])]
