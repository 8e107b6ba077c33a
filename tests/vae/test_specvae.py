"""What only the spectrogram VAE promises."""

import dataclasses
import math
from functools import cache

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from jaxaudio import zoo
from jaxaudio.core import Batch, InputError, Shard
from jaxaudio.runtime.parallel import Devices
from jaxaudio.vae.specvae import SpecVAE, warped
from jaxaudio.variational import divergence, factor_analysis, principal

STILL = {"shift": 0.0, "warp": 0.0, "level": 0.0}
TINY = dataclasses.replace(zoo.load("specvae:tiny"), **STILL, free_bits=0.0, beta_steps=0)


def normal(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def tones(model, n=40):
    """Tones in noise, of random pitch and level."""
    rng, time = np.random.default_rng(0), np.arange(model.segment)[None, :, None] / model.sample_rate
    pitch, level = rng.uniform(300, 3000, (n, 1, 1)), np.exp(rng.uniform(-3, -1, (n, 1, 1)))
    noise = 0.3 * rng.standard_normal((n, model.segment, model.channels))
    return jnp.asarray((level * (np.sin(2 * np.pi * pitch * time) + noise)).clip(-1, 1).astype(np.float32))


def batched(wave, size=20):
    wave = np.asarray(wave)
    return [Batch(wave[i : i + size], np.zeros(len(wave[i : i + size]), np.int32)) for i in range(0, len(wave), size)]


@cache
def measured(model):
    return model.measure(batched(np.asarray(tones(model))))


@cache
def start(model):
    """The state before the first step."""
    given = measured(model)
    return jax.jit(lambda: model.init(jax.random.key(0), given))()


@cache
def networks(model):
    """Of no training in particular: what starts at zero is not zero."""
    given = jax.device_get(start(model).params["autoencoder"])
    return jax.tree.map(lambda x: jnp.asarray(x + 0.05 * normal(*x.shape)), given)


@cache
def weights(model):
    return {**jax.jit(model.weights)(start(model)), "autoencoder": networks(model)}


def flat(model, wave):
    return np.asarray(jax.jit(model.picture)(wave), np.float64).reshape(len(wave), -1)


def gaussian(model):
    """The distribution that the model starts from, by its covariance matrix."""
    mean, components, noise = (np.asarray(measured(model)[k], np.float64) for k in ("mean", "components", "noise"))
    return multivariate_normal(mean, components.T @ components + np.diag(noise))


@pytest.mark.parametrize(("variance", "network"), [("one", "dense"), ("band", "conv"), ("bin", "dense")])
def test_training_starts_at_the_exact_likelihood_of_a_gaussian_model(variance, network):
    """Its posterior is exact, so that every importance weight is the likelihood itself."""
    model = dataclasses.replace(TINY, variance=variance, network=network)
    held = tones(model)[::3]
    bounds = jax.jit(model.bounds)(jax.jit(model.weights)(start(model)), held, jax.random.key(1))
    truth = -gaussian(model).logpdf(flat(model, held)) / model.shape[0]
    np.testing.assert_allclose(bounds["importance"], truth, rtol=1e-3, atol=1e-2)


def test_more_draws_raise_the_estimate_from_the_lower_bound_towards_the_likelihood():
    """A posterior that is planted twice too wide, of a Gaussian model, whose likelihood is known."""
    model = dataclasses.replace(TINY, variance="one")
    params, held = jax.jit(model.weights)(start(model)), tones(model)
    encoder = {**params["autoencoder"]["encoder"]}
    wider = jnp.repeat(jnp.array([0.0, math.log(2)]), model.latent)  # before a softplus far below zero: a factor of 2
    encoder["last"] = {**encoder["last"], "bias": encoder["last"]["bias"] + wider}
    params = {**params, "autoencoder": {**params["autoencoder"], "encoder": encoder}}
    truth = -gaussian(model).logpdf(flat(model, held)).mean() / model.shape[0]
    at = lambda draws: jax.jit(dataclasses.replace(model, draws=draws).bounds)(params, held, jax.random.key(1))
    few, many = at(1), at(2000)
    bound, importance = float(many["bound"].mean()), float(many["importance"].mean())
    assert bound > truth + 0.2, "the planted fault shows"
    assert importance == pytest.approx(truth, abs=0.02)
    assert float(few["importance"].mean()) == pytest.approx(bound, abs=0.1), "one draw is the lower bound"
    np.testing.assert_allclose(many["bound"], many["distortion"] + many["divergence"], rtol=1e-5)


@pytest.mark.parametrize("variance", ["fixed", "one", "band", "bin"])
def test_the_likelihood_is_a_density_of_log_mels_in_nats(variance):
    model = dataclasses.replace(TINY, variance=variance, deviation=0.7)
    latent, held = jnp.asarray(normal(5, model.latent)), tones(model, 5)
    params, given = networks(model), measured(model)
    mean, deviation = jax.jit(model.likelihood)(params, given, latent)
    picture = jax.jit(model.picture)(held)
    density = norm(np.asarray(mean, np.float64), np.asarray(deviation, np.float64)).logpdf(picture).sum((1, 2, 3))
    found = jax.jit(model.log_likelihood)(params, given, picture, latent)
    np.testing.assert_allclose(found, density, rtol=1e-4)
    varying = {"fixed": (), "one": (), "band": (2,), "bin": (0, 1, 2)}[variance]
    moving = tuple(i for i in range(4) if deviation.shape[i] > 1 and np.ptp(np.asarray(deviation), i).max() > 0)
    assert moving == varying
    assert np.min(deviation) >= model.least
    if variance == "fixed":
        np.testing.assert_allclose(deviation, 0.7, rtol=1e-6)


def test_the_picture_is_librosas():
    model = dataclasses.replace(TINY, channels=2)
    wave = tones(model, 3)
    edge = (model.window - model.frame_hop) // 2
    padded = np.pad(np.asarray(wave, np.float64), ((0, 0), (edge, edge), (0, 0)), "reflect")
    options = {"n_fft": model.window, "hop_length": model.frame_hop, "center": False}
    magnitude = np.abs(librosa.stft(padded.transpose(0, 2, 1), **options))
    filters = librosa.filters.mel(sr=model.sample_rate, n_fft=model.window, n_mels=model.mels)
    expected = np.log(np.maximum(filters @ magnitude, 1e-5)).transpose(0, 3, 2, 1)
    np.testing.assert_allclose(model.picture(wave), expected, atol=1e-4)


def test_the_loss_is_the_negative_lower_bound_with_its_weight_and_its_free_bits():
    """On the same draws: each part scales as it should."""
    wave, key = tones(TINY, 8), jax.random.key(2)

    @cache
    def terms(step=0, **fields):
        model, extra = dataclasses.replace(TINY, **fields), start(TINY).extra
        given = {"extra": extra, "step": jnp.int32(step), "wave": wave, "key": key, "shard": Shard()}
        return jax.jit(lambda network: model.loss(network, **given))(networks(TINY))[1]

    given = jax.jit(lambda p: TINY.posterior(p, measured(TINY), TINY.picture(wave)))(networks(TINY))
    mean, deviation = np.asarray(given.mean, np.float64), np.asarray(given.deviation, np.float64)
    spent = ((mean**2 + deviation**2 - 1) / 2 - np.log(deviation)).mean((0, 1))
    frames = TINY.shape[0]
    assert float(terms()["divergence"]) == pytest.approx(spent.sum() / frames, rel=1e-4)
    middle = float(np.sort(spent)[1:3].mean())
    paid = float(terms(free_bits=middle)["divergence"])
    assert paid == pytest.approx(np.maximum(spent, middle).sum() / frames, rel=1e-4)
    assert float(terms(free_bits=middle)["components"]) == 2
    warm = [float(terms(beta_steps=100, beta_first=0.01, step=step)["divergence"]) for step in (0, 50, 100)]
    np.testing.assert_allclose(warm, spent.sum() / frames * np.array([0.01, 0.1, 1]), rtol=1e-3)
    assert float(terms()["distortion"]) == pytest.approx(float(terms(free_bits=middle)["distortion"]), rel=1e-5)


def test_a_free_component_has_no_gradient_of_its_divergence():
    wave, key = tones(TINY, 8), jax.random.key(2)

    def slope(free_bits):
        model = dataclasses.replace(TINY, free_bits=free_bits)
        given = {"extra": start(TINY).extra, "step": jnp.int32(0), "wave": wave, "key": key, "shard": Shard()}
        part = lambda network: model.loss(network, **given)[1]["divergence"]
        return jax.tree.leaves(jax.jit(jax.grad(part))(networks(TINY))["encoder"])

    assert any(np.abs(x).max() > 0 for x in slope(0.0))
    assert all(np.abs(x).max() == 0 for x in slope(100.0))


def test_which_components_are_free_is_decided_by_all_devices():
    """Where the two halves of a batch, alone, would decide otherwise."""
    halves = jnp.stack([tones(TINY, 4), 0.01 * tones(TINY, 4)])
    given = lambda wave: TINY.posterior(networks(TINY), measured(TINY), TINY.picture(wave))
    spent = lambda wave: jnp.mean(divergence(given(wave)), (0, 1))
    loud, quiet = np.asarray(jax.jit(jax.vmap(spent))(halves))
    mean, least = (loud + quiet) / 2, np.minimum(loud, quiet)
    at = np.argmax((mean - least) / mean)
    model = dataclasses.replace(TINY, free_bits=float((mean[at] + least[at]) / 2))
    given = {"extra": start(TINY).extra, "step": jnp.int32(0), "key": jax.random.key(2), "shard": Shard("devices")}
    paid = lambda wave: model.loss(networks(TINY), wave=wave, **given)[1]["components"]
    each = jax.jit(jax.vmap(paid, axis_name="devices"))(halves)
    assert each.tolist() == [np.sum(mean > model.free_bits)] * 2
    assert np.sum(loud > model.free_bits) != np.sum(quiet > model.free_bits)


def test_encoding_gives_principal_components_and_decoding_their_sound():
    """After a few steps, of two clips of three segments: the rotation changes neither sound nor variance."""
    model, devices = TINY, Devices("jit", 1)
    step, state = devices.compile(model), devices.replicate(jax.device_get(start(model)))
    wave = tones(model, model.batch_size)
    for i in range(60):
        batch = devices.shard(batched(wave, model.batch_size)[0])
        state, _ = step(state, batch, jax.random.key(i), None)
    params = jax.tree.map(jnp.asarray, jax.device_get(jax.jit(model.weights)(state)))
    long = wave[:6].reshape(2, -1, model.channels)
    latent = jax.jit(model.encode)(params, long)
    assert latent.shape == (2, 3, model.latent)
    every = np.asarray(jax.jit(model.encode)(params, wave))[:, 0]
    covariance, spread = np.cov(every.T, bias=True), np.asarray(model.spread(params))
    assert (np.diff(spread) <= 0).all()
    np.testing.assert_allclose(np.diag(covariance), spread, rtol=0.3, atol=0.02)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 0.15 * spread[0]
    posterior = jax.jit(
        lambda params: model.posterior(params["autoencoder"], params["measured"], model.picture(wave[:1]))
    )
    raw = posterior(params).mean[:, 0]
    np.testing.assert_allclose(principal(params["moments"]).restore(jnp.asarray(every[:1, None]))[:, 0], raw, atol=1e-4)
    sound = jax.jit(model.decode)(params, jnp.asarray(every[:1, None]), jax.random.key(0))
    np.testing.assert_allclose(sound, jnp.clip(jax.jit(model.sound)(params, raw[:, None]), -1, 1), atol=0.05)


def test_missing_components_take_their_mean():
    params, latent = weights(TINY), jnp.asarray(normal(2, 1, TINY.latent))
    decode = jax.jit(lambda latent: TINY.decode(params, latent, jax.random.key(0)))
    part, filled = decode(latent[..., :2]), decode(latent.at[..., 2:].set(0))
    np.testing.assert_allclose(part, filled, atol=1e-5)
    assert float(jnp.max(jnp.abs(part - decode(latent)))) > 1e-3


def test_nothing_beyond_the_reach_bears_on_a_segments_sound_and_what_is_within_does():
    """By one program on latents of one length: elsewhere rounding may turn the phases of bins that are nearly empty."""
    model = dataclasses.replace(TINY, iterations=2)
    params, latent = weights(model), jnp.asarray(normal(1, 16, model.latent))
    decode, reach, middle = jax.jit(model.decode), model.reach, slice(8 * model.hop, 9 * model.hop)
    sound = lambda latent: np.asarray(decode(params, latent, jax.random.key(0)))[:, middle]
    beyond = latent.at[:, : 8 - reach].add(1.0).at[:, 9 + reach :].add(-1.0)
    np.testing.assert_allclose(sound(beyond), sound(latent), atol=1e-6)
    assert np.abs(sound(latent.at[:, 7].add(1.0)) - sound(latent)).max() > 1e-3


@pytest.mark.parametrize("network", ["dense", "conv"])
def test_silence_and_clipping_noise_give_finite_bounds_latents_and_sounds(network):
    model = dataclasses.replace(TINY, network=network, channels=2)
    extremes = np.stack([np.zeros((model.segment, 2), np.float32), np.sign(normal(model.segment, 2))])
    bounds, encode, decode = (jax.jit(each) for each in (model.bounds, model.encode, model.decode))
    init = jax.jit(lambda measured: model.weights(model.init(jax.random.key(0), measured)))
    for seen in (tones(model), np.zeros(tones(model).shape, np.float32), np.repeat(extremes[1:], 40, 0)):
        params = init(model.measure(batched(seen)))
        for value in bounds(params, extremes, jax.random.key(0)).values():
            assert np.isfinite(value).all()
        latent = encode(params, extremes)
        assert np.isfinite(latent).all()
        for scale in (1, 100):
            sound = decode(params, scale * latent, jax.random.key(0))
            assert sound.shape == extremes.shape
            assert np.isfinite(sound).all()
            assert np.abs(sound).max() <= 1


def test_a_generated_sound_that_would_be_too_loud_is_made_softer_as_a_whole():
    params, latent = weights(TINY), jnp.asarray(normal(3, TINY.latent))
    loud = {**params, "measured": {**params["measured"], "mean": params["measured"]["mean"] + 4}}
    both = jax.jit(lambda given: (TINY.sound(given, latent[:, None]), TINY.render(given, latent, None)))
    for given, limited in ((params, False), (loud, True)):
        sound, rendered = both(given)
        peak = jnp.max(jnp.abs(sound), (1, 2), keepdims=True)
        assert bool(jnp.all(peak > 1)) == limited
        np.testing.assert_allclose(rendered, sound / jnp.maximum(peak, 1), atol=1e-5)


def test_augmentation_moves_each_clip_by_its_own_key():
    model = dataclasses.replace(TINY, shift=0.25, segment=1024)
    wave = tones(model, 6)
    keys = Shard().keys(jax.random.key(0), 6)
    moved = np.asarray(jax.jit(model.augmented)(wave, keys))
    alone = np.asarray(jax.jit(model.augmented)(wave[3:4], keys[3:4]))
    np.testing.assert_allclose(alone[0], moved[3], atol=1e-4)
    np.testing.assert_array_equal(np.asarray(TINY.augmented(tones(TINY, 6), keys)), TINY.picture(tones(TINY, 6)))
    assert np.abs(moved - model.picture(wave)).max() > 0.1
    louder = dataclasses.replace(model, shift=0.0, level=0.5)
    difference = np.asarray(jax.jit(louder.augmented)(wave, keys)) - np.asarray(model.picture(wave))
    np.testing.assert_allclose(difference, np.broadcast_to(difference[:, :1, :1], difference.shape), atol=1e-3)
    assert 0.05 < np.abs(difference[:, 0, 0, 0]).max() <= 0.5


def test_a_warp_hears_frequencies_that_many_times_as_high():
    filters = SpecVAE().filters
    np.testing.assert_array_equal(warped(filters, 1.0), filters)
    for factor in (0.9, 1.1):
        bands = np.argmax(warped(filters, factor)[99]), np.argmax(filters[round(99 / factor)])
        assert bands[0] == bands[1] != np.argmax(filters[99])
        assert (warped(filters, factor).sum(0) > 0).all()
        assert warped(filters, factor)[-2:].argmax(0)[-1] == filters[-2:].argmax(0)[-1], "the highest stay"


def test_factor_analysis_has_a_diagonal_posterior_and_shares_variances_by_the_period():
    rows = np.random.default_rng(0).standard_normal((300, 24)) @ np.random.default_rng(1).standard_normal((24, 24))
    for period in (1, 6, 24):
        found = factor_analysis(rows, 4, period, 0.1, 10)
        scaled = found["components"] / found["noise"] @ found["components"].T
        np.testing.assert_allclose(scaled, np.diag(np.diag(scaled)), atol=1e-8 * scaled.max())
        assert (np.diff(np.diag(scaled)) < 0).all()
        assert len(np.unique(found["noise"])) == period
    assert factor_analysis(rows, 4, 24, 3.0, 10)["noise"].min() == 9


@pytest.mark.parametrize(
    ("network", "variance"), [("dense", "fixed"), ("conv", "one"), ("conv", "band"), ("dense", "bin"), ("conv", "bin")]
)
def test_loss_and_gradients_equal_pytorchs(network, variance):
    torch = pytest.importorskip("torch", reason="the parity with PyTorch needs the extra `compare`")
    from benchmarks.peers import specvae as peer

    model = dataclasses.replace(TINY, network=network, variance=variance, channels=2, free_bits=0.5)
    params, wave, n = networks(model), tones(model, 6), 6
    autoencoder = peer.Autoencoder(model, peer.measured_of(measured(model)))
    peer.load(autoencoder, jax.tree.map(np.asarray, params))
    key = jax.random.key(3)
    loss = lambda p: model.loss(p, extra=start(model).extra, step=jnp.int32(0), wave=wave, key=key, shard=Shard())[0]
    ours, slopes = jax.jit(jax.value_and_grad(loss))(params)
    keys = jax.vmap(lambda each: jax.random.fold_in(each, 1))(Shard().keys(key, n))
    noise = jax.vmap(lambda each: jax.random.normal(each, (1, model.latent)))(keys)[:, 0]
    picture = peer.picture(torch.tensor(np.array(wave)).mT, torch.tensor(model.filters), model.window, model.frame_hop)
    theirs = autoencoder(picture, torch.tensor(np.array(noise)), 1.0)
    theirs.backward()
    assert float(ours) == pytest.approx(theirs.item(), rel=1e-4)
    like = peer.Autoencoder(model, peer.measured_of(measured(model)))
    peer.load(like, jax.tree.map(np.asarray, slopes))
    for a, b in zip(like.parameters(), autoencoder.parameters(), strict=True):
        scale = float(b.grad.abs().max())
        np.testing.assert_allclose(a.detach(), b.grad, rtol=1e-2, atol=1e-4 * scale + 1e-6)


def test_the_pytorch_model_moves_clips_alike_takes_a_step_and_refuses_what_it_lacks():
    torch = pytest.importorskip("torch", reason="the parity with PyTorch needs the extra `compare`")
    from benchmarks.peers import specvae as peer

    moving = dataclasses.replace(TINY, shift=0.1, warp=0.05, level=0.2)
    assert np.isfinite(float(peer.trainer(moving, False)()))
    wave = np.arange(10, dtype=np.float32).reshape(1, 1, 10)
    there = peer.moved(torch.tensor(wave), torch.tensor([0]), torch.tensor([0.0]), 2)
    np.testing.assert_array_equal(there[0, 0], [2, 1, 0, 1, 2, 3, 4, 5, 6, 7])
    for fields in ({"dtype": "bfloat16"}, {"beta_steps": 5}, {"network": "conv", "stages": 4}):
        with pytest.raises(ValueError, match="the PyTorch SpecVAE"):
            peer.trainer(dataclasses.replace(TINY, **fields), False)


def test_bfloat16_computes_nearly_what_float32_computes():
    wave = tones(TINY, 4)
    for network in ("dense", "conv"):
        model = dataclasses.replace(TINY, network=network)
        given = weights(model)
        half = dataclasses.replace(model, dtype="bfloat16")
        exact, rough = (jax.jit(m.bounds)(given, wave, jax.random.key(0))["bound"] for m in (model, half))
        assert rough.dtype == jnp.float32
        assert 0 < float(jnp.max(jnp.abs(exact - rough))) < 0.05 * float(jnp.max(jnp.abs(exact)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"segment": 16001}, "frame_hop is 250: it divides the segment, 16001"),
        ({"window": 1023}, "window 1023 less frame_hop 250 is odd"),
        ({"mels": 600}, "of 600 mel bands hold no bin"),
        ({"latent": 4096}, "latent is 4096: a clip has 4096 numbers"),
        ({"draws": 0}, "draws is 0: it is at least 1"),
        ({"free_bits": -1.0}, "free_bits is -1.0: it is at least 0"),
        ({"least": 0.0}, "least is 0.0: it is above 0"),
        ({"warp": 0.3}, "shift is 0.1 and warp 0.3"),
        ({"segment": 250}, "a signal of 250 samples"),
    ],
)
def test_fields_that_do_not_fit_together_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        SpecVAE(**fields)


def test_a_sound_of_no_whole_number_of_segments_is_refused():
    with pytest.raises(InputError, match="300 samples are no whole number of segments of 256"):
        TINY.encode(weights(TINY), jnp.zeros((1, 300, 1)))
