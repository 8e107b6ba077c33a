"""The convolutions of the papers in each form, against PyTorch: python -m benchmarks.conv [--only NAME] [--json FILE]

Forward and backward (both gradients) of every layer, in milliseconds. `FORMS` of jaxaudio/nn/conv.py is filled from the
columns "kind" and "faster" of this table.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before PyTorch is loaded: spinning threads would slow the others

import dataclasses
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import OtherLoad, alternate, matmul
from jaxaudio.core import InputError
from jaxaudio.nn import conv
from jaxaudio.runtime.command import guarded
from jaxaudio.runtime.versions import versions


class Layer(NamedTuple):
    """One layer: what it gets is [batch, *space, into]. Padding: SAME, or one number on all sides as in PyTorch."""

    batch: int
    space: tuple[int, ...]
    into: int
    out: int
    taps: tuple[int, ...]
    stride: tuple[int, ...] = (1,)
    padding: conv.Padding = "SAME"
    dilation: tuple[int, ...] = (1,)
    groups: int = 1
    transposed: bool = False


LAYERS = {
    "wavegan critic 1": Layer(16, (16384,), 1, 16, (25,), (4,)),
    "wavegan critic 2": Layer(16, (4096,), 16, 32, (25,), (4,)),
    "wavegan critic 5": Layer(16, (64,), 128, 256, (25,), (4,)),
    "wavegan generator 1": Layer(16, (16,), 256, 128, (25,), (4,), transposed=True),
    "wavegan generator 4": Layer(16, (1024,), 32, 16, (25,), (4,), transposed=True),
    "wavegan generator 5": Layer(16, (4096,), 16, 1, (25,), (4,), transposed=True),
    "specgan critic 2": Layer(16, (64, 64), 16, 32, (5, 5), (2, 2)),
    "specgan generator 3": Layer(16, (16, 16), 64, 32, (5, 5), (2, 2), transposed=True),
    "hifigan first": Layer(8, (32,), 80, 512, (7,), (1,), 3),
    "hifigan up 8": Layer(8, (32,), 512, 256, (16,), (8,), 4, transposed=True),
    "hifigan up 2": Layer(8, (4096,), 64, 32, (4,), (2,), 1, transposed=True),
    "hifigan residual 11, dilated 5": Layer(8, (2048,), 128, 128, (11,), (1,), 25, (5,)),
    "hifigan scale, grouped": Layer(8, (8192,), 128, 128, (41,), (2,), 20, groups=4),
    "hifigan period 3": Layer(24, (2731,), 32, 128, (5,), (3,), 2),
    "rave down 4": Layer(8, (2048,), 96, 192, (9,), (4,), 4),
    "rave up 4": Layer(8, (512,), 192, 96, (8,), (4,), 2, transposed=True),
    "dac down 8": Layer(8, (1024,), 128, 256, (16,), (8,), 4),
    "encodec spectrogram": Layer(4, (128, 256), 32, 32, (3, 9), (1, 2), ((1, 1), (4, 4)), (1, 1)),
    "segan down 2": Layer(8, (16384,), 1, 16, (31,), (2,), 15),
    "depthwise": Layer(8, (2048,), 64, 64, (7,), (1,), 3, groups=64),
    "wide padding": Layer(8, (1024,), 64, 64, (7,), (1,), 10),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of this benchmark."""

    only: str = ""  # layers whose name holds this
    windows: int = 5  # of each contestant
    seconds: float = 0.3  # length of a window
    json: Path | None = None  # a line is added per layer


def contestants(layer: Layer) -> dict[str, Callable[[], object]]:
    """Forward and backward of the layer, in each form and in PyTorch if it is there."""
    rng, axes = np.random.default_rng(0), len(layer.space)
    x = rng.standard_normal((layer.batch, *layer.space, layer.into)).astype(np.float32)
    w = rng.standard_normal((*layer.taps, layer.into // layer.groups, layer.out)).astype(np.float32) * 0.05
    dilation = layer.dilation * axes if len(layer.dilation) == 1 else layer.dilation
    device = jax.device_put((x, w))
    if layer.transposed:
        padding = conv.crops(layer.padding, device[1], layer.stride)
        forms = {"direct": conv.conv_transpose_direct, "phase": conv.conv_transpose_phase}
        arguments = (layer.stride, padding, layer.groups)
    else:
        padding = conv.pairs(layer.padding, *device, layer.stride, dilation)
        forms = {"direct": conv.conv_direct, "phase": conv.conv_phase}
        arguments = (layer.stride, padding, dilation, layer.groups)
    found = {}
    for name, form in forms.items():
        loss = lambda x, w, form=form: jnp.sum(form(x, w, *arguments) ** 2)
        gradients = jax.jit(jax.grad(loss, (0, 1)))
        found[name] = lambda gradients=gradients: jax.block_until_ready(gradients(*device))
    try:
        found["torch"] = in_torch(layer, padding, dilation, x, w)
    except ImportError:
        print("PyTorch is not installed (the extra `compare`): its column is left out", file=sys.stderr)
    return found


def in_torch(layer: Layer, padding, dilation, x: np.ndarray, w: np.ndarray) -> Callable[[], object]:
    """The same in PyTorch, eager; an uneven padding is padded or cut outside, as one does there."""
    import torch
    import torch.nn.functional as F

    axes = range(1, x.ndim - 1)
    signal = torch.tensor(x.transpose(0, -1 % x.ndim, *axes).copy(), requires_grad=True)
    swapped = (-2, -1) if layer.transposed else (-1, -2)
    kernel = torch.tensor(w.transpose(*(n % w.ndim for n in swapped), *range(w.ndim - 2)).copy(), requires_grad=True)
    even = [min(pair) for pair in padding]
    uneven = [n for pair, common in zip(padding, even, strict=True) for n in (pair[0] - common, pair[1] - common)]
    edges = [n for left, right in zip(uneven[-2::-2], uneven[::-2], strict=True) for n in (left, right)]
    apply = {(1, 0): F.conv1d, (2, 0): F.conv2d, (1, 1): F.conv_transpose1d, (2, 1): F.conv_transpose2d}
    layer_of = apply[len(layer.space), int(layer.transposed)]

    def gradients() -> object:
        if layer.transposed:
            y = F.pad(layer_of(signal, kernel, None, layer.stride, even), [-n for n in edges])
        else:
            padded = F.pad(signal, edges) if any(edges) else signal
            y = layer_of(padded, kernel, None, layer.stride, even, dilation, layer.groups)
        return torch.autograd.grad(y.square().sum(), (signal, kernel))

    return gradients


def main(arguments: list[str]) -> None:
    """The table."""
    import tyro

    options = tyro.cli(Options, args=arguments, description=__doc__)
    chosen = {name: layer for name, layer in LAYERS.items() if options.only in name}
    if not chosen:
        raise InputError(f"no layer's name holds {options.only!r}: there are {', '.join(LAYERS)}")
    print(f"{jax.devices()[0].device_kind}; forward and backward, ms; GFLOP/s of the phase form, textbook operations")
    print(
        f"{'layer':32} {'kind':10} {'direct':>9} {'phase':>9} {'torch':>9} {'faster':>8} {'GFLOP/s':>8} "
        f"{'torch / it':>10}"
    )
    with OtherLoad() as other:
        limit = 2 * 2048**3 / np.median(alternate({"m": matmul()}, 5, 0.3)["m"]) / 1e9
        for name, layer in chosen.items():
            times = alternate(contestants(layer), options.windows, options.seconds)
            middle = {form: float(np.median(values)) * 1e3 for form, values in times.items()}
            best = min(("direct", "phase"), key=middle.get)
            frames = math.prod(layer.space) / (1 if layer.transposed else math.prod(layer.stride))
            operations = 6 * layer.batch * frames * math.prod(layer.taps) * layer.into * layer.out / layer.groups
            kind = "transposed" if layer.transposed else conv.kind(layer.stride, layer.groups)
            torch_ms = middle.get("torch", float("nan"))
            print(
                f"{name:32} {kind:10} {middle['direct']:9.2f} {middle['phase']:9.2f} {torch_ms:9.2f} {best:>8} "
                f"{operations / middle['phase'] / 1e6:8.0f} {torch_ms / middle[best]:10.2f}",
                flush=True,
            )
            if options.json:
                row = {
                    "layer": name,
                    "kind": kind,
                    **layer._asdict(),
                    "ms": middle,
                    "faster": best,
                    "versions": versions(),
                }
                with open(options.json, "a") as file:
                    file.write(json.dumps(row) + "\n")
    print(f"a matrix product runs at {limit:.0f} GFLOP/s here; other load {other.cores:.2f} cores")


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
