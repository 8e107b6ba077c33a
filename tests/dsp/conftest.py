"""Signals that the tests of this folder share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile


@pytest.fixture(scope="session")
def speech(recordings) -> np.ndarray:
    """Half a second of speech, 16 kHz, float32; tests that want it skip where it is absent."""
    files = sorted((recordings / "speech16k").rglob("*.flac"))
    if not files:
        pytest.skip(f"no speech in {recordings}")
    return soundfile.read(files[0], start=20000, stop=28000, dtype="float32")[0]


@pytest.fixture(scope="session")
def noise() -> np.ndarray:
    """8000 samples, float32, mean 0 and variance 1."""
    return np.random.default_rng(0).standard_normal(8000).astype(np.float32)


@pytest.fixture(scope="session", params=["noise", "speech"])
def sound(request) -> np.ndarray:
    """The noise, then the speech."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def close():
    """close(ours, theirs, share): they differ nowhere by more than `share` of their largest value."""

    def check(ours, theirs, share=1e-5):
        assert np.shape(ours) == np.shape(theirs)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=share * np.max(np.abs(theirs)))

    return check


@pytest.fixture(scope="session")
def run():
    """run(f, *arrays, **settings): f of jax arrays as one program (operation by operation compiles longer), in numpy.

    Programs are kept by function and settings: what a test patches inside `f` needs a jit of its own.
    """
    program = functools.cache(lambda f, settings: jax.jit(functools.partial(f, **dict(settings))))

    def call(f, *arrays, **settings):
        return jax.tree.map(np.asarray, program(f, tuple(settings.items()))(*map(jnp.asarray, arrays)))

    return call
