"""Damages by what they promise: powers, spectra, places, decays; that a key tells them; that silence stays silence."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from jaxaudio.core import InputError
from jaxaudio.dsp import companding, degrade

RATE = 16000
KEY = jax.random.key(0)
programs = {}


def of(name, *arrays, **settings):
    """The damage of that name as one program; arrays and numbers are traced, settings are not."""
    place = (name, tuple(settings.items()))
    program = programs.setdefault(place, jax.jit(partial(getattr(degrade, name), **settings)))
    return jax.tree.map(np.asarray, program(*arrays))


def power(x):
    return np.mean(np.square(x, dtype=np.float64))


def sine(share, time=8000):
    """A tone at a share of half the sample rate, two channels."""
    x = np.sin(np.pi * share * np.arange(time) + 1)
    return jnp.asarray(np.stack([x, x], 1), jnp.float32)


def level_db(x):
    """Of the middle of a sound against a full tone."""
    return 10 * np.log10(2 * power(x[1000:-1000]) + 1e-12)


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 20.0])
@pytest.mark.parametrize("channels", [1, 2])
def test_noise_comes_in_at_the_snr(noise, snr_db, channels):
    wave, added = sine(0.1), jnp.asarray(noise.reshape(-1, 1)) + jnp.zeros((1, channels))
    noisy = of("at_snr", wave, 3 * added, snr_db)
    assert 10 * np.log10(power(wave) / power(noisy - wave)) == pytest.approx(snr_db, abs=0.01)
    assert np.corrcoef((noisy - wave)[:, 0], noise)[0, 1] > 0.9999


@pytest.mark.parametrize("exponent", [-1.0, 0.0, 1.0, 2.0])
def test_coloured_noise_has_its_slope_and_power_1(exponent):
    noise = of("coloured_noise", KEY, exponent=exponent, shape=(65000, 2))
    assert noise.shape == (65000, 2)
    assert power(noise) == pytest.approx(1, abs=1e-4)
    f, density = scipy.signal.welch(noise.T, nperseg=4096, window="blackman")
    heard = (f > 0.01) & (f < 0.45)
    slope = np.polyfit(np.log(f[heard]), np.log(density.mean(0)[heard]), 1)[0]
    assert slope == pytest.approx(-exponent, abs=0.05)
    assert abs(np.corrcoef(noise.T)[0, 1]) < 0.2


def test_coloured_noise_is_normally_distributed_and_has_no_rumble():
    white = of("coloured_noise", KEY, exponent=0.0, shape=(65000, 2))
    assert abs(np.mean(white**4) - 3) < 0.1
    rumble = np.abs(np.fft.rfft(of("coloured_noise", KEY, exponent=2.0, shape=(65536, 1))[:, 0])) ** 2
    assert rumble[: int(0.0024 * 32768)].sum() < 1e-4 * rumble.sum()


def test_gaps_have_their_lengths_and_places():
    draw = partial(degrade.gap, time=100, shortest=3, longest=6, edge=40)
    masks, starts, lengths = jax.tree.map(np.asarray, jax.jit(jax.vmap(draw))(jax.random.split(KEY, 4000)))
    at = np.arange(100)
    np.testing.assert_array_equal(masks, (at >= starts[:, None]) & (at < (starts + lengths)[:, None]))
    assert np.bincount(lengths)[3:].min() > 900
    assert lengths.max() == 6
    assert (starts.min(), (starts + lengths).max()) == (40, 60)


@pytest.mark.parametrize("sizes", [(4, 3, 0), (1, 50, 26), (-1, 3, 0), (1, 2, -1)])
def test_gaps_that_do_not_fit_are_refused(sizes):
    with pytest.raises(InputError, match="does not fit into 100"):
        degrade.gap(KEY, 100, *sizes)


def test_clipping_cuts_off_at_its_share_of_the_peak():
    wave = 0.5 * sine(0.01)
    found = of("clipped", wave, 0.5)
    np.testing.assert_allclose(found, np.clip(wave, -0.25, 0.25), atol=1e-4)
    assert np.mean(np.abs(found) > 0.2499) == pytest.approx(2 / 3, abs=0.01)  # where a sine exceeds one half


def test_the_low_pass_has_the_gain_of_its_equation_and_no_delay():
    for share in [0.1, 0.25, 0.4]:
        wave = sine(share)
        expected = 1 / np.sqrt(1 + (share / 0.25) ** 8)
        found = of("low_passed", wave, 0.25, 4.0)
        np.testing.assert_allclose(found[500:-500], expected * wave[500:-500], atol=2e-3)


def test_resampling_keeps_the_lower_band_and_loses_the_upper():
    lower, upper = sine(0.2), sine(0.6)
    np.testing.assert_allclose(of("resampled", lower, 2.5)[500:-500], lower[500:-500], atol=2e-3)
    assert level_db(of("resampled", upper, 2.5)) < -60


def test_images_mirror_the_lower_band_into_the_upper():
    spectrum = np.abs(np.fft.rfft(of("resampled", sine(0.125), 4.0, 1.0)[:, 0])) / 4000
    lines = spectrum[[500, 1500, 2500]]  # at 1/8, and mirrored at 3/8 and 5/8 of half the rate
    held = np.abs(np.sinc(np.array([0.125, 0.375, 0.625]) / 2 * 4))  # over 4 samples
    assert lines == pytest.approx(held, abs=0.05)
    assert lines[1] > 0.1
    assert of("resampled", sine(0.125), 4.0, 0.0).shape == (8000, 2)


def test_a_drawn_filter_has_gains_of_its_spread_and_no_delay():
    impulse = jnp.zeros((1001, 1)).at[500].set(1)
    responses = [of("equalised", jax.random.key(i), impulse, 4.0)[:, 0] for i in range(40)]
    gains = np.stack([20 * np.log10(np.abs(np.fft.rfft(x))) for x in responses])
    assert abs(gains.mean()) < 1
    assert 2.5 < gains.std() < 4.5  # 4 at the drawn points, less between them
    assert {int(np.argmax(np.abs(x))) for x in responses} == {500}


@pytest.mark.parametrize("seconds", [0.2, 0.6])
def test_a_room_decays_in_its_time_after_the_direct_sound(seconds):
    click = jnp.zeros((2 * RATE, 2)).at[1000].set(0.5)
    response = of("reverberated", KEY, click, seconds, 3.0, sample_rate=RATE) / 0.5
    np.testing.assert_allclose(response[:1000], 0, atol=1e-5)
    np.testing.assert_allclose(response[1000], 1, atol=1e-4)
    rest = response[1001:].astype(np.float64)
    assert 10 * np.log10(np.sum(rest**2) / 2) == pytest.approx(3, abs=0.1)
    for channel in rest.T:
        left = 10 * np.log10(np.cumsum(channel[::-1] ** 2)[::-1] / np.sum(channel**2) + 1e-12)  # Schroeder 1965
        at = np.flatnonzero((left < -5) & (left > -35)) / RATE
        slope = np.polyfit(at, left[(left < -5) & (left > -35)], 1)[0]
        assert -60 / slope == pytest.approx(seconds, rel=0.15)


def test_a_room_decays_evenly_from_its_echoes_to_its_tail():
    early = round(degrade.EARLY * 2000)
    draw = jax.jit(jax.vmap(lambda key: degrade.room(key, (3 * early, 1), 1e4, 0.0, 2000)))
    power = np.mean(np.square(draw(jax.random.split(KEY, 2000))), (0, 2))
    assert power[1:early].mean() == pytest.approx(power[early : 2 * early].mean(), rel=0.05)
    assert power[early : 2 * early].mean() == pytest.approx(power[2 * early :].mean(), rel=0.05)


def test_reverberation_is_the_convolution_with_its_room(noise):
    wave = noise[:3000].reshape(-1, 1)
    response = of("room", KEY, shape=(800, 1), seconds=0.1, wet_db=-3.0, sample_rate=8000)
    found = of("reverberated", KEY, wave, 0.1, -3.0, sample_rate=8000, longest=0.1)
    expected = wave[:, 0] + scipy.signal.fftconvolve(wave[:, 0], response[:, 0])[:3000]
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-4)


@pytest.mark.parametrize("levels", [15, 255, 256])
def test_mu_law_is_that_of_companding(noise, levels):
    wave = jnp.asarray(0.3 * noise.reshape(-1, 1))
    expected = companding.mu_law_decode(companding.mu_law_encode(wave, levels), levels)
    found = of("mu_law", wave, float(levels))
    assert np.mean(np.abs(found - expected) > 1e-5) < 1e-3  # but for samples on the border of two levels
    assert len(np.unique(found.round(6))) <= levels


def test_crushed_sound_lies_on_the_grid_of_its_bits(noise):
    wave = 0.5 * noise.reshape(-1, 1)
    found = of("crushed", wave, 4.0)
    np.testing.assert_array_equal(found * 8, np.clip(np.round(wave * 8), -8, 7))


def test_hum_is_lines_at_the_harmonics_of_the_mains():
    draw = jax.jit(jax.vmap(partial(degrade.hum, time=4 * RATE, sample_rate=RATE)))
    hums = np.asarray(draw(jax.random.split(KEY, 12)))[..., 0]
    mains = set()
    for hum in hums:
        assert power(hum) == pytest.approx(1, abs=1e-4)
        spectrum = np.abs(np.fft.rfft(hum * np.hanning(len(hum)))) ** 2
        near = {f: sum(spectrum[4 * f * k - 8 : 4 * f * k + 9].sum() for k in range(1, 21)) for f in (50, 60)}
        found = max(near, key=near.get)
        mains.add(found)
        assert near[found] > 0.999 * spectrum.sum()
        assert spectrum[4 * found - 8 : 4 * found + 9].sum() < 0.999 * spectrum.sum()
    assert mains == {50, 60}


def test_hum_at_a_low_rate_does_not_fold_back():
    draw = jax.jit(jax.vmap(partial(degrade.hum, time=2000, sample_rate=500)))
    for hum in np.asarray(draw(jax.random.split(KEY, 12)))[..., 0]:
        spectrum = np.abs(np.fft.rfft(hum * np.hanning(2000))) ** 2
        lines = [sum(spectrum[4 * f * k - 8 : 4 * f * k + 9].sum() for k in range(1, 5)) for f in (50, 60)]
        assert max(lines) > 0.99 * spectrum.sum()


@pytest.mark.parametrize("rate", [2.0, 40.0])
def test_clicks_are_as_many_as_asked_for(rate):
    name, draw = (
        "40 seconds of clicks",
        lambda keys, rate: jax.vmap(lambda k: degrade.clicks(k, RATE, rate, RATE))(keys),
    )
    found = np.asarray(programs.setdefault(name, jax.jit(draw))(jax.random.split(KEY, 40), rate))[..., 0]
    quiet = 1e-3 * np.abs(found).max(1, keepdims=True)
    heard = np.abs(found) > quiet
    earlier = np.stack([np.convolve(row, np.ones(80))[79:-80] for row in heard])  # within 5 ms, which a click may last
    begun = np.sum(heard[:, 80:] & (earlier == 0), 1)
    assert np.mean(begun) == pytest.approx(rate, rel=0.3)
    powers = np.mean(found**2, 1)
    assert np.all((np.abs(powers - 1) < 1e-3) | (np.abs(found).max(1) == 0))
    assert (found.max(), -found.min()) > (1, 1)


def test_without_clicks_there_is_nothing():
    assert not of("clicks", KEY, rate=0.0, time=1000, sample_rate=RATE).any()


def test_babble_is_the_neighbours_sound_moved(noise):
    voices = noise[:6000].reshape(6, 500, 2)
    keys = jax.random.split(KEY, 6)
    found = of("babble", keys, voices, talkers=1)
    for row, neighbour in enumerate([1, 0, 3, 2, 5, 4]):
        assert power(found[row]) == pytest.approx(1, abs=1e-4)
        by = [np.corrcoef(found[row].ravel(), np.roll(voices[neighbour], n, 0).ravel())[0, 1] for n in range(500)]
        assert max(by) > 0.9999
    many = of("babble", keys, voices)
    np.testing.assert_allclose(np.std(many, (1, 2)), 1, atol=0.01)


def test_an_odd_number_of_rows_has_no_neighbours():
    with pytest.raises(InputError, match="a device has 3 rows"):
        degrade.babble(jax.random.split(KEY, 3), jnp.zeros((3, 10, 1)))


RANDOM = {
    "coloured_noise": lambda key: degrade.coloured_noise(key, (500, 1), 1.0),
    "equalised": lambda key: degrade.equalised(key, jnp.ones((500, 1)), 4.0),
    "gap": lambda key: degrade.gap(key, 500, 1, 100)[0],
    "reverberated": lambda key: degrade.reverberated(key, jnp.ones((500, 1)), 0.1, 0.0, RATE, 0.01),
    "hum": lambda key: degrade.hum(key, 500, RATE),
    "clicks": lambda key: degrade.clicks(key, 500, 200.0, RATE),
    "babble": lambda key: degrade.babble(jax.random.split(key, 2), jnp.arange(100.0).reshape(2, 50, 1)),
}


@pytest.mark.parametrize("name", RANDOM)
def test_the_key_alone_tells_what_is_drawn(name):
    draw = jax.jit(RANDOM[name])
    first, again, other = (np.asarray(draw(jax.random.key(seed))) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01


SILENT = {
    "at_snr": lambda x: degrade.at_snr(x, jnp.ones((500, 1)), 0.0),
    "at_snr without noise": lambda x: degrade.at_snr(x, x, 0.0),
    "clipped": lambda x: degrade.clipped(x, 0.1),
    "low_passed": lambda x: degrade.low_passed(x, 0.1),
    "resampled": lambda x: degrade.resampled(x, 3.0, 0.5),
    "equalised": lambda x: degrade.equalised(KEY, x, 4.0),
    "reverberated": lambda x: degrade.reverberated(KEY, x, 0.1, 0.0, RATE, 0.01),
    "mu_law": lambda x: degrade.mu_law(x, 255),
    "crushed": lambda x: degrade.crushed(x, 3.0),
    "babble": lambda x: degrade.babble(jax.random.split(KEY, 2), jnp.stack([x, x]))[0],
}


def test_silence_stays_silence():
    found = jax.jit(lambda x: {name: f(x) for name, f in SILENT.items()})(jnp.zeros((500, 2)))
    for name, x in found.items():
        assert x.shape == (500, 2), name
        np.testing.assert_array_equal(x, 0, err_msg=name)
