"""Pictures of log-magnitudes and instantaneous frequencies: those of the official code, written out in numpy."""

import csv
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from jaxaudio.core import InputError
from jaxaudio.dsp.specgram import Specgram, bank

RATE, LENGTH = 16000, 2000
SHAPES = {"linear": (64, 0, False), "official": (64, 64, False), "few": (64, 24, True)}


def front(name="official", length=LENGTH):
    """Windows of 128 samples, a quarter of them apart."""
    bins, bands, mean = SHAPES[name]
    return Specgram(RATE, length, -(-length // 32) + 3, 32, bins, bands, mean)


def official_bank(bins, bands):
    """`linear_to_mel_weight_matrix` of spectral_ops.py, band by band."""
    to_mel, to_hertz = lambda hertz: 1127 * np.log1p(hertz / 700), lambda mels: 700 * np.expm1(mels / 1127)
    hertz, resolution = np.linspace(0, RATE / 2, bins), RATE / 2 / bins
    edges, weights = np.linspace(0, to_mel(RATE / 2), bands + 2), np.zeros((bins, bands))
    for band, (low, middle, high) in enumerate(zip(edges[:-2], edges[1:-1], edges[2:], strict=True)):
        if to_hertz(high) - to_hertz(low) < 1.5 * resolution:
            half = 0.75 * resolution / (to_hertz(middle) + 700)
            wide = 1127 * math.log(half + math.sqrt(1 + half**2))
            low, high = middle - wide, middle + wide
        low, middle, high = to_hertz(np.array([low, middle, high]))
        weights[1:, band] = np.maximum(0, np.minimum((hertz - low) / (middle - low), (high - hertz) / (high - middle)))[
            1:
        ]
    return weights


def spectra(front, wave):
    padded = np.pad(wave.astype(np.float64), (front.before, 0))
    cut = np.lib.stride_tricks.sliding_window_view(padded, front.size)[:: front.hop]
    return np.fft.rfft(cut * np.hanning(front.size + 1)[:-1])[:, 1:]


def frequency(phase):
    """Steps of the unwrapped phase over pi."""
    return np.diff(np.unwrap(phase, axis=0), axis=0, prepend=0) / np.pi


def official_picture(front, wave):
    """`waves_to_melspecgrams`."""
    spectrum = spectra(front, wave)
    level, steps = np.log(np.abs(spectrum) + 1e-6), frequency(np.angle(spectrum))
    weights = official_bank(front.bins, front.bands)
    steps = frequency(np.cumsum(steps * np.pi, 0) @ weights)
    return np.stack([np.log(np.exp(2 * level) @ weights + 1e-6), steps], -1)


def official_sound(front, picture):
    """`melspecgrams_to_waves`."""
    weights = official_bank(front.bins, front.bands)
    total = (weights @ weights.T).sum(0)
    back = weights.T * np.array([1 / x if abs(x) > 1e-8 else x for x in total])
    level = 0.5 * np.log(np.exp(picture[..., 0]) @ back + 1e-6)
    steps = frequency(np.cumsum(picture[..., 1] * np.pi, 0) @ back)
    spectrum = np.exp(level + 1j * np.cumsum(steps * np.pi, 0))
    taper = np.hanning(front.size + 1)[:-1]
    usual = np.tile((taper**2).reshape(-1, front.hop).sum(0), front.size // front.hop)
    cut = np.fft.irfft(np.pad(spectrum, ((0, 0), (1, 0))), front.size) * taper / usual
    total = np.zeros(front.before + front.length)
    for i, frame in enumerate(cut):
        total[i * front.hop : i * front.hop + front.size] += frame
    return total[front.before :]


@pytest.fixture(scope="module")
def note():
    """Harmonics that fade, over a little noise."""
    time, rng = np.arange(LENGTH) / RATE, np.random.default_rng(0)
    fading = np.exp(-10 * time) * sum(np.sin(2 * np.pi * 440 * k * time) / k for k in (1, 2, 3, 5))
    return (0.3 * fading + 0.003 * rng.standard_normal(LENGTH)).astype(np.float32)


def test_weights_are_the_official_codes_and_the_way_back_keeps_what_is_alike_everywhere():
    weights, steps, back, steps_back = bank(RATE, 64, 64, False)
    np.testing.assert_allclose(weights, official_bank(64, 64), atol=1e-5)
    np.testing.assert_array_equal(weights, steps)
    np.testing.assert_array_equal(back, steps_back)
    for mean in (False, True):
        _, steps, _, steps_back = bank(RATE, 64, 24, mean)
        alike = np.ones(64) @ steps @ steps_back
        np.testing.assert_allclose(alike[1:-1], 1, atol=1e-5)
        assert alike[0] == alike[-1] == 0, "the lowest bin and the highest belong to no band"
        if mean:
            np.testing.assert_allclose(steps.sum(0)[1:], 1, atol=1e-5)
            np.testing.assert_allclose(steps_back.sum(0)[1:-1], 1, atol=1e-5)


def test_the_picture_is_the_official_codes(note, run):
    ours, theirs = run(front().analyse, note), official_picture(front(), note)
    np.testing.assert_allclose(ours[..., 0], theirs[..., 0], atol=1e-3)
    turns = np.abs(ours[..., 1] - theirs[..., 1])
    turns = np.minimum(turns, np.abs(turns - 2))  # half a turn forward is one backward
    heard = np.exp(theirs[..., 0]) > 1e-3
    assert heard.mean() > 0.5
    assert turns[heard].max() < 2e-3


def test_the_sound_is_the_official_codes(note, run):
    picture = official_picture(front(), note).astype(np.float32)
    theirs = official_sound(front(), picture)
    np.testing.assert_allclose(run(front().resynthesise, picture), theirs, atol=1e-3 * np.abs(theirs).max())


def test_without_the_mel_scale_the_sound_comes_back_but_for_its_end_and_what_is_lost_in_front(note, run):
    linear = front("linear")
    back = run(lambda wave: linear.resynthesise(linear.analyse(wave)), note)
    inner = slice(0, LENGTH - linear.size)
    note = note - note.mean()  # 0 Hz is left out
    assert np.std(back[inner] - note[inner]) < 0.02 * np.std(note[inner])
    assert np.abs(back[-4:]).max() < 0.1 * np.abs(note[-4:]).max() + 1e-3, "it fades within the last window"


@pytest.mark.parametrize("name", SHAPES)
def test_a_steady_tone_has_its_frequency_in_the_loudest_band_and_keeps_it(name, run):
    hertz, shape = 1234.0, front(name)
    tone = (0.5 * np.sin(2 * np.pi * hertz * np.arange(LENGTH) / RATE)).astype(np.float32)
    picture = run(shape.analyse, tone)
    assert np.abs(picture[1:, :, 1]).max() <= 1 + 1e-6
    if name != "official":  # whose steps are weighted sums
        loudest = picture[20, :, 0].argmax()
        turns = 2 * hertz * shape.hop / RATE
        np.testing.assert_allclose(picture[20:-1, loudest, 1], turns - 2 * round(turns / 2), atol=0.02)
    back = run(shape.resynthesise, picture)[500:1500]
    peak = np.fft.rfft(back * np.hanning(1000), 16000)
    assert abs(np.abs(peak).argmax() - hertz) <= 4


@pytest.mark.parametrize("name", SHAPES)
def test_silence_and_sound_have_finite_gradients_both_ways(name, note):
    shape = front(name)
    pull = jnp.asarray(np.random.default_rng(1).standard_normal(shape.analyse(jnp.zeros(LENGTH)).shape), jnp.float32)
    slope = jax.jit(jax.grad(lambda wave: jnp.vdot(pull, shape.analyse(wave))))
    assert np.isfinite(slope(jnp.zeros(LENGTH))).all()
    assert np.isfinite(slope(jnp.asarray(note))).all()
    through = jax.jit(jax.grad(lambda wave: jnp.sum(shape.resynthesise(shape.analyse(wave)) ** 2)))
    assert np.isfinite(through(jnp.asarray(note))).all()
    assert float(jnp.max(jnp.abs(through(jnp.asarray(note))))) > 0


def test_gradients_of_levels_are_finite_differences(note):
    shape = front()
    level = jax.jit(lambda wave: jnp.mean(shape.analyse(wave)[10:30, :, 0]))
    wave, way = jnp.asarray(note), jnp.asarray(np.random.default_rng(2).standard_normal(LENGTH), jnp.float32)
    step = 3e-4
    measured = (level(wave + step * way) - level(wave - step * way)) / (2 * step)
    assert float(jnp.vdot(jax.jit(jax.grad(level))(wave), way)) == pytest.approx(float(measured), rel=0.03)


def test_real_notes_keep_their_sound_to_the_stated_error(recordings, run):
    """Medians over 16 notes of SI-SDR up to the last window: 86 dB without the mel scale, 5 dB with it."""
    folder = recordings / "notes16k"
    if not folder.is_dir():
        pytest.skip(f"no notes in {recordings}")
    with open(folder / "metadata.csv", newline="") as file:
        paths = [row["path"] for row in csv.DictReader(file)][::67][:16]
    waves = np.stack([soundfile.read(folder / path, dtype="float32")[0] for path in paths])
    for bands, least in ((0, 60.0), (1024, 2.5)):
        shape = Specgram(RATE, waves.shape[1], 64, 512, 1024, bands)
        back = run(lambda wave, shape=shape: shape.resynthesise(shape.analyse(wave)), waves)[:, :30000]
        true = waves[:, :30000].astype(np.float64)
        like = true * (np.sum(true * back, 1) / np.sum(true**2, 1))[:, None]
        ratios = 10 * np.log10(np.sum(like**2, 1) / np.sum((back - like) ** 2, 1))
        assert np.median(ratios) > least


def test_batches_of_any_shape_are_pictures_of_each(note, run):
    alone = run(front().analyse, note)
    many = run(front().analyse, np.stack([note, note[::-1], 0 * note]).reshape(3, 1, LENGTH))
    assert many.shape == (3, 1, *alone.shape)
    np.testing.assert_allclose(many[0, 0], alone, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((16000, 64000, 64, 512, 1024, 1024), "64 frames every 512 samples span 34304 samples"),
        ((16000, 64000, 128, 600, 1024, 1024), "hop is 600"),
        ((16000, 64000, 128, 512, 1024, 2000), "bands is 2000"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        Specgram(*fields)
