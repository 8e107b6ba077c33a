"""Convolution and transposed convolution over time (or time and frequency), exact in every form, fast where it runs.

A convolution is linear in its signal and in its kernel, so it has two adjoints: the *backward* map (a transposed
convolution) and the *kernel* map (the gradient of the weights). The three are closed under differentiation: each one's
derivatives are the other two, however often a penalty differentiates. So each is computed in a form of its own. The
textbook forms lose 2 to 60 times on XLA's CPU backend, the backward map above all. The *phase form* computes the same
numbers as one stride-1 convolution: a stride s folds s neighbouring frames of the signal into channels, a transposed
convolution makes s frames as channels and unfolds them, and over one axis a layer of few channels folds more
(`blocks`). On a few frames, as in a stream, what costs is to read the kernel, and the *matmul form* reads it as it
lies. A layer of few output channels, as the last of a generator or a critic, is one matrix product and shifted sums in
the *planes form*. The kernel map of a picture is one matrix product of windows of both in the *crossed form*. `FORMS`
says which form is used where; `python -m benchmarks.conv` measures it.

Parameters are canonical whatever the form. A convolution's kernel is [*taps, in / groups, out]:
    y[t] = sum_k x[t * stride + k * dilation - left] kernel[k]
A transposed convolution's is [*taps, in / groups, out], not flipped:
    y[t * stride + k * dilation - left] += x[t] kernel[k]
Derivatives are reverse mode, of any order; there is no forward mode.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxaudio.nn.forms import (
    blocks,
    conv_direct,
    conv_matmul,
    conv_phase,
    conv_planes,
    conv_transpose_direct,
    conv_transpose_matmul,
    conv_transpose_phase,
    conv_transpose_planes,
    kernel_crossed,
    kernel_planes,
)

Padding = (
    str | int | Sequence[tuple[int, int]]
)  # "SAME" as TensorFlow, one number as PyTorch, or (left, right) per axis
Signal = Float[Array, "batch *space channels"]
Kernel = Float[Array, "*taps in_channels out_channels"]
Result = Float[Array, "batch *frames features"]

# The faster form of each map for each kind of layer, as `python -m benchmarks.conv` measured it; "direct" where nothing
# is said. Stride-1 layers are in the phase form for the padding's sake: see `_unit`.
FORMS: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "cpu": {
        "few": {"forward": "matmul", "backward": "matmul"},
        "thin": {"forward": "planes", "backward": "planes", "kernel": "planes"},
        "plain": {"forward": "phase", "backward": "phase", "kernel": "phase"},
        "picture": {"forward": "phase", "backward": "phase", "kernel": "crossed"},
        "spread": {"forward": "phase", "backward": "planes", "kernel": "crossed"},
        "narrow": {"forward": "phase", "backward": "phase", "kernel": "phase"},
        "strided": {"backward": "phase"},
        "grouped": {"forward": "phase", "backward": "phase", "kernel": "phase"},
    },
    "gpu": {},
    "tpu": {},
}
FEW = 64  # rows (of a batch, the frames of the shorter side) up to which a layer is "few"
FEW_OF_LARGE, LARGE = 256, 1 << 20  # the same of the backward map, where the kernel has so many elements
THIN = 4  # a layer is "thin" up to so many output channels, and planes up to so many times the input channels; that of
# a picture "spread" up to so many input channels, and planes up to so many times the output channels


class Geometry(NamedTuple):
    """A convolution without its numbers. A transposed convolution is the backward map of one."""

    space: tuple[int, ...]  # of the convolution's input
    channels: int  # of it
    features: int  # channels of the output
    taps: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def spans(self) -> tuple[int, ...]:
        """Of the dilated kernel."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.taps, self.dilation, strict=True))

    @property
    def frames(self) -> tuple[int, ...]:
        """Of the convolution's output."""
        sizes = zip(self.space, self.padding, self.spans, self.stride, strict=True)
        return tuple((n + sum(edges) - span) // s + 1 for n, edges, span, s in sizes)

    @property
    def kind(self) -> str:
        """The row of `FORMS` that it belongs to."""
        if self.groups > 1:
            return "grouped"
        few = self.features <= min(THIN, self.channels // THIN)
        if few and max(self.stride) == 1 and math.prod(self.taps) * self.features <= THIN * self.channels:
            return "thin"
        if len(self.stride) == 1 and blocks(self.stride[0] * self.channels) > 1:
            return "narrow"
        if max(self.stride) > 1:
            return "strided"
        if len(self.stride) == 1:
            return "plain"
        few = self.channels <= min(THIN, self.features // THIN)
        return "spread" if few and math.prod(self.taps) * self.channels <= THIN * self.features else "picture"

    def forms(self, name: str) -> list[str]:
        """All forms of one of its maps that may be the fastest."""
        simple = len(self.taps) == self.groups == 1 and (name == "forward" or self.stride[0] > 1 == self.dilation[0])
        crossed = name == "kernel" and self.groups == max(self.stride) == 1
        planes = self.kind == "thin" or (self.kind == "spread" and name == "backward")
        more = {"matmul": simple and name != "kernel", "planes": planes, "crossed": crossed}
        return ["direct", "phase", *(form for form, there in more.items() if there)]

    def form(self, name: str, batch: int) -> str:
        """The form of one of its maps on this platform, for a batch of so many signals."""
        table = FORMS.get(jax.default_backend(), {})
        large = math.prod(self.taps) * self.channels * self.features >= LARGE
        few = batch * math.prod(self.frames) <= (FEW_OF_LARGE if large and name == "backward" else FEW)
        longer = self.spans[0] > self.space[0]  # XLA on a CPU then takes the kernel for the signal, slowly
        if "matmul" in self.forms(name) and (few or longer) and name in table.get("few", {}):
            return table["few"][name]
        form = table.get(self.kind, {}).get(name, "direct")
        return form if form in self.forms(name) else "direct"


def conv(
    x: Signal, kernel: Kernel, stride: Sequence[int], padding: Padding, dilation: Sequence[int], groups: int = 1
) -> Result:
    """Convolution."""
    edges = tuple(map(tuple, pairs(padding, x, kernel, stride, dilation)))
    sizes = x.shape[1:-1], x.shape[-1], kernel.shape[-1]
    return forward(Geometry(*sizes, kernel.shape[:-2], tuple(stride), edges, tuple(dilation), groups), x, kernel)


def conv_transpose(
    x: Signal, kernel: Kernel, stride: Sequence[int], padding: Padding, dilation: Sequence[int] = (1,), groups: int = 1
) -> Result:
    """Transposed convolution; output (T - 1) * stride + span - left - right."""
    dilation, taps = _each(dilation, stride), kernel.shape[:-2]
    spans = [d * (k - 1) + 1 for k, d in zip(taps, dilation, strict=True)]
    edges = tuple(map(tuple, crops(padding, spans, stride)))
    sizes = zip(x.shape[1:-1], spans, stride, edges, strict=True)
    space = tuple((n - 1) * s + span - left - right for n, span, s, (left, right) in sizes)
    shape = Geometry(space, kernel.shape[-1], x.shape[-1], taps, tuple(stride), edges, dilation, groups)
    return backward(shape, x, turned(kernel, groups))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def forward(shape: Geometry, x: Signal, kernel: Kernel) -> Result:
    """The convolution."""
    forms = {"direct": conv_direct, "phase": conv_phase, "matmul": conv_matmul, "planes": conv_planes}
    form = forms[shape.form("forward", len(x))]
    return form(x, kernel, shape.stride, shape.padding, shape.dilation, shape.groups)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def backward(shape: Geometry, y: Result, kernel: Kernel) -> Signal:
    """The adjoint of `forward` in its signal: [batch, *frames, out] -> [batch, *space, in]."""
    forms = {
        "direct": conv_transpose_direct,
        "phase": conv_transpose_phase,
        "matmul": conv_transpose_matmul,
        "planes": conv_transpose_planes,
    }
    form = forms[shape.form("backward", len(y))]
    sizes = zip(shape.frames, shape.space, shape.spans, shape.stride, shape.padding, strict=True)
    edges = tuple((left, (frames - 1) * s + span - left - n) for frames, n, span, s, (left, _) in sizes)
    return form(y, turned(kernel, shape.groups), shape.stride, edges, shape.dilation, shape.groups)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def kernel_map(shape: Geometry, x: Signal, y: Result) -> Kernel:
    """The adjoint of `forward` in its kernel: what the gradient of the weights is."""
    name = shape.form("kernel", len(x))
    if name == "crossed":
        return kernel_crossed(x, y, shape.taps, shape.padding, shape.dilation)
    if name == "planes":
        return kernel_planes(x, y, shape.taps, shape.padding, shape.dilation)
    form = {"direct": conv_direct, "phase": conv_phase}[name]
    like = jax.ShapeDtypeStruct((*shape.taps, x.shape[-1] // shape.groups, y.shape[-1]), x.dtype)
    apply = lambda kernel: form(x, kernel, shape.stride, shape.padding, shape.dilation, shape.groups)
    return jax.linear_transpose(apply, like)(y)[0]


forward.defvjp(
    lambda shape, x, kernel: (forward(shape, x, kernel), (x, kernel)),
    lambda shape, kept, slope: (backward(shape, slope, kept[1]), kernel_map(shape, kept[0], slope)),
)
backward.defvjp(
    lambda shape, y, kernel: (backward(shape, y, kernel), (y, kernel)),
    lambda shape, kept, slope: (forward(shape, slope, kept[1]), kernel_map(shape, slope, kept[0])),
)
kernel_map.defvjp(
    lambda shape, x, y: (kernel_map(shape, x, y), (x, y)),
    lambda shape, kept, slope: (backward(shape, kept[1], slope), forward(shape, kept[0], slope)),
)


def turned(kernel: Kernel, groups: int) -> Float[Array, "*taps in_turned out_turned"]:
    """The kernel with its two ends exchanged: [*taps, in / groups, out] -> [*taps, out / groups, in]."""
    *taps, into, out = kernel.shape
    axes = len(taps)
    parted = kernel.reshape(*taps, into, groups, out // groups)
    return parted.transpose(*range(axes), axes + 2, axes + 1, axes).reshape(*taps, out // groups, groups * into)


class Conv(nn.Module):
    """Convolution with a bias: x [batch, *space, in] -> [batch, *frames, features]. Axes: as many as `taps` has."""

    features: int
    taps: Sequence[int]
    stride: Sequence[int] = (1,)
    padding: Padding = "SAME"
    dilation: Sequence[int] = (1,)
    groups: int = 1
    use_bias: bool = True
    weight_norm: bool = False
    dtype: Any = jnp.float32
    kernel_init: Callable = nn.initializers.glorot_uniform()
    spectral_norm: bool = False

    @nn.compact
    def __call__(self, x: Signal) -> Result:
        shape = (*self.taps, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        if self.weight_norm:
            kernel = normalised(self, kernel, -1)
        if self.spectral_norm:
            kernel = spectrally_normalised(self, kernel)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        y = conv(x, kernel, _each(self.stride, self.taps), self.padding, _each(self.dilation, self.taps), self.groups)
        return biased(self, y) if self.use_bias else y


class ConvTranspose(nn.Module):
    """Transposed convolution with a bias: x [batch, *space, in] -> [batch, *frames, features]."""

    features: int
    taps: Sequence[int]
    stride: Sequence[int] = (1,)
    padding: Padding = "SAME"
    dilation: Sequence[int] = (1,)
    groups: int = 1
    use_bias: bool = True
    weight_norm: bool = False
    dtype: Any = jnp.float32
    kernel_init: Callable = nn.initializers.glorot_uniform()

    @nn.compact
    def __call__(self, x: Signal) -> Result:
        shape = (*self.taps, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        if self.weight_norm:
            kernel = normalised(self, kernel, -2)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        y = conv_transpose(x, kernel, _each(self.stride, self.taps), self.padding, self.dilation, self.groups)
        return biased(self, y) if self.use_bias else y


def normalised(module: nn.Module, kernel: Kernel, axis: int) -> Kernel:
    """Weight norm: kernel * scale / |kernel|, one norm per entry of `axis` (PyTorch's dim 0: a convolution's output
    channels, a transposed convolution's input channels). The scale starts as the norm, so nothing changes at first."""
    others = [n for n in range(kernel.ndim) if n != axis % kernel.ndim]
    if not module.is_initializing() and not module.has_variable("params", "scale"):
        return kernel  # `folded`
    norm = jnp.sqrt(jnp.sum(kernel**2, others, keepdims=True))
    scale = module.param("scale", lambda _: norm.reshape(-1))
    kernel = kernel * (scale.reshape(norm.shape) / norm)
    if module.is_mutable_collection("folded") and not module.is_initializing():
        module.put_variable("folded", "kernel", kernel)
    return kernel


def spectrally_normalised(module: nn.Module, kernel: Kernel) -> Kernel:
    """The kernel over the largest singular value of its matrix [taps * in, out] (Miyato et al. 2018), found by one turn
    of the power iteration from `u` [out], which is kept in flax's collection "spectral" where that is mutable. No
    gradient goes through the iteration."""
    matrix = kernel.reshape(-1, kernel.shape[-1])
    unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x), 1e-12)  # PyTorch's floor
    start = lambda: unit(jax.random.normal(module.make_rng("params"), matrix.shape[1:]))
    u = module.variable("spectral", "u", start)
    still = jax.lax.stop_gradient(matrix)
    v = unit(still @ u.value)
    turned = unit(v @ still)
    if module.is_mutable_collection("spectral") and not module.is_initializing():
        u.value = turned
    return kernel / (v @ matrix @ turned)


def folded(module: nn.Module, variables: Mapping[str, Any], *inputs: Any) -> Mapping[str, Any]:
    """The parameters with every weight norm worked into its kernel: the module takes them as they are, and normalises
    nothing anew at every call. `inputs`: what one call takes; their values do not matter."""
    _, found = module.apply(variables, *inputs, mutable="folded")

    def merge(given: Mapping[str, Any], kernels: Mapping[str, Any]) -> Mapping[str, Any]:
        kept = {name: leaf for name, leaf in given.items() if name != "scale" or "kernel" not in kernels}
        deeper = lambda name, leaf: merge(leaf, kernels[name]) if isinstance(leaf, Mapping) else kernels[name]
        return {name: deeper(name, leaf) if name in kernels else leaf for name, leaf in kept.items()}

    return merge(variables["params"], found.get("folded", {}))


def biased(module: nn.Module, y: Signal) -> Signal:
    """y plus a bias, which the module gets."""
    bias = module.param("bias", nn.initializers.zeros, (module.features,))
    return y + bias.astype(y.dtype).reshape((1,) * (y.ndim - 1) + (-1,))


def _each(value: Sequence[int], taps: Sequence[int]) -> tuple[int, ...]:
    return tuple(value) * len(taps) if len(value) == 1 else tuple(value)


def pairs(
    padding: Padding, x: Signal, kernel: Kernel, stride: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """(left, right) per axis. SAME gives ceil(T / stride) frames and puts the odd one right, as TensorFlow does."""
    if isinstance(padding, int):
        return tuple((padding, padding) for _ in stride)
    if padding != "SAME":
        return tuple(padding)
    spans = [d * (k - 1) + 1 for k, d in zip(kernel.shape, dilation, strict=False)]
    sizes = x.shape[1:-1]
    totals = [max((-(-n // s) - 1) * s + w - n, 0) for n, s, w in zip(sizes, stride, spans, strict=True)]
    return tuple((total // 2, total - total // 2) for total in totals)


def crops(padding: Padding, spans: Sequence[int], stride: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """(left, right) to cut from the full output, per axis. SAME leaves T * stride, as TensorFlow does."""
    if isinstance(padding, int):
        return tuple((padding, padding) for _ in stride)
    if padding != "SAME":
        return tuple(padding)
    totals = [span - s for span, s in zip(spans, stride, strict=True)]
    return tuple((total // 2, total - total // 2) for total in totals)
