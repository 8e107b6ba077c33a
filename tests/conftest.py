"""Four CPU devices, warnings as errors, and what several test files share."""

import csv
import os
from collections.abc import Iterator
from pathlib import Path

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"

import jax
import numpy as np
import pytest

import train
from jaxaudio.data import audio
from tests.commands import run
from tests.three import CLASSES, RATE, sound

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")

REPOSITORY = Path(__file__).resolve().parent.parent
RECORDINGS = Path(os.environ.get("JAXAUDIO_RECORDINGS", REPOSITORY.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def recordings() -> Path:
    """The folder of real recordings; tests that want it skip where it is absent."""
    if not RECORDINGS.is_dir():
        pytest.skip(f"no real recordings at {RECORDINGS} (set JAXAUDIO_RECORDINGS)")
    return RECORDINGS


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory) -> Iterator[Path]:
    """What the tests pack and compile goes to a folder of the session, never to the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXAUDIO_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def recordings_of_three(tmp_path_factory):
    """Three kinds of sound by four speakers, two of whom are held out."""
    folder, rng, rows = tmp_path_factory.mktemp("three"), np.random.default_rng(0), []
    for i in range(96):
        kind, speaker = CLASSES[i % 3], f"s{i // 3 % 4}"
        audio.write(folder / f"{i}.wav", sound(kind, rng)[:, None], RATE)
        rows.append((f"{i}.wav", kind, speaker, "valid" if speaker in ("s2", "s3") else "train"))
    with open(folder / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "speaker", "split"), *rows])
    return folder


@pytest.fixture(scope="session")
def judge(recordings_of_three, tmp_path_factory):
    """A classifier that has learned them."""
    folder = tmp_path_factory.mktemp("runs") / "judge"
    words = ("classifier:tiny", "--data", recordings_of_three, "--out", folder, "--steps", 120, "--eval-every", 120)
    assert run(train.main, *words)[0] == 0
    return folder


@pytest.fixture(scope="session")
def maker(recordings_of_three, tmp_path_factory):
    """A generator that has hardly begun."""
    folder = tmp_path_factory.mktemp("runs") / "maker"
    words = ("wavegan:tiny", "--data", recordings_of_three, "--out", folder, "--steps", 2, "--eval-every", 2)
    assert run(train.main, *words)[0] == 0
    return folder


@pytest.fixture(scope="session")
def coder(recordings_of_three, tmp_path_factory):
    """An autoencoder that streams and has hardly begun."""
    folder = tmp_path_factory.mktemp("runs") / "coder"
    words = ("rave:tiny", "--data", recordings_of_three, "--out", folder, "--steps", 2, "--eval-every", 2)
    assert run(train.main, *words, "--model.causal", "--model.segment", 1024)[0] == 0
    return folder


@pytest.fixture(scope="session")
def picture(recordings_of_three, tmp_path_factory):
    """An autoencoder of spectrograms that has hardly begun."""
    folder = tmp_path_factory.mktemp("runs") / "picture"
    words = ("specvae:tiny", "--data", recordings_of_three, "--out", folder, "--steps", 2, "--eval-every", 2)
    assert run(train.main, *words)[0] == 0
    return folder
