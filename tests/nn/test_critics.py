"""Critics of waveforms: against PyTorch, and the edges that their papers differ in."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxaudio.core import InputError
from jaxaudio.nn.critics import Periods, Spectra, compared, edges, halved, levelled, mirrored

SIZES = {"windows": (64, 32), "bands": (0.0, 0.25, 1.0), "width": 3}
ENCODEC = {"dilations": (1, 2), "slope": 0.2, "matched": False, "normalised": True}
CRITICS = {
    "periods": (Periods, {"periods": (2, 3), "widths": (2, 3, 4)}),
    "periods, only if needed": (Periods, {"periods": (2, 3), "widths": (2, 3, 4), "always": False}),
    "spectra": (Spectra, {**SIZES, "dilations": (1, 1)}),
    "spectra, EnCodec's": (Spectra, {**SIZES, **ENCODEC, "bands": (0.0, 1.0)}),
}


def sound(length=204, rows=2, channels=2):
    return jnp.asarray(np.random.default_rng(length).standard_normal((rows, length, channels)), jnp.float32)


@cache
def started(critic):
    """Its weights, biases and scales among them far from what they start from."""
    params, rng = jax.device_get(jax.jit(critic.init)(jax.random.key(0), sound()))["params"], np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf + 0.2 * rng.standard_normal(leaf.shape), jnp.float32), params)


@pytest.mark.parametrize("name", CRITICS)
@pytest.mark.parametrize("length", [204, 207])
def test_every_map_and_the_gradient_equal_pytorchs(name, length):
    """204 samples are whole periods of 2 and of 3; 207 are no whole number of hops."""
    torch = pytest.importorskip("torch", reason="the parity with PyTorch needs the extra `compare`")
    from benchmarks.peers import dac as peer

    (kind, fields), wave = CRITICS[name], sound(length)
    critic = kind(**fields)
    params = started(critic)
    theirs = {Periods: peer.Periods, Spectra: peer.Spectra}[kind](wave.shape[-1], **fields)
    peer.load(theirs, jax.device_get(params))
    signal = torch.tensor(np.asarray(wave)).mT.requires_grad_()

    def total(wave):
        maps = critic.apply({"params": params}, wave)
        return sum(jnp.mean(x**2) for each in maps for x in each), maps

    (_, ours), slope = jax.jit(jax.value_and_grad(total, has_aux=True))(wave)
    found = theirs(signal)
    sum(x.square().mean() for each in found for x in each).backward()
    assert [len(each) for each in ours] == [len(each) for each in found]
    for mine, other in zip((x for each in ours for x in each), (x for each in found for x in each), strict=True):
        other = other.detach().movedim(1, -1)  # [batch, frames, bins or phases, channels]
        if kind is Periods:
            other = other.movedim(2, 1).flatten(0, 1)
        np.testing.assert_allclose(mine, other, atol=1e-5)
    np.testing.assert_allclose(slope, signal.grad.mT, atol=1e-5)


def test_a_whole_period_is_put_behind_what_needs_none_unless_told_otherwise():
    rows = lambda **fields: Periods(periods=(3,), widths=(1,), **fields)
    frames = {}
    for length in (204, 205):
        wave = sound(length)
        for always in (True, False):
            maps = jax.eval_shape(lambda w, a=always: rows(always=a).init_with_output(jax.random.key(0), w)[0], wave)
            frames[length, always] = maps[0][0].shape[1]
    assert frames == {(204, True): 69, (204, False): 68, (205, True): 69, (205, False): 69}


def test_pairs_go_through_together_as_they_would_alone():
    real, fake = sound(205), 2 * sound(205)[:, ::-1]
    for kind, fields in CRITICS.values():
        critic = kind(**fields)
        judge = partial(critic.apply, {"params": started(critic)})
        both = jax.jit(lambda a, b, judge=judge: compared(judge, a, b))(real, fake)
        for maps, wave in zip(both, (real, fake), strict=True):
            for mine, alone in zip(jax.tree.leaves(maps), jax.tree.leaves(jax.jit(judge)(wave)), strict=True):
                np.testing.assert_allclose(mine.reshape(alone.shape), alone, atol=1e-5)


def test_levelled_sound_is_centred_at_a_peak_of_four_fifths_and_silence_stays():
    wave = 0.3 * sound() + jnp.asarray([1.0, -2.0]).reshape(1, 1, 2)
    heard = levelled(wave)
    np.testing.assert_allclose(jnp.mean(heard, 1), 0, atol=1e-6)
    np.testing.assert_allclose(jnp.max(jnp.abs(heard), 1), 0.8, rtol=1e-5)
    assert not np.asarray(levelled(jnp.ones((1, 50, 1)))).any()


def test_sound_is_mirrored_as_numpy_does_and_bands_cover_what_they_say():
    wave = sound(20)
    expected = np.pad(np.asarray(wave), ((0, 0), (5, 7), (0, 0)), mode="reflect")
    np.testing.assert_array_equal(mirrored(wave, 5, 7), expected)
    assert edges(2048, (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)) == [(0, 102), (102, 256), (256, 512), (512, 768), (768, 1025)]
    with pytest.raises(InputError, match="bands"):
        edges(16, (0.0, 0.01, 1.0))
    with pytest.raises(InputError, match="mirror"):
        mirrored(wave, 0, 20)


@pytest.mark.parametrize("length", [2, 9, 10])
def test_half_the_rate_is_the_mean_of_four_samples_with_zeros_around(length):
    wave = np.asarray(sound(length))
    padded = np.pad(wave, ((0, 0), (2, 2), (0, 0)))
    expected = [padded[:, i : i + 4].mean(1) for i in range(0, length + 1, 2)]
    np.testing.assert_allclose(halved(jnp.asarray(wave)), np.stack(expected, 1), atol=1e-6)


def test_half_precision_is_near_and_its_maps_are_wide():
    wave = sound()
    for kind, fields in CRITICS.values():
        params = started(kind(**fields))
        exact, near = (
            jax.jit(kind(**fields, dtype=dtype).apply)({"params": params}, wave)
            for dtype in (jnp.float32, jnp.bfloat16)
        )
        for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(near), strict=True):
            assert b.dtype == jnp.float32
            assert float(jnp.std(a - b)) < 0.05 * float(jnp.std(a))
