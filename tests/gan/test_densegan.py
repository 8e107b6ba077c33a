"""What only the fully connected GAN promises."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from jaxaudio import zoo
from jaxaudio.core import Batch, InputError, Shard
from jaxaudio.gan.densegan import DenseGAN
from jaxaudio.losses import spectral_distance
from jaxaudio.runtime.parallel import Devices

TINY = dataclasses.replace(zoo.load("densegan:tiny"), batch_size=8, conditional=False)


@cache
def start(model):
    """The state before the first step, in numpy."""
    return jax.device_get(jax.jit(lambda: model.init(jax.random.key(0), statistics(model)))())


@cache
def networks(model):
    # Biases start at zero, where a mistake in them would not show.
    return jax.tree.map(lambda x: jnp.asarray(x + 0.05 * normal(*x.shape)), start(model).params)


def normal(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def uniform(*shape):
    """In [-1, 1], as latents and pictures are."""
    return jnp.asarray(np.random.default_rng(sum(shape)).uniform(-1, 1, shape).astype(np.float32))


def statistics(model):
    """Of no data in particular, alike in no two bands."""
    bands = np.arange(model.mels, dtype=np.float32)
    return {"mean": jnp.asarray(-2.5 - 0.1 * bands), "deviation": jnp.asarray(0.3 + 0.02 * bands)}


def sampled(model):
    return {"generator": networks(model)["generator"], "statistics": {}, "measured": statistics(model)}


def clips(model, n=8):
    return 0.3 * normal(n, model.segment, model.channels)


def tones(model, n=8):
    """Three harmonics that fade, of random pitch, over some noise."""
    rng, time = np.random.default_rng(0), np.arange(model.segment)[None, :, None] / model.sample_rate
    phase = 2 * np.pi * rng.uniform(200, 2000, (n, 1, model.channels)) * time
    fading = np.exp(-4 * time / time[0, -1]) * sum(np.sin(k * phase) / k for k in (1, 2, 3))
    return (0.4 * fading + 0.005 * rng.standard_normal(fading.shape)).astype(np.float32)


def batched(wave, *cuts):
    return [Batch(part, np.zeros(len(part), np.int32)) for part in np.split(wave, cuts)]


@cache
def round_trip(model):
    """(wave, measured) -> its picture and the sound of that, as one program."""

    def apply(wave, measured):
        picture = model.picture(wave, measured)
        return picture, model.sound(picture, measured)

    return jax.jit(apply)


def levels(model, wave):
    """Log-mels [batch, channels, frames, mels] of frames around their hops, ends reflected, by librosa's filters."""
    window, hop = model.window, model.hop
    edge = (window - hop) // 2
    padded = np.pad(np.asarray(wave, np.float64), ((0, 0), (edge, edge), (0, 0)), "reflect").swapaxes(1, 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, window, -1)[..., ::hop, :]
    magnitude = np.abs(np.fft.rfft(frames * np.hanning(window + 1)[:-1]))
    filters = librosa.filters.mel(sr=model.sample_rate, n_fft=window, n_mels=model.mels)
    return np.log(np.maximum(magnitude @ filters.T, 1e-5))


def test_the_networks_and_both_gradients_equal_pytorchs():
    """Outputs, the losses of binary cross-entropy and their gradients, of stereo pictures and two hidden layers."""
    torch = pytest.importorskip("torch", reason="the parity with PyTorch needs the extra `compare`")
    from benchmarks.peers import common
    from benchmarks.peers import densegan as peer

    fields = {"channels": 2, "generator_widths": (7, 9), "critic_widths": (9, 7)}
    model, n, key = dataclasses.replace(TINY, **fields), 4, jax.random.key(9)
    params, real, label = networks(model), uniform(n, *model.shape), jnp.zeros(n, int)
    modules = {
        "generator": lambda: peer.Generator(model.generator_widths, model.shape, model.latent),
        "critic": lambda: peer.Critic(model.critic_widths, model.shape),
    }
    generator, critic = (make() for make in modules.values())
    for module, name in ((generator, "generator"), (critic, "critic")):
        common.load(module, jax.tree.map(np.asarray, params[name]))

    @jax.jit
    def ours(params):
        latent = model.draw(Shard().keys(jax.random.split(key)[0], n))  # the generator's loss draws them so
        fake, _ = model.generated(params["generator"], {}, latent, label, Shard())
        given = {"label": label, "key": key, "shard": Shard()}
        critic_loss = lambda c: model.critic_loss(c, real=real, fake=fake, **given)[0]
        generator_loss = lambda g: model.generator_loss(g, critic=params["critic"], statistics={}, **given)[0]
        losses = {"critic": critic_loss, "generator": generator_loss}
        updates = {name: jax.value_and_grad(loss)(params[name]) for name, loss in losses.items()}
        return updates, (real, fake, latent)

    updates, given = ours(params)
    pictures, fake, latents = (torch.tensor(np.array(x)) for x in given)
    pictures, theirs = pictures.movedim(-1, 1), generator(latents).movedim(1, -1).detach()
    np.testing.assert_allclose(fake, theirs, rtol=1e-4, atol=1e-5)

    still = lambda module: torch.optim.SGD(module.parameters(), lr=0.0)
    their_losses = {
        "critic": peer.update_critic(generator, critic, still(critic), pictures, latents),
        "generator": peer.update_generator(generator, critic, still(generator), latents),
    }
    for name, trained in (("critic", critic), ("generator", generator)):
        loss, gradient = updates[name]
        np.testing.assert_allclose(loss, their_losses[name], rtol=1e-4)
        like = modules[name]()
        common.load(like, jax.tree.map(np.asarray, gradient))
        for a, b in zip(like.parameters(), trained.parameters(), strict=True):
            np.testing.assert_allclose(a.detach(), b.grad, rtol=1e-3, atol=1e-5)


def test_the_picture_is_pytorchs():
    torch = pytest.importorskip("torch", reason="the parity with PyTorch needs the extra `compare`")
    from benchmarks.peers import densegan as peer

    model = dataclasses.replace(TINY, channels=2)
    wave, measured = clips(model), statistics(model)
    ours, _ = round_trip(model)(wave, measured)
    given = {name: torch.tensor(np.array(value)) for name, value in measured.items()}
    filters = torch.tensor(model.filters)
    theirs = peer.picture(torch.tensor(wave).mT, filters, model.window, model.hop, given).movedim(1, -1)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert 0.05 < np.mean(np.abs(ours) == 1) < 0.95, "some of it is clipped and some is not"


def test_the_pytorch_model_takes_a_step_and_refuses_what_it_lacks():
    pytest.importorskip("torch", reason="the parity with PyTorch needs the extra `compare`")
    from benchmarks.peers import densegan as peer

    assert all(np.isfinite(float(loss)) for loss in peer.trainer(TINY, False)())
    lacking = ({"conditional": True}, {"loss": "lsgan"}, {"dtype": "bfloat16"}, {"noise": "normal"}, {"n_critic": 2})
    for fields in lacking:
        with pytest.raises(ValueError, match="the PyTorch DenseGAN has"):
            peer.trainer(dataclasses.replace(TINY, **fields), False)


def test_what_is_measured_is_the_mean_and_deviation_of_all_frames_however_they_are_batched():
    model = dataclasses.replace(TINY, channels=2)
    wave = tones(model)
    truth = levels(model, wave).reshape(-1, model.mels)
    for cuts in ((), (3,)):
        measured = model.measure(batched(wave, *cuts))
        np.testing.assert_allclose(measured["mean"], truth.mean(0), rtol=1e-4)
        np.testing.assert_allclose(measured["deviation"], truth.std(0), rtol=1e-4)


def test_the_picture_of_the_data_is_standardised_and_shows_what_it_sounded_like():
    """Measured: a mean of 0.003, a deviation 4 % short for clipping, 0.18 of the distance to noise as loud.

    The picture of the sound is 0.04 off the picture that it was made from (that of noise 0.81).
    """
    model = DenseGAN(segment=2048)
    wave = tones(model)
    measured = model.measure(batched(wave))
    picture, sound = map(np.asarray, round_trip(model)(wave, measured))
    np.testing.assert_allclose(picture.mean(), 0, atol=0.02)
    np.testing.assert_allclose(picture.std(), 1 / 3, rtol=0.06)
    noise = wave.std() * normal(*wave.shape)
    distance = lambda other: np.asarray(jax.jit(spectral_distance)(jnp.asarray(other), jnp.asarray(sound)))
    own, others = distance(wave), [distance(np.roll(wave, i, 0)) for i in range(1, len(wave))]
    assert own.max() < 0.25 * distance(noise).min()
    assert (own < np.min(others, 0)).all(), "every sound is nearest to its own recording"
    again, _ = round_trip(model)(sound, measured)
    assert np.abs(again - picture).mean() < 0.05


def test_silence_gives_finite_pictures_and_sounds():
    model = dataclasses.replace(TINY, channels=2)
    silence = np.zeros_like(clips(model))
    for measured in (model.measure(batched(silence)), statistics(model)):
        for x in round_trip(model)(silence, measured):
            assert np.isfinite(x).all()
            assert float(jnp.max(jnp.abs(x))) <= 1


@pytest.mark.parametrize(("noise", "deviation", "largest"), [("normal", 1, (3, 6)), ("uniform", 3**-0.5, (0.99, 1))])
def test_normal_noise_has_deviation_one_and_uniform_noise_fills_its_range(noise, deviation, largest):
    model = dataclasses.replace(TINY, noise=noise, latent=32)
    latent = np.asarray(jax.jit(model.latents, static_argnums=1)(jax.random.key(0), 1000))
    np.testing.assert_allclose((latent.mean(), latent.std()), (0, deviation), atol=0.01)
    assert largest[0] < np.abs(latent).max() <= largest[1]


def test_the_label_changes_the_sound_and_its_score():
    model = dataclasses.replace(TINY, conditional=True, classes=3)
    params, weights = networks(model), sampled(model)
    picture, latent = uniform(2, *model.shape), uniform(2, model.latent)

    @jax.jit
    def labelled(label):
        score = model.score(params["critic"], picture, label, jax.random.key(0), Shard())
        return model.render(weights, latent, label), score

    (sound, score), (other_sound, other_score) = (labelled(jnp.full(2, k)) for k in (0, 1))
    assert float(jnp.min(jnp.abs(score - other_score))) > 1e-3
    assert float(jnp.min(jnp.max(jnp.abs(sound - other_sound), 1))) > 1e-3
    with pytest.raises(InputError, match="give a label"):
        model.render(weights, latent, None)


def test_bfloat16_computes_nearly_what_float32_computes():
    params, latent, seen = networks(TINY), uniform(4, TINY.latent), uniform(4, *TINY.shape)

    @jax.jit
    def both():
        models, label = (dataclasses.replace(TINY, dtype="bfloat16"), TINY), jnp.zeros(4, int)
        pictures = [model.drawn(sampled(TINY), latent, None) for model in models]
        return pictures, [model.score(params["critic"], seen, label, jax.random.key(0), Shard()) for model in models]

    pictures, scores = both()
    assert {x.dtype for x in (*pictures, *scores)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(*pictures, atol=0.05)
    np.testing.assert_allclose(*scores, atol=0.05 * float(jnp.max(jnp.abs(scores[1]))) + 0.01)
    assert float(jnp.max(jnp.abs(pictures[0] - pictures[1]))) > 0, "it did compute in another precision"
    assert float(jnp.max(jnp.abs(scores[0] - scores[1]))) > 0, "it did compute in another precision"


def test_stereo_clips_have_two_channels_from_end_to_end():
    model = DenseGAN(channels=2)
    state = jax.eval_shape(lambda: model.init(jax.random.key(0), statistics(model)))
    assert state.params["critic"]["dense_0"]["kernel"].shape == (128 * 128 * 2, 512)
    sound = jax.eval_shape(lambda s: model.render(model.weights(s), jnp.zeros((2, 100)), None), state)
    assert sound.shape == (2, model.segment, 2)


def test_there_are_as_many_layers_as_widths():
    model = dataclasses.replace(TINY, generator_widths=(5, 6, 7), critic_widths=())
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), statistics(model)).params)
    shapes = {net: {name: layer["kernel"].shape for name, layer in params[net].items()} for net in params}
    pixels = model.segment // model.hop * model.mels
    hidden = {"dense_0": (model.latent, 5), "dense_1": (5, 6), "dense_2": (6, 7)}
    assert shapes == {"generator": {**hidden, "picture": (7, pixels)}, "critic": {"dense": (pixels, 1)}}


@pytest.mark.parametrize("loss", ["dcgan", "lsgan"])
def test_a_step_with_batch_norm_is_finite_and_leaves_the_statistics_of_the_data_alone(loss):
    model = dataclasses.replace(TINY, loss=loss, batch_norm=True, critic_widths=(32, 16))
    devices = Devices("jit", 1)
    given = devices.replicate(start(model)), devices.shard(*batched(clips(model))), jax.random.key(1), None
    state, metrics = jax.device_get(devices.compile(model)(*given))
    assert all(map(np.isfinite, metrics.values()))
    assert metrics["critic/skipped"] == metrics["generator/skipped"] == 0
    moved = jax.tree.leaves(state.extra["statistics"])
    assert moved
    assert all(np.abs(leaf - leaf.round()).max() > 0 for leaf in moved), "running statistics start at 0 and 1"
    for name, value in statistics(model).items():
        np.testing.assert_array_equal(start(model).extra["measured"][name], value)
        np.testing.assert_array_equal(state.extra["measured"][name], value)
    assert model.weights(state)["measured"] is state.extra["measured"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"segment": 16000 + 1}, "hop is 128: it divides the segment, 16001"),
        ({"iterations": 0}, "iterations and every entry of"),
        ({"generator_widths": (256, 0)}, "every entry of generator_widths and critic_widths are at least 1"),
        ({"critic_widths": (0,)}, "every entry of generator_widths and critic_widths are at least 1"),
        ({"window": 256}, "of 128 mel bands hold no bin of a window of 256 samples"),
        ({"mels": 0}, "n_mels is 0"),
        ({"window": 1023}, "window 1023 less hop 128 is odd"),
        ({"latent": 0}, "latent is 0: it is at least 1"),
        ({"batch_size": 63, "n_critic": 5}, "batch_size 63 does not split into n_critic 5"),
        ({"loss": "wgan-gp", "batch_norm": True}, "the penalty is per example"),
    ],
)
def test_fields_that_do_not_fit_together_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        DenseGAN(**fields)
