"""What only SEGAN promises."""

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
from jaxaudio.dsp.degrade import at_snr
from jaxaudio.gan.segan import SEGAN, VirtualNorm, deemphasised, emphasised, pair, si_sdr
from jaxaudio.metrics import pairs
from jaxaudio.runtime.parallel import Devices
from tests.test_models import same_moments

TINY = zoo.load("segan:tiny")


def normal(*shape, scale=0.3):
    return scale * np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def sounds(model, rows, hops=1):
    shape = rows, hops * model.segment, model.channels
    return Batch(normal(*shape), np.zeros(rows, np.int32), normal(*shape, scale=0.1)[::-1])


@cache
def started(model):
    """Weights are not what they start from: a mistake in a bias or a slope would not show, and all is next to still."""
    state = jax.device_get(jax.jit(lambda: model.init(jax.random.key(0), model.measure([sounds(model, 8)])))())
    params = jax.tree.map(lambda x: 3 * x + normal(*x.shape, scale=0.05), state.params)
    return jax.tree.map(jnp.asarray, state._replace(params=params))


@cache
def restorer(model):
    """Its `restore`, compiled, on the weights above."""
    params, program = model.weights(started(model)), jax.jit(model.restore)
    return lambda wave, key, first=0: program(params, jnp.asarray(wave), None, key, first)


def test_both_losses_and_gradients_equal_pytorchs():
    torch = pytest.importorskip("torch", reason="the parity with PyTorch needs the extra `compare`")
    from benchmarks.peers import common
    from benchmarks.peers import segan as peer

    model, rows = dataclasses.replace(TINY, channels=2, widths=(3, 5)), 4
    state = started(model)
    clean, noisy = (jnp.asarray(normal(rows, model.segment, 2, scale=scale)) for scale in (0.3, 0.5))
    z = jnp.asarray(normal(rows, model.frames, 5, scale=1.0))
    given = {"clean": clean, "noisy": noisy, "reference": state.extra["reference"]}

    @jax.jit
    def ours(params):
        fake = model.cleaned(params["generator"], noisy, z)
        losses = {
            "critic": lambda c: model.critic_loss(c, fake=fake, **given)[0],
            "generator": lambda g: model.generator_loss(g, critic=params["critic"], z=z, **given)[0],
        }
        return {name: jax.value_and_grad(loss)(params[name]) for name, loss in losses.items()}, fake

    updates, fake = ours(state.params)
    modules = {
        "generator": lambda: peer.Generator(model.widths, 2),
        "critic": lambda: peer.Critic(model.widths, 2, model.segment),
    }
    nets = {name: make() for name, make in modules.items()}
    for name, net in nets.items():
        common.load(net, jax.tree.map(np.asarray, state.params[name]))
    as_torch = lambda x: torch.tensor(np.array(x)).mT
    clean, noisy, reference = (as_torch(x) for x in given.values())
    made = nets["generator"](noisy, as_torch(z))
    np.testing.assert_allclose(fake, made.mT.detach(), rtol=1e-4, atol=1e-5)
    theirs = {
        "critic": peer.critic_loss(nets["critic"], clean, made.detach(), noisy, reference),
        "generator": peer.generator_loss(nets["critic"], clean, made, noisy, reference, model.l1),
    }
    for name, net in nets.items():
        loss, gradient = updates[name]
        np.testing.assert_allclose(loss, theirs[name].item(), rtol=1e-5)
        found = torch.autograd.grad(theirs[name], list(net.parameters()))
        like = modules[name]()
        common.load(like, jax.tree.map(np.asarray, gradient))
        largest = max(float(x.norm()) for x in found)
        for (label, a), b in zip(like.named_parameters(), found, strict=True):
            assert float((a.detach() - b).norm()) <= 1e-4 * float(b.norm()) + 1e-6 * largest, f"{name} {label}"


def test_the_pytorch_model_takes_a_step_and_refuses_what_it_lacks():
    pytest.importorskip("torch", reason="the parity with PyTorch needs the extra `compare`")
    from benchmarks.peers import common
    from benchmarks.peers import segan as peer

    assert all(np.isfinite(float(loss)) for loss in peer.trainer(TINY, False)())
    with pytest.raises(ValueError, match="computes in float32"):
        peer.trainer(dataclasses.replace(TINY, dtype="bfloat16"), False)
    with pytest.raises(ValueError, match="parameters are named"):
        common.load(peer.Critic(TINY.widths, 1, TINY.segment), {"down_0": {}})


def test_pmap_sees_the_gradients_of_jit(monkeypatch):
    """By an optimiser whose moment is the gradient: that of RMSprop starts at 1, beside which a gradient is small."""
    monkeypatch.setattr(SEGAN, "optimizer", optax.sgd(1e-3, momentum=0.9))
    batch, after = sounds(TINY, TINY.batch_size), []
    for how in ("jit", "pmap"):
        devices = Devices(how, 4)
        state = started(TINY)
        state = state._replace(opt={name: TINY.optimizer.init(params) for name, params in state.params.items()})
        state = devices.replicate(jax.device_get(state))
        state, _ = devices.compile(TINY)(state, devices.shard(batch), jax.random.key(1), None)
        after.append(jax.device_get(state))
    same_moments(*after)
    assert all(float(optax.tree.norm(after[0].opt[name])) > 1e-3 for name in after[0].opt)


def test_virtual_batch_norm_counts_an_example_as_one_more_of_the_reference():
    """With as many frames each, its statistics are those of the reference and the example in one batch."""
    x, reference = normal(4, 16, 3) + 0.5, normal(5, 16, 3) - 0.2
    layer = VirtualNorm()
    variables = layer.init(jax.random.key(0), jnp.asarray(x), jnp.asarray(reference))
    ours, ours_of_reference = layer.apply(variables, jnp.asarray(x), jnp.asarray(reference))
    scale, bias = (np.asarray(variables["params"][name]) for name in ("scale", "bias"))
    assert 0 < np.std(scale) < 0.1
    normalised = lambda x, all_of_them: (
        (x - all_of_them.mean((0, 1))) / np.sqrt(all_of_them.var((0, 1)) + 1e-5) * scale + bias
    )
    for row in range(4):
        expected = normalised(x[row], np.concatenate([reference, x[row : row + 1]]))
        np.testing.assert_allclose(ours[row], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours_of_reference, normalised(reference, reference), rtol=1e-4, atol=1e-5)


def test_a_score_does_not_depend_on_the_other_rows_but_on_the_reference():
    state = started(TINY)
    pairs_, reference = jnp.asarray(normal(4, TINY.segment, 2)), state.extra["reference"]
    score = jax.jit(TINY.score)
    all_four = score(state.params["critic"], pairs_, reference)
    np.testing.assert_allclose(score(state.params["critic"], pairs_[1:3], reference), all_four[1:3], rtol=1e-4)
    assert float(jnp.max(jnp.abs(score(state.params["critic"], pairs_, 2 * reference) - all_four))) > 1e-3


def test_the_reference_is_the_first_recordings_with_noise_at_the_snrs_in_turn():
    model = dataclasses.replace(TINY, reference=5)
    batch, rest = sounds(model, 3), sounds(model, 4)
    found = model.measure([batch, rest])["reference"]
    assert found.shape == (5, model.segment, 2)
    waves, noises = (
        jnp.concatenate([one, other])
        for one, other in zip((batch.wave, batch.noise), (rest.wave, rest.noise), strict=True)
    )
    for i, snr in enumerate((15.0, 10.0, 5.0, 0.0, 15.0)):
        noisy = at_snr(waves[i], noises[i], snr)
        expected = emphasised(pair(waves[i : i + 1], noisy[None]), 0.95)[0]
        np.testing.assert_allclose(found[i], expected, atol=1e-5)
    few = model.measure([batch._replace(wave=batch.wave[:2], noise=batch.noise[:2])])["reference"]
    np.testing.assert_allclose(few[2, :, 0], few[0, :, 0])
    assert model.measure(())["reference"].shape == found.shape
    assert float(jnp.std(model.measure(())["reference"])) > 0.01


def test_emphasis_is_the_filter_and_de_emphasis_its_inverse():
    wave = normal(2, 3000, 1)
    there = emphasised(jnp.asarray(wave), 0.95)
    np.testing.assert_allclose(there, scipy.signal.lfilter([1, -0.95], [1], wave, axis=1), atol=1e-6)
    back = deemphasised(there, 0.95)
    np.testing.assert_allclose(back, wave, atol=1e-5)
    expected = scipy.signal.lfilter([1], [1, -0.95], wave, axis=1)
    np.testing.assert_allclose(deemphasised(jnp.asarray(wave), 0.95), expected, atol=1e-5)
    np.testing.assert_array_equal(deemphasised(jnp.asarray(wave), 0.0), wave)


def test_training_adds_the_noise_at_each_of_the_snrs():
    batch = jax.tree.map(jnp.asarray, sounds(TINY, 64))
    noisy, gap = jax.jit(lambda batch, key: TINY.damaged(batch, key, Shard()))(batch, jax.random.key(0))
    power = lambda x: np.mean(np.square(np.asarray(x, np.float64)), (1, 2))
    found = 10 * np.log10(power(batch.wave) / power(noisy - batch.wave))
    np.testing.assert_allclose(found, np.round(found), atol=0.01)
    counts = dict(zip(*np.unique(np.round(found), return_counts=True), strict=True))
    assert counts.keys() == {0, 5, 10, 15}
    assert min(counts.values()) > 4
    assert not gap.any()


def test_a_long_sound_is_restored_in_windows_that_fade_into_each_other_between_the_two_filters():
    key, wave, clean, hop = jax.random.key(3), sounds(TINY, 2, 2).wave, jax.jit(TINY.cleaned), TINY.hop
    whole = np.asarray(restorer(TINY)(wave, key, 5))
    emphatic = np.pad(emphasised(jnp.asarray(wave), 0.95), ((0, 0), (hop, hop), (0, 0)))
    joined, fade = np.zeros_like(emphatic), np.hanning(2 * TINY.segment + 1)[1::2].reshape(1, -1, 1)
    for i in range(5):
        draws = [jax.random.fold_in(jax.random.fold_in(key, row), 5 + i) for row in range(2)]
        z = jnp.stack([jax.random.normal(draw, (TINY.frames, TINY.widths[-1])) for draw in draws])
        window = slice(i * hop, i * hop + TINY.segment)
        joined[:, window] += fade * clean(started(TINY).params["generator"], jnp.asarray(emphatic[:, window]), z)
    expected = scipy.signal.lfilter([1], [1, -0.95], joined[:, hop:-hop], axis=1)
    np.testing.assert_allclose(whole, np.clip(expected, -1, 1), atol=1e-4)
    assert np.std(whole) > 0.01, "too quiet to tell"


def test_z_changes_the_sound():
    one, other = (restorer(TINY)(sounds(TINY, 2, 3).wave, jax.random.key(seed)) for seed in (0, 1))
    assert float(jnp.max(jnp.abs(one - other))) > 1e-3


def test_the_criterion_is_the_si_sdr_that_restoring_loses():
    """By the scorecard's own SI-SDR; silence has one too."""
    clean, estimate = jnp.asarray(normal(3, 400, 1)), jnp.asarray(normal(3, 401, 1)[:, 1:] + normal(3, 400, 1) + 0.2)
    expected = pairs.si_sdr(clean[..., 0], estimate[..., 0], 16000)
    np.testing.assert_allclose(si_sdr(clean, estimate), expected, rtol=1e-4)
    np.testing.assert_allclose(si_sdr(clean, 7 * estimate), expected, rtol=1e-4)
    assert np.isfinite(si_sdr(0 * clean, estimate)).all()
    assert np.isfinite(si_sdr(0 * clean, 0 * clean)).all()
    batch = jax.tree.map(jnp.asarray, sounds(TINY, 4))
    examine = jax.jit(TINY.evaluate)
    scores, again = (examine(started(TINY), batch, jax.random.key(0)) for _ in range(2))
    np.testing.assert_allclose(scores["lost_db"], scores["noisy_si_sdr"] - scores["si_sdr"])
    np.testing.assert_array_equal(scores["si_sdr"], again["si_sdr"])
    assert float(jnp.min(scores["noisy_si_sdr"])) > -1


def test_the_step_keeps_the_form_of_its_state_in_bfloat16_and_the_reference():
    model = dataclasses.replace(zoo.load("segan:paper"), dtype="bfloat16")
    state = jax.eval_shape(lambda: model.init(jax.random.key(0), model.measure(())))
    wave = jax.ShapeDtypeStruct((4, model.segment, 1), jnp.float32)
    batch = Batch(wave, jax.ShapeDtypeStruct((4,), jnp.int32), wave)
    step = lambda s, b, k: model.train_step(s, b, k, Shard(), None)
    after, metrics = jax.eval_shape(step, state, batch, jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert all(value.shape == () for value in metrics.values())
    assert state.extra["reference"].shape == (100, 16384, 2)
    assert (model.frames, model.widths[-1]) == (8, 1024), "z of the paper"


def test_bfloat16_computes_nearly_what_float32_computes():
    low, wave, key = dataclasses.replace(TINY, dtype="bfloat16"), sounds(TINY, 2, 3).wave, jax.random.key(0)
    one, other = (restorer(model)(wave, key) for model in (low, TINY))
    assert one.dtype == jnp.float32
    assert 0 < float(jnp.std(one - other)) < 0.05 * float(jnp.std(other))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"segment": 260}, "it is a multiple of 8"),
        ({"segment": 0}, "it is a multiple of 8"),
        ({"widths": ()}, "widths is"),
        ({"widths": (4, 0)}, "widths is"),
        ({"snrs": ()}, "snrs is empty"),
        ({"emphasis": 0.99}, "emphasis is 0.99"),
        ({"reference": 0}, "reference is 0"),
    ],
)
def test_fields_that_fit_nothing_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(TINY, **fields)


def test_a_gap_and_a_part_of_a_window_are_refused():
    params, wave = TINY.weights(started(TINY)), jnp.asarray(sounds(TINY, 1).wave)
    with pytest.raises(InputError, match="fills no gaps"):
        TINY.restore(params, wave, jnp.zeros(wave.shape[:2]), jax.random.key(0))
    for part in (wave[:, :100], wave[:, :0]):
        with pytest.raises(InputError, match="no whole number of hops of 128"):
            TINY.restore(params, part, None, jax.random.key(0))
