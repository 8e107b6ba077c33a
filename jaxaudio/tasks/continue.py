"""How a recording goes on: heard to its end, then continued."""

import dataclasses
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro

from jaxaudio.core import Composes, Continues, InputError
from jaxaudio.data import audio
from jaxaudio.data.files import RECORDINGS, distinct, found, one_by_one, said, targets
from jaxaudio.data.parts import Head, Recorder, level, page
from jaxaudio.runtime.folder import Trained
from jaxaudio.tasks.generate import (
    MOST_CONTINUED,
    STREAMS,
    captions,
    drawing,
    frame_of,
    labels,
    listed,
    sampler_of,
    stem,
    watched,
    write_streams,
)

NEEDS = Continues | Composes

MOST_HEARD = 600.0  # seconds in all: they are heard at once
SHOWN, SHOWN_BEFORE = 16, 2.0  # sounds on a sheet, and seconds of what was heard


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of the verb continue."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]  # recordings, or folders of them
    seconds: float = 2.0  # how much is added
    heard: float = 10.0  # seconds at the end of a longer recording that are heard, and written
    n: int = 1  # continuations of each recording
    alone: bool = False  # write the continuation without what was heard
    label: str | None = None  # of a conditional model: a class by name or number; none: all in turn, if n is enough
    temperature: float | None = None  # of models that draw sample by sample, or codes; 0: always the most likely one
    top_p: float | None = None  # of the same: only the most likely levels, which together have this probability
    codec: Path | None = None  # of a model of codes: the codec's run; none: where it was when the model was trained


def perform(trained: Trained, options: Options, seed: int, out: Path) -> Path:
    """Writes NAME.wav per recording or, with `n`, NAME-000.wav and so on, and a sheet of the first few."""
    trained = drawing(trained, options.temperature, options.top_p)
    model, rate = trained.model, trained.model.sample_rate
    refuse(model, options)
    if options.label is None and options.n < len(trained.labels):
        known = listed(trained.labels)
        raise InputError(f"this run is conditional: name the class with --label, one of {known}")
    recorder, sampler, shown = Recorder(model), sampler_of(trained, options.codec, seed), []
    label = labels(trained.labels, options.label, options.n)
    titles = captions(trained.labels, label, options.n)
    ends = [f"-{stem('', i, title)}.wav" for i, title in enumerate(titles)] if options.n > 1 else [".wav"]
    paths = distinct(found(options.files, RECORDINGS, "recording"))
    places = dict(zip(paths, zip(*(targets(paths, out, end) for end in ends), strict=True), strict=True))
    added = round(options.seconds * rate)

    def go_on(path: Path, target: Path) -> str:
        sound = recorder.survey(path)
        wave = last(recorder.blocks(sound), model, round(options.heard * rate))
        prompt = np.repeat(wave[None], options.n, 0)
        blocks = sampler.behind(wave, options.n, label, jax.random.key(seed), added)
        heads = {i: Head(rate) for i in range(min(options.n, SHOWN - len(shown)))}
        for head in heads.values():
            head.add(wave[-round(SHOWN_BEFORE * rate) :])
        loud = np.float32(level(model, sound.peak))
        whole = chain([] if options.alone else [prompt], watched(blocks, range(options.n), heads))
        write_streams(places[path], (block * loud for block in whole), rate, model.channels, len(wave) + added)
        shown.extend((places[path][i].stem, head) for i, head in heads.items())
        others = f" to {places[path][-1].name}" if options.n > 1 else ""
        return f"{said(sound)}, {len(wave) / rate:.2f} s heard, {options.seconds:.2f} s more -> {target.name}{others}"

    one_by_one(paths, out, ends[0], go_on)
    page(out / "sheet.png", shown)
    return out


def refuse(model: Continues | Composes, options: Options) -> None:
    """Raises InputError for what can't be asked of this model."""
    if not 1 <= options.n <= STREAMS:
        raise InputError(f"n is {options.n}: 1 to {STREAMS} continuations of each recording")
    added = round(options.seconds * model.sample_rate) if 0 < options.seconds <= MOST_CONTINUED else 0
    if not added:
        raise InputError(f"seconds is {options.seconds:g}: a sample or more, and {MOST_CONTINUED:.0f} s at most")
    if options.n * options.seconds > MOST_CONTINUED:
        rule = f"{MOST_CONTINUED:.0f} s at most in all: lower --seconds to {int(MOST_CONTINUED / options.n)}"
        raise InputError(f"seconds is {options.seconds:g} and n {options.n}: {rule}")
    frame = frame_of(model)
    least = frame / model.sample_rate
    heard = round(options.heard * model.sample_rate) if 0 < options.heard <= MOST_HEARD else 0
    if heard < frame:
        rule = f"{frame} samples ({least:.4g} s) or more, and {MOST_HEARD:.0f} s at most"
        raise InputError(f"heard is {options.heard:g}: hear {rule}")
    if options.n * options.heard > MOST_HEARD:
        rule = f"{MOST_HEARD:.0f} s at most for all n: lower --heard to {int(MOST_HEARD / options.n)}"
        raise InputError(f"heard is {options.heard:g} and n {options.n}: {rule}")


def last(blocks: Iterable[np.ndarray], model: Continues | Composes, most: int) -> np.ndarray:
    """The end [samples, channels] of sound in blocks: as many whole frames as there are, within `most` samples. Raises
    `audio.Unusable` where there is none."""
    held, length, frame = [], 0, frame_of(model)
    for block in blocks:
        held, length = [*held, block], length + len(block)
        while length - len(held[0]) >= most:
            length -= len(held.pop(0))
    wanted = min(length, most) // frame * frame
    if not wanted:
        least = f"{frame} samples, {frame / model.sample_rate:.4g} s"
        raise audio.Unusable(f"too short: {length} samples at {model.sample_rate} Hz, this model hears {least} or more")
    return np.concatenate(held)[-wanted:]
