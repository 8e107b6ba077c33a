"""The Descript codec: against `transformers` and PyTorch, its codes, bottlenecks, streaming and reach."""

import dataclasses
import json
import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.compression import context_bits
from jaxaudio import zoo
from jaxaudio.core import Batch, InputError, Shard
from jaxaudio.data import bitstream
from jaxaudio.nn.quantize import follow, start
from jaxaudio.runtime.parallel import Devices
from jaxaudio.vae.dac import DAC, Autoencoder, replay, tallied
from tests.commands import run
from tests.seldom import seldom
from tests.test_models import same_moments

TINY = zoo.load("dac:tiny")
STAGES = {"encoder_rates": (2, 3), "decoder_rates": (3, 2), "segment": 1026, "dilations": (1, 3, 9)}
DEEP = dataclasses.replace(TINY, **STAGES, encoder_widths=(3, 6, 12), decoder_widths=(12, 6, 3), latent=12)
AVERAGE = dataclasses.replace(TINY, bottleneck="average")
VAE = dataclasses.replace(TINY, bottleneck="vae")
OOBLECK = {"bottleneck": "vae", "activation": "snake_beta", "bounded": False, "critic": "encodec", "stft": 1.0}


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


@cache
def program(model, name):
    """A method of it."""
    return jax.jit(getattr(model, name))


def sound(model, hops, rows=2):
    return jnp.asarray(0.3 * normal(rows, hops * model.hop, model.channels))


@cache
def codec(model):
    return jax.jit(lambda p, w: model.decode(p, model.encode(p, w), jax.random.key(0)))


def through(model, params, wave):
    """Encoded and decoded."""
    return codec(model)(params, wave)


@pytest.mark.parametrize("rates", [(2, 4), (2, 3)])
def test_codes_and_sound_are_those_of_transformers(rates):
    """A stride that is odd leaves the original's sound shorter, and its last samples different."""
    pytest.importorskip("transformers.models.dac.modeling_dac", reason="transformers is not installed")
    torch = pytest.importorskip("torch")
    from benchmarks.peers import transformers_dac as peer

    size = {"encoder_rates": rates, "decoder_rates": rates[::-1], "segment": 1008}
    model = dataclasses.replace(DEEP, **size, codebooks=3)
    params, wave = weights(model), sound(model, 60)
    theirs = peer.original(model, params)
    with torch.inference_mode():
        given = torch.from_numpy(np.moveaxis(np.asarray(wave), -1, 1).copy())
        found = theirs.encode(given)
        expected = theirs.decode(audio_codes=found.audio_codes).audio_values.numpy()
        encoded = theirs.encoder(given).mT.numpy()
    z = jax.jit(lambda p, w: Autoencoder(model).apply(p, w, method="encode"))(params["autoencoder"], wave)
    np.testing.assert_allclose(z, encoded, atol=1e-5)
    codes = jax.jit(model.codes)(params, wave)
    np.testing.assert_array_equal(codes, found.audio_codes.mT.numpy())
    assert len(np.unique(codes)) > 5, "too few codes to tell"
    ours = np.asarray(jax.jit(peer.sounding(model))(params, codes))[..., 0]
    assert ours.std() > 0.01, "too quiet to tell"
    whole = rates == (2, 4)
    assert (expected.shape == ours.shape) == whole
    length = ours.shape[-1] if whole else ours.shape[-1] - model.reach * model.hop
    np.testing.assert_allclose(ours[:, :length], expected[:, :length], atol=1e-5)
    assert peer.difference(model, ours, expected) < 1e-5


@pytest.mark.parametrize("causal", seldom([False, True], False))
def test_losses_and_gradients_equal_pytorchs(causal):
    torch = pytest.importorskip("torch", reason="the parity with PyTorch needs the extra `compare`")
    from benchmarks.peers import dac as peer

    model = dataclasses.replace(DEEP, causal=causal, dilations=(1, 2), periods=(2, 3), halvings=1, batch_size=3)
    state, wave, kept = started(model), sound(model, 171, 3), np.array([2, 1, 2])
    made = 0.5 * wave[:, ::-1]
    given = {"tables": {}, "wave": wave, "chance": jnp.asarray(kept), "shard": Shard()}
    coded = lambda params: model.coded(params, **given)
    first = lambda params: model.critic_loss(params, real=wave, fake=made)
    second = lambda params, coded: model.autoencoder_loss(
        params, coded=coded, critic=state.params["critic"], wave=wave, state=state
    )
    update = lambda loss, params: jax.value_and_grad(loss, has_aux=True)(params)
    shared = lambda params: partial(second, coded=replay(*jax.vjp(coded, params)))
    ours = jax.jit(lambda p: (update(shared(p["autoencoder"]), p["autoencoder"]), update(first, p["critic"])))
    updates = jax.device_get(ours(state.params))
    net, critic = peer.Autoencoder(model), peer.Critic(model)
    signal, theirs = torch.tensor(np.asarray(wave)).mT, torch.tensor(np.asarray(made)).mT
    for part, name in ((net, "autoencoder"), (critic, "critic")):
        peer.load(part, jax.device_get(state.params[name]))
    found = net(signal, torch.from_numpy(kept))
    losses = (
        peer.autoencoder_loss(critic.requires_grad_(False), model, peer.filters_of(model), signal, found),
        lambda: peer.critic_loss(critic.requires_grad_(True), signal, theirs),
    )
    same(updates[0], losses[0], net, peer.Autoencoder(model))
    same(updates[1], losses[1](), critic, peer.Critic(model))
    with pytest.raises(ValueError, match="parameters are named"):
        peer.load(critic, updates[0][1])


def same(update, their_loss, trained, like):
    """The loss, and every gradient to 1e-3 of its norm; one that is next to nothing, to 1e-5 of the largest.

    like: a module to load our gradients into.
    """
    from benchmarks.peers import dac as peer

    (loss, _), gradient = update
    np.testing.assert_allclose(loss, their_loss.item(), rtol=1e-5)
    their_loss.backward()
    peer.load(like, gradient)
    largest = max(float(p.grad.norm()) for p in trained.parameters())
    theirs = {name: p.grad for name, p in trained.named_parameters()}
    for name, a in like.named_parameters():
        assert float((a.detach() - theirs[name]).norm()) <= 1e-3 * float(theirs[name].norm()) + 1e-5 * largest, name


def test_the_pytorch_model_takes_a_step_and_refuses_what_it_lacks():
    pytest.importorskip("torch", reason="the parity with PyTorch needs the extra `compare`")
    from benchmarks.peers import dac as peer

    assert np.isfinite(float(peer.trainer(dataclasses.replace(TINY, decay=0.9, clip=1.0), False)()))
    with pytest.raises(ValueError, match="--model.bottleneck factorised"):
        peer.trainer(VAE, False)


@pytest.mark.parametrize("change", [{}, {**OOBLECK, "channels": 2}], ids=["codes", "oobleck"])
def test_chunks_join_to_the_offline_result(change):
    model = dataclasses.replace(DEEP, causal=True, **change)
    params, wave = weights(model), sound(model, 42)
    whole, push = through(model, params, wave), jax.jit(model.push)
    assert float(jnp.std(whole)) > 0.01, "too quiet to tell"
    assert model.delay == 0
    for hops in (3, 7):
        carry, parts = model.open(params, 2), []
        for first in range(0, 42, hops):
            chunk = wave[:, first * model.hop : (first + hops) * model.hop]
            carry, part = push(params, carry, chunk, jax.random.key(0))
            parts.append(part)
        np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_nothing_beyond_the_reach_bears_on_the_sound_and_a_causal_model_does_not_look_ahead(causal):
    """Of a continuous model: codes would hide what is small."""
    model = dataclasses.replace(DEEP, bottleneck="vae", causal=causal)
    params, hops = weights(model), 2 * model.reach + 9
    wave, middle = sound(model, hops, 1), hops // 2
    changed = wave.at[:, middle * model.hop : (middle + 1) * model.hop].add(0.5)
    apart = np.asarray(through(model, params, changed) - through(model, params, wave))[0, :, 0]
    touched = np.flatnonzero(apart) // model.hop
    assert touched.max() <= middle + model.reach
    assert touched.max() >= middle + 0.6 * model.reach, "the reach is stated too wide"
    assert touched.min() >= middle - (0 if causal else model.reach)


def test_codes_of_a_part_with_the_reach_around_it_are_those_of_the_whole():
    params, wave = weights(DEEP), sound(DEEP, 4 * DEEP.reach)
    codes, around = program(DEEP, "codes"), DEEP.reach
    whole = codes(params, wave)
    part = codes(params, wave[:, around * DEEP.hop : -around * DEEP.hop])
    np.testing.assert_array_equal(part[:, around:-around], whole[:, 2 * around : -2 * around])


def test_codes_tell_the_frames_that_decode_takes_and_fewer_of_them_coarser_ones():
    params, wave = weights(TINY), sound(TINY, 20)
    codes = program(TINY, "codes")(params, wave)
    assert (codes.shape, codes.dtype) == ((2, 20, TINY.codebooks), jnp.int32)
    assert 0 <= int(codes.min()) <= int(codes.max()) < TINY.codebook_size
    latent = jax.jit(TINY.encode)(params, wave)
    told = program(TINY, "frames_of")
    np.testing.assert_allclose(told(params, codes), latent, atol=1e-6)
    z = jax.jit(lambda p, w: Autoencoder(TINY).apply(p, w, method="encode"))(params["autoencoder"], wave)
    left = [float(jnp.mean((params["principal"].compact(z) - told(params, codes[..., :n])) ** 2)) for n in (1, 2)]
    assert left[0] != left[1]
    for refused in (lambda: VAE.codes(weights(VAE), wave), lambda: VAE.frames_of(weights(VAE), codes)):
        with pytest.raises(InputError, match="continuous"):
            refused()


@cache
def stepper(model, how, count):
    devices = Devices(how, count)
    return devices.compile(model), devices


def trained_by(model, state, stage=None, seed=0, how="jit", count=4):
    """The state after one step, and its metrics; on the host."""
    step, devices = stepper(model, how, count)
    wave = np.asarray(sound(model, model.segment // model.hop, model.batch_size))
    batch = devices.shard(Batch(wave, np.zeros(len(wave), np.int32)))
    return jax.device_get(step(devices.replicate(jax.tree.map(jnp.array, state)), batch, jax.random.key(seed), stage))


def test_averaged_codebooks_begin_with_k_means_of_the_first_batch_and_follow_from_there():
    assert [AVERAGE.stage(i) for i in range(3)] == ["start", "train", "train"]
    state = started(AVERAGE)
    after, metrics = trained_by(AVERAGE, state, "start")
    wave = sound(AVERAGE, AVERAGE.segment // AVERAGE.hop, AVERAGE.batch_size)
    _, key = jax.random.split(jax.random.key(0))

    @jax.jit
    def by_hand(params):
        z = Autoencoder(AVERAGE).apply({"params": params}, wave, method="encode")
        tables = start(z, AVERAGE.codebooks, AVERAGE.codebook_size, Shard(), key)
        return z, follow(tables, z, AVERAGE.codebook_decay, Shard(), key)

    z, expected = by_hand(state.params["autoencoder"])
    for name, table in expected.items():
        np.testing.assert_allclose(after.extra["codebooks"]["quantizer"][name], table, atol=1e-3)
    power = float(jnp.mean(jnp.var(z, (0, 1))))
    assert float(metrics["autoencoder/commitment"]) < AVERAGE.commitment * power, "codebooks far from the latent"
    later, _ = trained_by(AVERAGE, after, "train", 1)
    moved = later.extra["codebooks"]["quantizer"]["count"] - after.extra["codebooks"]["quantizer"]["count"]
    assert np.abs(moved).max() > 0


@pytest.mark.parametrize(
    ("model", "stage"),
    [pytest.param(AVERAGE, "start", id="average"), pytest.param(VAE, None, id="vae", marks=pytest.mark.slow)],
)
def test_other_bottlenecks_come_to_the_same_state_on_any_devices(model, stage):
    """Codebooks, running statistics and, for the gradients, the optimisers' moments: of four by jit and two by pmap."""
    four, two = (trained_by(model, started(model), stage, 0, *on)[0] for on in (("jit", 4), ("pmap", 2)))
    same_moments(four, two)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), four.extra, two.extra)


def test_a_continuous_bottleneck_trains_and_its_divergence_is_weighted_as_the_official_code_does():
    state = started(VAE)
    after, metrics = trained_by(VAE, state)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
    assert "usage" not in after.extra
    examined = jax.jit(VAE.evaluate)(state, Batch(sound(VAE, 64, 8), jnp.zeros(8, int)), jax.random.key(0))
    nats = float(jnp.mean(examined["nats_per_frame"]))
    assert float(metrics["autoencoder/divergence"]) == pytest.approx(1e-4 * 2 * nats, rel=1e-3)


def counts_of(codes, contexts, size):
    """Of each codebook, context and code; frame by frame."""
    counts = np.zeros((codes.shape[2], contexts, size))
    for row in codes:
        for i, frame in enumerate(row):
            for k, code in enumerate(frame):
                if k or i:
                    counts[k, (frame[0] if k else row[i - 1, 0]) * contexts // size, code] += 1
    return counts


def test_usage_counts_the_codes_of_the_batch_and_moments_follow_their_latent():
    state = started(TINY)
    after, _ = trained_by(TINY, state)
    wave = sound(TINY, TINY.segment // TINY.hop, TINY.batch_size)
    codes = np.asarray(program(TINY, "codes")(weights(TINY), wave))
    np.testing.assert_array_equal(after.extra["usage"], counts_of(codes, 16, 16))
    told = weights(TINY)["principal"].restore(program(TINY, "frames_of")(weights(TINY), codes))  # dropout left out some
    np.testing.assert_allclose(after.extra["moments"]["mean"], 0.9 * told.mean((0, 1)), atol=1e-5)
    again, _ = trained_by(TINY, after, seed=1)
    assert again.extra["usage"].sum() == pytest.approx(1.999 * (codes.size - len(codes)), rel=1e-4)
    np.testing.assert_array_equal(jax.jit(TINY.weights)(after)["usage"], after.extra["usage"])


def test_counts_fade_and_keep_still_where_an_update_was_not_applied():
    codes = np.random.default_rng(0).integers(0, 64, (3, 9, 2)).astype(np.int32)
    usage = np.abs(normal(2, 16, 64))
    for applied, expected in ((True, 0.999 * usage + counts_of(codes, 16, 64)), (False, usage)):
        found = jax.jit(tallied)(jnp.asarray(usage), jnp.asarray(codes), jnp.asarray(applied))
        np.testing.assert_allclose(found, expected, rtol=1e-6 * applied)
    assert [dataclasses.replace(TINY, codebook_size=n).contexts for n in (2, 1024, 2048, 1 << 20)] == [2, 1024, 512, 1]


@pytest.mark.parametrize("count", [1, 4])
def test_counts_are_changed_in_place_and_no_device_sends_them_to_another(count):
    devices, table = Devices("jit", count), 4 * 256 * 256
    shardings = (devices.replicated, devices.sharded, devices.replicated)
    step = jax.jit(tallied, donate_argnums=0, in_shardings=shardings, out_shardings=devices.replicated)
    usage, codes = jax.ShapeDtypeStruct((1, 256, 256), jnp.float32), jax.ShapeDtypeStruct((8, 9, 1), jnp.int32)
    program = step.lower(usage, codes, jax.ShapeDtypeStruct((), bool)).compile()
    memory = program.memory_analysis()
    assert memory.alias_size_in_bytes == table
    assert memory.temp_size_in_bytes < table / 4
    assert not re.search(r"f32\[1,256,256\]\S* all-", program.as_text())


def test_evaluation_tells_the_bits_of_codes_as_their_stream_has_them_and_a_perfect_copy_is_no_distance():
    state = started(TINY)
    wave = sound(TINY, 64, 8)
    evaluate, distance = program(TINY, "evaluate"), program(TINY, "mel_distance")
    found = evaluate(state, Batch(wave, jnp.zeros(8, int)), jax.random.key(0))
    np.testing.assert_allclose(found["bits_per_frame"], TINY.codebooks * np.log2(TINY.codebook_size), rtol=1e-5)
    np.testing.assert_array_equal(distance(wave, wave), 0)
    made = through(TINY, weights(TINY), wave)
    np.testing.assert_allclose(found["distance"], distance(wave, made), rtol=1e-3)
    usage = np.random.default_rng(0).integers(0, 900, (2, 16, 16)).astype(np.float32)
    state = state._replace(extra={**state.extra, "usage": jnp.asarray(usage)})
    bits = evaluate(state, Batch(wave, jnp.zeros(8, int)), jax.random.key(0))["bits_per_frame"]
    codes = np.asarray(program(TINY, "codes")(weights(TINY), wave))
    expected = [context_bits(row, bitstream.tabled(usage), 64).sum() / 64 for row in codes]
    np.testing.assert_allclose(bits, expected, rtol=1e-4)


def test_dropout_leaves_trailing_codebooks_out_of_a_share_of_examples():
    model = dataclasses.replace(TINY, codebooks=4)
    kept = np.asarray(jax.jit(model.kept)(jax.random.split(jax.random.key(0), 4000)))
    shares = np.bincount(kept, minlength=5) / 4000
    np.testing.assert_allclose(shares, [0, 0.125, 0.125, 0.125, 0.625], atol=0.03)
    never = dataclasses.replace(model, quantizer_dropout=0.0)
    assert (np.asarray(never.kept(jax.random.split(jax.random.key(0), 9))) == 4).all()


def test_published_sizes_of_the_halves():
    sizes = {}
    for preset in ("44khz", "oobleck"):
        model = zoo.load(f"dac:{preset}")
        params = jax.eval_shape(lambda m=model: m.init(jax.random.key(0), {})).params
        parts = {**params["autoencoder"], **params["critic"]}
        count = lambda part: round(sum(leaf.size for leaf in jax.tree.leaves(part)) / 1e6, 2)
        sizes[preset] = {name: count(part) for name, part in parts.items()}
    assert sizes["44khz"] == {"encoder": 22.31, "quantizer": 0.24, "decoder": 54.1, "periods": 41.11, "spectra": 1.41}
    assert {"encoder": 77.99, "decoder": 78.12}.items() <= sizes["oobleck"].items()


@pytest.mark.parametrize("preset", ["oobleck", "small"])
def test_a_step_keeps_the_form_of_the_state_in_half_precision(preset):
    """Of the presets' kinds of layers, one or two of each."""
    model = zoo.load(f"dac:{preset}")
    few = {"dilations": (1,), "bands": (0.0, 1.0), "windows": model.windows[:1], "periods": model.periods[:1]}
    model = dataclasses.replace(model, dtype="bfloat16", **few)
    state = jax.eval_shape(lambda: model.init(jax.random.key(0), {}))
    wave = jax.ShapeDtypeStruct((2, model.segment, model.channels), jnp.float32)
    batch = Batch(wave, jax.ShapeDtypeStruct((2,), jnp.int32))
    step = lambda s, b, k: model.train_step(s, b, k, Shard(), None)
    after, metrics = jax.eval_shape(step, state, batch, jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert all(value.shape == () for value in metrics.values())


def test_silence_and_clipped_noise_come_back_finite_and_within_bounds():
    for model in (TINY, VAE):
        noise = jnp.sign(sound(model, 20))
        for wave in (jnp.zeros_like(noise), noise, 1e-30 * noise):
            out = through(model, weights(model), wave)
            assert np.isfinite(out).all()
            assert float(jnp.abs(out).max()) <= 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"segment": 1030}, "whole number of hops"),
        ({"encoder_widths": (4,)}, "encoder_widths"),
        ({"decoder_rates": (8,)}, "their products are equal"),
        ({"encoder_rates": (1,)}, "rates of 2 or more"),
        ({"mels": (5, 10)}, "mel_windows"),
        ({"windows": (4096,)}, "lengthen"),
        ({"windows": (66,)}, "multiples of 4"),
        ({"mels": (300,)}, "mel bands"),
        ({"bottleneck": "scalar"}, "levels"),
        ({"bottleneck": "scalar", "levels": (4, 4), "latent": 3}, "levels"),
        ({"windows": (), "periods": ()}, "critic"),
        ({"dilations": ()}, "dilations"),
        ({"bands": (0.0, 0.001, 1.0)}, "bands"),
        ({"quantizer_dropout": 1.5}, "quantizer_dropout"),
        ({"decay": 1.0}, "less than 1"),
        ({"codebook_size": 1}, "codebook_size"),
        ({"mel": -1.0}, "mel"),
    ],
)
def test_fields_that_fit_nothing_are_refused(change, says):
    with pytest.raises(InputError, match=says):
        dataclasses.replace(TINY, **change)


def test_wrong_lengths_and_a_model_that_looks_ahead_are_refused():
    with pytest.raises(InputError, match="--model.causal"):
        TINY.open(weights(TINY), 1)
    for length in (0, TINY.hop + 1):
        with pytest.raises(InputError, match="hops"):
            TINY.encode(weights(TINY), jnp.zeros((1, length, 1)))


def test_scalar_codes_count_the_levels():
    model = dataclasses.replace(TINY, bottleneck="scalar", levels=(4, 4))
    params, wave = weights(model), sound(model, 20)
    codes = jax.jit(model.codes)(params, wave)
    assert codes.shape == (2, 20, 2)
    np.testing.assert_allclose(jax.jit(model.frames_of)(params, codes), jax.jit(model.encode)(params, wave), atol=1e-6)


def test_the_benchmark_tells_speeds_beside_transformers_and_refuses_what_that_lacks(tmp_path, capsys):
    pytest.importorskip("transformers.models.dac.modeling_dac", reason="transformers is not installed")
    from benchmarks import originals

    like = ("--model.dilations", 1, 3, 9, "--model.encoder-rates", 2, 8, "--model.decoder-rates", 8, 2)
    like += ("--model.encoder-widths", 2, 4, 8, "--model.decoder-widths", 8, 4, 2, "--model.latent", 8)
    short = ("--seconds", 0.2, "--windows", 1, "--window-seconds", 0.01, "--json", tmp_path / "rows.jsonl")
    assert run(originals.main, "dac:tiny", *like, *short, capsys=capsys)[0] == 0
    row = json.loads((tmp_path / "rows.jsonl").read_text())
    assert row["codes_alike"] == 1
    assert row["peak_difference"] < 1e-5
    assert row["seconds"] == pytest.approx(0.2)
    for part in ("encode", "decode", "both"):
        ours, theirs = (row["times_real_time"][f"{side} {part}"][1] for side in ("jax", "torch"))
        assert row["ratio"][part] == pytest.approx(ours / theirs)
    for spec, says in (("dac:tiny", "dilations is (1,)"), ("rave:tiny", "transformers has no rave")):
        code, _, err = run(originals.main, spec, *short, capsys=capsys)
        assert code == 2
        assert says in err


def test_every_preset_is_a_dac():
    assert all(isinstance(DAC(**fields), DAC) for fields in DAC.presets.values())
