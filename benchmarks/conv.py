"""The convolutions of the papers in each form, against PyTorch: python -m benchmarks.conv [--only NAME] [--json FILE]

The three maps of every layer (forward, backward, kernel: jaxaudio/nn/conv.py) in each form, in milliseconds: `FORMS` is
filled from them. Then forward and both gradients as the layers compute them, beside PyTorch's.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before PyTorch is loaded: spinning threads would slow the others

import dataclasses
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.rows import append
from benchmarks.timing import OtherLoad, alternate, matmul
from jaxaudio.core import InputError
from jaxaudio.nn import conv
from jaxaudio.runtime.command import guarded, keep_freed_memory
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
    "specgan critic 1": Layer(16, (128, 128), 1, 16, (5, 5), (2, 2)),
    "specgan critic 3": Layer(16, (32, 32), 32, 64, (5, 5), (2, 2)),
    "specgan critic 5": Layer(16, (8, 8), 128, 256, (5, 5), (2, 2)),
    "specgan generator 3": Layer(16, (16, 16), 64, 32, (5, 5), (2, 2), transposed=True),
    "hifigan first": Layer(8, (32,), 80, 512, (7,), (1,), 3),
    "hifigan up 8": Layer(8, (32,), 512, 256, (16,), (8,), 4, transposed=True),
    "hifigan up 2": Layer(8, (4096,), 64, 32, (4,), (2,), 1, transposed=True),
    "hifigan residual 11, dilated 5": Layer(8, (2048,), 128, 128, (11,), (1,), 25, (5,)),
    "hifigan scale 2": Layer(8, (8192,), 128, 128, (41,), (2,), 20, groups=4),
    "hifigan scale 3": Layer(8, (4096,), 128, 256, (41,), (2,), 20, groups=16),
    "hifigan scale 4": Layer(8, (2048,), 256, 512, (41,), (4,), 20, groups=16),
    "hifigan scale 5": Layer(8, (512,), 512, 1024, (41,), (4,), 20, groups=16),
    "hifigan scale 6": Layer(8, (128,), 1024, 1024, (41,), (1,), 20, groups=16),
    "hifigan period 3": Layer(24, (2731,), 32, 128, (5,), (3,), 2),
    "rave down 4": Layer(8, (2048,), 96, 192, (9,), (4,), 4),
    "rave up 4": Layer(8, (512,), 192, 96, (8,), (4,), 2, transposed=True),
    "dac down 8": Layer(8, (1024,), 128, 256, (16,), (8,), 4),
    "encodec spectrogram": Layer(4, (128, 256), 32, 32, (3, 9), (1, 2), ((1, 1), (4, 4)), (1, 1)),
    "segan down 2": Layer(8, (16384,), 1, 16, (31,), (2,), 15),
    "depthwise": Layer(8, (2048,), 64, 64, (7,), (1,), 3, groups=64),
    "hifigan last": Layer(8, (8192,), 32, 1, (7,), (1,), 3),
    "picture last": Layer(64, (64, 64), 16, 2, (3, 3), (1, 1)),
    "wide padding": Layer(8, (1024,), 64, 64, (7,), (1,), 10),
}

MAPS = ("forward", "backward", "kernel")
SHORT = {"direct": "d", "phase": "p", "matmul": "m", "planes": "n", "crossed": "c"}  # of a form, in the table
FORMS = ", ".join(f"{letter} {form}" for form, letter in SHORT.items())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of this benchmark."""

    only: str = ""  # layers whose name holds this
    windows: int = 5  # of each contestant
    seconds: float = 0.3  # length of a window
    json: Path | None = None  # a line is added per layer


def contestants(layer: Layer) -> dict[str, Callable[[], object]]:
    """Every map in each form as "forward direct" and so on; "chosen", all of it by `FORMS`; PyTorch if it is there."""
    rng, axes = np.random.default_rng(0), len(layer.space)
    x = rng.standard_normal((layer.batch, *layer.space, layer.into)).astype(np.float32)
    w = rng.standard_normal((*layer.taps, layer.into // layer.groups, layer.out)).astype(np.float32) * 0.05
    dilation = layer.dilation * axes if len(layer.dilation) == 1 else layer.dilation
    device = jax.device_put((x, w))
    if layer.transposed:
        padding = conv.crops(layer.padding, layer.taps, layer.stride)
        apply = lambda x, w: conv.conv_transpose(x, w, layer.stride, padding, dilation, layer.groups)
    else:
        padding = conv.pairs(layer.padding, *device, layer.stride, dilation)
        apply = lambda x, w: conv.conv(x, w, layer.stride, padding, dilation, layer.groups)
    space = (jax.eval_shape(apply, *device) if layer.transposed else x).shape[1:-1]
    shape = geometry(layer, space, padding, dilation)
    every = ((name, in_each_form(shape, name, layer.batch)) for name in MAPS)
    found = {f"{name} {form}": call for name, calls in every for form, call in calls.items()}
    gradients = jax.jit(jax.grad(lambda x, w: jnp.sum(apply(x, w) ** 2), (0, 1)))
    found["chosen"] = lambda: jax.block_until_ready(gradients(*device))
    try:
        found["torch"] = in_torch(layer, padding, dilation, x, w)
    except ImportError:
        print("PyTorch is not installed (the extra `compare`): its column is left out", file=sys.stderr)
    return found


def in_each_form(shape: conv.Geometry, name: str, batch: int, dtype: str = "float32") -> dict[str, Callable]:
    """One map of a convolution in each form that it has, compiled, with numbers of its own."""
    rng = np.random.default_rng(0)
    made = lambda *sizes: jnp.asarray(rng.standard_normal(sizes), dtype)
    x, y = made(batch, *shape.space, shape.channels), made(batch, *shape.frames, shape.features)
    w = made(*shape.taps, shape.channels // shape.groups, shape.features)
    function, given = {
        "forward": (conv.forward, (x, w)),
        "backward": (conv.backward, (y, w)),
        "kernel": (conv.kernel_map, (x, y)),
    }[name]
    calls = {}
    for form in shape.forms(name):
        with mock.patch.object(conv.Geometry, "form", lambda *asked, form=form: form):
            program = jax.jit(partial(function, shape)).lower(*given).compile()
        calls[form] = lambda program=program: jax.block_until_ready(program(*given))
    return calls


def geometry(layer: Layer, space=(), padding=(), dilation=()) -> conv.Geometry:
    """The convolution that the layer is, or is the backward map of."""
    sizes = (layer.out, layer.into) if layer.transposed else (layer.into, layer.out)
    return conv.Geometry(space, *sizes, layer.taps, layer.stride, tuple(padding), dilation, layer.groups)


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

    keep_freed_memory()
    options = tyro.cli(Options, args=arguments, description=__doc__)
    chosen = {name: layer for name, layer in LAYERS.items() if options.only in name}
    if not chosen:
        raise InputError(f"no layer's name holds {options.only!r}: there are {', '.join(LAYERS)}")
    columns = "".join(f"{name:>24}" for name in MAPS)
    print(f"{jax.devices()[0].device_kind}; ms in the form: {FORMS}; GFLOP/s of the textbook form, direct")
    print(f"{'layer':32} {'kind':10}{columns} {'all, chosen':>12} {'torch':>8} {'torch / it':>10} {'GFLOP/s':>8}")
    with OtherLoad() as other:
        limit = 2 * 2048**3 / np.median(alternate({"m": matmul()}, 5, 0.3)["m"]) / 1e9
        for name, layer in chosen.items():
            times = alternate(contestants(layer), options.windows, options.seconds)
            middle = {form: float(np.median(values)) * 1e3 for form, values in times.items()}
            frames = math.prod(layer.space) / (1 if layer.transposed else math.prod(layer.stride))
            operations = 6 * layer.batch * frames * math.prod(layer.taps) * layer.into * layer.out / layer.groups
            kind = geometry(layer).kind
            found = ({SHORT[f]: middle[f"{m} {f}"] for f in SHORT if f"{m} {f}" in middle} for m in MAPS)
            cells = "".join(f"{' '.join(f'{form} {ms:.2f}' for form, ms in each.items()):>24}" for each in found)
            torch_ms = middle.get("torch", float("nan"))
            print(
                f"{name:32} {kind:10}{cells} {middle['chosen']:12.2f} {torch_ms:8.2f} "
                f"{torch_ms / middle['chosen']:10.2f} {operations / middle['chosen'] / 1e6:8.0f}",
                flush=True,
            )
            if options.json:
                row = {"layer": name, "kind": kind, **layer._asdict(), "ms": middle, "versions": versions()}
                append(options.json, row)
    print(f"a matrix product runs at {limit:.0f} GFLOP/s here; other load {other.cores:.2f} cores")


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
