"""Burg's method against two others, and what the predictions it makes come to."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import scipy.signal

from jaxaudio.core import InputError
from jaxaudio.dsp.linear_prediction import burg, extrapolate, interpolate

POLES = np.array([0.97 * np.exp(0.4j), 0.95 * np.exp(1.1j), 0.9 * np.exp(2.2j)])
TRUE = -np.poly(np.concatenate([POLES, POLES.conj()])).real[1:]  # what an autoregressive process is predicted with
SETTINGS = {"most": 64, "order": 32, "context": 256}
fill = jax.jit(lambda x, start, length: interpolate(x, start, length, **SETTINGS))


def process(noise):
    """The autoregressive process with `POLES`, of power 1."""
    x = scipy.signal.lfilter([1], np.concatenate([[1], -TRUE]), noise)
    return (x / x.std()).astype(np.float32)


def tones(samples):
    t = np.arange(samples)
    return (0.5 * np.sin(0.11 * t + 1) + 0.3 * np.sin(0.57 * t) + 0.1 * np.sin(1.9 * t + 2)).astype(np.float32)


def plain_burg(x, order):
    """As Burg's method is written down: the errors become one shorter with every order."""
    forward, backward, a = x[1:].astype(np.float64), x[:-1].astype(np.float64), np.zeros(0)
    for _ in range(order):
        k = 2 * forward @ backward / (forward @ forward + backward @ backward)
        a = np.append(a - k * a[::-1], k)
        forward, backward = (forward - k * backward)[1:], (backward - k * forward)[:-1]
    return a


def snr(true, found):
    return 10 * np.log10(np.sum(true**2) / np.sum((true - found) ** 2))


@pytest.mark.parametrize("order", [1, 2, 31])
def test_the_coefficients_are_those_of_a_plain_burg_and_of_librosa(sound, order, run):
    x = np.stack([sound[:400], sound[400:800]])
    found = run(burg, x, order=order)
    np.testing.assert_allclose(found, [plain_burg(row, order) for row in x], rtol=0, atol=5e-6)
    np.testing.assert_allclose(found, -librosa.lpc(x.astype(np.float64), order=order)[:, 1:], rtol=0, atol=5e-6)


def test_order_300_predicts_as_well_as_in_double_precision(speech, run):
    x = speech[:2048]
    error = lambda a: np.var(scipy.signal.lfilter(np.append(1, -a), [1], x.astype(np.float64))[300:])
    assert error(run(burg, x, order=300).astype(np.float64)) == pytest.approx(error(plain_burg(x, 300)), rel=1e-3)


def test_the_coefficients_of_an_autoregressive_process_are_found(noise, run):
    np.testing.assert_allclose(run(burg, process(noise), order=6), TRUE, rtol=0, atol=0.1)


@pytest.mark.parametrize("scale", [1e-25, 1e-6, 1e4])
def test_the_coefficients_do_not_depend_on_loudness(noise, scale, run):
    x = process(noise)[:1000]
    expected = np.zeros(6) if scale == 1e-25 else run(burg, x, order=6)  # whose squares are 0 in float32
    np.testing.assert_allclose(run(burg, x * np.float32(scale), order=6), expected, rtol=0, atol=1e-4)


def test_extrapolation_is_the_recursion_that_scipy_runs(noise, run):
    past = process(noise)[:6]
    state = scipy.signal.lfiltic([1], np.append(1, -TRUE), past[::-1])
    expected, _ = scipy.signal.lfilter([1], np.append(1, -TRUE), np.zeros(50), zi=state)
    found = run(extrapolate, np.stack([past, 2 * past]), np.stack([TRUE, TRUE]).astype(np.float32), count=50)
    np.testing.assert_allclose(found, [expected, 2 * expected], rtol=0, atol=1e-4)


def test_a_recursion_that_grows_stays_bounded(run):
    found = run(extrapolate, np.array([0.1, -0.5], np.float32), np.array([2.0, 0.5], np.float32), count=500)
    assert np.abs(found).max() == 1


def test_tones_go_on(run):
    x = tones(2348)
    coefficients = run(burg, x[:2048], order=32)
    assert snr(x[2048:], run(extrapolate, x[2048 - 32 : 2048], coefficients, count=300)) > 10


@pytest.mark.parametrize("length", [1, 40, 64])
def test_a_gap_in_tones_is_filled_and_nothing_behind_it(length):
    x = tones(1000)
    holed = x.copy()
    holed[500 : 500 + length] = np.nan  # what is in the gap is not looked at
    filled = np.asarray(fill(jnp.asarray(holed), 500, length))
    assert snr(x[500 : 500 + length], filled[:length]) > 25
    assert not filled[length:].any()


def test_a_gap_of_nothing_is_filled_with_nothing():
    assert not np.asarray(fill(jnp.asarray(tones(1000)), 500, 0)).any()


def test_a_gap_in_a_process_is_filled_best_near_its_ends(noise):
    x = process(noise)
    starts = np.arange(300, 7600, 100)
    filled = np.asarray(jax.jit(jax.vmap(fill, (None, 0, None)))(jnp.asarray(x), jnp.asarray(starts), 10))[:, :10]
    true = np.stack([x[s : s + 10] for s in starts])
    assert snr(true, filled) > 4
    assert snr(true[:, [0, 9]], filled[:, [0, 9]]) > snr(true[:, 4:6], filled[:, 4:6])


def test_the_past_reigns_at_the_beginning_of_a_gap_and_the_future_at_its_end():
    x = np.concatenate([tones(500), np.zeros(500, np.float32)])
    filled = np.asarray(fill(jnp.asarray(x), 460, 40))
    share = np.cos(np.pi / 2 * (np.arange(40) + 0.5) / 40) ** 2
    np.testing.assert_allclose(filled[:40], share * x[460:500], rtol=0, atol=0.01)


@pytest.mark.parametrize("start", [0, 10, 936, 925], ids=["at the start", "near it", "at the end", "near it"])
def test_a_gap_at_an_end_is_filled_from_the_side_that_is_there(start):
    x = tones(1000)
    filled = np.asarray(fill(jnp.asarray(x), start, 64))
    assert snr(x[start : start + 64], filled) > 9


def test_a_side_has_an_order_of_half_its_samples_at_most(noise, run):
    x = noise[:50]
    filled = np.asarray(fill(jnp.asarray(x), 10, 40))
    np.testing.assert_allclose(filled[:40], run(extrapolate, x[5:10], run(burg, x[:10], order=5), count=40), atol=1e-5)


def test_gaps_in_silence_and_in_sounds_that_are_all_gap_are_silent():
    assert not np.asarray(fill(jnp.zeros(1000), 500, 64)).any()
    assert not np.asarray(fill(jnp.ones(64), 0, 64)).any()


def test_a_click_beside_a_gap_leaves_it_finite():
    assert np.isfinite(np.asarray(fill(jnp.zeros(1000).at[499].set(1.0), 500, 64))).all()


@pytest.mark.parametrize("order", [0, 501])
def test_orders_that_the_samples_do_not_allow_are_refused(order):
    with pytest.raises(InputError, match=f"order is {order}: 1000 samples allow 1 to 500"):
        burg(jnp.zeros(1000), order)
    with pytest.raises(InputError, match=f"order is {order}: 1000 samples allow 1 to 500"):
        interpolate(jnp.zeros(4000), 1, 1, 10, order, 1000)
