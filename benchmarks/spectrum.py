"""Spectra and Griffin-Lim against PyTorch and librosa: python -m benchmarks.spectrum [--json FILE]

Magnitudes, their gradient and complex spectra of 64 x 16000 samples at 1024 / 256, framed as torch.stft does; the FFT
against the matrix product, from which `MATMUL_UP_TO` of jaxaudio/dsp/stft.py is filled; 32 iterations of Griffin-Lim.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before PyTorch is loaded: spinning threads would slow the others

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.rows import append
from benchmarks.timing import OtherLoad, alternate, quartiles
from jaxaudio.dsp.griffin_lim import griffin_lim
from jaxaudio.dsp.stft import frames, magnitudes, pad, spectrum_fft, spectrum_matmul, stft, window
from jaxaudio.runtime.command import guarded, keep_freed_memory
from jaxaudio.runtime.versions import versions

BATCH, LENGTH, SIZE, HOP = 64, 16000, 1024, 256
WINDOWS = (64, 128, 256, 512, 1024)

Contestants = Mapping[str, Callable[[], object]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of this benchmark."""

    only: str = ""  # rows whose name holds this
    windows: int = 9  # of each contestant
    seconds: float = 0.5  # length of a window
    json: Path | None = None  # a line is added per row


def compiled(f: Callable[..., Any], *arrays: np.ndarray) -> Callable[[], object]:
    """A call of f, jitted, that returns when it is done."""
    program, device = jax.jit(f), jax.device_put(arrays)
    return lambda: jax.block_until_ready(program(*device))


def gradient(f: Callable[..., Any]) -> Callable[..., Any]:
    """Forward and gradient of the sum of f."""
    return jax.value_and_grad(lambda x: jnp.sum(f(x)))


def rows() -> Iterator[tuple[str, Callable[[], Contestants]]]:
    """(name, what makes the contestants, of which the first is compared with the second)."""
    for name in ("magnitudes", "magnitudes and gradient", "complex spectrum"):
        yield name, lambda name=name: against_torch(name)
    for size in WINDOWS:
        yield f"window {size}", lambda size=size: forms(size, lambda f: f)
        yield f"window {size} and gradient", lambda size=size: forms(size, gradient)
    for seconds in (1, 4):
        yield f"Griffin-Lim, {seconds} s", lambda seconds=seconds: against_librosa(seconds * 16000)


def against_torch(name: str) -> Contestants:
    """Ours, and PyTorch's if it is there."""
    x = noise(BATCH, LENGTH)
    ours = {
        "magnitudes": lambda x: magnitudes(x, SIZE, HOP, padding="torch"),
        "magnitudes and gradient": gradient(lambda x: magnitudes(x, SIZE, HOP, padding="torch")),
        "complex spectrum": lambda x: stft(x, SIZE, HOP, padding="torch"),
    }
    found = {"jaxaudio": compiled(ours[name], x)}
    try:
        import torch
    except ImportError:
        print("PyTorch is not installed (the extra `compare`): its column is left out", file=sys.stderr)
        return found
    signal, taper = torch.tensor(x), torch.hann_window(SIZE)
    spectrum = lambda x: torch.stft(x, SIZE, HOP, window=taper, return_complex=True)

    def forward_and_gradient() -> object:
        leaf = signal.clone().requires_grad_()
        total = spectrum(leaf).abs().sum()
        return total, torch.autograd.grad(total, leaf)

    theirs = {
        "magnitudes": lambda: spectrum(signal).abs(),
        "magnitudes and gradient": forward_and_gradient,
        "complex spectrum": lambda: spectrum(signal),
    }
    return found | {"torch": theirs[name]}


def forms(size: int, of: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Contestants:
    """The power spectrum of windows of `size`, a quarter apart, in both forms."""
    x, taper, hop = noise(BATCH, LENGTH), window("hann", size), size // 4
    cut = lambda x: frames(pad(x, size, hop, "librosa"), size, hop)
    power = lambda spectrum: spectrum.real**2 + spectrum.imag**2
    return {
        "FFT": compiled(of(lambda x: power(spectrum_fft(cut(x), taper))), x),
        "product": compiled(of(lambda x: power(spectrum_matmul(cut(x), taper))), x),
    }


def against_librosa(length: int) -> Contestants:
    """32 iterations of the fast variant from zero phase."""
    (magnitude,) = np.asarray(magnitudes(jnp.asarray(noise(1, length)), SIZE, HOP, padding="librosa"))
    found = {"jaxaudio": compiled(lambda magnitude: griffin_lim(magnitude, SIZE, HOP, length), magnitude)}
    try:
        import librosa
    except ImportError:
        print("librosa is not installed: its column is left out", file=sys.stderr)
        return found
    theirs = np.ascontiguousarray(magnitude.T)
    return found | {"librosa": lambda: librosa.griffinlim(theirs, hop_length=HOP, init=None, length=length)}


def noise(*shape: int) -> np.ndarray:
    """Normally distributed samples, float32."""
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def main(arguments: list[str]) -> None:
    """The table."""
    import tyro

    options = tyro.cli(Options, args=arguments, description=__doc__)
    keep_freed_memory()
    print(f"{jax.devices()[0].device_kind}; ms (median); ratio: the second's time over the first's, with its quartiles")
    with OtherLoad() as other:
        for name, contestants in rows():
            if options.only not in name:
                continue
            times = alternate(contestants(), options.windows, options.seconds)
            first, *second = times
            line = f"{name:26} " + " ".join(f"{form:>8} {np.median(ms) * 1e3:8.2f}" for form, ms in times.items())
            low, middle, high = quartiles(times[second[0]] / times[first]) if second else (float("nan"),) * 3
            print(f"{line} {middle:8.2f} ({low:.2f} to {high:.2f})", flush=True)
            if options.json:
                row = {
                    "row": name,
                    "ms": {form: float(np.median(values)) * 1e3 for form, values in times.items()},
                    "ratio": middle,
                    "ratio_quartiles": [low, high],
                    "versions": versions(),
                }
                append(options.json, row)
    print(f"other load {other.cores:.2f} cores")


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
