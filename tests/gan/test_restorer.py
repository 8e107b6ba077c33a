"""The restorer: what it damages, what fills a gap before it learns anything, what is compared."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxaudio import zoo
from jaxaudio.core import Batch, InputError, Shard
from jaxaudio.gan.restorer import DAMAGES, LEAST, MEAN, compressed_distance, error_db, steady

TINY = zoo.load("restorer:tiny")
GAPS = dataclasses.replace(TINY, damages=("gap",))


def tones(rows: int, model=TINY) -> jax.Array:
    """Two sines each, 0.5 at most."""
    pitches = np.random.default_rng(0).uniform(300, 3000, (rows, 2, 1))
    time = np.arange(model.segment) / model.sample_rate
    return jnp.asarray(0.25 * np.sin(2 * np.pi * pitches * time).sum(1)[..., None], jnp.float32)


def batch(rows: int = 8) -> Batch:
    noise = np.random.default_rng(1).standard_normal((rows, TINY.segment, 1)).astype(np.float32)
    return Batch(tones(rows), jnp.zeros(rows, int), jnp.asarray(0.1 * noise))


def damaged(*damages: str, **fields):
    """A batch and what becomes of it."""
    model, given = dataclasses.replace(TINY, damages=damages, **fields), batch()
    harmed, gap = jax.jit(lambda b, key: model.damaged(b, key, Shard()))(given, jax.random.key(3))
    return given.wave, np.asarray(harmed), np.asarray(gap)


def test_losses_and_gradients_equal_pytorchs():
    torch = pytest.importorskip("torch", reason="the parity with PyTorch needs the extra `compare`")
    from benchmarks.peers import common, dac
    from benchmarks.peers import restorer as peer

    model = dataclasses.replace(TINY, damages=("noise",), channels=2, dilations=(1, 4))
    params = jax.jit(lambda: model.init(jax.random.key(0), {}).params)()
    moved = lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape)
    generator, critic = (jax.tree.map(moved, params[name]) for name in ("generator", "critic"))
    clean = jnp.concatenate([tones(3, model), 0.5 * tones(3, model)[:, ::-1]], -1)
    harmed = clean + 0.1 * jax.random.normal(jax.random.key(1), clean.shape)
    prepared, gap = {"filled": harmed, "gap": None, "hiss": None}, jnp.zeros(clean.shape[:2])

    @jax.jit
    def ours(generator, critic):
        made, slope = model.made(generator, **prepared), partial(jax.value_and_grad, has_aux=True)
        of_made = lambda known: partial(model.generator_loss, clean=clean, gap=gap, prepared=prepared, critic=known)
        judged = partial(model.critic_loss, pair=model.compared(clean, made, gap))
        alone, both = (slope(of_made(known))(generator) for known in (None, critic))
        return alone, both, slope(judged)(critic)

    as_torch = lambda x: torch.tensor(np.array(x)).mT
    net, judge = peer.Generator(model), peer.critic_of(model)
    common.load(net, jax.device_get(generator))
    dac.load(judge, jax.device_get(critic))
    made, sounds = net(as_torch(harmed)), as_torch(clean)
    theirs = [
        (net, common.load, peer.generator_loss(model, None, sounds, made)),
        (net, common.load, peer.generator_loss(model, judge, sounds, made)),
        (judge, dac.load, peer.critic_loss(judge, peer.heard(model, sounds), peer.heard(model, made))),
    ]
    for ((value, _), slopes), (module, load, loss) in zip(ours(generator, critic), theirs, strict=True):
        np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
        like = peer.Generator(model) if module is net else peer.critic_of(model)
        load(like, jax.device_get(slopes))
        found = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)
        largest = max(float(x.norm()) for x in found)
        for (name, own), x in zip(like.named_parameters(), found, strict=True):
            assert float((own.detach() - x).norm()) <= 1e-4 * float(x.norm()) + 1e-6 * largest, name


def test_the_pytorch_model_takes_a_step_and_refuses_what_it_lacks():
    pytest.importorskip("torch", reason="the parity with PyTorch needs the extra `compare`")
    from benchmarks.peers import restorer as peer

    model = dataclasses.replace(TINY, damages=("noise",))
    for stage in model.variants:
        assert np.isfinite(float(peer.trainer(model, False, stage)()))
    for fields in ({"dtype": "bfloat16"}, {"damages": ("noise", "gap")}):
        with pytest.raises(ValueError, match="takes noise off in float32"):
            peer.trainer(dataclasses.replace(model, **fields), False, "alone")


def test_noise_has_a_level_within_the_bounds():
    clean, harmed, gap = damaged("noise", snr_least=3.0, snr_most=9.0)
    power = lambda x: np.mean(np.square(x), (1, 2))
    snr_db = 10 * np.log10(power(clean) / power(harmed - clean))
    assert snr_db.min() >= 2.99
    assert snr_db.max() <= 9.01
    assert np.ptp(snr_db) > 1
    assert not gap.any()


def test_a_gap_is_silent_and_as_long_as_asked_for_and_nothing_else_changes():
    clean, harmed, gap = damaged("gap")
    shortest, longest = GAPS.gap_samples
    assert ((gap.sum(1) >= shortest) & (gap.sum(1) <= longest)).all()
    assert not harmed[gap > 0].any()
    np.testing.assert_array_equal(harmed[gap == 0], clean[gap == 0])


def test_several_damages_hit_about_half_of_the_examples_each():
    model = dataclasses.replace(TINY, damages=("clip", "gap"))
    rows = Batch(jnp.tile(tones(8), (32, 1, 1)), jnp.zeros(256, int))
    harmed, gap = jax.jit(lambda b: model.damaged(b, jax.random.key(0), Shard()))(rows)
    lost = np.asarray(gap).any(1)
    outside = np.where(np.asarray(gap)[..., None] > 0, 0, np.asarray(harmed) - np.asarray(rows.wave))
    cut = np.abs(outside).max((1, 2)) > 1e-4
    assert 0.35 < lost.mean() < 0.65
    assert 0.35 < cut.mean() < 0.65
    assert 0.1 < (lost & cut).mean() < 0.4


@pytest.mark.parametrize("name", sorted(set(DAMAGES) - {"gap"}))
def test_every_damage_alone_hits_every_example(name):
    clean, harmed, _ = damaged(name)
    assert (np.abs(harmed - clean).max((1, 2)) > 1e-3).all()
    assert np.isfinite(harmed).all()


def test_bandwidth_is_lost_by_filters_and_by_resampling_with_images():
    model, rate = dataclasses.replace(TINY, damages=("band",), segment=8192), TINY.sample_rate
    tone = lambda hz: np.sin(2 * np.pi * hz / rate * np.arange(8192))
    wave = jnp.asarray(np.tile((tone(700) + 0.02 * tone(7900))[:, None], (64, 1, 1)), jnp.float32)
    harmed, _ = jax.jit(lambda b: model.damaged(b, jax.random.key(0), Shard()))(Batch(wave, jnp.zeros(64, int)))
    spectra = np.abs(np.fft.rfft(np.asarray(harmed)[..., 0] * np.hanning(8192)))
    hertz = np.arange(4097) * rate / 8192
    level = lambda low, high: spectra[:, (hertz > low) & (hertz < high)].max(1) / spectra[:, hertz < 1000].max(1)
    images = level(1000, 7800) > 1e-3
    assert (level(7850, 7950)[~images] < 0.015).all(), "every one has lost of what it had at the top"
    assert 0.1 < images.mean() < 0.45


def test_a_gap_in_tones_is_filled_before_anything_is_learned():
    model = dataclasses.replace(GAPS, order=16)
    given, gap = tones(4), np.zeros((4, TINY.segment), np.float32)
    gap[0, 1000:1100], gap[1, 100:164], gap[2, -200:-150] = 1, 1, 1
    harmed = given * (1 - gap[..., None])
    filled = jax.vmap(model.filled)(harmed, jnp.asarray(gap))
    error = np.asarray(filled - given)
    assert np.abs(error).max() < 0.1
    np.testing.assert_array_equal(error[gap == 0], 0)


def test_what_is_outside_of_a_gap_stays_where_that_is_all_the_damage():
    params = jax.jit(lambda: GAPS.init(jax.random.key(0), {}).params["generator"])()
    given, gap = tones(2), np.zeros((2, TINY.segment), np.float32)
    gap[0, 1000:1100] = 1
    made = jax.jit(GAPS.restore)(params, given, jnp.asarray(gap), jax.random.key(1))
    np.testing.assert_array_equal(made[gap == 0], given[gap == 0])
    assert np.abs(np.asarray(made - given)[0, 1000:1100]).max() > 0


def test_the_share_of_a_frame_is_that_of_its_window():
    gap = np.zeros((1, 160), np.float32)
    gap[0, 50:75] = 1
    share = np.asarray(TINY.share(jnp.asarray(gap)))[0, :, 0]
    padded = np.pad(gap[0], TINY.size // 2)
    np.testing.assert_allclose(share, [padded[i : i + TINY.size].mean() for i in range(0, 161, TINY.hop)], atol=1e-6)


def test_the_floor_of_a_bin_is_the_least_of_its_moving_mean():
    power = np.random.default_rng(0).exponential(size=(1, 200, 3)).astype(np.float32)
    around = np.pad(power[0], ((MEAN // 2,) * 2, (0, 0)), "edge")
    mean = np.stack([around[i : i + MEAN].mean(0) for i in range(200)])
    wanted = [mean[max(0, i - LEAST // 2) : i + LEAST // 2].min(0) for i in range(200)]
    np.testing.assert_allclose(steady(jnp.asarray(power))[0], wanted, rtol=1e-5)


def test_the_error_is_measured_against_the_recording():
    real = tones(3)
    np.testing.assert_allclose(error_db(real, 1.1 * real), 10 * np.log10(0.01 + 1e-3), atol=1e-2)
    np.testing.assert_allclose(error_db(real, jnp.zeros_like(real)), 0, atol=1e-2)
    assert float(jnp.max(error_db(real, real))) <= -29.9
    silent = jnp.zeros_like(real)
    assert np.isfinite(error_db(silent, real)).all()
    where = jnp.zeros(real.shape[:2]).at[:, 100:200].set(1)
    halved = real.at[:, 100:200].multiply(0.5).at[:, 300:].multiply(0.0)
    np.testing.assert_allclose(error_db(real, halved, where), 20 * np.log10(0.5), atol=0.1)


def test_the_distance_of_spectra_is_none_of_a_sound_to_itself_and_knows_levels():
    real = tones(3)
    assert not np.asarray(compressed_distance(real, real, (64, 32))).any()
    near, far = (compressed_distance(real, gain * real, (64, 32)) for gain in (0.8, 0.4))
    assert (np.asarray(far) > 2 * np.asarray(near)).all()


def test_critics_come_in_after_the_first_phase_and_hear_what_they_should():
    assert [TINY.stage(i) for i in (0, TINY.warm_up - 1, TINY.warm_up)] == ["alone", "alone", "critics"]
    wave, gap = tones(2), np.zeros((2, TINY.segment), np.float32)
    gap[:, 700:750] = 1
    whole, _ = TINY.compared(wave, wave, jnp.asarray(gap))
    first = (TINY.segment - TINY.critic_segment) // 2
    np.testing.assert_array_equal(whole, wave[:, first : first + TINY.critic_segment])
    around, _ = GAPS.compared(wave, wave, jnp.asarray(gap))
    np.testing.assert_array_equal(around, wave[:, 700 - TINY.size // 2 :][:, : GAPS.longest + TINY.size])


def test_a_model_that_never_had_gaps_refuses_one():
    model = dataclasses.replace(TINY, damages=("noise",))
    assert model.longest == 0
    with pytest.raises(InputError, match="not trained to fill"):
        model.restore({}, tones(1), jnp.ones((1, TINY.segment)), jax.random.key(0))


def test_a_sound_of_no_whole_number_of_hops_is_refused():
    with pytest.raises(InputError, match="whole number of hops of 16"):
        TINY.restore({}, tones(1)[:, :-1], None, jax.random.key(0))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"damages": ()}, "name one or more"),
        ({"damages": ("rust",)}, "name one or more of noise"),
        ({"hop": 24}, "multiple of the hop"),
        ({"segment": 2040}, "whole number of hops"),
        ({"windows": (4096,)}, "windows is"),
        ({"critic_windows": ()}, "critic_windows is"),
        ({"snr_least": 30.0}, "from the least to the most"),
        ({"gap_shortest_ms": 9.0}, "a sample or more"),
        ({"gap_longest_ms": 121.0}, "at most 120 ms, a segment without a window on either side"),
        ({"damages": ("gap", "gap")}, "each once"),
        ({"batch_size": 7}, "an even number"),
        ({"order": 40}, "half of context"),
        ({"width": 0}, "at least 1"),
    ],
)
def test_fields_that_cannot_be_are_refused(fields, words):
    with pytest.raises(InputError, match=words):
        dataclasses.replace(TINY, **fields)
