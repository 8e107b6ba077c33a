"""Four CPU devices, warnings as errors, and what several test files share."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"

import jax
import pytest

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
