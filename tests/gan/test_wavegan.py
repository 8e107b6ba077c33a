"""What only WaveGAN promises."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxaudio import zoo
from jaxaudio.core import Batch, InputError, Shard
from jaxaudio.gan.wavegan import Critic, Generator, NearestConv, WaveGAN, phase_shuffle
from jaxaudio.runtime.parallel import Devices

TINY = dataclasses.replace(zoo.load("wavegan:tiny"), width=3, batch_size=8, conditional=False)


@cache
def networks(model):
    params = jax.device_get(jax.jit(lambda: model.init(jax.random.key(0), {}).params)())
    # Biases start at zero, where a mistake in them would not show.
    normal = lambda x: np.random.default_rng(x.size).standard_normal(x.shape).astype(np.float32)
    return jax.tree.map(lambda x: jnp.asarray(x + 0.05 * normal(x)), params)


def clips(model, n):
    return 0.3 * jax.random.normal(jax.random.key(5), (n, model.segment, model.channels))


@pytest.mark.parametrize("channels", [1, 2])
def test_the_networks_and_the_critics_gradient_equal_pytorchs(channels):
    """Outputs, the WGAN-GP loss and its gradient with the penalty in it, with the same random numbers on both sides."""
    torch = pytest.importorskip("torch", reason="the parity with PyTorch needs the extra `compare`")
    from benchmarks.peers import common
    from benchmarks.peers import wavegan as peer

    model, n, key = dataclasses.replace(TINY, channels=channels, segment=256), 4, jax.random.key(9)
    params, real = networks(model), clips(model, n)
    generator = peer.Generator(model.width, model.segment, channels, model.latent)
    critic = peer.Critic(model.width, model.segment, channels, model.shuffle)
    for module, name in ((generator, "generator"), (critic, "critic")):
        common.load(module, jax.tree.map(np.asarray, params[name]))

    latent = model.latents(key, n)
    made = jax.jit(lambda g, latent: model.generated(g, {}, latent, jnp.zeros(n, int), Shard())[0])
    fake = made(params["generator"], latent)
    theirs = generator(torch.tensor(np.array(latent))).mT.detach()
    np.testing.assert_allclose(fake, theirs, rtol=1e-4, atol=1e-5)

    given = {"real": real, "fake": fake, "label": jnp.zeros(n, int), "key": key, "shard": Shard()}
    loss = lambda c: model.critic_loss(c, **given)
    (value, _), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params["critic"])
    alpha_key, *calls = jax.random.split(key, 4)
    alpha = jax.vmap(lambda at: jax.random.uniform(at, (1, 1)))(Shard().keys(alpha_key, n)).reshape(n)
    shifts = [[int(jax.random.randint(jax.random.fold_in(call, 0), (), -2, 3))] for call in calls]
    as_torch = lambda x: torch.tensor(np.array(x))
    sgd = torch.optim.SGD(critic.parameters(), lr=0.0)
    their_value = peer.update_critic(
        generator, critic, sgd, as_torch(real).mT, as_torch(latent), as_torch(alpha), shifts, model.penalty
    )
    np.testing.assert_allclose(value, their_value, rtol=1e-4)
    gradient = peer.Critic(model.width, model.segment, channels, model.shuffle)
    common.load(gradient, jax.tree.map(np.asarray, grads))
    for ours, theirs in zip(gradient.parameters(), critic.parameters(), strict=True):
        np.testing.assert_allclose(ours.detach(), theirs.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shift", [-2, -1, 0, 1, 2])
def test_phase_shuffle_shifts_the_whole_batch_and_reflects_the_edge(shift):
    x = jax.random.normal(jax.random.key(0), (3, 16, 2))
    key = next(k for k in map(jax.random.key, range(100)) if int(jax.random.randint(k, (), -2, 3)) == shift)
    padded = np.pad(x, ((0, 0), (max(shift, 0), max(-shift, 0)), (0, 0)), mode="reflect")  # the official code's
    start = max(-shift, 0)
    np.testing.assert_array_equal(phase_shuffle(x, key, 2), padded[:, start : start + 16])


@pytest.mark.parametrize("stride", [2, 4])
def test_nearest_upsampling_is_repetition_and_a_same_convolution(stride):
    x = jax.random.normal(jax.random.key(0), (2, 8, 3))
    layer = NearestConv(5, (25,), (stride,), "float32")
    params = layer.init(jax.random.key(1), x)
    repeated, kernel = jnp.repeat(x, stride, 1), params["params"]["kernel"]
    numbers = ("NWC", "WIO", "NWC")
    want = jax.lax.conv_general_dilated(repeated, kernel, (1,), "SAME", dimension_numbers=numbers)
    np.testing.assert_allclose(layer.apply(params, x), want, rtol=1e-4, atol=1e-5)


def test_the_penalty_of_a_linear_critic_is_its_slope_less_one_squared(monkeypatch):
    slope = jax.random.normal(jax.random.key(0), (TINY.segment, 1))
    monkeypatch.setattr(WaveGAN, "score", lambda self, c, wave, *_: jnp.sum(wave * c["slope"][None], (1, 2)))
    real, fake = clips(TINY, 4), clips(TINY, 4) * 0.5
    given = {"label": jnp.zeros(4, int), "key": jax.random.key(1), "shard": Shard()}
    loss = jax.jit(lambda c: TINY.critic_loss(c, real=real, fake=fake, **given))
    _, metrics = loss({"slope": slope})
    norm = float(jnp.linalg.norm(slope))
    np.testing.assert_allclose(metrics["penalty"], 10 * (norm - 1) ** 2, rtol=1e-5)
    np.testing.assert_allclose(metrics["adversarial"], jnp.sum(jnp.mean(fake - real, 0) * slope), rtol=1e-4)
    grad = jax.grad(lambda c: loss(c)[0])({"slope": jnp.zeros_like(slope)})
    assert np.isfinite(grad["slope"]).all(), "a critic without slope has a gradient too"


CLOSED_FORMS = {
    "dcgan": (
        lambda r, f: np.mean(np.log1p(np.exp(-r)) + np.log1p(np.exp(f))) / 2,
        lambda f: np.mean(np.log1p(np.exp(-f))),
    ),
    "lsgan": (lambda r, f: np.mean((r - 1) ** 2 + f**2) / 2, lambda f: np.mean((f - 1) ** 2)),
    "wgan": (lambda r, f: np.mean(f - r), lambda f: -np.mean(f)),
}


@pytest.mark.parametrize("loss", CLOSED_FORMS)
def test_every_loss_is_its_closed_form(loss, monkeypatch):
    model = dataclasses.replace(TINY, loss=loss)
    monkeypatch.setattr(WaveGAN, "score", lambda self, c, wave, *_: 3 * jnp.mean(wave, (1, 2)) + c["bias"])
    monkeypatch.setattr(WaveGAN, "generated", lambda self, g, statistics, latent, *_: (g * latent[:, :1, None], {}))
    real, fake = clips(model, 4), clips(model, 4)[::-1] * 0.5
    params, key = {"bias": jnp.float32(0.2)}, jax.random.key(0)
    scores = [3 * np.mean(x, (1, 2)) + 0.2 for x in (real, fake)]
    given = {"label": jnp.zeros(4, int), "key": key, "shard": Shard()}
    ours, _ = model.critic_loss(params, real=real, fake=fake, **given)
    np.testing.assert_allclose(ours, CLOSED_FORMS[loss][0](*scores), rtol=1e-5)
    ours, _ = model.generator_loss(jnp.float32(2), critic=params, statistics={}, **given)
    latent = model.draw(Shard().keys(jax.random.split(key)[0], 4))
    np.testing.assert_allclose(ours, CLOSED_FORMS[loss][1](3 * 2 * np.asarray(latent[:, 0]) + 0.2), rtol=1e-5)


def test_batch_norm_sees_the_whole_batch_under_pmap_too():
    """With clipped weights and RMSprop: the code's wgan; gradients, clipping and the generator's statistics agree."""
    model = dataclasses.replace(TINY, loss="wgan", batch_norm=True, n_critic=1, post_filter=7, upsample="nearest")
    batch = Batch(np.asarray(clips(model, 8)), np.zeros(8, np.int32))
    after = []
    for how in ("jit", "pmap"):
        devices = Devices(how, 4)
        state = jax.jit(lambda: model.init(jax.random.key(0), {}), out_shardings=devices.replicated)()
        state, _ = devices.compile(model)(state, devices.shard(batch), jax.random.key(1), None)
        after.append(jax.device_get(state))
    for a, b in zip(*(jax.tree.leaves((s.opt, s.extra["statistics"])) for s in after), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(after[0].params["critic"])) <= np.float32(0.01)
    moved = jax.tree.leaves(after[0].extra["statistics"])
    assert all(np.abs(leaf - leaf.round()).max() > 0 for leaf in moved), "running statistics start at 0 and 1"


@pytest.mark.parametrize(("segment", "counts"), [(32768, (73.15, 69.88)), (65536, (73.15, 69.88))])
def test_longer_clips_have_the_published_sizes(segment, counts):
    state = jax.eval_shape(lambda: WaveGAN(segment=segment).init(jax.random.key(0), {}))
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(state.params[name])) for name in ("generator", "critic")]
    assert tuple(round(size / 1e6, 2) for size in sizes) == counts
    sound = lambda s: WaveGAN(segment=segment).render(WaveGAN().weights(s), jnp.zeros((2, 100)), None)
    assert jax.eval_shape(sound, state).shape == (2, segment, 1)


def test_stereo_clips_have_two_channels_from_end_to_end():
    model = dataclasses.replace(TINY, channels=2)
    state = jax.eval_shape(lambda: model.init(jax.random.key(0), {}))
    assert state.params["critic"]["down_0"]["kernel"].shape == (25, 2, model.width)
    sound = jax.eval_shape(lambda s: model.render(model.weights(s), jnp.zeros((2, model.latent)), None), state)
    assert sound.shape == (2, model.segment, 2)


def test_the_label_changes_the_sound_and_its_score():
    model = dataclasses.replace(TINY, conditional=True, classes=3)
    params, wave = networks(model), clips(model, 2)
    latent, key = model.latents(jax.random.key(0), 2), jax.random.key(1)
    make = jax.jit(lambda p, label: Generator(model).apply({"params": p}, latent, label, Shard(), False))
    score = jax.jit(lambda p, label: Critic(model).apply({"params": p}, wave, label, key, Shard()))
    sounds = [make(params["generator"], jnp.full(2, k)) for k in (0, 1)]
    scores = [score(params["critic"], jnp.full(2, k)) for k in (0, 1)]
    assert float(jnp.min(jnp.abs(scores[0] - scores[1]))) > 1e-3
    assert float(jnp.max(jnp.abs(sounds[0] - sounds[1]))) > 1e-3
    with pytest.raises(InputError, match="give a label"):
        model.render({"generator": params["generator"], "statistics": {}, "measured": {}}, latent, None)


def test_bfloat16_computes_nearly_what_float32_computes():
    low, params, key = dataclasses.replace(TINY, dtype="bfloat16"), networks(TINY), jax.random.key(0)
    given = {"generator": params["generator"], "statistics": {}, "measured": {}}
    latent, wave = TINY.latents(key, 4), clips(TINY, 4)
    sounds = [jax.jit(model.render)(given, latent, None) for model in (low, TINY)]
    score = lambda model: jax.jit(lambda c: model.score(c, wave, jnp.zeros(4, int), key, Shard()))
    scores = [score(model)(params["critic"]) for model in (low, TINY)]
    assert {x.dtype for x in (*sounds, *scores)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(*sounds, atol=0.05)
    np.testing.assert_allclose(*scores, atol=0.05 * float(jnp.max(jnp.abs(scores[1]))) + 0.01)
    assert float(jnp.max(jnp.abs(sounds[0] - sounds[1]))) > 0, "it did compute in another precision"


def test_the_averaged_weights_follow_slowly_and_are_what_is_sampled_from():
    model = dataclasses.replace(TINY, n_critic=1)
    devices = Devices("jit", 1)
    state = jax.jit(lambda: model.init(jax.random.key(0), {}), out_shardings=devices.replicated)()
    before, step = jax.device_get(state.extra["average"]), devices.compile(model)
    batch = devices.shard(Batch(np.asarray(clips(model, 8)), np.zeros(8, np.int32)))
    program = step.lower(state, batch, jax.random.key(0), None).compile().as_text()
    assert "rhs_reversal" not in program, "a convolution of the step is in XLA's slow form: see tests/nn/test_conv.py"
    for i in range(3):
        expected = before
        state, _ = step(state, batch, jax.random.key(i), None)
        decay = (1 + i) / (10 + i)
        expected = jax.tree.map(lambda a, b, d=decay: d * a + (1 - d) * b, expected, state.params["generator"])
        for ours, want in zip(*map(jax.tree.leaves, (state.extra["average"], expected)), strict=True):
            np.testing.assert_allclose(ours, want, rtol=1e-5, atol=1e-7)
        before = jax.device_get(state.extra["average"])
    assert model.weights(state)["generator"] is state.extra["average"]

    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), state.params["critic"])
    state = state._replace(params={**state.params, "critic": devices.replicate(broken)})
    kept = jax.device_get((state.params["generator"], state.opt["generator"], state.extra))
    state, metrics = step(state, batch, jax.random.key(9), None)
    assert metrics["generator/skipped"] == 1
    now = jax.device_get((state.params["generator"], state.opt["generator"], state.extra))
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(now), strict=True))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"segment": 20000}, "segment is 20000"),
        ({"batch_size": 63, "n_critic": 5}, "batch_size 63 does not split into n_critic 5"),
        ({"batch_norm": True}, "the penalty is per example"),
    ],
)
def test_fields_that_do_not_fit_together_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        WaveGAN(**fields)
