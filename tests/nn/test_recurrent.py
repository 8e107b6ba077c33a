"""Recurrent layers against PyTorch's, against their own step, and against gradients that JAX derives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxaudio.nn.recurrent import (
    CELLS,
    Dense,
    Recurrent,
    advance,
    orthogonal,
    output,
    relu,
    scan_ahead,
    sequence,
    silent,
)

BATCH, TIME, INPUTS, UNITS = 3, 7, 5, 4


def given(cell: str, **fields):
    """A layer's weights, an input [time, batch, inputs], a carry that is not zero, and what the outputs are worth."""
    module = Recurrent(INPUTS, UNITS, cell, bias_init=jax.nn.initializers.normal(0.3), **fields)
    variables = module.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (TIME, BATCH, INPUTS))
    leaves, tree = jax.tree.flatten(silent(cell, BATCH, UNITS))
    keys = jax.random.split(jax.random.key(2), len(leaves))
    carry = jax.tree.unflatten(
        tree, [jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    )
    return module, variables, x, carry, jax.random.normal(jax.random.key(3), (TIME, BATCH, UNITS))


def run(module, variables, x, carry):
    weights = module.apply(variables)
    return sequence(module.cell, weights, carry, weights.input(x))


def one_by_one(module, variables, x, carry):
    """The same, step by step; JAX derives its gradient."""
    weights, outputs = module.apply(variables), []
    for frame in x:
        carry = advance(module.cell, weights, carry, weights.input(frame))
        outputs.append(output(carry))
    return carry, jnp.stack(outputs)


def worth(run, module, variables, x, carry, value):
    last, outputs = run(module, variables, x, carry)
    return jnp.sum(outputs * value) + sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(last))


@pytest.mark.parametrize("weight_norm", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_a_sequence_is_its_steps_and_so_are_all_gradients(cell, weight_norm):
    module, variables, x, carry, value = given(cell, weight_norm=weight_norm)
    for a, b in zip(*(jax.tree.leaves(f(module, variables, x, carry)) for f in (run, one_by_one)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    gradients = [
        jax.grad(lambda v, x, c, f=f: worth(f, module, v, x, c, value), (0, 1, 2))(variables, x, carry)
        for f in (run, one_by_one)
    ]
    for a, b in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(("cell", "name"), [("gru", "GRU"), ("lstm", "LSTM"), ("rnn", "RNN")])
def test_outputs_and_gradients_are_pytorchs(cell, name):
    torch = pytest.importorskip("torch")
    module, variables, x, carry, value = given(cell)
    theirs = getattr(torch.nn, name)(INPUTS, UNITS)
    tensor = lambda array: torch.from_numpy(np.array(array))
    pairs = {
        "weight_ih_l0": ("input", "kernel"),
        "bias_ih_l0": ("input", "bias"),
        "weight_hh_l0": ("recurrent_0", "kernel"),
        "bias_hh_l0": ("recurrent_0", "bias"),
    }
    for target, (part, leaf) in pairs.items():
        getattr(theirs, target).data = tensor(variables["params"][part][leaf].T).contiguous()
    their_x = tensor(x).requires_grad_()
    their_carry = jax.tree.map(lambda leaf: tensor(leaf[None]), carry)
    outputs, last = theirs(their_x, their_carry)
    loss = (outputs * tensor(value)).sum() + sum((leaf**2).sum() for leaf in jax.tree.leaves(last))
    loss.backward()

    ours = run(module, variables, x, carry)
    np.testing.assert_allclose(ours[1], outputs.detach().numpy(), atol=1e-6)
    for a, b in zip(jax.tree.leaves(ours[0]), jax.tree.leaves(last), strict=True):
        np.testing.assert_allclose(a, b.detach().numpy()[0], atol=1e-6)
    grads, by_input = jax.grad(lambda v, x: worth(run, module, v, x, carry, value), (0, 1))(variables, x)
    np.testing.assert_allclose(by_input, their_x.grad.numpy(), atol=1e-6, rtol=1e-6)
    for target, (part, leaf) in pairs.items():
        np.testing.assert_allclose(
            grads["params"][part][leaf].T, getattr(theirs, target).grad.numpy(), atol=1e-6, rtol=1e-6
        )


def test_the_reset_gate_before_the_product_is_its_equations():
    module, variables, x, carry, _ = given("gru_before")
    p, h, frame = variables["params"], carry, x[0]
    projected = frame @ p["input"]["kernel"] + p["input"]["bias"][None]
    gates = h @ p["recurrent_0"]["kernel"]
    r = 1 / (1 + np.exp(-(projected[:, :UNITS] + gates[:, :UNITS])))
    z = 1 / (1 + np.exp(-(projected[:, UNITS : 2 * UNITS] + gates[:, UNITS:])))
    n = np.tanh(projected[:, 2 * UNITS :] + (r * h) @ p["recurrent_1"]["kernel"])
    np.testing.assert_allclose(run(module, variables, x[:1], carry)[0], (1 - z) * n + z * h, atol=1e-6)
    assert "bias" not in p["recurrent_0"]


def test_recurrent_kernels_start_orthogonal_gate_by_gate_and_the_forget_gate_where_it_is_told():
    kernel = orthogonal(jax.random.key(0), (6, 18))
    for gate in jnp.split(kernel, 3, 1):
        np.testing.assert_allclose(gate @ gate.T, np.eye(6), atol=1e-5)
    assert float(jnp.max(jnp.abs(kernel[:, :6] - kernel[:, 6:12]))) > 0.1
    bias = Recurrent(2, 3, "lstm", forget_bias=3.0).init(jax.random.key(0))["params"]["input"]["bias"]
    np.testing.assert_array_equal(bias, [0, 0, 0, 3, 3, 3, 0, 0, 0, 0, 0, 0])


def test_weight_norm_makes_a_dense_layer_depend_on_the_direction_of_its_kernel_alone():
    module = Dense(3, 2, weight_norm=True)
    params = module.init(jax.random.key(0))["params"]
    before = module.apply({"params": params})
    np.testing.assert_allclose(before.kernel, params["kernel"], atol=1e-6)
    longer = module.apply({"params": params | {"kernel": 5 * params["kernel"]}})
    np.testing.assert_allclose(longer.kernel, before.kernel, atol=1e-6)
    doubled = module.apply({"params": params | {"scale": 2 * params["scale"]}})
    np.testing.assert_allclose(doubled.kernel, 2 * before.kernel, atol=1e-6)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("count", [1, 6])
def test_a_scan_that_looks_ahead_is_a_scan(count, reverse):
    xs = {"a": jnp.arange(count * 2.0).reshape(count, 2), "b": jnp.arange(count)}
    step = lambda carry, x: (0.5 * carry + x["a"] + x["b"], (carry, x["a"]))
    ours = scan_ahead(step, jnp.ones(2), xs, reverse)
    for a, b in zip(*map(jax.tree.leaves, (ours, jax.lax.scan(step, jnp.ones(2), xs, reverse=reverse))), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_is_not_positive_becomes_0_and_has_no_gradient():
    x = jnp.array([-1.0, 0.0, 2.0, jnp.nan])
    np.testing.assert_array_equal(relu(x), [0, 0, 2, jnp.nan])
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(relu(x)))(x), [0, 0, 1, 1])
