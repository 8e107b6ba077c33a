"""report.html: what it shows of a run, what it survives, and that a browser plays it."""

import base64
import contextlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from jaxaudio.data import audio
from jaxaudio.runtime import report, report_curves, report_sounds
from jaxaudio.runtime.confusion import draw_confusion
from tests.browser import CHROMIUM, Browser
from tests.conftest import REPOSITORY

RATE = 8000  # Hz


class Markup(HTMLParser):
    """The tags and texts of a page; what is opened must be closed, in order."""

    VOID = frozenset({"meta", "link", "img", "br", "input"})

    def __init__(self, page: str):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID | {"line", "circle", "path"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("line", "circle", "path"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str, **having: str) -> list[dict]:
        return [found for name, found in self.tags if name == tag and having.items() <= found.items()]


def written(folder: Path) -> Markup:
    return Markup(report.write(folder).read_text())


def make(folder: Path, steps=(10, 20, 30), titles=("seven", "rain", ""), seconds=0.4) -> Path:
    """A run's folder as train.py and the scorecard leave it."""
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    model = {"model": "wavegan", "sample_rate": RATE, "learning_rate": 0.0003, "loss": "wgan-gp", "conditional": True}
    (folder / "model.json").write_text(json.dumps(model))
    data = {"folder": "/data/digits", "layout": "folder per class", "fingerprint": "a100e42c", "classes": list(titles)}
    run = {"seed": 7, "steps": 30, "parallel": "jit", "data": data, "command": ["train.py", "wavegan", "--out", "a b"]}
    run |= {"versions": {"jax": "0.10.2", "device": "1 cpu"}, "git": "f4d53cc6b88f+"}
    run |= {"parameters": {"generator": 1234567, "critic": 89}}
    (folder / "run.json").write_text(json.dumps(run))
    with open(folder / "metrics.jsonl", "w") as file:
        for step in range(2, 31, 2):
            line = {"step": step, "critic/loss": 100.0 + step, "critic/fake": -step / 8, "critic/skipped": 0.0}
            line |= {"steps_per_second": 3.0 if step > 2 else 0.01, "audio_per_second": 48.0, "input_wait": 0.015}
            file.write(json.dumps(line) + "\n")
            if step in steps:
                file.write(json.dumps({"step": step, "valid/fake": step / 4, "valid/energy": 2.5}) + "\n")
    time = np.arange(int(seconds * RATE)) / RATE
    for step in steps:
        for i, title in enumerate(titles):
            wave = 0.5 * np.sin(2 * np.pi * (200 + 300 * i) * time)
            name = "-".join(filter(None, (f"{step:07d}-{i:03d}", title)))
            audio.write(folder / "samples" / f"{name}.wav", wave, RATE)
        (folder / "samples" / f"{step:07d}.png").write_bytes(report_sounds.spectrogram(np.zeros(100, np.float32), RATE))
    (folder / "samples" / "real.png").write_bytes(report_sounds.spectrogram(np.zeros(100, np.float32), RATE))
    (folder / "scores").mkdir(exist_ok=True)
    row = {"metric": "frechet", "value": 12.345, "low": 11.5, "high": 13.25, "n": 2048, "unit": "dB", "better": "lower"}
    other = {"metric": "accuracy", "value": 0.875, "low": None, "high": None, "n": 64, "unit": "", "better": "higher"}
    score = {"title": "How real", "command": "python score.py", "step": 20, "when": "2026-01-02 03:04"}
    score |= {"rows": [row | {"note": "lower than noise"}, other | {"note": ""}], "pictures": ["confusion.png"]}
    (folder / "scores" / "real.json").write_text(json.dumps(score | {"left_out": ["pesq: not installed"]}))
    draw_confusion(np.array([[3, 1], [0, 0]]), ["a", "b"], folder / "scores" / "confusion.png")
    return folder


def test_the_page_holds_every_field_metric_sound_and_score_with_its_value(tmp_path):
    page = written(make(tmp_path / "my run"))
    for fact in (
        *("my run", "wavegan", "learning_rate 0.0003", "loss wgan-gp", "conditional yes", "seed 7", "parallel jit"),
        *("folder /data/digits", "layout folder per class", "fingerprint a100e42c", "jax 0.10.2", "git f4d53cc6b88f+"),
        *("train.py wavegan --out 'a b'", "generator 1,234,567", "critic 89", "1,234,656 parameters", "30 of 30 steps"),
        *(
            "steps_per_second 3 steps per second",
            "audio_per_second 48 seconds of audio",
            "input_wait 1.5 % of the time",
        ),
        *("critic/loss 102 102 at 2 130 at 30 130 at 30", "valid/energy 2.5 2.5 at 10 2.5 at 10 2.5 at 30"),
        *("training: critic/fake held out: valid/fake", "last: training -3.75 · held out 7.5", "0 updates skipped"),
        *("How real step 20, 2026-01-02 03:04", "frechet ↓ lower is better 12.35 dB 11.5 to 13.25 2,048 lower than"),
        *("accuracy ↑ higher is better 0.875 64", "Left out: pesq: not installed", "python score.py"),
        *("Every evaluation is embedded", "Step 30 all 3 sounds", "Earlier steps (2)", "Step 20", "Step 10"),
    ):
        assert fact in page.words
    assert [found["data-name"] for found in page.all("figure", **{"class": "player"})][:3] == [
        *("seven, sound 0 of step 30", "rain, sound 1 of step 30", "sound 2, sound 2 of step 30"),
    ]
    assert len(page.all("audio")) == 9
    content = (tmp_path / "my run" / "samples" / "0000030-001-rain.wav").read_bytes()
    assert page.all("audio")[1]["src"] == "data:audio/wav;base64," + base64.b64encode(content).decode()
    alts = [found["alt"] for found in page.all("img")]
    assert "Spectrogram of rain, sound 1 of step 30: 0 to 0.40 s, 0 to 4 kHz" in alts
    assert {"Spectrograms: Made, step 30", "Spectrograms: Real, held out", "How real: confusion"} <= {*alts}


def test_nothing_comes_from_outside_and_every_player_and_picture_is_named(tmp_path):
    page = written(make(tmp_path))
    for tag, found in page.tags:
        for attribute in ("src", "href", "poster", "srcset", "data"):
            assert found.get(attribute, "#").startswith(("data:", "#")), (tag, found[attribute])
        if tag in ("audio", "svg", "button", "nav"):
            assert found.get("aria-label") or found.get("class") == "all"
        assert tag != "img" or found["alt"]
    assert "url(" not in (tmp_path / "report.html").read_text()


def test_a_class_named_like_markup_is_harmless(tmp_path):
    evil = ["<script>alert(1)<_script>", "\"'><img src=x onerror=alert(1)>", "</style><h6>", "a&amp;b", "\udc80\ud800"]
    folder = make(tmp_path / "<b>run&", titles=evil[:4])
    run = json.loads((folder / "run.json").read_text())
    run["data"] |= {"classes": evil, "<i>key": {"<u>": ["</title><script>"]}}
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "scores" / "<x>.json").write_text(json.dumps({"title": "<svg onload=1>", "rows": [{"metric": "<hr>"}]}))
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 30, "</script><script>alert(1)": 1.0, '"><em>/loss': "nan"}) + "\n")
    page = written(folder)
    assert len(page.all("script")) == len(page.all("style")) == len(page.all("h1")) == 1
    assert not {"u", "hr", "em", "h6"} & {tag for tag, _ in page.tags}
    for _, found in page.tags:
        assert not any(attribute.startswith("on") for attribute in found)
    for name in ("<b>run&", *evil[:4], "<svg onload=1>", "<hr>", "<i>key.<u>", "</script><script>alert(1)"):
        assert name in page.words
    assert "script-src 'sha256-" in page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]


@pytest.mark.parametrize("missing", ["model.json", "run.json", "metrics.jsonl", "samples", "scores", "all"])
def test_what_is_missing_or_damaged_is_left_out(missing, tmp_path):
    folder = make(tmp_path)
    for path in folder.iterdir():
        if missing in (path.name, "all"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = written(folder)
    assert page.words.count("No samples yet") == (missing == "all"), "an evaluated run without samples makes no sound"
    assert page.words.count("metrics.jsonl holds nothing yet") == (missing in ("metrics.jsonl", "all"))
    assert page.words.count("model.json missing or damaged") == (missing in ("model.json", "all"))
    for damage in ("", "{", "[1]", '{"model": [], "data": 3, "versions": [], "steps": "x", "parameters": {"a": "b"}}'):
        for name in ("model.json", "run.json", "scores/a.json"):
            (folder / "scores").mkdir(exist_ok=True)
            (folder / name).write_text(damage)
        written(folder)


def test_damaged_lines_and_sounds_are_skipped_and_what_is_not_finite_is_named(tmp_path):
    folder = make(tmp_path)
    lines = ["{", "", "[]", "3", '{"a": 1}', '{"step": "x", "a": 1}', '{"step": -3, "a": 1}', '{"step": 1e999, "a": 1}']
    lines += ['{"step": 40, "a": 1.5, "b": "inf", "c": [1], "d": null, "critic/skipped": 0.2, "critic/loss": "nan"}']
    lines += ['{"step": 50, "a": 1e308, "critic/skipped": 0.5, "critic/loss": 3.0}', "\xff\x00", "[" * 100_000]
    with open(folder / "metrics.jsonl", "a", encoding="latin-1") as file:
        file.write("\n".join(lines))
    (folder / "samples" / "0000030-000-seven.wav").write_bytes(b"RIFF")
    (folder / "samples" / "0000030-001-rain.wav").unlink()
    (folder / "samples" / "0000030-001-rain.wav").mkdir()
    (folder / "samples" / "notes.txt").write_text("mine")
    page = written(folder)
    assert "0000030-000-seven.wav can't be read" in page.words
    assert len(page.all("audio")) == 7
    assert "critic/loss: 1 of 17 values are not finite, the first at step 40" in page.words
    assert "Updates skipped, as their gradient was not finite: critic 7 between steps 30 and 50." in page.words
    assert "a 1.5 1.5 at 40 1.5 at 40 inf at 50" in page.words
    assert "b inf at 40" in page.words
    assert not {" c ", " d "} & {*page.words}


def test_a_picture_outside_of_the_scores_is_not_read(tmp_path):
    folder = make(tmp_path)
    (folder / "scores" / "real.json").write_text(
        json.dumps({"title": "T", "pictures": ["../run.json", "no.png", "", 3]})
    )
    page = written(folder)
    assert "no.png can't be read" in page.words
    assert "run.json" not in page.words


def test_a_long_curve_is_thinned_without_losing_a_spike():
    values = np.sin(np.arange(50_000) / 5000)
    values[31_234], values[40_001], values[123] = 900.0, -700.0, np.nan
    kept = report_curves.thin(values, report_curves.BINS)
    assert len(kept) <= 2 * report_curves.BINS + 2
    assert {0, 31_234, 40_001, 49_999} <= {*kept.tolist()}
    assert np.isfinite(values[kept]).all()
    curve = report_curves.Curve(np.arange(50_000) * 4, values)
    drawn = Markup(report_curves.section({"loss": curve}))
    (line,) = json.loads(drawn.all("figure")[0]["data-chart"])["lines"]
    assert [step for step, value in zip(line["steps"], line["values"], strict=True) if abs(value) > 1] == [
        *(4 * 31_234, 4 * 40_001),
    ]
    assert "highest 900" in drawn.all("svg")[0]["aria-label"]
    pale, mean = (found["d"] for found in drawn.all("path"))
    assert pale.count("M") == 2  # a gap at what is not finite
    assert mean.count("M") == 1


@pytest.mark.parametrize("values", [[0.0], [1e30, -1e30], [5.0, 5.0 + 1e-12], [1e-25, 3e-25], [-2e5, 1.05e6], []])
def test_an_axis_has_distinct_labels_that_enclose_nothing_but_the_range(values):
    low, high, ticks = report_curves._range(np.array(values))
    assert all(low <= tick <= high for tick, _ in ticks)
    assert 2 <= len({label for _, label in ticks}) == len(ticks) <= 7
    assert all(float(label) == pytest.approx(tick, abs=1e-9 * (high - low)) for tick, label in ticks)


def test_a_held_out_metric_is_drawn_with_its_only_namesake():
    names = ["a/loss", "b/loss", "b/x", "y", "valid/loss", "valid/x", "valid/y", "steps_per_second", "a/skipped"]
    assert report_curves.groups(names) == {
        **{"held out": [["valid/loss"]], "training": [["y", "valid/y"]], "a": [["a/loss"]]},
        **{"b": [["b/loss"], ["b/x", "valid/x"]], "speed": [["steps_per_second"]]},
    }


@pytest.mark.parametrize(("evaluations", "seconds"), [(200, 1.0), (200, 8.0), (3, 400.0), (1, 20.0)])
def test_the_page_stays_below_its_limit_and_names_every_step(evaluations, seconds, tmp_path):
    folder = make(tmp_path, steps=(), titles=())
    noise = np.random.default_rng(0).uniform(-1, 1, int(16000 * seconds))
    audio.write(folder / "noise.wav", noise, 16000)
    steps = range(1000, 1000 * evaluations + 1, 1000)
    for step in steps:
        (folder / "samples" / f"{step:07d}.png").write_bytes(b"")
        for i in range(16):
            os.link(folder / "noise.wav", folder / "samples" / f"{step:07d}-{i:03d}-noise.wav")
    page = written(folder)
    assert (folder / "report.html").stat().st_size < report.LIMIT
    named = {int(step.replace(",", "")) for step in re.findall(r"\b\d[\d,]*000\b", page.words)}
    assert named >= {*steps}
    players = [found["data-name"] for found in page.all("figure", **{"class": "player"})]
    embedded = [int(name.rpartition(" ")[2]) for name in players]
    last, first = embedded.count(steps[-1]), embedded.count(steps[0])
    if seconds < 10:
        assert last > first > 0
        gaps = np.diff(sorted({*embedded}))
        assert gaps.max() <= 2 * gaps.min()
        assert f"{len(steps) - len({*embedded})} more evaluations" in page.words
    else:
        assert last == {400.0: 0, 20.0: 13}[seconds]
        assert first == last * (evaluations == 1)
        assert f"{last} of 16 sounds; the others lie in samples/" in page.words


def test_a_spectrogram_shows_frequency_time_and_level():
    time = np.arange(16000) / 16000
    loud = np.sin(2 * np.pi * 2000 * time)  # full scale: above the brightest colour
    wave = np.where(time < 0.5, 0, np.where(time < 0.75, 0.01 * loud, loud)).astype(np.float32)
    shades = shades_of(report_sounds.spectrogram(wave, 16000))
    assert shades.shape == (128, 192)
    rows = shades.argmax(0)[100:]
    assert np.abs(128 - 0.5 - rows - 32).max() <= 1.5
    assert shades[:, :90].max() == 0
    quiet = (-40 - report_sounds.FLOOR_DB) / (report_sounds.CEILING_DB - report_sounds.FLOOR_DB)
    assert shades[:, 110].max() == pytest.approx(quiet * (report_sounds.LEVELS - 1), abs=1)
    assert shades[:, 180].max() == report_sounds.LEVELS - 1


@pytest.mark.parametrize("frames", [0, 1, 2, 50, 256, 100_000, 3_000_000])
@pytest.mark.parametrize("rate", [1000, 48000])
def test_a_sound_of_any_length_gets_a_small_picture(frames, rate):
    shades = shades_of(report_sounds.spectrogram(np.ones(frames, np.float32), rate))
    assert shades.shape[0] <= report_sounds.ROWS
    assert 1 <= shades.shape[1] <= report_sounds.COLUMNS


def shades_of(png: bytes) -> np.ndarray:
    """The indices into the palette, [height, width]."""
    width, height = struct.unpack(">II", png[16:24])
    start = png.index(b"IDAT") + 4
    rows = np.frombuffer(zlib.decompressobj().decompress(png[start:]), np.uint8).reshape(height, width + 1)
    assert not rows[:, 0].any()
    return rows[:, 1:]


def test_the_report_before_stays_when_writing_fails(tmp_path, monkeypatch):
    folder = make(tmp_path)
    before = report.write(folder).read_bytes()
    names = {path.name for path in folder.iterdir()}

    def full(self, target):
        assert len(self.read_bytes()) > 1000  # it is complete before it takes the place
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        report.write(folder)
    assert (folder / "report.html").read_bytes() == before
    assert {path.name for path in folder.iterdir()} == names


def test_a_report_needs_neither_jax_nor_matplotlib(tmp_path):
    code = "import sys, pathlib; from jaxaudio.runtime import report; report.write(pathlib.Path(sys.argv[1]))\n"
    code += "assert not {'jax', 'matplotlib'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code, str(make(tmp_path))], check=True, cwd=REPOSITORY)


@pytest.mark.parametrize("classes", [1, 20, 75])
def test_a_confusion_matrix_of_any_names_becomes_a_picture(classes, tmp_path):
    names = [*"ab", "$x", "日本", "\udc80", "a\nb", "x" * 99, *map(str, range(75))][:classes]
    matrix = np.zeros((classes, classes), int)
    draw_confusion(matrix, names, tmp_path / "empty.png")
    draw_confusion(matrix + 7, names, tmp_path / "deep" / "even.png")
    assert (tmp_path / "empty.png").read_bytes() != (tmp_path / "deep" / "even.png").read_bytes()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["even.png"]


@pytest.fixture
def browser(tmp_path) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium or google-chrome on PATH")
    with contextlib.closing(Browser(tmp_path / "profile")) as browser:
        yield browser


PLAY = """(async () => {
  const seen = [], until = async (what) => { for (let i = 0; i < 400 && !what(); i++)
    await new Promise(done => setTimeout(done, 5)); return Boolean(what()); };
  for (const player of document.querySelectorAll(".player")) {
    const audio = player.querySelector("audio"), view = player.querySelector(".view");
    const cursor = player.querySelector(".cursor"), box = view.getBoundingClientRect();
    player.querySelector(".play").click();
    const advances = await until(() => audio.currentTime > 0.02 && parseFloat(cursor.style.left) > 0);
    player.querySelector(".play").click();
    const pauses = await until(() => audio.paused), left = box.left + 0.75 * box.width;
    view.dispatchEvent(new PointerEvent("pointermove", { clientX: left, buttons: 1 }));
    const seeks = await until(() => !audio.seeking && Math.abs(audio.currentTime - 0.75 * audio.duration) < 0.01);
    view.dispatchEvent(new KeyboardEvent("keydown", { key: "Home" }));
    const returns = await until(() => !audio.seeking && audio.currentTime === 0);
    seen.push({ advances, pauses, seeks, returns, duration: audio.duration, shown: audio.controls });
  }
  return seen;
})()"""


def place(browser: Browser, element: str, across: float) -> dict[str, float]:
    """A point in the middle of an element's height, so far from its left; the element is in the window then."""
    box = browser.run(f"{element}.scrollIntoView({{block: 'center'}}), {element}.getBoundingClientRect().toJSON()")
    return {"x": box["x"] + box["width"] * across, "y": box["y"] + box["height"] / 2}


def test_a_browser_shows_and_plays_it_without_errors_or_the_network(browser, tmp_path):
    folder = make(tmp_path / "run", titles=("seven", "<img src=x onerror=window.pwned=1>"))
    address = report.write(folder).as_uri()
    for width in (1280, 360):
        browser.open(address, width)
        sizes = browser.run("[document.documentElement.scrollWidth, innerWidth]")
        assert sizes[0] <= sizes[1] == width
    browser.run("first = document.querySelector('audio'), first.onplaying = () => { from = first.currentTime }, 0")
    browser.run("ended = new Promise(done => first.onended = () => done(true)), 0")
    middle = place(browser, "document.querySelector('.view')", 0.5)
    for kind in ("mousePressed", "mouseReleased"):
        browser("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **middle)
    assert browser.run("ended")
    assert browser.run("from") == pytest.approx(0.2, abs=0.02)  # s, of 0.4
    browser.run("document.querySelector('details').open = true")
    players = browser.run(PLAY)
    assert len(players) == 6
    for player in players:
        assert player == player | {"advances": True, "pauses": True, "seeks": True, "returns": True, "shown": False}
        assert player["duration"] == pytest.approx(0.4, abs=0.001)
    chart = 'document.querySelectorAll("svg")[1]'  # critic/loss
    browser("Input.dispatchMouseEvent", type="mouseMoved", **place(browser, chart, (46 + 304 * 2 / 3) / 360))
    assert browser.run(f"{chart}.parentElement.querySelector('.readout').textContent") == "step 20: 120"
    assert browser.run("typeof window.pwned") == "undefined"
    assert browser.run("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    methods = {event["method"] for event in browser.events}
    assert not methods & {
        "Runtime.exceptionThrown",
        "Log.entryAdded",
        "Runtime.consoleAPICalled",
        "Network.loadingFailed",
    }
    asked = [
        event["params"]["request"]["url"] for event in browser.events if event["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in asked if not url.startswith("data:")] == [address]


def test_a_run_that_makes_no_sound_is_not_asked_for_any(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "valid/error": 0.5}\n')
    assert "samples" not in report.render(tmp_path).lower()
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "network/loss": 0.5}\n')
    assert "No samples yet" in report.render(tmp_path)
