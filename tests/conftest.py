"""Four CPU devices, programs that compile fast, and what several test files share."""

import csv
import fcntl
import gc
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

import train
from jaxaudio import zoo
from jaxaudio.data import audio
from tests.commands import run
from tests.three import CLASSES, RATE, sound

gc.set_threshold(200_000, 50, 100)  # objects that tracing makes live on; by default a fifth of it goes to gc
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")

REPOSITORY = Path(__file__).resolve().parent.parent
RECORDINGS = Path(os.environ.get("JAXAUDIO_RECORDINGS", REPOSITORY.parent / "shared" / "data"))


def pytest_configure(config: pytest.Config) -> None:
    """Programs are compiled fast, but for the slow tests: they look at how what users run is rounded."""
    if config.option.markexpr != "slow":
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"


@pytest.fixture(scope="session")
def recordings() -> Path:
    """The folder of real recordings; tests that want it skip where it is absent."""
    if not RECORDINGS.is_dir():
        pytest.skip(f"no real recordings at {RECORDINGS} (set JAXAUDIO_RECORDINGS)")
    return RECORDINGS


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """A folder that all processes of this session share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(autouse=True, scope="session")
def cache(shared) -> Iterator[Path]:
    """What the tests pack and compile goes to a folder of the session, never to the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXAUDIO_CACHE", str(shared / "cache"))
        yield shared / "cache"


@pytest.fixture(autouse=True, scope="module")
def few_programs() -> Iterator[None]:
    """Forgets what is compiled before it is too much: each program lies in several stretches of memory, of which Linux
    gives a process 65530, and XLA crashes without a word for want of one."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_text().count("\n") > 15_000:
        jax.clear_caches()


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """The folder that make(folder) makes in one process of the session, while the others wait for it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.lock", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        if not lock.read():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            lock.write("made")
    return folder


@pytest.fixture(scope="session")
def recordings_of_three(shared):
    """Three kinds of sound by four speakers, two of whom are held out."""
    return made_once(shared / "data" / "three", write_three)


def write_three(folder: Path) -> None:
    rng, rows = np.random.default_rng(0), []
    for i in range(96):
        kind, speaker = CLASSES[i % 3], f"s{i // 3 % 4}"
        audio.write(folder / f"{i}.wav", sound(kind, rng)[:, None], RATE)
        rows.append((f"{i}.wav", kind, speaker, "valid" if speaker in ("s2", "s3") else "train"))
    with open(folder / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "speaker", "split"), *rows])


@pytest.fixture(scope="module")
def in_the_zoo() -> Iterator[None]:
    """Two models with one number to learn, among the others."""
    names = {**zoo.names(), "tuned": "tests.tuned", "mended": "tests.mended"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "names", lambda: names)
        yield


@pytest.fixture(scope="session")
def learn(recordings_of_three, shared, tmp_path_factory):
    """Trains a model on them for so many steps: the run's folder, which is this process's own."""

    def made(name, model, steps, *fields):
        def trained(folder):
            words = (model, "--data", recordings_of_three, "--out", folder, "--steps", steps, "--eval-every", steps)
            assert run(train.main, *words, *fields)[0] == 0

        key = f"{zlib.crc32(repr((model, steps, fields)).encode()):08x}"
        return shutil.copytree(made_once(shared / "runs" / key / name, trained), tmp_path_factory.mktemp("runs") / name)

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
