"""What only GANSynth promises."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxaudio import zoo
from jaxaudio.core import Batch, InputError, Shard
from jaxaudio.gan.gansynth import (
    Critic,
    GANSynth,
    Layer,
    downscaled,
    minibatch_deviation,
    pixel_norm,
    upscaled,
)

SIZES = {"segment": 100, "start_frames": 2, "start_bands": 4, "resolutions": 3, "width": 16}
TINY = dataclasses.replace(zoo.load("gansynth:tiny"), classes=3, **SIZES)
HALF = {1: 0.25, 2: 0.75}


@cache
def start(model):
    """The state before the first step, in numpy."""
    return jax.device_get(jax.jit(lambda: model.init(jax.random.key(0), {}))())


@cache
def networks(model):
    # Biases start at zero, where a mistake in them would not show.
    return jax.tree.map(lambda x: jnp.asarray(x + 0.05 * normal(*x.shape)), start(model).params)


def normal(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def pictures(model, resolution, n=4):
    """Some of it beyond [-1, 1]."""
    return jnp.asarray(0.6 * normal(n, *model.shape(resolution), 2 * model.channels))


def batch(model):
    wave = 0.3 * normal(model.batch_size, model.segment, model.channels)
    return Batch(jnp.asarray(wave), jnp.arange(model.batch_size) % 3)


@pytest.mark.parametrize("parts", [{1: 1.0}, HALF], ids=["stable", "blending"])
def test_the_networks_and_both_gradients_equal_pytorchs(parts):
    torch = pytest.importorskip("torch", reason="the parity with PyTorch needs the extra `compare`")
    from benchmarks.peers import common
    from benchmarks.peers import gansynth as peer

    model = dataclasses.replace(TINY, channels=2, slopes="normalised" if len(parts) > 1 else "unnormalised")
    params, real = networks(model), pictures(model, max(parts))
    label, latent, keys = (
        jnp.array([0, 2, 1, 2]),
        jnp.asarray(normal(4, model.latent)),
        jax.random.split(jax.random.key(3), 4),
    )
    alpha = jax.vmap(lambda key: jax.random.uniform(key, (1, 1, 1)))(keys).reshape(4)

    @jax.jit
    def ours(params):
        draw = lambda generator: model.drawn(generator, latent, label, parts)
        fake = draw(params["generator"])
        given = {"label": label, "parts": parts, "shard": Shard()}
        critic_loss = lambda c: model.critic_loss(c, real=real, fake=fake, keys=keys, **given)[0]
        generator_loss = lambda g: model.generator_loss(g, made=draw, critic=params["critic"], **given)[0]
        losses = {"critic": critic_loss, "generator": generator_loss}
        return fake, {name: jax.value_and_grad(loss)(params[name]) for name, loss in losses.items()}

    fake, updates = ours(params)
    nets = {"generator": peer.Generator(model), "critic": peer.Critic(model)}
    for name, net in nets.items():
        common.load(net, jax.tree.map(np.asarray, params[name]))
    given = torch.tensor(np.array(latent)), torch.tensor(np.array(label)).long()
    theirs = nets["generator"](*given, parts).detach()
    np.testing.assert_allclose(fake, theirs.movedim(1, -1), rtol=1e-4, atol=1e-5)

    seen, mix = torch.tensor(np.array(real)).movedim(-1, 1), torch.tensor(np.array(alpha))
    losses = {
        "critic": peer.critic_loss(nets["critic"], model, seen, theirs, given[1], mix, parts),
        "generator": peer.generator_loss(nets["generator"], nets["critic"], model, *given, parts),
    }
    for name, net in nets.items():
        loss, gradient = updates[name]
        np.testing.assert_allclose(loss, losses[name].detach(), rtol=1e-4)
        slopes = torch.autograd.grad(losses[name], list(net.parameters()), allow_unused=True)
        like = type(net)(model)
        common.load(like, jax.tree.map(np.asarray, gradient))
        for a, b in zip(like.parameters(), slopes, strict=True):
            b = torch.zeros_like(a) if b is None else b
            np.testing.assert_allclose(a.detach(), b, rtol=1e-3, atol=1e-4 * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize("fields", [{}, {"steps_of_bands": "mean"}, {"scale": "linear"}])
def test_the_picture_is_pytorchs_and_its_sound_has_the_length_of_a_segment(fields):
    torch = pytest.importorskip("torch", reason="the parity with PyTorch needs the extra `compare`")
    from benchmarks.peers import gansynth as peer

    model = dataclasses.replace(TINY, channels=2, **fields)
    wave = batch(model).wave
    ours = np.asarray(jax.jit(model.picture)(wave))
    theirs = peer.picture(model, torch.tensor(np.array(wave)).mT).movedim(1, -1).numpy()
    apart = np.abs(ours - theirs)
    apart[..., 1::2] = np.minimum(apart[..., 1::2], 1.6 - apart[..., 1::2])  # half a turn forward is one backward
    assert apart.max() < 1e-3
    sound = jax.jit(model.sound)(ours)
    assert sound.shape == wave.shape
    assert float(jnp.max(jnp.abs(sound))) <= 1


def test_the_pytorch_model_takes_a_step_and_refuses_what_it_lacks():
    pytest.importorskip("torch", reason="the parity with PyTorch needs the extra `compare`")
    from benchmarks.peers import gansynth as peer

    for stage in ((0, False), (2, True)):
        assert all(np.isfinite(float(loss)) for loss in peer.trainer(TINY, False, stage)())
    with pytest.raises(ValueError, match="float32"):
        peer.trainer(dataclasses.replace(TINY, dtype="bfloat16"), False, (0, False))


def test_with_the_61_pitches_of_nsynth_the_networks_have_the_published_sizes():
    model = GANSynth(classes=61)
    assert model.shape() == (128, 1024)
    assert [model.features(k) for k in range(-1, 7)] == [256, 256, 256, 256, 256, 128, 64, 32]
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), {})).params
    counts = {name: sum(leaf.size for leaf in jax.tree.leaves(each)) for name, each in params.items()}
    assert counts == {"generator": 7_311_246, "critic": 6_831_230}


def test_the_paper_sees_800_thousand_notes_at_every_stage_and_11_million_in_all():
    model = GANSynth()
    firsts = [-(-model.begins(stage) // model.batch_size) for stage in model.variants]
    assert firsts == [100_000 * i for i in range(13)]
    assert [model.stage(step) for step in firsts] == list(model.variants)
    assert [model.stage(step - 1) for step in firsts[1:]] == list(model.variants)[:-1]
    assert model.stage(model.steps - 1) == (6, False)
    assert model.steps == 1_375_000


def test_shares_rise_from_0_to_1_and_are_the_same_whoever_asks():
    model, everywhere = TINY, jax.jit(TINY.all_parts)
    for step in range(0, 260, 7):
        parts, everything = model.parts(model.stage(step), step), everywhere(step)
        assert sum(map(float, everything.values())) == pytest.approx(1)
        for k, share in everything.items():
            assert float(share) == pytest.approx(float(parts.get(k, 0.0)), abs=1e-6)
    assert model.parts((1, True), 50) == {0: 1.0, 1: 0.0}
    assert model.parts((1, True), 75) == {0: 0.5, 1: 0.5}


def test_a_resolution_comes_in_without_a_jump():
    model = TINY
    params, latent, label = networks(model), jnp.asarray(normal(4, model.latent)), jnp.array([0, 1, 2, 0])
    seen = pictures(model, 1)

    @jax.jit
    def both(share):
        parts = {1: 1 - share, 2: share}
        score, logits = Critic(model).apply({"params": params["critic"]}, upscaled(seen, 2), parts, Shard())
        return model.drawn(params["generator"], latent, label, parts), score, logits

    @jax.jit
    def earlier():
        score, logits = Critic(model).apply({"params": params["critic"]}, seen, {1: 1.0}, Shard())
        return model.drawn(params["generator"], latent, label, {1: 1.0}), score, logits

    before = earlier()
    begun, ended = both(0.0), both(1.0)
    np.testing.assert_allclose(begun[0], upscaled(before[0], 2), atol=1e-6)
    np.testing.assert_allclose(begun[1], before[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(begun[2], before[2], rtol=1e-5, atol=1e-6)
    assert float(jnp.max(jnp.abs(ended[0] - begun[0]))) > 1e-2
    assert float(jnp.max(jnp.abs(ended[1] - begun[1]))) > 1e-4


def test_what_renders_at_any_step_is_what_is_trained_at_that_step():
    model = TINY
    params, latent, label = networks(model)["generator"], jnp.asarray(normal(2, model.latent)), jnp.array([0, 2])
    whole = jax.jit(lambda step: model.drawn(params, latent, label, model.all_parts(step)))
    for step in (80, 130):
        stage = model.stage(step)
        trained = jax.jit(
            lambda step, stage: model.drawn(params, latent, label, model.parts(stage, step)), static_argnums=1
        )
        expected = upscaled(trained(step, stage), 2 ** (model.resolutions - 1 - stage[0]))
        np.testing.assert_allclose(whole(step), expected, atol=1e-5)
    with pytest.raises(InputError, match="give a label"):
        model.render(model.weights(jax.tree.map(jnp.asarray, start(model))), latent, None)


@pytest.mark.parametrize("pictures_of", ["unnormalised", "normalised"])
def test_slopes_are_those_of_every_pixel_of_the_finest_picture(pictures_of):
    """As the official code computes them: the critic normalises, if need be, and shrinks whole pictures itself."""
    model, parts = dataclasses.replace(TINY, slopes=pictures_of), {1: 1.0}
    params, seen = networks(model)["critic"], pictures(model, 1)
    scale, offset = model.normaliser if pictures_of == "unnormalised" else (1, 0)

    def official(raw):
        coarse = downscaled(jnp.clip(raw * scale + offset, -1, 1), 2)
        return jnp.sum(Critic(model).apply({"params": params}, coarse, parts, Shard())[0])

    raw = (upscaled(seen, 2) - offset) / scale
    expected = jnp.sqrt(jnp.sum(jax.jit(jax.grad(official))(raw) ** 2, (1, 2, 3)))
    ours = jax.jit(jax.grad(lambda x: jnp.sum(Critic(model).apply({"params": params}, x, parts, Shard())[0])))(seen)
    np.testing.assert_allclose(model.norms(ours), expected, rtol=1e-4)
    assert float(jnp.min(expected)) > 0


def test_recordings_are_blended_as_what_is_generated():
    seen = pictures(TINY, 2)
    coarse = upscaled(downscaled(seen, 2), 2)
    np.testing.assert_allclose(TINY.blended(seen, HALF), 0.25 * coarse + 0.75 * seen, atol=1e-6)
    np.testing.assert_allclose(TINY.blended(seen, {1: 1.0}), downscaled(seen, 2), atol=1e-6)


def test_optimisers_start_afresh_at_the_first_step_of_a_stage_and_at_no_other():
    model = TINY
    given, stage = batch(model), (1, True)
    state = jax.tree.map(jnp.asarray, start(model))
    worn = state._replace(opt=jax.tree.map(lambda x: jnp.full_like(x, 3), state.opt))
    step = jax.jit(
        lambda state, at: model.train_step(state._replace(step=at), given, jax.random.key(1), Shard(), stage)[0]
    )
    first = -(-model.begins(stage) // model.batch_size)
    at_first, at_second = step(worn, first), step(worn, first + 1)
    clean = step(state, first)
    for a, b in zip(jax.tree.leaves(at_first.opt), jax.tree.leaves(clean.opt), strict=True):
        np.testing.assert_array_equal(a, b)
    assert {int(each[0].count) for each in at_first.opt.values()} == {1}
    assert {int(each[0].count) for each in at_second.opt.values()} == {4}
    assert all(float(jnp.max(each[0].nu["first_0"]["kernel"])) > 2 for each in at_second.opt.values())


def test_layers_of_a_resolution_that_has_not_come_stand_still():
    model, given = TINY, batch(TINY)
    state = jax.tree.map(jnp.asarray, start(model))
    after, _ = jax.jit(lambda s: model.train_step(s, given, jax.random.key(1), Shard(), (0, False)))(state)
    for net in ("generator", "critic"):
        moved = {name for name in state.params[net] if not same(state.params[net][name], after.params[net][name])}
        coming = {name for name in state.params[net] if name.endswith(("_1", "_2"))}
        assert moved == set(state.params[net]) - coming


def same(a, b):
    return all(bool(jnp.array_equal(x, y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_a_doubled_layer_repeats_pixels_and_convolves():
    x = jnp.asarray(normal(2, 4, 6, 5))
    doubled, plain = Layer(3, (3, 3), doubled=True), Layer(3, (3, 3))
    params = {"params": {"kernel": jnp.asarray(normal(3, 3, 5, 3)), "bias": jnp.asarray(normal(3))}}
    np.testing.assert_allclose(doubled.apply(params, x), plain.apply(params, upscaled(x, 2)), rtol=1e-4, atol=1e-5)


def test_layers_keep_the_deviation_of_what_goes_through_them_whatever_their_size():
    for width, taps in ((16, (3, 3)), (256, (3, 3)), (256, (1, 1))):
        layer, x = Layer(64, taps, slope=1.0), jnp.asarray(normal(2, 12, 12, width))
        params = layer.init(jax.random.key(0), x)
        assert float(jnp.std(params["params"]["kernel"])) == pytest.approx(1, rel=0.05)
        assert float(jnp.std(layer.apply(params, x)[:, 1:-1, 1:-1])) == pytest.approx(1, rel=0.1)


def test_pixel_norm_and_minibatch_deviation_are_what_they_say():
    x = jnp.asarray(3 * normal(4, 5, 6, 7))
    np.testing.assert_allclose(jnp.mean(pixel_norm(x) ** 2, -1), 1, rtol=1e-5)
    np.testing.assert_allclose(minibatch_deviation(x, Shard()), np.std(np.asarray(x), 0).mean(), rtol=1e-4)
    assert float(minibatch_deviation(jnp.ones((4, 2, 2, 1)), Shard())) == pytest.approx(1e-3)


def test_bfloat16_computes_nearly_what_float32_computes():
    params, latent, label = networks(TINY), jnp.asarray(normal(4, TINY.latent)), jnp.array([0, 1, 2, 0])

    @jax.jit
    def both():
        models = dataclasses.replace(TINY, dtype="bfloat16"), TINY
        seen = [model.drawn(params["generator"], latent, label, HALF) for model in models]
        known = [Critic(model).apply({"params": params["critic"]}, seen[1], HALF, Shard()) for model in models]
        return seen, [logits for _, logits in known]

    for low, full in both():
        assert {low.dtype, full.dtype} == {jnp.dtype("float32")}
        assert float(jnp.mean(jnp.abs(low - full))) < 0.05 * float(jnp.mean(jnp.abs(full)))
        assert float(jnp.max(jnp.abs(low - full))) > 0, "it did compute in another precision"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"segment": 70000}, "128 frames every 512 samples span 67072 samples: a sound of 70000 does not fit"),
        ({"window": 2047}, "window is 2047"),
        ({"hop": 600}, "hop is 600: the window, 2048 samples, is a multiple"),
        ({"start_bands": 8, "scale": "linear"}, "scale is linear, but pictures have 512 bands"),
        ({"start_bands": 32}, "bands is 2048"),
        ({"width": 64}, "width is 64: it is at least 128"),
        ({"stable_images": 7}, "stable_images is 7: it is at least 8"),
        ({"decay": 1.0}, "decay is 1.0"),
        ({"resolutions": 0}, "resolutions is 0"),
    ],
)
def test_fields_that_do_not_fit_together_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        GANSynth(**fields)
