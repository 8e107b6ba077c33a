"""HiFi-GAN and BigVGAN: against `transformers` and PyTorch, sample rates, given mels, streaming and reach."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxaudio import zoo
from jaxaudio.core import Batch, InputError, Shard
from jaxaudio.gan.hifigan import Generator, HiFiGAN, maps_of
from tests.seldom import seldom

TINY = zoo.load("hifigan:tiny")
STAGES = {"factors": (4, 2), "size": 32, "segment": 240, "batch_size": 3}
DEEP = dataclasses.replace(TINY, **STAGES, residual_taps=(3, 5), dilations=(1, 3, 2, 1), paired=True, scales=2)
PAIRED = dataclasses.replace(DEEP, periods=(2, 3), period_widths=(3, 4))
MAGNITUDES = {"critics": "magnitudes", "sizes": (32, 48), "hops": (6, 10), "lengths": (20, 48), "size_width": 3}
PERIODIC = dataclasses.replace(PAIRED, activation="snake_beta", **MAGNITUDES)
MODELS = {
    "paired, scales": PAIRED,
    "single, no scores, another slope": dataclasses.replace(
        PAIRED, paired=False, score_matching=False, last_slope=0.3, scales=1, scale_groups=(1, 4)
    ),
    "periodic, magnitudes": PERIODIC,
    "clipped, without a bias": dataclasses.replace(PERIODIC, activation="snake", bounded=False, dilations=(1, 2)),
    "causal": dataclasses.replace(PAIRED, causal=True, scales=1),
}


def normal(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def moved(model):
    """Its state before the first step, with parameters that are not what they start from."""
    state = model.init(jax.random.key(0), {})
    return state._replace(params=jax.tree.map(lambda x: x + 0.1 * normal(*x.shape), state.params))


@cache
def started(model):
    return jax.jit(lambda: moved(model))()


@cache
def weights(model):
    """By a program of their own: the compiler leaves the critics out."""
    return jax.jit(lambda: model.weights(moved(model)))()


def sound(model, hops, rows=2):
    return jnp.asarray(0.3 * normal(rows, hops * model.hop, 1))


def batch_of(model, given=None):
    wave = sound(model, model.segment // model.hop, model.batch_size)
    return Batch(wave, jnp.zeros(len(wave), int), given=given)


@cache
def stepper(model):
    return jax.jit(lambda state, batch, stage: model.train_step(state, batch, jax.random.key(0), Shard(), stage),
                   static_argnums=2)  # fmt: skip


@pytest.mark.parametrize("factors", [(4, 4), (8, 2)])
def test_sound_is_that_of_transformers(factors):
    pytest.importorskip("transformers.models.speecht5.modeling_speecht5", reason="transformers is not installed")
    torch = pytest.importorskip("torch")
    from benchmarks.peers import transformers_hifigan as peer

    model = dataclasses.replace(TINY, factors=factors, residual_taps=(3, 7), dilations=(1, 3, 1, 5), paired=True)
    net = jax.tree.map(lambda x: 2 * x, weights(model)["generator"])
    frames = normal(2, 20, model.bands)
    with torch.no_grad():
        expected = peer.original(model, {"generator": net})(torch.from_numpy(frames)).numpy()
    ours = jax.jit(Generator(model).apply)({"params": net}, jnp.asarray(frames))[..., 0]
    assert expected.std() > 0.01, "too quiet to tell"
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("name", seldom(MODELS, "paired, scales", "periodic, magnitudes"))
def test_losses_and_gradients_equal_pytorchs(name):
    """And what the power iteration of spectral norm comes to."""
    torch = pytest.importorskip("torch", reason="the parity with PyTorch needs the extra `compare`")
    from benchmarks.peers import hifigan as peer

    model = MODELS[name]
    state, batch = started(model), batch_of(model)
    wave, frames = model.pairs(batch)
    make = lambda p: Generator(model).apply({"params": p}, frames)
    generator, critic, spectral = state.params["generator"], state.params["critic"], state.extra["spectral"]

    def ours(generator, critic):
        loss = partial(model.critic_loss, spectral=spectral, real=wave, fake=0.5 * wave[:, ::-1])
        (first, seen), slope = jax.value_and_grad(loss, has_aux=True)(critic)
        known = {"params": critic, "spectral": seen["spectral"]}
        loss = partial(model.generator_loss, made=make, critic=known, wave=wave)
        (second, seen), other = jax.value_and_grad(loss, has_aux=True)(generator)
        return (first, slope), (second, other), seen["spectral"]

    found = jax.device_get(jax.jit(ours)(generator, critic))
    net, judge, signal = peer.Generator(model), peer.Critic(model), torch.tensor(np.asarray(wave)).mT
    peer.load(net, jax.device_get(generator))
    peer.load(judge, *jax.device_get((critic, spectral)))
    same(found[0], peer.critic_loss(judge, signal, 0.5 * signal.flip(-1)), judge, peer.Critic(model))
    made = net(peer.mels(model, model.filters, signal))
    loss = peer.generator_loss(judge.requires_grad_(False), model, signal, made)
    same(found[1], loss, net, peer.Generator(model))
    for path, u in peer.flat(found[2]).items():
        np.testing.assert_allclose(judge.get_buffer(".".join(path[:-1]) + ".weight_u"), u, atol=1e-5)
    with pytest.raises(ValueError, match="parameters are named"):
        peer.load(judge, found[1][1])


def same(update, their_loss, trained, like):
    """The loss, and every gradient to 1e-3 of its norm; one that is next to nothing, to 1e-5 of the largest.

    like: a module to load our gradients into.
    """
    from benchmarks.peers import hifigan as peer

    loss, gradient = update
    np.testing.assert_allclose(loss, their_loss.item(), rtol=1e-5)
    their_loss.backward()
    peer.load(like, gradient)
    largest = max(float(p.grad.norm()) for p in trained.parameters())
    theirs = {name: p.grad for name, p in trained.named_parameters()}
    for name, a in like.named_parameters():
        assert float((a.detach() - theirs[name]).norm()) <= 1e-3 * float(theirs[name].norm()) + 1e-5 * largest, name


def test_the_pytorch_model_takes_a_step_at_every_stage_and_refuses_what_it_lacks():
    pytest.importorskip("torch", reason="the parity with PyTorch needs the extra `compare`")
    from benchmarks.peers import hifigan as peer

    for stage in ("alone", None):
        assert np.isfinite(float(peer.trainer(dataclasses.replace(TINY, decay=0.9, clip=1.0), False, stage)()))
    with pytest.raises(ValueError, match="computes in float32"):
        peer.trainer(dataclasses.replace(TINY, dtype="bfloat16"), False)


def test_mels_are_those_of_the_official_code():
    """In numpy: mirrored ends, Hann, 1e-9 in the root, 1e-5 in the logarithm; silence is ln 1e-5 in every band."""
    wave = np.asarray(sound(TINY, 12, 1))[0, :, 0]
    size, hop = TINY.window, TINY.hop
    around = np.pad(wave, (size - hop) // 2, mode="reflect")
    cut = np.lib.stride_tricks.sliding_window_view(around, size)[::hop] * np.hanning(size + 1)[:-1]
    power = np.abs(np.fft.rfft(cut)) ** 2
    expected = np.log(np.maximum(np.sqrt(power + 1e-9) @ TINY.filters, 1e-5))
    np.testing.assert_allclose(TINY.features(jnp.asarray(wave).reshape(1, -1, 1))[0], expected, atol=1e-4)
    quiet = TINY.features(jnp.zeros((1, 12 * hop, 1)))
    np.testing.assert_allclose(quiet, np.log(1e-5), rtol=1e-6)


def test_spectral_norm_comes_to_a_largest_singular_value_of_one():
    model = dataclasses.replace(TINY, scale_widths=(6, 4), scale_groups=(1, 2))
    state = started(model)
    variables = {"params": state.params["critic"], "spectral": state.extra["spectral"]}
    look = jax.jit(lambda v: maps_of(model, v, sound(model, 4, 1))[1])
    for _ in range(50):
        variables["spectral"] = look(variables)
    u = np.asarray(variables["spectral"]["scales"]["scale_0_1"]["u"])
    kernel = variables["params"]["scales"]["scale_0_1"]["kernel"]
    left, values, _ = np.linalg.svd(np.asarray(kernel).reshape(-1, 4).T)
    assert abs(left[:, 0] @ u) > 0.999
    assert "scale" not in variables["params"]["scales"]["scale_0_1"], "weight norm too"
    scaled = {**variables["params"]["scales"]["scale_0_1"], "kernel": 5 * kernel}
    louder = {**variables["params"], "scales": {**variables["params"]["scales"], "scale_0_1": scaled}}
    heard = jax.jit(lambda p: maps_of(model, {**variables, "params": p}, sound(model, 4, 1))[0])
    maps = [heard(p) for p in (variables["params"], louder)]
    for a, b in zip(*(jax.tree.leaves(each) for each in maps), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert values[0] != pytest.approx(1, abs=0.01), "normalised already"


def test_the_generator_learns_alone_before_the_critics_come_in():
    model = dataclasses.replace(TINY, warm_up=2, decay=0.9)
    assert [model.stage(i) for i in range(4)] == ["alone", "alone", None, None]
    assert model.variants == ("alone", None)
    state, batch = started(model), batch_of(model)
    after, metrics = stepper(model)(state, batch, "alone")
    jax.tree.map(np.testing.assert_array_equal, after.params["critic"], state.params["critic"])
    jax.tree.map(np.testing.assert_array_equal, after.extra["spectral"], state.extra["spectral"])
    assert not any(name.startswith("critic") or "adversarial" in name for name in metrics)
    later, metrics = stepper(model)(after, batch, None)
    assert {"critic/loss", "generator/mel", "generator/adversarial", "generator/features"} <= set(metrics)
    total = sum(float(metrics[f"generator/{name}"]) for name in ("mel", "adversarial", "features"))
    assert float(metrics["generator/loss"]) == pytest.approx(total, rel=1e-5)
    u = [x.extra["spectral"]["scales"]["scale_0_0"]["u"] for x in (state, later)]
    assert float(jnp.abs(u[0] - u[1]).max()) > 1e-3
    first = jax.tree.leaves(after.extra["average"])[0]
    ours = [jax.tree.leaves(x.params["generator"])[0] for x in (state, after)]
    begun = jax.tree.leaves(state.extra["average"])[0]
    np.testing.assert_allclose(first, 0.1 * begun + 0.9 * ours[1], rtol=1e-5)


def test_given_mels_are_what_it_learns_from():
    model = dataclasses.replace(TINY, gain="none", level=0.5)
    plain = batch_of(model)
    own = jax.jit(model.features)(plain.wave)
    look = jax.jit(model.evaluate)
    state, key = started(model), jax.random.key(0)
    told, other = (look(state, plain._replace(given=mels), key)["log_mel"] for mels in (own, own + 0.5))
    assert float(jnp.abs(told - other).max()) > 1e-3
    made = jax.jit(Generator(model).apply)({"params": model.chosen(state)}, own)
    np.testing.assert_allclose(told, jax.jit(model.distance)(plain.wave, made), rtol=1e-4)
    for wrong in (own[:, 1:], own[..., 1:]):
        with pytest.raises(InputError, match="this model takes"):
            model.pairs(plain._replace(given=wrong))


@pytest.mark.parametrize("name", ["paired, scales", "periodic, magnitudes", "causal"])
def test_nothing_beyond_the_reach_bears_on_the_sound_and_a_causal_model_does_not_look_ahead(name):
    """By the gradient, where the faintest influence is seen: in a difference of sounds it would drown in rounding."""
    model = MODELS[name]
    around, net = model.reach, weights(model)["generator"]
    frames = jnp.asarray(normal(1, 4 * around + 5, model.bands))
    middle = frames.shape[1] // 2
    part = slice(middle * model.hop, (middle + 1) * model.hop)
    slopes = jax.jit(jax.grad(lambda frames: jnp.sum(Generator(model).apply({"params": net}, frames)[:, part])))(frames)
    bearing = np.flatnonzero(np.any(slopes, (0, 2))) - middle
    assert bearing.min() >= -around
    assert bearing.min() <= -0.8 * around, "the reach is stated too wide"
    assert bearing.max() <= (0 if model.causal else around)
    assert model.causal or bearing.max() >= 0.8 * around


def test_a_part_with_the_reach_around_it_sounds_as_in_the_whole():
    model, params = PAIRED, weights(PAIRED)
    frames, key = jnp.asarray(normal(2, 6 * model.reach, model.bands)), jax.random.key(0)
    vocode = jax.jit(lambda frames: model.vocode(params, model.open(params, 2), frames, key)[1])
    whole, reach, hop = vocode(frames), model.reach, model.hop
    part = vocode(frames[:, reach:-reach])
    assert float(jnp.std(whole)) > 1e-3, "too quiet to tell"
    np.testing.assert_allclose(part, whole[:, reach * hop : -reach * hop], atol=1e-6)
    with pytest.raises(InputError, match="lie around the sound"):
        model.vocode(params, (), frames[:, : 2 * reach], key)
    with pytest.raises(InputError, match="mel bands"):
        model.vocode(params, (), frames[..., 1:], key)
    with pytest.raises(InputError, match="whole number of hops"):
        model.features(jnp.zeros((1, hop + 1, 1)))


@pytest.mark.parametrize("size", [32, 8, 18], ids=["two hops late", "in time", "one hop late"])
def test_chunks_join_to_the_sound_of_everything_after_silence(size):
    model = dataclasses.replace(PAIRED, causal=True, size=size, mels=2, high=6000.0)
    params, wave = weights(model), sound(model, 42)
    assert model.delay == {32: 2, 8: 0, 18: 1}[size] * model.hop
    late, push = jnp.pad(wave, ((0, 0), (model.delay, 0), (0, 0))), jax.jit(model.push)
    seen = jnp.pad(late, ((0, 0), (model.behind,) * 2, (0, 0)))
    frames = model.heard(seen, model.filters, "valid")[:, : 42 + model.delay // model.hop]
    whole = jax.jit(Generator(model).apply)({"params": params["generator"]}, frames)[:, : wave.shape[1]]
    assert float(jnp.std(whole)) > 0.01, "too quiet to tell"
    for hops in (3, 7):
        carry, parts = model.open(params, 2), []
        for first in range(0, 42, hops):
            chunk = wave[:, first * model.hop : (first + hops) * model.hop]
            carry, part = push(params, carry, chunk, jax.random.key(0))
            parts.append(part)
        np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=1e-5)


def test_a_model_that_looks_ahead_refuses_to_stream():
    params = weights(TINY)
    with pytest.raises(InputError, match="--model.causal"):
        TINY.push(params, TINY.open(params, 1), sound(TINY, 1, 1), jax.random.key(0))


@pytest.mark.parametrize(
    ("rate", "hop", "bands", "high"),
    [(16000, 256, 80, 8000), (22050, 256, 80, 8000), (24000, 256, 100, 12000), (44100, 512, 128, 22050),
     (48000, 512, 128, 24000), (11025, 256, 80, 5512.5)],
)  # fmt: skip
def test_mel_factors_and_periods_follow_the_sample_rate(rate, hop, bands, high):
    for preset in ("v1", "v3", "bigvgan_base"):
        model = dataclasses.replace(zoo.load(f"hifigan:{preset}"), sample_rate=rate)
        assert model.hop == hop
        assert model.filters.shape == (model.window // 2 + 1, bands)
        last = np.flatnonzero(model.filters[:, -1]).max() * rate / model.window
        assert high - 2 * rate / model.window < last <= high
        assert (max(model.intervals) > 11) == (rate > 24000)
        assert model.segment % model.hop == 0


@pytest.mark.parametrize(
    ("preset", "millions"), [("v1", 13.926), ("v2", 0.926), ("v3", 1.462), ("bigvgan", 112.4), ("bigvgan_base", 14.0)]
)
def test_published_sizes_with_weight_norms_worked_in(preset, millions):
    model = zoo.load(f"hifigan:{preset}")
    generator = jax.eval_shape(lambda: Generator(model).init(jax.random.key(0), model.example))["params"]
    kept = jax.tree_util.tree_leaves_with_path(generator)
    count = sum(leaf.size for path, leaf in kept if path[-1].key != "scale") / 1e6
    assert round(count, len(str(millions).partition(".")[2])) == millions


def test_folded_weights_make_the_same_sound_and_half_precision_a_similar_one():
    state, frames = started(PAIRED), jnp.asarray(normal(2, 12, PAIRED.bands))
    make = lambda model, net: jax.jit(Generator(model).apply)({"params": net}, frames)
    exact = make(PAIRED, state.params["generator"])
    np.testing.assert_allclose(make(PAIRED, weights(PAIRED)["generator"]), exact, atol=1e-5)
    near = make(dataclasses.replace(PAIRED, dtype="bfloat16"), weights(PAIRED)["generator"])
    assert near.dtype == jnp.float32
    assert float(jnp.std(near - exact)) < 0.05 * float(jnp.std(exact))


@pytest.mark.parametrize("preset", ["v1", "bigvgan_base", "small"])
def test_a_step_keeps_the_form_of_the_state_in_half_precision(preset):
    narrow = {"width": 64, "scale_widths": (16, 16), "scale_taps": (15, 41), "scale_strides": (1, 2),
              "scale_groups": (1, 4), "period_widths": (4, 8), "size_width": 4}  # fmt: skip
    model = zoo.load(f"hifigan:{preset}")
    few = {"residual_taps": model.residual_taps[:1], "dilations": model.dilations[:2]}
    model = dataclasses.replace(model, dtype="bfloat16", **narrow, **few)
    state = jax.eval_shape(lambda: model.init(jax.random.key(0), {}))
    wave = jax.ShapeDtypeStruct((2, model.segment, 1), jnp.float32)
    batch = Batch(wave, jax.ShapeDtypeStruct((2,), jnp.int32))
    step = lambda s, b, k: model.train_step(s, b, k, Shard(), None)
    after, metrics = jax.eval_shape(step, state, batch, jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert all(value.shape == () for value in metrics.values())


def test_several_mels_are_compared_where_their_windows_are_named():
    model = dataclasses.replace(TINY, mel_windows=(64, 128), mel_bands=(5, 10))
    wave = sound(model, 40)
    np.testing.assert_array_equal(model.weighed(wave, wave), 0)
    assert float(model.weighed(wave, 0.1 * wave)[0]) == pytest.approx(2, abs=0.1), "20 dB in each of two windows"
    np.testing.assert_allclose(TINY.weighed(wave, 0.1 * wave), np.log(10), rtol=0.05)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"channels": 2}, "mono"),
        ({"segment": 1030}, "whole number of hops"),
        ({"segment": 16, "sizes": (16,), "hops": (4,), "lengths": (16,)}, "mirrors"),
        ({"size": 15}, "even number"),
        ({"size": 8}, "at least a hop"),
        ({"mels": 200}, "mel bands"),
        ({"high": 9000.0}, "mel bands from"),
        ({"factors": (1, 4)}, "factors"),
        ({"factors": (), "stages": 5}, "stages is 5: 3, 4, 6"),
        ({"width": 6}, "multiple of 4"),
        ({"dilations": ()}, "dilations"),
        ({"residual_taps": (3, 5), "dilations": (1, 1, 1)}, "as many for each"),
        ({"residual_taps": (4,)}, "odd"),
        ({"causal": True, "activation": "snake"}, "look ahead"),
        ({"periods": (600,)}, "half of segment"),
        ({"scale_groups": (1, 3)}, "scale_groups"),
        ({"scale_taps": (5,)}, "of one length"),
        ({"hops": (1, 2)}, "as many of each"),
        ({"lengths": (2048, 2048, 512)}, "from 1 to sizes"),
        ({"critics": "magnitudes"}, "critics of magnitudes"),
        ({"mel_windows": (64,)}, "bands for each"),
        ({"mel_windows": (4096,), "mel_bands": (5,)}, "mirror half"),
        ({"decay": 1.0}, "decay"),
        ({"rate_decay": 0.0}, "rate_decay"),
        ({"mel": -1.0}, "mel is"),
        ({"learning_rate": float("nan")}, "learning_rate"),
    ],
)
def test_fields_that_fit_nothing_are_refused(change, says):
    with pytest.raises(InputError, match=says):
        dataclasses.replace(TINY, **change)


def test_every_preset_is_a_hifigan():
    assert all(isinstance(HiFiGAN(**fields), HiFiGAN) for fields in HiFiGAN.presets.values())
