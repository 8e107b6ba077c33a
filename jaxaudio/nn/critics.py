"""Critics of waveforms that several papers share: by periods of samples, at several rates, by spectra.

Each is called on a sound [batch, time, channels] and gives, for every critic in it, a list of maps [rows, ...]: the
features of each layer behind its activation, and at last the scores. Channels of a sound are channels of the input.

Source: `Periods` and `Scales` are those of HiFi-GAN (Kong et al. 2020), `Scales` as in MelGAN (Kumar et al. 2019);
`Magnitudes` is that of UnivNet (Jang et al. 2021) and BigVGAN (Lee et al. 2023), `Spectra` that of the Descript codec
(Kumar et al. 2023, arXiv 2306.06546) and, by its fields, that of EnCodec (Defossez et al. 2022).
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxaudio.core import InputError, Wave
from jaxaudio.dsp.stft import magnitudes, stft, window
from jaxaudio.nn.conv import Conv
from jaxaudio.nn.stream import INIT

Maps = list[Float[Array, "..."]]  # of one critic, each [rows, ...], the scores last


class Periods(nn.Module):
    """A critic per period, which sees every so many-th sample as a signal of its own."""

    periods: Sequence[int] = (2, 3, 5, 7, 11)
    widths: Sequence[int] = (32, 128, 512, 1024, 1024)  # channels of the layers; each but the last shortens by 3
    always: bool = True  # a whole period is put behind a sound that needs none (Descript); False: nothing (HiFi-GAN)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, wave: Wave) -> list[Maps]:
        return [self.maps(wave, period) for period in self.periods]

    def maps(self, wave: Wave, period: int) -> Maps:
        """Of one period, whose phases are rows beside those of the batch."""
        x = mirrored(wave, 0, -wave.shape[1] % period or (period if self.always else 0))
        x = jnp.moveaxis(x.reshape(len(x), -1, period, x.shape[-1]), 2, 1)
        x, found = x.reshape(-1, *x.shape[2:]), []
        for i, width in enumerate(self.widths):
            stride = 1 if i == len(self.widths) - 1 else 3
            x = nn.leaky_relu(self.conv(width, 5, stride, f"period_{period}_{i}")(x), 0.1)
            found.append(x)
        found.append(self.conv(1, 3, 1, f"period_{period}_score", jnp.float32)(x))
        return [x.astype(jnp.float32) for x in found]

    def conv(self, width: int, taps: int, stride: int, name: str, dtype: Any = None) -> Conv:
        """A layer over time."""
        given = {"weight_norm": True, "dtype": dtype or self.dtype, "kernel_init": INIT, "name": name}
        return Conv(width, (taps,), (stride,), taps // 2, **given)


class Scales(nn.Module):
    """A critic per rate: of the sound as it is, and of ever more halvings of its rate. The layers of the first have
    spectral norm: their state is in flax's collection "spectral", see nn/conv.py."""

    scales: int = 3
    widths: Sequence[int] = (128, 128, 256, 512, 1024, 1024, 1024)  # channels of the layers
    taps: Sequence[int] = (15, 41, 41, 41, 41, 41, 5)
    strides: Sequence[int] = (1, 2, 2, 4, 4, 1, 1)
    groups: Sequence[int] = (1, 4, 16, 16, 16, 16, 1)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, wave: Wave) -> list[Maps]:
        found = []
        for scale in range(self.scales):
            wave = halved(wave) if scale else wave
            found.append(self.maps(wave, scale))
        return found

    def maps(self, wave: Wave, scale: int) -> Maps:
        """Of one rate."""
        x, found = wave, []
        given = {"weight_norm": scale > 0, "spectral_norm": not scale, "dtype": self.dtype, "kernel_init": INIT}
        for i, (width, taps, stride, groups) in enumerate(
            zip(self.widths, self.taps, self.strides, self.groups, strict=True)
        ):
            name = f"scale_{scale}_{i}"
            x = Conv(width, (taps,), (stride,), taps // 2, groups=groups, **given, name=name)(x)
            x = nn.leaky_relu(x, 0.1)
            found.append(x)
        found.append(Conv(1, (3,), (1,), 1, **given | {"dtype": jnp.float32}, name=f"scale_{scale}_score")(x))
        return [x.astype(jnp.float32) for x in found]


class Magnitudes(nn.Module):
    """A critic per window of a magnitude spectrum, a picture of frequencies and frames, which it halves in time."""

    sizes: Sequence[int] = (1024, 2048, 512)  # samples of the Fourier transforms
    hops: Sequence[int] = (120, 240, 50)  # samples
    lengths: Sequence[int] = (600, 1200, 240)  # samples of the rectangular windows, zeros around them
    width: int = 32  # channels of every layer
    halvings: int = 3  # layers that halve the frames
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, wave: Wave) -> list[Maps]:
        return [self.maps(wave, *of) for of in zip(self.sizes, self.hops, self.lengths, strict=True)]

    def maps(self, wave: Wave, size: int, hop: int, length: int) -> Maps:
        """Of one window; [rows, bins, frames, channels]."""
        around = mirrored(wave, (size - hop) // 2, (size - hop) // 2)
        x = magnitudes(jnp.moveaxis(around, -1, 1), size, hop, np.ones(length, np.float32), "valid")
        x, found = jnp.moveaxis(x, 1, -1).swapaxes(1, 2), []
        for i in range(self.halvings + 2):
            taps, stride = (3, 3 if i > self.halvings else 9), (1, 2 if 0 < i <= self.halvings else 1)
            x = nn.leaky_relu(self.conv(self.width, taps, stride, f"size_{size}_{i}")(x), 0.1)
            found.append(x)
        found.append(self.conv(1, (3, 3), (1, 1), f"size_{size}_score", jnp.float32)(x))
        return [x.astype(jnp.float32) for x in found]

    def conv(self, width: int, taps: tuple[int, int], stride: tuple[int, int], name: str, dtype: Any = None) -> Conv:
        """A layer over frequency and time."""
        padding = tuple((n // 2, n // 2) for n in taps)
        given = {"weight_norm": True, "dtype": dtype or self.dtype, "kernel_init": INIT, "name": name}
        return Conv(width, taps, stride, padding, **given)


class Spectra(nn.Module):
    """A critic per window of a complex spectrum, hop a quarter, whose bands have layers of their own."""

    windows: Sequence[int] = (2048, 1024, 512)  # samples
    bands: Sequence[float] = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)  # edges, in shares of the spectrum
    width: int = 32  # channels of every layer
    dilations: Sequence[int] = (1, 1, 1)  # in time, of the layers that halve a band; EnCodec's: 1, 2, 4
    slope: float = 0.1  # of the activation below 0; EnCodec's: 0.2
    matched: bool = True  # as many frames as hops, the ends mirrored; False: whole frames alone (EnCodec's)
    normalised: bool = False  # spectra by the root of the window's energy (EnCodec's)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, wave: Wave) -> list[Maps]:
        return [self.maps(wave, size) for size in self.windows]

    def maps(self, wave: Wave, size: int) -> Maps:
        """Of one window; those of the bands one after the other."""
        spectrum, found, ends = self.spectrum(wave, size), [], []
        for band, (low, high) in enumerate(edges(size, self.bands)):
            x = spectrum[:, :, low:high]
            for i, dilation in enumerate((None, *self.dilations, None)):
                taps, stride = (3, 9 if i <= len(self.dilations) else 3), (1, 2 if dilation else 1)
                x = self.conv(self.width, taps, stride, dilation or 1, f"window_{size}_band_{band}_{i}")(x)
                x = nn.leaky_relu(x, self.slope)
                found.append(x)
            ends.append(x)
        score = self.conv(1, (3, 3), (1, 1), 1, f"window_{size}_score", jnp.float32)
        found.append(score(jnp.concatenate(ends, 2)))
        return [x.astype(jnp.float32) for x in found]

    def spectrum(self, wave: Wave, size: int) -> Float[Array, "batch frames bins parts"]:
        """Real and imaginary part of each channel: all real ones, then all imaginary ones."""
        hop, x = size // 4, wave
        if self.matched:
            around = (size - hop) // 2
            x = mirrored(wave, around, around - wave.shape[1] % -hop)
        found = jnp.moveaxis(stft(jnp.moveaxis(x, -1, 1), size, hop, padding="valid"), 1, -1)
        if self.normalised:
            found = found / float(np.sqrt(np.sum(window("hann", size) ** 2)))
        return jnp.concatenate([found.real, found.imag], -1)

    def conv(
        self,
        width: int,
        taps: tuple[int, int],
        stride: tuple[int, int],
        dilation: int,
        name: str,
        dtype: Any = None,
    ) -> Conv:
        """A layer over time and frequency."""
        padding = ((dilation * (taps[0] // 2),) * 2, (taps[1] // 2,) * 2)
        given = {"weight_norm": True, "dtype": dtype or self.dtype, "kernel_init": INIT, "name": name}
        return Conv(width, taps, stride, padding, (dilation, 1), **given)


def edges(size: int, bands: Sequence[float]) -> list[tuple[int, int]]:
    """(first bin, last + 1) of each band of a window. Raises InputError where one is empty."""
    bins = [int(edge * (size // 2 + 1)) for edge in bands]
    found = list(itertools.pairwise(bins))
    if not found or min(high - low for low, high in found) < 1:
        raise InputError(
            f"bands {tuple(bands)} of a window of {size} samples: each holds a bin of {size // 2 + 1} at least; name "
            "edges that rise from 0 to 1, or longer windows"
        )
    return found


def compared(critics: Callable[[Wave], list[Maps]], real: Wave, fake: Wave) -> tuple[list[Maps], list[Maps]]:
    """The maps of both. They go through the critics as neighbours in one batch, which is faster than one by one, and no
    device needs another's rows."""
    found = critics(jnp.stack([real, fake], 1).reshape(-1, *real.shape[1:]))
    part = lambda x, side: x.reshape(len(real), 2, -1, *x.shape[1:])[:, side]
    return tuple([[part(x, side) for x in maps] for maps in found] for side in range(2))


def halved(wave: Wave) -> Float[Array, "batch half channels"]:
    """At half the rate, T // 2 + 1 samples: the mean of four, two further each time, zeros around (PyTorch's
    AvgPool1d(4, 2, 2))."""
    pairs = (wave.shape[1] + 4) // 2
    x = jnp.pad(wave, ((0, 0), (2, 2), (0, 0)))[:, : 2 * pairs]
    sums = jnp.sum(x.reshape(len(x), pairs, 2, -1), 2)
    return (sums[:, :-1] + sums[:, 1:]) / 4


def levelled(wave: Wave) -> Wave:
    """Each channel without its mean, at a peak of 0.8: how the Descript codec's critics hear a sound."""
    centred = wave - jnp.mean(wave, 1, keepdims=True)
    return 0.8 * centred / (jnp.max(jnp.abs(centred), 1, keepdims=True) + 1e-9)


def mirrored(x: Wave, before: int, behind: int) -> Float[Array, "batch longer channels"]:
    """The sound mirrored at both ends by so many samples; the first and the last are not repeated. Raises InputError
    where it is too short."""
    if x.shape[1] <= max(before, behind):
        raise InputError(f"a sound of {x.shape[1]} samples: the critics mirror {max(before, behind)} of them")
    if not before and not behind:
        return x
    parts = [jnp.flip(x[:, 1 : before + 1], 1), x, jnp.flip(x[:, x.shape[1] - behind - 1 : -1], 1)]
    # Without the barrier XLA computes the whole gradient of the frames anew for each of the three pieces.
    return jax.lax.optimization_barrier(jnp.concatenate(parts, 1))
