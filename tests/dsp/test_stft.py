"""Spectra, magnitudes and their inverse, against librosa, PyTorch and the definition."""

from functools import partial

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import scipy.signal
from jax.test_util import check_grads

from jaxaudio.core import InputError
from jaxaudio.dsp import stft as module
from jaxaudio.dsp.stft import (
    PADDINGS,
    frame_count,
    frames,
    istft,
    magnitudes,
    overlap_add,
    spectrum_fft,
    spectrum_matmul,
    stft,
    window,
)

SIZES = [(256, 64), (255, 50)]


def random(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def hann(size):
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)


def turned(spectrum):
    """From [frames, bins] to librosa's and PyTorch's [bins, frames], and back."""
    return np.swapaxes(spectrum, -1, -2)


@pytest.mark.parametrize(("size", "hop"), [(128, 32), (1024, 256)])
@pytest.mark.parametrize("length", [4096, 5000])
def test_magnitudes_are_librosas(size, hop, length, run):
    x = random(2, length)
    theirs = turned(np.abs(librosa.stft(x, n_fft=size, hop_length=hop, center=False)))
    ours = run(magnitudes, x, size=size, hop=hop)[:, : theirs.shape[1]]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_signal_shorter_than_the_window_has_as_many_frames_as_hops(run):
    spectrum = run(magnitudes, np.ones(100), size=256, hop=64)
    windowed = [hann(256) * (np.arange(256) < 100 - start) for start in (0, 64)]
    np.testing.assert_allclose(spectrum, np.abs(np.fft.rfft(windowed)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("size", "hop"), [(8, 2), (8, 3), (8, 8), (8, 9), (1, 1), (23, 7)])
def test_frames_are_every_stretch_that_lies_within(size, hop, run):
    x = np.arange(23, dtype=np.float32)
    want = [x[start : start + size] for start in range(0, 23 - size + 1, hop)]
    np.testing.assert_array_equal(run(frames, x, size=size, hop=hop), np.array(want))


@pytest.mark.parametrize(("size", "hop"), [(8, 2), (8, 3), (8, 8), (8, 9)])
def test_overlap_add_is_the_transpose_of_frames(size, hop, run):
    x, y = random(2, (5 - 1) * hop + size), random(2, 5, size)
    both = lambda x, y: (jnp.vdot(overlap_add(y, hop), x), jnp.vdot(y, frames(x, size, hop)))
    np.testing.assert_allclose(*run(both, x, y), rtol=1e-5)


@pytest.mark.parametrize("name", ["hann", "hamming", "blackman", "rectangular"])
@pytest.mark.parametrize("size", [1, 25, 256])
def test_windows_are_scipys(name, size):
    theirs = scipy.signal.get_window({"rectangular": "boxcar"}.get(name, name), size)
    np.testing.assert_allclose(window(name, size), theirs, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("length", "size"), [(200, 256), (201, 256), (200, 255)])
def test_an_own_window_is_padded_as_librosas_win_length(length, size, noise, run, close):
    theirs = librosa.stft(noise, n_fft=size, win_length=length, hop_length=64)
    close(run(partial(stft, window=window("hann", length)), noise, size=size, hop=64), turned(theirs))


@pytest.mark.parametrize(("size", "hop"), [*SIZES, (64, 100)])
@pytest.mark.parametrize("padding", ["librosa", "valid", "torch"])
def test_spectra_are_librosas(padding, size, hop, sound, run, close):
    mode = {"pad_mode": "reflect"} if padding == "torch" else {}
    theirs = turned(librosa.stft(sound, n_fft=size, hop_length=hop, center=padding != "valid", **mode))
    ours = run(stft, sound, size=size, hop=hop, padding=padding)
    if padding == "torch" and hop > size:  # librosa 0.11 mirrors the end wrongly there, PyTorch does not
        ours, theirs = ours[:-1], theirs[:-1]
    close(ours, theirs)


@pytest.mark.parametrize(("size", "hop"), [*SIZES, (64, 100)])
def test_spectra_are_pytorchs(size, hop, sound, run, close):
    torch = pytest.importorskip("torch")
    theirs = torch.stft(torch.tensor(sound), size, hop, window=torch.hann_window(size), return_complex=True)
    close(run(stft, sound, size=size, hop=hop, padding="torch"), turned(theirs.numpy()))


@pytest.mark.parametrize(("size", "hop", "length"), [(256, 64, None), (400, 160, 7900)])
def test_the_inverse_is_pytorchs_for_a_spectrum_of_no_signal(size, hop, length, noise, run, close):
    torch = pytest.importorskip("torch")
    taper = torch.hann_window(size)
    spectrum = torch.stft(torch.tensor(noise), size, hop, window=taper, return_complex=True)
    spectrum = spectrum * torch.linspace(0, 1, spectrum.shape[1])
    theirs = torch.istft(spectrum, size, hop, window=taper, length=length)
    close(run(istft, turned(spectrum.numpy()), size=size, hop=hop, padding="torch", length=length), theirs.numpy())


@pytest.mark.parametrize("length", [100, 256, 1000])
@pytest.mark.parametrize(("size", "hop"), [(256, 128), (100, 70), (64, 100)])
def test_tensorflows_frames_begin_at_every_hop_within_the_signal(size, hop, length, run, close):
    x = random(length)
    padded = np.append(x, np.zeros(size))
    theirs = np.fft.rfft([hann(size) * padded[start : start + size] for start in range(0, length, hop)])
    close(run(stft, x, size=size, hop=hop, padding="tensorflow"), theirs)


@pytest.mark.parametrize(("size", "hop"), [(256, 64), (256, 65)])
def test_hifigans_frames_are_those_of_a_signal_mirrored_by_half_the_overlap(size, hop, noise, run, close):
    padded = np.pad(noise, (size - hop) // 2, mode="reflect")
    theirs = librosa.stft(padded, n_fft=size, hop_length=hop, center=False)
    close(run(stft, noise, size=size, hop=hop, padding="hifigan"), turned(theirs))


@pytest.mark.parametrize("padding", list(PADDINGS))
@pytest.mark.parametrize(("size", "hop"), [(256, 64), (255, 100)])
def test_frame_count_tells_the_frames_of_a_spectrum(padding, size, hop):
    for length in (1000, 1024, 1025):
        spectrum = jax.eval_shape(lambda x: stft(x, size, hop, padding=padding), jnp.zeros((2, length)))
        assert spectrum.shape == (2, frame_count(length, size, hop, padding), size // 2 + 1)


@pytest.mark.parametrize(("size", "hop"), SIZES)
@pytest.mark.parametrize(("centred", "length"), [(True, None), (True, 8300), (False, 7000)])
def test_the_inverse_is_librosas_for_a_spectrum_of_no_signal(size, hop, centred, length, sound, run, close):
    spectrum = librosa.stft(sound, n_fft=size, hop_length=hop, center=centred)
    spectrum *= np.linspace(0, 1, spectrum.shape[1])
    theirs = librosa.istft(spectrum, hop_length=hop, n_fft=size, center=centred, length=length)
    padding = "librosa" if centred else "valid"
    ours = run(istft, turned(spectrum), size=size, hop=hop, padding=padding, length=length)
    # Where one window's edge is alone, both divide by its square, which magnifies what they round.
    whole = slice(None) if centred and length != 8300 else slice(size // 8, spectrum.shape[1] * hop - size // 2)
    assert ours.shape == theirs.shape
    close(ours[whole], theirs[whole])


@pytest.mark.parametrize(("size", "hop"), [(256, 128), (255, 50)])
@pytest.mark.parametrize("padding", list(PADDINGS))
def test_the_inverse_gives_the_signal_back(padding, size, hop, noise, run):
    noise = noise[: 30 * hop]
    back = run(lambda x: istft(stft(x, size, hop, padding=padding), size, hop, padding=padding, length=len(x)), noise)
    assert back.shape == noise.shape
    # The first samples of "tensorflow" fade in; "valid" holds little of both ends, and no tail that fills no frame.
    whole = {"tensorflow": slice(size // 4, None), "valid": slice(size // 4, 29 * hop - size // 4)}
    whole = whole.get(padding, slice(None))
    np.testing.assert_allclose(back[whole], noise[whole], rtol=0, atol=2e-6 * np.abs(noise).max())


@pytest.mark.parametrize("padding", list(PADDINGS))
def test_the_inverse_of_whole_hops_is_as_long_as_the_signal(padding):
    for length in (256, 1024):
        spectrum = jnp.ones((frame_count(length, 256, 64, padding), 129), jnp.complex64)
        shape = jax.eval_shape(lambda spectrum: istft(spectrum, 256, 64, padding=padding), spectrum)
        assert shape.shape == (length,)


def test_one_frame_of_hifigan_has_an_inverse(noise, run, close):
    both = lambda x: istft(stft(x, 256, 64, padding="hifigan"), 256, 64, padding="hifigan", length=100)
    close(run(both, noise[:100]), noise[:100])


def test_the_start_of_tensorflows_inverse_is_as_loud_as_the_rest(run):
    spectrum = random(64, 129) + 1j * random(65, 129)[1:]
    y = run(istft, spectrum.astype(np.complex64), size=256, hop=128, padding="tensorflow")
    assert np.abs(y[:128]).max() < 3 * np.abs(y[128:]).max()


@pytest.mark.parametrize("size", [16, 63, 256])
def test_the_matrix_product_is_the_fft(size, noise, run, close):
    cut = np.resize(noise, (2, 30, size))
    taper = window("hann", size)
    close(run(partial(spectrum_matmul, taper=taper), cut), run(partial(spectrum_fft, taper=taper), cut))


def test_the_table_says_up_to_which_window_the_matrix_product_is_used(monkeypatch):
    monkeypatch.setattr(module, "MATMUL_UP_TO", {"cpu": 64})
    for name in ("spectrum_matmul", "spectrum_fft"):
        used = lambda cut, taper, name=name: jnp.full((*cut.shape[:-1], len(taper) // 2 + 1), len(name) + 0j)
        monkeypatch.setattr(module, name, used)
    used = jax.jit(lambda x: [stft(x, size, 20) for size in (63, 64, 65)])(jnp.ones(200))
    assert [np.unique(kind) for kind in used] == [len("spectrum_matmul")] * 2 + [len("spectrum_fft")]


def test_leading_axes_are_a_batch_of_signals(run, close):
    x = random(2, 3, 500)
    both = lambda x: (stft(x, 64, 20), istft(stft(x, 64, 20) ** 2, 64, 20))
    for of_all, of_one in zip(run(both, x), run(both, x[1, 2]), strict=True):
        close(of_all[1, 2], of_one)


@pytest.mark.parametrize("padding", ["librosa", "torch"])
def test_the_gradient_of_magnitudes_is_that_of_finite_differences(padding):
    f = jax.jit(lambda x: magnitudes(jnp.asarray(x), 32, 12, padding=padding))
    check_grads(f, (jnp.asarray(random(90)),), order=1, modes=["fwd", "rev"], eps=2e-3)


def test_the_inverse_is_linear_and_its_gradient_the_transpose(run):
    spectrum, other = (random(n, 6, 17)[-1] + 1j * random(n, 6, 17)[0] for n in (2, 3))
    y = random(60)
    inner = lambda spectrum: jnp.vdot(jnp.asarray(y), istft(spectrum, 32, 12, length=60))
    gradient = run(jax.grad(inner), spectrum.astype(np.complex64))
    # JAX's gradient of a real function f at a + ib is df/da - i df/db.
    np.testing.assert_allclose(np.sum(gradient * other).real, run(inner, other.astype(np.complex64)), rtol=1e-5)


def test_the_gradient_of_silence_is_zero(run):
    total = lambda x: sum(jnp.sum(magnitudes(x, 128, 32, padding=padding)) for padding in PADDINGS)
    value, gradient = run(jax.value_and_grad(total), np.zeros((1, 512), np.float32))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_the_gradient_of_a_log_spectrum_of_silence_is_finite(run):
    total = lambda x: jnp.sum(jnp.log(magnitudes(x, 128, 32) + 1e-2))
    assert np.isfinite(run(jax.grad(total), np.zeros((1, 512), np.float32))).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: stft(x, 64, 16, padding="same"), "padding is 'same': there are librosa, torch, tensorflow"),
        (lambda x: stft(x, 64, 16, "triangle"), "window is 'triangle': there are hann"),
        (lambda x: stft(x, 64, 16, np.ones(65)), r"window has shape \(65,\): .* at most size = 64"),
        (lambda x: stft(x, 200, 16, padding="torch"), "a signal of 100 samples: .* mirrors 100 of them"),
        (lambda x: stft(x, 240, 16, padding="hifigan"), "a signal of 100 samples: .* mirrors 112 of them"),
        (lambda x: stft(x, 16, 64, padding="hifigan"), "hop is 64: .* at most size = 16"),
        (lambda x: stft(x, 101, 16, padding="valid"), "a signal of 100 samples, .* no frame of 101: pass a longer"),
        (lambda x: frames(x, 101, 16), "no frame of 101"),
        (lambda x: frames(x, 64, 0), "hop is 0 samples: both are at least 1"),
        (lambda x: stft(x, 0, 16), "size is 0"),
        (lambda x: istft(jnp.zeros((7, 33), jnp.complex64), 128, 16), "the spectrum has 33 bins: size 128 needs 65"),
    ],
)
def test_what_does_not_fit_is_told(call, message):
    with pytest.raises(InputError, match=message):
        call(jnp.zeros(100))


def test_a_signal_one_longer_than_what_is_mirrored_is_enough():
    assert frame_count(101, 200, 50, "torch") == 3


def test_what_is_not_a_number_is_not_taken_for_silence():
    x = jnp.zeros(1024).at[700].set(jnp.nan)
    level = np.asarray(magnitudes(x, 256, 128))
    assert np.isnan(level).any(1).tolist() == [128 * n <= 700 < 128 * n + 256 for n in range(8)]
