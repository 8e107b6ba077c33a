"""SampleRNN: what it draws is what it was trained to predict, whatever the parts it is made in."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxaudio import zoo
from jaxaudio.autoregressive import pick, uniforms
from jaxaudio.core import Batch, InputError, Shard
from tests.seldom import seldom

TINY = dataclasses.replace(zoo.load("samplernn:tiny"), classes=3)
VARIANTS = {
    "gru_before": {},
    "gru, two layers": {"cell": "gru", "layers": 2},
    "lstm, two tiers": {"cell": "lstm", "frames": (4,), "independent": False},
    "rnn, four tiers, 16 bits": {"cell": "rnn", "frames": (8, 4, 2), "levels": 65536, "law": "linear"},
}
ROWS, LABEL = 2, jnp.array([1, 2])


@cache
def subject(name: str = "gru_before"):
    """A model, and weights that differ from their start, so that none of them can hide."""
    model = dataclasses.replace(TINY, **VARIANTS[name])

    @jax.jit
    def moved():
        leaves, tree = jax.tree.flatten(model.weights(model.init(jax.random.key(0), {})))
        keys = jax.random.split(jax.random.key(1), len(leaves))
        far = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(tree, far)

    return model, moved()


@cache
def programs(name: str = "gru_before"):
    model, _ = subject(name)
    return jax.jit(model.extend, static_argnums=3), jax.jit(model.hear), jax.jit(model.bits)


@cache
def seen(name: str = "gru_before"):
    """(params, codes, label) -> the logits that training sees, from a cold start."""
    model, _ = subject(name)

    def see(params, codes, label):
        weights = model.ready(params)
        return model.predicted(weights, codes, model.first(weights, ROWS), label)[0]

    return jax.jit(see)


@jax.jit
def noise(key):
    return jnp.clip(0.3 * jax.random.normal(key, (ROWS, 64, 1)), -1, 1)


@pytest.mark.parametrize("name", seldom(VARIANTS, "gru_before", "lstm, two tiers"))
def test_every_sample_is_drawn_from_the_logits_that_training_sees(name):
    model, params = subject(name)
    extend, hear, _ = programs(name)
    key = jax.random.key(2)
    carry, wave = extend(params, model.begin(params, ROWS, LABEL), key, 4)
    codes = model.starting(wave)
    logits = seen(name)(params, codes, LABEL)
    numbers = uniforms(key, 0, wave.shape[1], ROWS, model.softmaxes)
    for i, one in enumerate(logits):
        np.testing.assert_array_equal(jax.jit(pick)(one, numbers[:, i].T), codes[:, model.frame :, i])
    heard = hear(params, wave, LABEL)
    np.testing.assert_array_equal(carry["codes"], heard["codes"])
    for a, b in zip(jax.tree.leaves(carry["states"]), jax.tree.leaves(heard["states"]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("name", ["gru_before", "rnn, four tiers, 16 bits"])
def test_sound_drawn_in_parts_is_sound_drawn_at_once_and_rows_differ(name):
    model, params = subject(name)
    extend, _, _ = programs(name)
    key, begin = jax.random.key(2), model.begin(params, ROWS, LABEL)
    _, whole = extend(params, begin, key, 4)
    carry, first = extend(params, begin, key, 1)
    _, rest = extend(params, carry, key, 3)
    np.testing.assert_array_equal(jnp.concatenate([first, rest], 1), whole)
    assert float(jnp.max(jnp.abs(whole[0] - whole[1]))) > 0


def test_temperature_0_takes_the_most_likely_sample_whatever_the_key():
    model, params = subject()
    cold = dataclasses.replace(model, temperature=0.0)
    draw = jax.jit(cold.extend, static_argnums=3)
    _, wave = draw(params, cold.begin(params, ROWS, LABEL), jax.random.key(2), 4)
    _, again = draw(params, cold.begin(params, ROWS, LABEL), jax.random.key(3), 4)
    np.testing.assert_array_equal(wave, again)
    codes = model.starting(wave)
    likely = jnp.argmax(seen()(params, codes, LABEL)[0], -1)
    np.testing.assert_array_equal(likely, codes[:, model.frame :, 0])


def test_no_sample_is_predicted_from_itself_or_what_follows():
    """A code that is changed changes the logits of the next sample, and none before."""
    model, params = subject()
    codes = model.starting(noise(jax.random.key(4))[:, :32])
    see = lambda codes: np.asarray(seen()(params, codes, LABEL)[0])
    before = see(codes)
    for t in range(32):
        changed = see(codes.at[:, model.frame + t].add(5) % model.levels)
        np.testing.assert_array_equal(changed[:, : t + 1], before[:, : t + 1])
        if t < 31:
            assert np.abs(changed[:, t + 1] - before[:, t + 1]).max(-1).min() > 1e-4


def test_bits_and_what_is_heard_do_not_depend_on_the_sequences_they_come_in():
    model, params = subject()
    _, hear, _ = programs()
    wave = noise(jax.random.key(4))[:, :56]
    whole = dataclasses.replace(model, sequence=64)
    np.testing.assert_allclose(
        jax.jit(model.bits)(params, wave, LABEL), jax.jit(whole.bits)(params, wave, LABEL), rtol=1e-5
    )
    pairs = zip(*(jax.tree.leaves(f(params, wave, LABEL)) for f in (hear, jax.jit(whole.hear))), strict=True)
    for in_parts, at_once in pairs:
        np.testing.assert_allclose(in_parts, at_once, atol=1e-5)


def test_the_probabilities_of_all_values_of_a_sample_sum_to_1():
    model, params = subject("rnn, four tiers, 16 bits")
    weights, wave = model.ready(params), noise(jax.random.key(4))[:, :8]
    codes = model.starting(wave)
    hidden = jnp.ones((256, model.width))
    last = jnp.arange(256)[:, None]
    coarse, fine = weights.logits(hidden, last)
    probability = jax.nn.softmax(coarse[0])[:, None] * jax.nn.softmax(fine, -1)
    np.testing.assert_allclose(jnp.sum(probability), 1, rtol=1e-5)
    assert float(jnp.max(jnp.abs(fine[0] - fine[1]))) > 0
    assert codes.shape == (ROWS, 16, 2)
    np.testing.assert_allclose(model.decode(codes)[:, 8:], wave, atol=1 / 65535)


def test_a_step_is_an_update_per_sequence_with_the_state_carried_on_and_gradients_cut():
    """Two updates by hand, in SGD so that nothing is hidden."""
    import optax

    class Plain(type(TINY)):
        tx = property(lambda self: optax.sgd(0.1))

    model = Plain(**{f.name: getattr(TINY, f.name) for f in dataclasses.fields(TINY)})
    state = jax.jit(lambda: model.init(jax.random.key(0), {}))()
    batch = Batch(noise(jax.random.key(4)), LABEL)
    new, metrics = jax.jit(lambda s: model.train_step(s, batch, jax.random.key(0), Shard(), None))(state)
    assert set(metrics) >= {"network/bits", "network/independent_bits", "network/skipped"}

    @jax.jit
    def updated(network, carry, window):
        def loss(network):
            weights = model.ready(network)
            first = model.first(weights, ROWS) if carry is None else carry
            logits, last, alone = model.predicted(weights, window, first, LABEL)
            return jnp.mean(model.cost(logits, window)) + jnp.mean(alone), last

        gradient, last = jax.grad(loss, has_aux=True)(network)
        return jax.tree.map(lambda p, g: p - 0.1 * g, network, gradient), last

    network, carry, codes = state.params["network"], None, model.starting(batch.wave)
    for part in range(2):
        network, carry = updated(network, carry, codes[:, 32 * part : 32 * part + 40])
    for a, b in zip(jax.tree.leaves(new.params["network"]), jax.tree.leaves(network), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_independent_head_has_no_bearing_on_the_network():
    model, params = subject()
    codes = model.part(model.starting(noise(jax.random.key(4))), jnp.array(0))

    def gradient(model, params):
        first = lambda: model.first(model.ready(params), ROWS)
        loss = lambda p: model.loss(p, codes=codes, carry=first(), label=LABEL, part=jnp.array(0))[0]
        return jax.jit(jax.grad(loss))(params)

    alone = {name: leaf for name, leaf in params.items() if name != "independent"}
    with_head, without = gradient(model, params), gradient(dataclasses.replace(model, independent=False), alone)
    assert float(jnp.max(jnp.abs(with_head.pop("independent")["kernel"]))) > 0
    for a, b in zip(jax.tree.leaves(with_head), jax.tree.leaves(without), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_the_label_and_the_learned_first_state_bear_on_the_sound():
    model, params = subject()
    codes = model.starting(noise(jax.random.key(4))[:, :32])
    logits = seen()(params, codes, LABEL)[0]
    assert float(jnp.max(jnp.abs(logits - seen()(params, codes, LABEL[::-1])[0]))) > 1e-3
    other = params | {"tier_1_first_0": params["tier_1_first_0"] + 1}
    assert float(jnp.max(jnp.abs(logits - seen()(other, codes, LABEL)[0]))) > 1e-3


def test_loss_and_gradients_equal_pytorchs():
    torch = pytest.importorskip("torch")
    from benchmarks.peers import samplernn as peer

    fields = {"cell": "gru", "layers": 2, "weight_norm": False, "independent": False, "conditional": False}
    model = dataclasses.replace(TINY, classes=0, **fields)
    params = jax.jit(lambda: model.init(jax.random.key(0), {}).params["network"])()
    codes = model.part(model.starting(noise(jax.random.key(4))), jnp.array(0))
    first = lambda: model.first(model.ready(params), ROWS)
    loss = lambda p: model.loss(p, codes=codes, carry=first(), label=None, part=jnp.array(0))[0]
    value, gradient = jax.jit(jax.value_and_grad(loss))(params)

    theirs, also = peer.network_of(model), peer.network_of(model)
    peer.load(theirs, params)
    bits, _ = theirs(torch.from_numpy(np.array(codes[..., 0])).long(), [None] * 2)
    bits.mean().backward()
    np.testing.assert_allclose(value, bits.mean().item(), rtol=1e-5)
    peer.load(also, jax.tree.map(np.asarray, gradient))
    for (name, a), b in zip(also.named_parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(
            a.detach().numpy(), b.grad.numpy(), atol=1e-5 * float(b.grad.abs().max() + 1), err_msg=name
        )


@pytest.mark.parametrize("name", ["gru_before", "rnn, four tiers, 16 bits"])
def test_bfloat16_computes_nearly_what_float32_computes(name):
    model, params = subject(name)
    half = dataclasses.replace(model, dtype="bfloat16")
    wave = noise(jax.random.key(4))[:, :32]
    exact, near = programs(name)[2](params, wave, LABEL), jax.jit(half.bits)(params, wave, LABEL)
    assert near.dtype == jnp.float32
    np.testing.assert_allclose(near, exact, rtol=0.02)
    _, drawn = jax.jit(half.extend, static_argnums=3)(params, half.begin(params, ROWS, LABEL), jax.random.key(2), 2)
    assert float(jnp.max(jnp.abs(drawn))) <= 1


def test_weights_that_are_not_finite_give_bits_and_sound_that_are_not():
    model, params = subject()
    broken = params | {"tier_1_up": jax.tree.map(lambda x: x * jnp.nan, params["tier_1_up"])}
    extend, _, bits = programs()
    assert bool(jnp.isnan(bits(broken, noise(jax.random.key(4))[:, :56], LABEL)).all())
    assert bool(jnp.isnan(extend(broken, model.begin(broken, ROWS, LABEL), jax.random.key(2), 4)[1]).all())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"frames": (8, 3)}, "8 is none of 3"),
        ({"sequence": 30}, "64 is none of 30"),
        ({"frames": ()}, "1 tier at least"),
        ({"levels": 65536}, "16 bits are linear"),
        ({"levels": 100}, "multiple of 16"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": 1e-9}, "temperature is 1e-09"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"channels": 2}, "SampleRNN is mono"),
    ],
)
def test_impossible_fields_are_refused(fields, words):
    with pytest.raises(InputError, match=words):
        dataclasses.replace(TINY, **fields)
