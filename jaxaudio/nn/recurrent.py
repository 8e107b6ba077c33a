"""Recurrent layers: one step for sampling, and the scan of that same step over a sequence for training.

A cell is a chain of products with recurrent kernels, and of what happens elementwise before and behind each of them.
The gradient of the scan is written out for any such chain: going back in time it only collects what each product gets
as gradient; the kernels' own gradient is one product over all times at the end, not a sum in memory at every step.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxaudio.core import Carry
from jaxaudio.nn.conv import normalised

Cell = Literal["gru", "gru_before", "lstm", "rnn"]
Vector = Float[Array, "batch units"]


class Chain(NamedTuple):
    """A cell: `gates` times its units come from the input; `widths` times its units out of each recurrent product;
    `stages[i](carry, x, products so far)` is what goes into product i, and the last one gives the next carry."""

    gates: int
    widths: tuple[int, ...]
    stages: tuple[Callable, ...]


def _gru(h: Vector, x: Array, products: Sequence[Array]) -> Vector:
    """Gates in the order r, z, n; the reset gate acts behind the product, as in cuDNN and PyTorch."""
    (a,) = products
    units = h.shape[-1]
    r = nn.sigmoid(x[..., :units] + a[..., :units])
    z = nn.sigmoid(x[..., units : 2 * units] + a[..., units : 2 * units])
    n = jnp.tanh(x[..., 2 * units :] + r * a[..., 2 * units :])
    return n + z * (h - n)


def _reset(h: Vector, x: Array, products: Sequence[Array]) -> Vector:
    units = h.shape[-1]
    return nn.sigmoid(x[..., :units] + products[0][..., :units]) * h


def _gru_before(h: Vector, x: Array, products: Sequence[Array]) -> Vector:
    """The reset gate acts before the product (Cho et al. 2014); z keeps the old state, as above."""
    a, b = products
    units = h.shape[-1]
    z = nn.sigmoid(x[..., units : 2 * units] + a[..., units:])
    n = jnp.tanh(x[..., 2 * units :] + b)
    return n + z * (h - n)


def _lstm(carry: tuple[Vector, Vector], x: Array, products: Sequence[Array]) -> tuple[Vector, Vector]:
    """Gates in the order i, f, g, o."""
    i, f, g, o = jnp.split(x + products[0], 4, -1)
    c = nn.sigmoid(f) * carry[1] + nn.sigmoid(i) * jnp.tanh(g)
    return nn.sigmoid(o) * jnp.tanh(c), c


CELLS = {
    "gru": Chain(3, (3,), (lambda h, x, p: h, _gru)),
    "gru_before": Chain(3, (2, 1), (lambda h, x, p: h, _reset, _gru_before)),
    "lstm": Chain(4, (4,), (lambda carry, x, p: carry[0], _lstm)),
    "rnn": Chain(1, (1,), (lambda h, x, p: h, lambda h, x, p: jnp.tanh(x + p[0]))),
}


class Linear(NamedTuple):
    """A linear map, ready to be applied: weight norm is worked into its kernel."""

    kernel: Float[Array, "inputs features"]
    bias: Float[Array, "features"] | None

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch features"]:
        y = x.astype(self.kernel.dtype) @ self.kernel
        return y if self.bias is None else y + self.bias.reshape((1,) * (y.ndim - 1) + (-1,))


def relu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """0 where x is not positive. Not by a maximum: XLA's CPU backend makes one kernel of a chain of products with
    maxima between them, which for 16 rows takes 2.5 times as long as the products."""
    return jnp.where(x <= 0, 0, x)


class Dense(nn.Module):
    """The weights of a linear map; applied as often as one likes, by what a call returns."""

    inputs: int
    features: int
    use_bias: bool = True
    weight_norm: bool = False
    kernel_init: Callable = nn.initializers.lecun_uniform()
    bias_init: Callable = nn.initializers.zeros
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self) -> Linear:
        kernel = self.param("kernel", self.kernel_init, (self.inputs, self.features))
        if self.weight_norm:
            kernel = normalised(self, kernel, -1)
        bias = self.param("bias", self.bias_init, (self.features,)).astype(self.dtype) if self.use_bias else None
        return Linear(kernel.astype(self.dtype), bias)


def orthogonal(key, shape: tuple[int, int], dtype: Any = jnp.float32) -> Array:
    """An orthogonal matrix per gate, side by side."""
    units, gates = shape[0], shape[1] // shape[0]
    init = nn.initializers.orthogonal()
    return jnp.concatenate([init(each, (units, units), dtype) for each in jax.random.split(key, gates)], 1)


class Weights(NamedTuple):
    """Of a recurrent layer: of its input, and of each product with its state."""

    input: Linear
    recurrent: tuple[Linear, ...]


class Recurrent(nn.Module):
    """The weights of a layer [inputs] -> [units]. Biases are where PyTorch has them, on the input and on the product,
    but for `gru_before`, which has them on the input only. Always float32: rounding adds up from step to step."""

    inputs: int
    units: int
    cell: Cell = "gru"
    weight_norm: bool = False
    kernel_init: Callable = nn.initializers.lecun_uniform()
    recurrent_init: Callable = orthogonal
    bias_init: Callable = nn.initializers.zeros
    forget_bias: float = 0.0  # what the bias of an LSTM's forget gate starts from

    @nn.compact
    def __call__(self) -> Weights:
        chain, units = CELLS[self.cell], self.units
        dense = partial(Dense, weight_norm=self.weight_norm)
        biased = partial(dense, bias_init=self.starts)
        of_input = biased(self.inputs, chain.gates * units, kernel_init=self.kernel_init, name="input")()
        with_bias = self.cell != "gru_before"
        products = [
            dense(units, n * units, with_bias, kernel_init=self.recurrent_init, name=f"recurrent_{i}",
                  bias_init=self.bias_init)()
            for i, n in enumerate(chain.widths)
        ]  # fmt: skip
        return Weights(of_input, tuple(products))

    def starts(self, key, shape, dtype=jnp.float32) -> Array:
        """The input's bias."""
        bias = self.bias_init(key, shape, dtype)
        return bias.at[self.units : 2 * self.units].set(self.forget_bias) if self.cell == "lstm" else bias


def silent(cell: Cell, batch: int, units: int) -> Carry:
    """The carry of zeros."""
    h = jnp.zeros((batch, units))
    return (h, h) if cell == "lstm" else h


def advance(cell: Cell, weights: Weights, carry: Carry, x: Float[Array, "batch gates"]) -> Carry:
    """The next carry; x: the input behind `weights.input`."""
    return _advance(cell, weights.recurrent, carry, x)[0]


def output(carry: Carry) -> Float[Array, "*time batch units"]:
    """What the layer above sees."""
    return carry[0] if isinstance(carry, tuple) else carry


def sequence(
    cell: Cell, weights: Weights, carry: Carry, xs: Float[Array, "time batch gates"]
) -> tuple[Carry, Float[Array, "time batch units"]]:
    """`advance` over a sequence: the last carry, and all outputs."""
    last, carries = _scan(cell, weights.recurrent, carry, xs)
    return last, output(carries)


def scan_ahead(step: Callable, carry: Any, xs: Any, reverse: bool = False) -> tuple[Any, Any]:
    """`jax.lax.scan`, but each x is taken out of xs a step ahead and waits in the carry. Else XLA's CPU backend takes
    it inside of the loop over its elements, which is not vectorised then: the gates of a GRU take 8 times as long."""
    count = len(jax.tree.leaves(xs)[0])
    at = lambda i: jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, 0, False), xs)
    first, last, way = (count - 1, 0, -1) if reverse else (0, count - 1, 1)

    def ahead(held, i):
        carry, x = held
        following = at(jnp.clip(i + way, min(first, last), max(first, last)))
        carry, y = step(carry, x)
        return (carry, following), y

    (carry, _), ys = jax.lax.scan(ahead, (carry, at(first)), jnp.arange(count), reverse=reverse)
    return carry, ys


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(cell: Cell, recurrent: tuple[Linear, ...], carry: Carry, xs: Array) -> tuple[Carry, Carry]:
    """The last carry, and all of them."""
    last, (carries, _) = _forward(cell, recurrent, carry, xs)
    return last, carries


def _advance(cell, recurrent, carry, x):
    stages, products = CELLS[cell].stages, []
    for stage, product in zip(stages[:-1], recurrent, strict=True):
        products.append(product(stage(carry, x, products)))
    return stages[-1](carry, x, products), products


def _forward(cell, recurrent, carry, xs):
    def step(carry, x):
        new, products = _advance(cell, recurrent, carry, x)
        return new, (new, products)

    return scan_ahead(step, carry, xs)


def _scan_forward(cell, recurrent, carry, xs):
    last, (carries, products) = _forward(cell, recurrent, carry, xs)
    return (last, carries), (recurrent, carry, xs, carries, products)


def _scan_backward(cell, kept, cotangents):
    recurrent, first, xs, carries, products = kept
    d_last, d_carries = cotangents
    stages = CELLS[cell].stages
    before = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b[:-1]]), first, carries)

    def step(d_carry, given):
        carry, x, products, d_output = given
        d_carry = jax.tree.map(jnp.add, d_carry, d_output)
        _, pull = jax.vjp(stages[-1], carry, x, list(products))
        d_before, d_x, d_products = pull(d_carry)
        for i in reversed(range(len(recurrent))):
            d_input = d_products[i] @ recurrent[i].kernel.T
            _, pull = jax.vjp(stages[i], carry, x, list(products[:i]))
            more_carry, more_x, more = pull(d_input)
            d_before = jax.tree.map(jnp.add, d_before, more_carry)
            d_x = d_x + more_x
            d_products = [a + b for a, b in zip(d_products[:i], more, strict=True)] + d_products[i:]
        return d_before, (d_x, d_products)

    d_first, (d_xs, d_products) = scan_ahead(step, d_last, (before, xs, products, d_carries), reverse=True)
    d_recurrent = []
    for i, d in enumerate(d_products):
        into = jax.vmap(lambda c, x, p, i=i: stages[i](c, x, list(p)))(before, xs, list(products[:i]))
        d_bias = None if recurrent[i].bias is None else jnp.sum(d, (0, 1))
        d_recurrent.append(Linear(jnp.einsum("tbi,tbo->io", into, d), d_bias))
    return tuple(d_recurrent), d_first, d_xs


_scan.defvjp(_scan_forward, _scan_backward)
