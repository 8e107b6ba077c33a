"""Four CPU devices, warnings as errors, and what several test files share."""

import csv
import gc
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

gc.set_threshold(200_000, 50, 100)  # objects that tracing makes live on; by default a fifth of it goes to gc
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


@pytest.fixture(autouse=True, scope="module")
def few_programs() -> Iterator[None]:
    """Forgets what is compiled before it is too much: each program lies in several stretches of memory, of which Linux
    gives a process 65530, and XLA crashes without a word for want of one."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_text().count("\n") > 15_000:
        jax.clear_caches()


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
def learn(recordings_of_three, tmp_path_factory):
    """Trains a model on them for so many steps: the run's folder."""

    def made(name, model, steps, *fields):
        folder = tmp_path_factory.mktemp("runs") / name
        words = (model, "--data", recordings_of_three, "--out", folder, "--steps", steps, "--eval-every", steps)
        assert run(train.main, *words, *fields)[0] == 0
        return folder

    return made


@pytest.fixture(scope="session")
def judge(learn):
    """A classifier that has learned them."""
    return learn("judge", "classifier:tiny", 120)


@pytest.fixture(scope="session")
def maker(learn):
    """A generator that has hardly begun."""
    return learn("maker", "wavegan:tiny", 2)


@pytest.fixture(scope="session")
def coder(learn):
    """An autoencoder that streams and has hardly begun."""
    return learn("coder", "rave:tiny", 2, "--model.causal", "--model.segment", 1024)


@pytest.fixture(scope="session")
def picture(learn):
    """An autoencoder of spectrograms that has hardly begun."""
    return learn("picture", "specvae:tiny", 2)


@pytest.fixture(scope="session")
def singer(learn):
    """A model that goes on from what it heard and has hardly begun."""
    return learn("singer", "samplernn:tiny", 2, "--samples", 2)


@pytest.fixture(scope="session")
def vocoder(learn):
    """A model that makes sound of mels and has hardly begun."""
    return learn("vocoder", "wavernn:tiny", 2, "--samples", 2)
