"""RAVE: phases, streaming, compaction, and the distance it is trained by."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.signal

from jaxaudio import zoo
from jaxaudio.core import Batch, InputError, Shard
from jaxaudio.runtime.parallel import Devices
from jaxaudio.vae.rave import (
    QUIET,
    RAVE,
    Autoencoder,
    _responses,
    mod_sigmoid,
    multi_scale_distance,
)
from tests.test_models import same_bits, same_moments

TINY = zoo.load("rave:tiny")
SECOND = TINY.warm_up + 1  # a step of the second phase, with noise


@cache
def weights(model, loud=True):
    """Of an untrained model in its second phase, made loud enough that a difference shows."""
    state = started(model)
    if loud:
        grown = jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf * 2 if path[-1].key == "scale" else leaf, state.extra["average"]
        )
        state = state._replace(extra={**state.extra, "average": grown}, step=jnp.int32(SECOND))
    return finished(model)(state)


@cache
def finished(model):
    return jax.jit(model.weights)


@cache
def programs(model):
    """Its encoder, its decoder and its stream, compiled."""
    return jax.jit(model.encode), jax.jit(model.decode), jax.jit(model.push)


@cache
def started(model):
    """Its state before the first step."""
    return jax.jit(lambda: model.init(jax.random.key(0), {}))()


def sound(model, hops, rows=2):
    return 0.5 * jax.random.normal(jax.random.key(5), (rows, hops * model.hop, model.channels)).clip(-2, 2)


@pytest.mark.parametrize(("network", "channels"), [("v1", 2), ("v2", 1)])
def test_chunks_of_1_2_and_7_hops_join_to_the_offline_result(network, channels):
    model = dataclasses.replace(TINY, network=network, causal=True, channels=channels)
    params, wave, key = weights(model), sound(model, 42), jax.random.key(3)
    encode, decode, push = programs(model)
    whole = decode(params, encode(params, wave), key)
    assert float(jnp.std(whole)) > 0.01, "too quiet to tell"
    for hops in (1, 2, 7):
        carry, parts = model.open(params, 2), []
        for first in range(0, 42, hops):
            chunk = wave[:, first * model.hop : (first + hops) * model.hop]
            carry, part = push(params, carry, chunk, key)
            parts.append(part)
        np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=1e-5)


@pytest.mark.parametrize(("network", "causal"), [("v1", False), ("v1", True), ("v2", False)])
def test_nothing_beyond_the_reach_bears_on_the_sound_and_a_causal_model_does_not_look_ahead(network, causal):
    """By the gradient, where the faintest influence is seen: in a difference of sounds it would drown in rounding."""
    model = dataclasses.replace(TINY, network=network, causal=causal, ratios=(4, 2))
    params, hops = weights(model), 2 * model.reach + 9
    middle = (hops // 2) * model.hop

    def heard(wave):
        made = model.decode(params, model.encode(params, wave), jax.random.key(0))
        return jnp.sum(made[:, middle : middle + model.hop])

    slopes = jax.jit(jax.grad(heard))(sound(model, hops, 1))
    bearing = np.flatnonzero(slopes[0, :, 0]) // model.hop - hops // 2
    assert bearing.min() >= -model.reach
    assert bearing.min() <= -0.6 * model.reach, "the reach is stated too wide"
    assert bearing.max() <= (0 if causal else model.reach)


def test_a_long_sound_may_be_decoded_in_parts_noise_included():
    params, key = weights(TINY), jax.random.key(2)
    latent = jax.random.normal(jax.random.key(1), (2, 80, TINY.latent))
    _, decode, _ = programs(TINY)
    whole = decode(params, latent, key)
    first = 20 - TINY.reach
    part = decode(params, latent[:, first : 60 + TINY.reach], key, first)
    np.testing.assert_allclose(
        part[:, TINY.reach * TINY.hop : -TINY.reach * TINY.hop], whole[:, 20 * TINY.hop : 60 * TINY.hop], atol=1e-5
    )


@cache
def stepper(how):
    """The training step on four devices, and those."""
    devices = Devices(how, 4)
    return devices.compile(TINY), devices


def trained_by(how, state, stage, seed):
    """The state after one step of this stage, and its metrics; on the host."""
    step, devices = stepper(how)
    wave = np.asarray(sound(TINY, TINY.segment // TINY.hop, TINY.batch_size))
    batch = devices.shard(Batch(wave, np.zeros(len(wave), np.int32)))
    return jax.device_get(step(devices.replicate(jax.tree.map(jnp.array, state)), batch, jax.random.key(seed), stage))


def test_the_second_phase_leaves_the_encoder_as_it_is_bit_for_bit():
    first, _ = trained_by("jit", started(TINY), "autoencoder", 0)  # so that Adam has momentum
    second, _ = trained_by("jit", first, "decoder", 1)
    same_bits(second.params["autoencoder"]["encoder"], second.extra["average"]["encoder"])
    same_bits(first.params["autoencoder"]["encoder"], second.params["autoencoder"]["encoder"])
    same_bits(first.params["critic"], second.params["critic"])
    same_bits(first.extra["statistics"], second.extra["statistics"])
    moved = lambda a, b: any(np.any(x != y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))
    assert moved(first.params["autoencoder"]["decoder"], second.params["autoencoder"]["decoder"])
    third, metrics = trained_by("jit", second, "critic", 2)
    same_bits(second.params["autoencoder"], third.params["autoencoder"])
    same_bits(second.extra, third.extra)
    assert moved(second.params["critic"], third.params["critic"])
    both = float(metrics["critic/real"] + metrics["critic/fake"])
    assert float(metrics["critic/loss"]) == pytest.approx(both, rel=1e-5)


@pytest.mark.parametrize("stage", ["critic", "decoder"])
def test_pmap_computes_the_gradients_of_jit_in_the_second_phase(stage):
    same_moments(*(trained_by(how, started(TINY), stage, 1)[0] for how in ("jit", "pmap")))


def test_the_stages_are_the_first_phase_then_critic_and_decoder_in_turn():
    model = dataclasses.replace(TINY, warm_up=6, critic_every=3)
    assert [model.stage(i) for i in range(12)] == ["autoencoder"] * 6 + ["critic", "decoder", "decoder"] * 2
    assert TINY.variants == ("autoencoder", "critic", "decoder")


def test_features_are_weighted_once():
    """The decoder's loss is the sum of its terms, and that of the features grows with its weight, not its square."""
    wave = sound(TINY, TINY.segment // TINY.hop, TINY.batch_size)
    state = started(TINY)
    keys = jax.random.split(jax.random.key(0), len(wave))
    second = lambda model: lambda p: model.second_loss(p, state=state, wave=wave, keys=keys, shard=Shard())
    loss = lambda model: jax.jit(second(model))(state.params["autoencoder"])
    once, terms = loss(TINY)
    _, tenfold = loss(dataclasses.replace(TINY, feature_matching=10 * TINY.feature_matching))
    assert [zoo.load(f"rave:{name}").feature_weight for name in ("v1", "v2")] == [10, 20]
    twice = [dataclasses.replace(zoo.load(f"rave:{name}"), feature_matching_twice=True) for name in ("v1", "v2")]
    assert [model.feature_weight for model in twice] == [100, 400]
    assert float(tenfold["features"]) == pytest.approx(10 * float(terms["features"]), rel=1e-5)
    named = ("full_band", "multi_band", "adversarial", "features")
    assert float(once) == pytest.approx(sum(float(terms[name]) for name in named), rel=1e-5)


def test_compaction_keeps_the_leading_components_and_loses_what_the_rest_varied_by():
    state = started(TINY)
    mixing = np.array([[3.0, 0, 0, 0], [0, 0.5, 0, 0], [1.0, 1.0, 1.0, 0], [0, 0, 0, 0.1]])
    moments = {"mean": jnp.arange(4.0), "covariance": jnp.asarray(mixing @ mixing.T, jnp.float32)}
    params = finished(TINY)(state._replace(extra={**state.extra, "moments": moments}))
    variances = np.sort(np.linalg.eigvalsh(mixing @ mixing.T))[::-1]
    np.testing.assert_allclose(TINY.spread(params), variances, rtol=1e-3, atol=1e-4)
    frames = jnp.asarray(
        np.random.default_rng(0).standard_normal((1, 4000, 4)) @ mixing.T + np.arange(4.0), jnp.float32
    )
    components = params["principal"].compact(frames)
    np.testing.assert_allclose(params["principal"].restore(components), frames, atol=1e-4)
    for kept in (1, 2, 3):
        lost = frames - params["principal"].restore(components[..., :kept])
        np.testing.assert_allclose(jnp.mean(jnp.sum(lost**2, -1)), variances[kept:].sum(), rtol=0.1)


def test_the_running_moments_are_those_of_the_posterior_means():
    state = started(TINY)
    wave = sound(TINY, TINY.segment // TINY.hop, TINY.batch_size)
    variables = {"params": state.params["autoencoder"], "batch_stats": state.extra["statistics"]}
    encode = lambda v, w: Autoencoder(TINY).apply(v, w, Shard(), True, method="encode", mutable="batch_stats")
    (_, given), _ = jax.jit(encode)(variables, wave)
    after, _ = trained_by("jit", state, "autoencoder", 0)
    frames = np.asarray(given.mean).reshape(-1, TINY.latent)
    np.testing.assert_allclose(after.extra["moments"]["mean"], 0.9 * frames.mean(0), atol=1e-5)
    expected = 0.1 * np.eye(TINY.latent) + 0.9 * frames.T @ frames / len(frames)
    np.testing.assert_allclose(after.extra["moments"]["covariance"], expected, atol=1e-5)


def test_a_silent_example_does_not_rule_its_batch():
    loss = lambda params, wave: TINY.first_loss(
        params, state=started(TINY), wave=wave, keys=jax.random.split(jax.random.key(0), len(wave)), shard=Shard()
    )
    slope = jax.jit(lambda params, wave: optax.tree.norm(jax.grad(loss, has_aux=True)(params, wave)[0]))
    wave = sound(TINY, TINY.segment // TINY.hop, TINY.batch_size)
    norm = lambda wave: float(slope(started(TINY).params["autoencoder"], wave))
    assert norm(wave.at[0].set(0.0)) < 10 * norm(wave)


def test_the_distance_is_its_definition_and_survives_silence():
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((2, 1024, 2)).astype(np.float32) for _ in range(2))
    distance = jax.jit(multi_scale_distance, static_argnums=(2, 3))
    found = distance(jnp.asarray(a), jnp.asarray(b), (256, 64), 1e-7)
    for row in range(2):
        total = 0.0
        for pair in _spectra(a[row], b[row]):
            x, y = map(np.abs, pair)
            total += np.mean((x - y) ** 2) / np.mean(x**2) + np.mean(np.abs(np.log(x + 1e-7) - np.log(y + 1e-7)))
        assert float(found[row]) == pytest.approx(total, rel=1e-4)
    quiet = 1e-3 * a  # its power is below the floor
    expected = np.sum([np.mean((np.abs(x) - np.abs(y)) ** 2) for x, y in _spectra(quiet[0], b[0])]) / QUIET
    logs = np.sum([np.mean(np.abs(np.log(np.abs(x) + 1) - np.log(np.abs(y) + 1))) for x, y in _spectra(quiet[0], b[0])])
    floored = distance(jnp.asarray(quiet), jnp.asarray(b), (256, 64), 1.0)[0]
    assert float(floored) == pytest.approx(expected + logs, rel=1e-4)
    silence = jnp.zeros((1, 1024, 2))
    assert float(distance(silence, silence, (256, 64), 1e-7)[0]) == 0
    slope = jax.jit(jax.grad(lambda y: distance(silence, y, (256, 64), 1e-7)[0]))(jnp.asarray(a[:1]))
    assert np.isfinite(slope).all()


def _spectra(a, b):
    """Pairs of spectra of two sounds [time, channels], a pair per window of the test above."""
    for size in (256, 64):
        taper = scipy.signal.get_window("hann", size)
        frames = lambda x, size=size, taper=taper: np.stack(
            [np.pad(x, ((0, size), (0, 0)))[n : n + size].T * taper for n in range(0, 1024, size // 4)]
        )
        yield tuple(np.fft.rfft(frames(x)) / np.sqrt(np.sum(taper**2)) for x in (a, b))


def test_relative_features_are_by_the_size_of_the_recordings_and_leave_the_first_map_out():
    model = dataclasses.replace(TINY, relative_features=True)
    real = [[jnp.full((2, 3, 4), 9.0), jnp.full((2, 3, 1), 2.0), jnp.full((2, 3, 1), -4.0)]]
    fake = [[jnp.zeros((2, 3, 4)), jnp.full((2, 3, 1), 1.0), jnp.full((2, 3, 1), -1.0)]]
    np.testing.assert_allclose(model.feature_distance(real, fake), [(1 / 2 + 3 / 4) / 2] * 2, rtol=1e-5)
    np.testing.assert_allclose(TINY.feature_distance(real, fake), [(9 + 1 + 3) / 3] * 2, rtol=1e-5)


def test_amplitudes_of_the_noise_stand_for_frequencies_from_low_to_high():
    responses = _responses(64)
    np.testing.assert_allclose(responses.sum(0), 1, atol=1e-6)
    np.testing.assert_array_equal(responses.argmax(1)[::2], [0, 16, 32])
    centres = responses @ np.arange(33) / responses.sum(1)
    assert np.diff(centres).min() > 3


@pytest.mark.parametrize("preset", ["v1", "v2", "small"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_stage_of_every_preset_keeps_the_form_of_its_state(preset, dtype):
    """With fewer layers of each kind."""
    few = {"scales": (128,), "critic_layers": 2, "noise_strides": zoo.load(f"rave:{preset}").noise_strides[:1]}
    model = dataclasses.replace(zoo.load(f"rave:{preset}"), dtype=dtype, ratios=(4, 2), **few)
    state = jax.eval_shape(lambda: model.init(jax.random.key(0), {}))
    batch = Batch(jax.ShapeDtypeStruct((2, model.segment, 1), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32))
    for stage in model.variants:
        step = lambda s, b, k, stage=stage: model.train_step(s, b, k, Shard(), stage)
        after, metrics = jax.eval_shape(step, state, batch, jax.random.key(0))
        assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
        assert all(value.shape == () for value in metrics.values())


def test_bfloat16_is_near_float32_and_streams():
    model = dataclasses.replace(TINY, causal=True)
    half = dataclasses.replace(model, dtype="bfloat16")
    params, wave, key = weights(model), sound(model, 14), jax.random.key(3)
    exact = programs(model)[1](params, programs(model)[0](params, wave), key)
    encode, decode, push = programs(half)
    near = decode(params, encode(params, wave), key)
    assert near.dtype == jnp.float32
    assert float(jnp.std(near - exact)) < 0.1 * float(jnp.std(exact))
    carry, parts = half.open(params, 2), []
    for first in range(0, 14, 7):
        carry, part = push(params, carry, wave[:, first * model.hop : (first + 7) * model.hop], key)
        parts.append(part)
    assert float(jnp.std(jnp.concatenate(parts, 1) - near)) < 0.02 * float(jnp.std(exact))


def test_silence_and_clipped_noise_come_back_finite_and_within_bounds():
    params = weights(TINY)
    noise, (encode, decode, _) = jnp.sign(sound(TINY, 20)), programs(TINY)
    for wave in (jnp.zeros_like(noise), noise, 1e-30 * noise):
        out = decode(params, encode(params, wave), jax.random.key(0))
        assert np.isfinite(out).all()
        assert float(jnp.abs(out).max()) <= 1


def test_noise_is_shaped_by_its_amplitudes_and_absent_in_the_first_phase():
    quiet, loud = weights(TINY, False), weights(TINY)
    latent = jax.random.normal(jax.random.key(1), (1, 10, TINY.latent))
    decode = lambda params, seed: np.asarray(programs(TINY)[1](params, latent, jax.random.key(seed)))
    np.testing.assert_array_equal(decode(quiet, 0), decode(quiet, 1))
    assert np.abs(decode(loud, 0) - decode(loud, 1)).max() > 0
    np.testing.assert_allclose(mod_sigmoid(jnp.array([0.0, 100.0])), [2 * 0.5**2.3, 2.0], rtol=1e-5)


def test_the_latency_is_counted_from_the_layers():
    """An impulse comes out of a causal model's filter banks, with the network between them taken away, `delay` late."""
    model = dataclasses.replace(TINY, causal=True)
    wave = jnp.zeros((1, 4 * model.hop * 8, 1)).at[:, 77].set(1.0)
    encode = lambda v, w: Autoencoder(model).apply(v, w, Shard(), False, method="encode")[0]
    out = np.asarray(jax.jit(model.whole)(jax.jit(encode)(_variables(model), wave)))[0, :, 0]
    assert out.argmax() == 77 + model.delay
    assert out.max() == pytest.approx(1, abs=1e-3)
    assert TINY.delay == 0


def _variables(model):
    state = started(model)
    return {"params": state.params["autoencoder"], "batch_stats": state.extra["statistics"]}


def test_published_sizes():
    counts = {}
    for preset in ("v1", "v2"):
        model = zoo.load(f"rave:{preset}")
        params = jax.eval_shape(lambda m=model: m.init(jax.random.key(0), {})).params["autoencoder"]
        size = lambda half, params=params: round(sum(leaf.size for leaf in jax.tree.leaves(params[half])) / 1e6, 2)
        counts[preset] = (size("encoder"), size("decoder"))
    assert counts == {"v1": (4.83, 12.78), "v2": (16.06, 15.48)}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"segment": 2050}, "whole number of hops"),
        ({"ratios": (3, 5), "segment": 60}, "ratios"),
        ({"ratios": ()}, "ratios"),
        ({"noise_strides": (3,)}, "noise_strides"),
        ({"noise_strides": (0,)}, "noise_strides"),
        ({"scales": ()}, "scales"),
        ({"scales": (1024, 64)}, "scales"),
        ({"floor": 0.0}, "floor"),
        ({"decay": 1.0}, "decay"),
        ({"warm_up": 0}, "warm_up"),
        ({"beta_first": 1.0, "beta_steps": 5}, "beta_first"),
        ({"critic_every": 1}, "critic_every"),
        ({"bands": 5}, "bands"),
        ({"beta_first": 0.0, "beta_steps": 5}, "beta_first"),
        ({"latent": 0}, "latent"),
    ],
)
def test_fields_that_fit_nothing_are_refused(change, says):
    with pytest.raises(InputError, match=says):
        dataclasses.replace(TINY, **change)


def test_wrong_lengths_and_a_model_that_looks_ahead_are_refused():
    params, causal = weights(TINY), dataclasses.replace(TINY, causal=True)
    with pytest.raises(InputError, match="--model.causal"):
        TINY.open(params, 1)
    with pytest.raises(InputError, match="hops"):
        TINY.encode(params, jnp.zeros((1, TINY.hop + 1, 1)))
    carry = causal.open(weights(causal), 1)
    with pytest.raises(InputError, match="hops"):
        causal.push(weights(causal), carry, jnp.zeros((1, TINY.hop + 1, 1)), jax.random.key(0))


def test_every_preset_is_a_rave():
    assert all(isinstance(RAVE(**fields), RAVE) for fields in RAVE.presets.values())
