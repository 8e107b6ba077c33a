"""What only WaveRNN promises."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from jaxaudio import zoo
from jaxaudio.autoregressive import mixture_pick, pick, uniforms
from jaxaudio.core import Batch, InputError, Shard, State
from jaxaudio.gru.wavernn import WaveRNN, masked
from jaxaudio.nn import sparse
from jaxaudio.nn.upsampling import REACH
from jaxaudio.nn.wavernn import teach

TINY = dataclasses.replace(zoo.load("wavernn:tiny"), batch_size=2, decay=0.0, sparsity=0.0)
DUAL = {"output": "dual", "layers": 1, "dense": 1, "hidden": 8, "aux": 6}
MODELS = {
    "mol": dataclasses.replace(TINY, output="mol"),
    "raw": TINY,
    "dual": dataclasses.replace(TINY, **DUAL),
    "raw, one layer": dataclasses.replace(TINY, layers=1, dense=1, hidden=12),
}


def normal(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


@cache
def started(model):
    """Nothing is what it starts from, where a mistake would not show; batch norm's running statistics neither."""
    state = jax.device_get(jax.jit(lambda: model.init(jax.random.key(0), {}))())
    params = jax.tree.map(lambda x: x + 0.1 * normal(*x.shape), state.params)
    statistics = jax.tree.map(lambda x: x + 0.3 * np.abs(normal(*x.shape)), state.extra["statistics"])
    return jax.tree.map(jnp.asarray, (params["network"], statistics))


def given(model):
    network, statistics = started(model)
    return {"network": {**network}, "statistics": statistics, "masks": {}}


def clips(model):
    """On the levels, so that rounding moves no sample from one to the next."""
    return model.amplitudes(model.codes(jnp.asarray(0.2 * normal(model.batch_size, model.segment, 1))))


def evaluated(model, params, batch):
    state = State(jnp.zeros((), int), {}, {}, {"average": params["network"], **params})
    return jax.jit(model.evaluate)(state, batch, None)


# ------------------------------------------------------------------------------------------------------------- PyTorch


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradient_and_bits_equal_pytorchs(name):
    torch = pytest.importorskip("torch", reason="the parity with PyTorch needs the extra `compare`")
    from benchmarks.peers import wavernn as peer

    model, (network, statistics) = MODELS[name], started(MODELS[name])
    wave = clips(model)
    loss = lambda p: model.loss(p, batch=Batch(wave, jnp.zeros(2, int)), statistics=statistics, shard=Shard())
    (value, metrics), slopes = jax.jit(jax.value_and_grad(loss, has_aux=True))(network)
    net, like = peer.WaveRNN(model), peer.WaveRNN(model)
    peer.load(net, *jax.tree.map(np.asarray, (network, statistics)))
    sound, filters = torch.tensor(np.array(wave[..., 0])), torch.from_numpy(model.filters)
    theirs = peer.loss(net.train(), sound, filters)
    theirs.backward()
    np.testing.assert_allclose(value, theirs.item(), rtol=1e-5)
    assert float(metrics["bits"]) == pytest.approx(float(value) / np.log(2), rel=1e-5)
    peer.load(like, jax.tree.map(np.asarray, slopes))
    largest = max(float(p.grad.norm()) for p in net.parameters())
    for (name, ours), wanted in zip(like.named_parameters(), net.parameters(), strict=True):
        difference = float((ours.detach() - wanted.grad).norm())
        assert difference <= 3e-5 * float(wanted.grad.norm()) + 1e-6 * largest, name

    peer.load(net, *jax.tree.map(np.asarray, (network, statistics)))
    bits = peer.loss(net.eval(), sound, filters).item() / np.log(2)
    params = {"network": network, "statistics": statistics, "masks": {}}
    np.testing.assert_allclose(np.mean(evaluated(model, params, Batch(wave, None))["bits"]), bits, rtol=1e-5)


@pytest.mark.parametrize("name", ["mol", "raw", "dual"])
def test_the_likeliest_sound_equals_pytorchs_cells_step_by_step(name, monkeypatch):
    """PyTorch's draws are made the likeliest too; the outputs are far apart, lest rounding decides between two."""
    torch = pytest.importorskip("torch", reason="the parity with PyTorch needs the extra `compare`")
    from benchmarks.peers import wavernn as peer

    monkeypatch.setattr(torch, "multinomial", lambda chances, _: chances.argmax(-1, keepdim=True))

    model = dataclasses.replace(MODELS[name], temperature=0.0)
    params = given(model)
    for layer in ("source", "frames", "layer_0"):
        params["network"] |= {layer: jax.tree.map(lambda x: 3 * x, params["network"].get(layer, {}))}
    for layer in {"last", "coarse_last", "fine_last"} & params["network"].keys():
        last = {"kernel": 1e5 * params["network"][layer]["kernel"], "bias": 0 * params["network"][layer]["bias"]}
        if name == "mol":  # the components' logits; the scales
            last["kernel"] = last["kernel"].at[:, 10:20].multiply(1e-5).at[:, 20:].multiply(0)
            last["bias"] = last["bias"].at[20:].set(-30)
        params["network"][layer] = last
    frames = jnp.asarray(np.random.default_rng(1).uniform(size=(2, 3 + 2 * REACH, model.mels)), jnp.float32)
    _, wave = jax.jit(model.vocode)(params, model.open(params, 2), frames, jax.random.key(0))
    net = peer.WaveRNN(model)
    peer.load(net, *jax.tree.map(np.asarray, (params["network"], params["statistics"])))
    theirs = peer.sample(net, torch.tensor(np.array(frames)).mT)
    np.testing.assert_allclose(wave[..., 0], theirs.numpy(), atol=1e-4)
    assert float(jnp.std(wave)) > 1e-3, "it does something"


def test_the_pytorch_model_takes_a_step_draws_sound_and_refuses_what_it_lacks():
    pytest.importorskip("torch", reason="the parity with PyTorch needs the extra `compare`")
    from benchmarks.peers import wavernn as peer

    assert np.isfinite(float(peer.trainer(dataclasses.replace(TINY, decay=0.9), False)()))
    assert peer.sampler(TINY, 3, 2)().shape == (3, 2 * TINY.hop)
    with pytest.raises(ValueError, match="is not pruned"):
        peer.trainer(dataclasses.replace(TINY, sparsity=0.5), False)


# -------------------------------------------------------------------------------------------------------------- frames


@pytest.mark.parametrize("preset", ["tiny", "paper", "small"])
def test_features_are_librosas_mels_of_windows_around_the_middle_of_each_hop(preset):
    model = zoo.load(f"wavernn:{preset}")
    wave = 0.3 * normal(2, 9 * model.hop, 1)
    around = model.fft - model.hop
    padded = np.pad(wave[..., 0], ((0, 0), (around // 2, around - around // 2)))
    mels = librosa.feature.melspectrogram(
        y=padded, sr=model.sample_rate, n_fft=model.fft, hop_length=model.hop, win_length=model.window, center=False,
        power=1.0, n_mels=model.mels, fmin=model.low,
    )  # fmt: skip
    wanted = np.clip((20 * np.log10(np.maximum(mels, 1e-5)) - model.loudest_db + 100) / 100, 0, 1)
    found = model.features(jnp.asarray(wave))
    assert found.shape == (2, 9, model.mels)
    np.testing.assert_allclose(found, np.moveaxis(wanted, 1, 2), atol=1e-4)


def test_training_sees_the_frames_that_features_gives_for_its_stretch():
    for model in (TINY, zoo.load("wavernn:paper")):
        sound = jnp.asarray(0.3 * normal(1, 30 * model.hop, 1))
        wave = sound[:, 7 * model.hop :][:, : model.segment]
        first = 7 + model.margin - REACH
        wanted = model.features(sound)[:, first : first + model.predicted // model.hop + 2 * REACH]
        np.testing.assert_allclose(model.frames_of(Batch(wave, None)), wanted, atol=1e-5)
        given = model.features(sound)[:, 7:][:, : model.segment // model.hop]
        np.testing.assert_array_equal(model.frames_of(Batch(jnp.zeros_like(wave), None, given=given)), wanted)


def test_no_sample_outside_of_what_the_frames_see_bears_on_the_loss_and_every_one_inside_does():
    network, statistics = started(TINY)
    loss = jax.jit(lambda wave: TINY.loss(network, batch=Batch(wave, None), statistics=statistics, shard=Shard())[0])
    wave, unseen = clips(TINY), (TINY.margin - REACH) * TINY.hop - TINY.edges[0]
    assert np.isfinite(loss(wave.at[0, :unseen].set(np.nan)))
    for place in (unseen + 1, TINY.segment // 2, TINY.segment - unseen - 2):
        assert np.isnan(loss(wave.at[0, place].set(np.nan)))


# ------------------------------------------------------------------------------------------------------------ sampling


@pytest.mark.parametrize("name", ["mol", "raw", "dual"])
def test_drawn_sound_in_parts_is_the_whole_and_a_row_depends_on_itself_alone(name):
    model, key = MODELS[name], jax.random.key(3)
    params, program = given(model), jax.jit(model.vocode)
    frames = jnp.asarray(np.random.default_rng(1).uniform(size=(3, 4 + 2 * REACH, model.mels)), jnp.float32)
    past, whole = program(params, model.open(params, 3), frames, key)
    assert whole.shape == (3, 4 * model.hop, 1)
    assert float(jnp.max(jnp.abs(whole))) <= 1
    assert int(past.position) == 4 * model.hop
    carry, parts = model.open(params, 2), []
    for first in (0, 2):
        carry, part = program(params, carry, frames[:2, first : first + 2 + 2 * REACH], key)
        parts.append(part)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole[:2], atol=1e-4)
    np.testing.assert_allclose(carry.hidden[0], past.hidden[0][:2], atol=1e-4)
    _, other = program(params, model.open(params, 3), frames, jax.random.key(4))
    assert float(jnp.max(jnp.abs(other - whole))) > 0.01


@pytest.mark.parametrize("name", MODELS)
def test_training_gives_the_distributions_that_the_drawn_sound_was_drawn_from(name):
    model, key = dataclasses.replace(MODELS[name], temperature=0.8), jax.random.key(3)
    params = given(model)
    frames = jnp.asarray(np.random.default_rng(1).uniform(size=(3, 4 + 2 * REACH, model.mels)), jnp.float32)
    start = model.open(params, 3)
    _, wave = jax.jit(model.vocode)(params, start, frames, key)
    codes = model.codes(wave[..., 0]).T
    taught = jnp.concatenate([start.code[None], codes])
    outputs = jax.jit(lambda params: teach(model.ready(params, frames), model.taught(taught)))(params)
    draws, drawn = 1 if model.output == "raw" else 2, jax.jit(pick, static_argnums=2)
    numbers = jnp.moveaxis(uniforms(key, 0, len(codes), 3, draws), 1, 0)
    if model.output == "mol":
        by_mixture = jax.jit(mixture_pick, static_argnums=2)
        np.testing.assert_allclose(by_mixture(outputs, numbers, 0.8), wave[..., 0].T, atol=2e-4)
    elif model.output == "raw":
        np.testing.assert_array_equal(drawn(outputs, numbers[0], 0.8), codes)
    else:
        both = [drawn(logits, u, 0.8) for logits, u in zip(jnp.split(outputs, 2, -1), numbers, strict=True)]
        np.testing.assert_array_equal(both[0] * 256 + both[1], codes)
    assert len(np.unique(codes)) > 20


@pytest.mark.parametrize("name", ["mol", "raw", "dual"])
def test_weights_that_are_not_finite_give_sound_that_is_not(name):
    model = MODELS[name]
    params = given(model)
    broken = {**params, "network": jax.tree.map(lambda x: x * jnp.nan, params["network"])}
    frames = jnp.ones((1, 1 + 2 * REACH, model.mels))
    _, wave = jax.jit(model.vocode)(broken, model.open(broken, 1), frames, jax.random.key(0))
    assert bool(jnp.isnan(wave).all())


def test_frames_of_another_configuration_and_too_few_of_them_are_refused():
    params = given(TINY)
    with pytest.raises(InputError, match="the frames have 9 mel bands: this model takes 8"):
        TINY.vocode(params, TINY.open(params, 1), jnp.zeros((1, 9, 9)), jax.random.key(0))
    with pytest.raises(InputError, match="4 frames: 2 at each end lie around the sound, pass 5"):
        TINY.vocode(params, TINY.open(params, 1), jnp.zeros((1, 4, 8)), jax.random.key(0))
    with pytest.raises(InputError, match="33 samples are no whole number of hops of 16"):
        TINY.features(jnp.zeros((1, 33, 1)))


# ------------------------------------------------------------------------------------------------- training and fields


def test_pruned_blocks_are_zero_and_as_many_in_every_group_as_the_schedule_says():
    model = dataclasses.replace(TINY, sparsity=0.6, block=4, prune_from=1, prune_until=4, prune_every=2, decay=0.5)
    step = jax.jit(lambda state, batch: model.train_step(state, batch, None, Shard(), None))
    state, batch = jax.jit(lambda: model.init(jax.random.key(0), {}))(), Batch(clips(model), jnp.zeros(2, int))
    seen = []
    for _ in range(6):
        state, metrics = step(state, batch)
        seen.append(float(metrics["sparsity"]))
    third = 16 - round(16 * (1 - 0.6 * (1 - (1 / 3) ** 3)))
    np.testing.assert_allclose(seen, np.array([0, 0, 0, third, 10, 10]) / 16, atol=1e-6)
    weights = model.weights(state)
    for network in (state.params["network"], weights["network"]):
        for name in ("layer_0", "layer_1"):
            blocks = np.asarray(network[name]["recurrent_0"]["kernel"]).reshape(16, 12, 4)
            np.testing.assert_array_equal((blocks == 0).all(-1), ~np.asarray(weights["masks"][name]))
            np.testing.assert_array_equal((blocks == 0).all(-1).sum(0), 10)
            assert (blocks != 0).any(-1).sum() == (blocks != 0).all(-1).sum(), "only whole blocks are pruned"


def test_a_kernel_with_few_blocks_is_applied_block_by_block_and_gives_the_same_sound():
    model = dataclasses.replace(TINY, sparsity=0.8, block=4)
    params = given(model)
    masks = {name: sparse.strongest(of, 0.8, 4) for name, of in model.pruned(params["network"]).items()}
    params |= {"network": masked(params["network"], masks), "masks": masks}
    ready = model.prepared(params)
    assert ready["packed"]["layer_1"].blocks.shape == (12, 3, 4)
    frames = jnp.asarray(np.random.default_rng(1).uniform(size=(1, 3 + 2 * REACH, model.mels)), jnp.float32)
    program = jax.jit(model.vocode)
    (past, dense), (packed_past, packed) = (
        program(p, model.open(p, 1), frames, jax.random.key(3)) for p in (params, ready)
    )
    np.testing.assert_allclose(packed, dense, atol=1e-5)
    np.testing.assert_allclose(packed_past.hidden[1], past.hidden[1], atol=1e-5)
    assert "packed" not in model.prepared(params | {"masks": jax.tree.map(jnp.ones_like, masks)})
    assert "packed" not in model.prepared(given(model))


def test_bfloat16_computes_nearly_what_float32_computes():
    for model in (TINY, MODELS["dual"]):
        params, batch = given(model), Batch(clips(model), jnp.zeros(2, int))
        low = dataclasses.replace(model, dtype="bfloat16")
        bits = [evaluated(m, params, batch)["bits"] for m in (low, model)]
        np.testing.assert_allclose(*bits, rtol=0.02)
        assert float(jnp.max(jnp.abs(bits[0] - bits[1]))) > 0, "it did compute in another precision"
        step = partial(low.train_step, batch=batch, key=None, shard=Shard(), stage=None)
        after, _ = jax.eval_shape(step, jax.eval_shape(partial(low.init, jax.random.key(0), {})))
        assert {x.dtype for x in jax.tree.leaves(after.params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(("preset", "millions"), [("mol", 4.23), ("raw", 4.48), ("dual", 4.01)])
def test_the_published_networks_have_their_sizes(preset, millions):
    state = jax.eval_shape(lambda: zoo.load(f"wavernn:{preset}").init(jax.random.key(0), {}))
    assert round(sum(leaf.size for leaf in jax.tree.leaves(state.params)) / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"segment": 3576}, "segment is 3576: it is whole hops of 275, 9 at least"),
        ({"segment": 8 * 275}, "segment is 2200"),
        ({"factors": (5, 1, 11)}, "factors is .5, 1, 11."),
        ({"window": 200}, "window is 200: it is at least the hop, 275"),
        ({"channels": 2}, "channels is 2"),
        ({"output": "mol", "top_p": 0.9}, "top_p is 0.9: a mixture"),
        ({"output": "dual", "layers": 1, "dense": 1, "units": 511}, "units is 511"),
        ({"output": "dual"}, "layers 2 and dense 2"),
        ({"sparsity": 1.0}, "sparsity is 1.0"),
        ({"sparsity": -0.1}, "sparsity is -0.1"),
        ({"sparsity": 0.5, "block": 24}, "block is 24: it divides units, 512"),
        ({"prune_from": 10, "prune_until": 5}, "prune_until is 5"),
        ({"prune_every": 0}, "prune_every is 0"),
        ({"bits": 17}, "bits is 17"),
        ({"decay": 1.0}, "decay is 1.0"),
        ({"clip": 0.0}, "clip is 0.0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"mels": 0}, "n_mels is 0"),
    ],
)
def test_fields_that_do_not_fit_together_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        WaveRNN(**fields)
