"""A run's report: report.html in its folder, one page that needs nothing else, made from what lies there."""

import json
import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxaudio.runtime import report_curves, report_sounds
from jaxaudio.runtime.report_page import number, page, text

LIMIT = 12_000_000  # bytes of the page: it can be mailed
SCORES_SHARE = 0.25  # of the limit, for the pictures of all scores
MOST_ROWS = 300  # of one table of scores
THROUGHPUT = {  # metrics of the loop: factor and sign of the unit that they are shown in, and what they count
    "steps_per_second": (1, "", "steps per second"),
    "audio_per_second": (1, "", "seconds of audio per second"),
    "input_wait": (100, " %", "of the time waits for input"),
}


def write(folder: Path) -> Path:
    """Writes report.html anew from the files of a run's folder, and returns its path.

    Whatever is missing or damaged is left out; the page appears whole or not at all. It holds everything itself, at
    most about 12 MB: of many evaluations the sounds of the first, the last and some between. Needs no JAX.
    """
    path, fresh = folder / "report.html", folder / f".report-{os.getpid()}.new"
    try:
        fresh.write_bytes(render(folder).encode())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    return path


def render(folder: Path) -> str:
    """The page as HTML."""
    model, run = _read(folder / "model.json"), _read(folder / "run.json")
    curves = report_curves.read(folder / "metrics.jsonl")
    name, kind = folder.resolve().name, str(model.get("model", ""))
    parts = {
        "Overview": _overview(run, curves),
        "Sounds": "",
        "Scores": _scores(folder / "scores", int(SCORES_SHARE * LIMIT)),
        "Curves": report_curves.section(curves),
        "Model card": _card(model, run, curves),
    }
    head = f'<h1>{text(name)}</h1><p class="soft">{text(kind or "a run")}{_origin(run)}</p>'
    foot = f"Written {time.strftime('%Y-%m-%d %H:%M:%S %z')} from the files in this run's folder."
    taken = len(page("", head, list(parts.items()), foot).encode())
    samples = folder / "samples"
    silent = any(name.startswith("valid/") for name in curves) and not report_sounds.find(samples)  # makes no sound
    parts["Sounds"] = "" if silent else report_sounds.section(samples, LIMIT - taken)
    title = f"{name} · {kind}" if kind else name
    return page(title, head, [(heading, part) for heading, part in parts.items() if part], foot)


def _overview(run: Mapping[str, Any], curves: Mapping[str, report_curves.Curve]) -> str:
    """The few numbers that tell how a run stands."""
    tiles = []
    if curves:
        last, steps = max(int(curve.steps[-1]) for curve in curves.values()), run.get("steps")
        tiles.append((f"{last:,}", [f"of {steps:,} steps" if isinstance(steps, int) else "steps"]))
    sizes = _parameters(run)
    if sizes:
        tiles.append((_value(sum(sizes.values())), ["parameters", ", ".join(sizes)]))
    held_out = [name for name in curves if name.startswith("valid/")]
    for name in held_out[:6]:
        values = curves[name].values
        tiles.append((number(values[-1]), [name, f"first {number(values[0])}"]))
    tiles += [(value, [what]) for value, what in _throughput(curves).values()]
    skipped = report_curves.skipped(curves)
    if skipped:
        who = ", ".join(f"{name} {count:,}" for name, (count, when) in skipped.items() if when)
        total = sum(count for count, _ in skipped.values())
        tiles.append((f"{total:,}", ["updates skipped", f"gradient not finite: {who}" if who else ""]))
    if not tiles:
        return "<p>This run has just started.</p>"
    each = [
        f'<div class="tile"><b>{text(value)}</b>{"".join(f"<span>{text(line)}</span>" for line in lines)}</div>'
        for value, lines in tiles
    ]
    return f'<div class="tiles">{"".join(each)}</div>'


def _card(model: Mapping[str, Any], run: Mapping[str, Any], curves: Mapping[str, report_curves.Curve]) -> str:
    """Everything that a result depends on: every field of model.json and run.json."""
    rest = dict(run)
    own = {name: rest.pop(name) for name in ("data", "versions") if isinstance(rest.get(name), dict)}
    data = dict(own.get("data", {}))
    classes, command = data.get("classes"), rest.get("command")
    if isinstance(classes, list):
        data["classes"] = len(classes)
    if isinstance(command, list):
        del rest["command"]
    sizes = {name: f"{count:,}" for name, count in _parameters(run).items()}
    if sizes:
        del rest["parameters"]
    cards = {
        "Model": model or {"model.json": "missing or damaged"},
        "Run": rest if run else {"run.json": "missing or damaged"},
        "Data": data,
        "Parameters": sizes,
        "Versions": own.get("versions"),
        "Throughput, medians": {name: " ".join(words) for name, words in _throughput(curves).items()},
    }
    each = [f'<div class="card"><h3>{title}</h3>{_list(fields)}</div>' for title, fields in cards.items() if fields]
    wide = {}
    if isinstance(command, list):
        wide["Command"] = f"<code>{text(shlex.join(str(word) for word in command))}</code>"
    if isinstance(classes, list) and classes:
        wide[f"Classes ({len(classes)})"] = text(", ".join(str(name) for name in classes))
    below = [f'<div class="card wide"><h3>{title}</h3>{body}</div>' for title, body in wide.items()]
    return f'<div class="cards">{"".join(each)}</div>{"".join(below)}'


def _scores(folder: Path, room: int) -> str:
    """A section for every scores/*.json; pictures that take more than `room` bytes in all are linked to."""
    parts = []
    for path in sorted(folder.glob("*.json")):
        score = _read(path)
        if not score:
            parts.append(f'<p class="bad">{text(path.name)} can\'t be read.</p>')
            continue
        about = [f"step {_value(score['step'])}" if "step" in score else "", str(score.get("when", ""))]
        parts.append(
            f"<h3>{text(score.get('title', path.stem))} <small>{text(', '.join(filter(None, about)))}</small></h3>"
        )
        if score.get("command"):
            parts.append(f"<p><code>{text(score['command'])}</code></p>")
        parts.append(_table([row for row in _several(score.get("rows")) if isinstance(row, dict)]))
        pictures = ""
        for name in _several(score.get("pictures")):
            if isinstance(name, str) and Path(name).name == name:  # nothing from outside the folder
                title = f"{score.get('title', path.stem)}: {Path(name).stem}"
                made = report_sounds.picture(folder / name, title, room)
                room -= len(made)
                pictures += f"<figure>{made}</figure>"
        parts.append(f'<div class="sheets">{pictures}</div>' if pictures else "")
        left_out = [str(reason) for reason in _several(score.get("left_out"))]
        if left_out:
            more = f" and {len(left_out) - 50} more" if len(left_out) > 50 else ""
            parts.append(f'<p class="soft">Left out: {text("; ".join(left_out[:50]))}{more}</p>')
    return "".join(parts)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of one score: value, interval, how many examples, what to know."""
    if not rows:
        return ""
    body = []
    for row in rows[:MOST_ROWS]:
        better = {"higher": "↑ higher is better", "lower": "↓ lower is better"}.get(str(row.get("better")), "")
        low, high = row.get("low"), row.get("high")
        interval = "" if low is None or high is None else f"{_value(low)} to {_value(high)}"
        value = f"{_value(row.get('value', ''))} {row.get('unit') or ''}".strip()
        body.append(
            f"<tr><td>{text(row.get('metric', ''))}<br><small>{better}</small></td>"
            f'<td class="number"><b>{text(value)}</b></td><td class="number">{text(interval)}</td>'
            f'<td class="number">{text(_value(row.get("n", "")))}</td>'
            f'<td class="note">{text(row.get("note") or "")}</td></tr>'
        )
    more = f'<p class="soft">{len(rows) - MOST_ROWS} more rows.</p>' if len(rows) > MOST_ROWS else ""
    head = (
        '<th>metric</th><th class="number">value</th><th class="number">interval</th><th class="number">n</th><th></th>'
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(body)}</table></div>{more}'


def _list(fields: Mapping[str, Any]) -> str:
    """Names and values as a list."""
    return f"<dl>{''.join(f'<dt>{text(name)}</dt><dd>{text(value)}</dd>' for name, value in _flat(fields))}</dl>"


def _flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every field with its value in words, those of a group under GROUP.NAME."""
    for name, value in fields.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            yield f"{prefix}{name}", ", ".join(str(item) for item in value) or "none"
        else:
            words = {None: "none", True: "yes", False: "no"} if value is None or isinstance(value, bool) else {}
            yield f"{prefix}{name}", words.get(value, str(value))


def _origin(run: Mapping[str, Any]) -> str:
    """What it was trained on, in few words."""
    data = run.get("data")
    layout = data.get("layout") if isinstance(data, dict) else None
    return f" · trained on: {text(layout)}" if layout else ""


def _parameters(run: Mapping[str, Any]) -> dict[str, int]:
    sizes = run.get("parameters")
    return {name: size for name, size in sizes.items() if isinstance(size, int)} if isinstance(sizes, dict) else {}


def _throughput(curves: Mapping[str, report_curves.Curve]) -> dict[str, tuple[str, str]]:
    """Medians over the run, so that a pause of the machine does not count, each with what it counts."""
    finite = {name: curves[name].finite().values for name in THROUGHPUT if name in curves}
    return {
        name: (number(float(np.median(finite[name])) * factor) + sign, what)
        for name, (factor, sign, what) in THROUGHPUT.items()
        if len(finite.get(name, ()))
    }


def _value(value: Any) -> str:
    return number(value) if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _several(value: Any) -> list:
    return value if isinstance(value, list) else []


def _read(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
