"""What only the classifier promises."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

import train
from jaxaudio import zoo
from jaxaudio.cnn import classifier as K
from jaxaudio.cnn.classifier import Classifier
from jaxaudio.core import Batch, InputError, Shard
from jaxaudio.runtime.parallel import Devices

TINY = dataclasses.replace(zoo.load("classifier:tiny"), classes=3)


@pytest.fixture(scope="module")
def state():
    return jax.jit(lambda: TINY.init(jax.random.key(0), {}))()


def waves(n, model=TINY):
    return 0.3 * jax.random.normal(jax.random.key(5), (n, model.segment, model.channels))


@pytest.mark.parametrize(("preset", "classes", "millions"), [("sc09", 10, 1.33), ("cnn14", 527, 80.75)])
def test_the_published_networks_have_the_published_sizes(preset, classes, millions):
    model = dataclasses.replace(zoo.load(f"classifier:{preset}"), classes=classes)
    state = jax.eval_shape(lambda: model.init(jax.random.key(0), {}))
    assert round(sum(leaf.size for leaf in jax.tree.leaves(state.params)) / 1e6, 2) == millions


def test_the_published_front_ends_have_the_published_pictures():
    """1 s of SC09 is 128 frames, 10 s of AudioSet 1001 (torchlibrosa's centred frames)."""
    assert zoo.load("classifier:sc09").shape == (128, 128)
    assert zoo.load("classifier:cnn14").shape == (1001, 64)


@pytest.mark.parametrize("network", ["panns", "sc09"])
def test_logits_losses_and_gradients_equal_pytorchs(network):
    """Logits by running statistics; losses by those of the batch, without what is drawn."""
    torch = pytest.importorskip("torch", reason="the parity with PyTorch needs the extra `compare`")
    from benchmarks.peers import classifier as peer
    from benchmarks.peers import common

    drawn = {"time_masks": 0, "mel_masks": 0, **dict.fromkeys(("dropout", "mixup", "warp", "shift"), 0.0)}
    model = dataclasses.replace(TINY, network=network, channels=2, smoothing=0.1, **drawn)
    moved = lambda tree: jax.tree.map(lambda x: x + 0.1 * jax.random.uniform(jax.random.key(x.size), x.shape), tree)
    state = jax.jit(lambda: model.init(jax.random.key(1), {}))()
    params, statistics = moved(state.params["network"]), moved(state.extra["statistics"])
    batch = Batch(waves(4, model), jnp.array([0, 2, 1, 1]))
    loss = partial(model.loss, batch=batch, statistics=statistics, key=jax.random.key(3), shard=Shard())
    (value, _), slopes = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    logits, _ = jax.jit(model.classify)({"network": params, "statistics": statistics}, batch.wave)

    net, like = peer.network_of(model), peer.network_of(model)
    common.load(net, jax.device_get(params))
    common.load(like, jax.device_get(slopes))
    for name, seen in statistics.items():
        net[name].running_mean.copy_(torch.tensor(np.array(seen["mean"])))
        net[name].running_var.copy_(torch.tensor(np.array(seen["var"])))
    picture = peer.picture(model, torch.from_numpy(model.filters), torch.tensor(np.array(batch.wave)).mT)
    np.testing.assert_allclose(logits, net.eval()(picture, None).detach(), rtol=1e-4, atol=1e-5)
    theirs = peer.loss(model, net.train(), picture, torch.tensor(np.array(batch.label)).long(), None)
    np.testing.assert_allclose(value, theirs.item(), rtol=1e-5)
    found = torch.autograd.grad(theirs, list(net.parameters()))
    largest = max(float(x.norm()) for x in found)
    for (name, ours), x in zip(like.named_parameters(), found, strict=True):
        assert float((ours.detach() - x).norm()) <= 1e-4 * float(x.norm()) + 1e-6 * largest, name


@pytest.mark.parametrize("fields", [{}, {"network": "sc09", "optimizer": "sgd"}, {"optimizer": "amsgrad"}], ids=str)
def test_the_pytorch_model_takes_a_step_with_all_that_is_drawn(fields):
    pytest.importorskip("torch", reason="the parity with PyTorch needs the extra `compare`")
    from benchmarks.peers import classifier as peer

    step = peer.trainer(dataclasses.replace(TINY, mixup=0.5, warp=0.2, shift=0.2, **fields), False)
    assert np.isfinite(float(step()))
    with pytest.raises(ValueError, match="computes in float32"):
        peer.trainer(dataclasses.replace(TINY, dtype="bfloat16"), False)


def test_in_pytorch_too_a_warp_stretches_a_shift_moves_and_masks_hide_whole_stripes():
    torch = pytest.importorskip("torch", reason="the parity with PyTorch needs the extra `compare`")
    from benchmarks.peers import classifier as peer

    model, ramp = dataclasses.replace(TINY, warp=0.0, shift=0.5), torch.arange(8.0)
    moved = peer.augmented(model, ramp[None, None, :, None].expand(64, 1, 8, 16))[:, 0]
    assert {int(row[0, 0]) for row in moved} == {0, 1, 2, 3, 4, 5, 6, 7}
    assert (moved.diff(dim=1) % 8 == 1).all()
    bands = peer.augmented(dataclasses.replace(TINY, warp=0.5, shift=0.0), ramp.expand(64, 1, 3, 8))[:, 0, 0]
    factors = bands[:, 1]
    assert factors.min() < 0.6 < 1.4 < factors.max()
    torch.testing.assert_close(bands, (factors[:, None] * ramp).clamp(max=7))
    hidden = peer.hidden_stripes(torch.ones(64, 2, 20, 9), 2, 1, 6)[:, 0]
    assert (hidden == hidden[..., :1]).all()
    assert set((hidden[..., 0] == 0).sum(1).tolist()) == set(range(7))
    x, share = torch.arange(8.0).reshape(4, 2), torch.tensor([0.1, 0.2, 0.3, 0.4])
    torch.testing.assert_close(peer.mixed(x, share), share[:, None] * x + (1 - share[:, None]) * x[[1, 0, 3, 2]])


def test_mixup_mixes_a_pair_with_each_other_and_no_one_else():
    x, keys = jnp.arange(8.0).reshape(4, 2), jax.random.split(jax.random.key(0), 4)
    share = np.asarray(jax.vmap(lambda key: jax.random.beta(jax.random.fold_in(key, 1), 0.5, 0.5))(keys))[:, None]
    np.testing.assert_allclose(K.mixed(x, keys, 0.5), share * x + (1 - share) * x[jnp.array([1, 0, 3, 2])], rtol=1e-6)
    assert K.mixed(x, None, 0.5) is x
    with pytest.raises(InputError, match="a device has 3 rows"):
        K.mixed(x[:3], keys[:3], 0.5)


def test_masks_hide_whole_stripes_of_at_most_their_width_and_another_one_in_every_example():
    keys = jax.random.split(jax.random.key(0), 64)
    picture = jnp.ones((64, 20, 9, 2))
    in_time = np.asarray(K.hidden_stripes(picture, keys, 1, 1, 6))
    rows = in_time[:, :, 0, 0]
    assert (in_time == rows[:, :, None, None]).all(), "a time mask goes through all bands"
    gone = (rows == 0).sum(1)
    assert set(gone) == set(range(7))
    edges = np.abs(np.diff(np.pad(rows, ((0, 0), (1, 1)), constant_values=1))).sum(1)
    assert edges.max() == 2, "one stripe"
    assert len({tuple(row) for row in rows}) > 30
    in_mels = np.asarray(K.hidden_stripes(picture, keys, 2, 2, 4))
    assert (in_mels == in_mels[:, :1, :, :1]).all()
    assert (in_mels[:, 0, :, 0] == 0).sum(1).max() > 4, "two masks hide more than one"


def test_a_warp_stretches_the_bands_and_a_shift_moves_the_frames():
    ramp = jnp.arange(10.0).reshape(1, 10, 1) * jnp.ones((4, 1, 1))
    stretched = K.resampled(ramp, jnp.arange(10) * 0.5, 1)
    np.testing.assert_allclose(stretched[0, :, 0], np.arange(10) * 0.5)
    beyond = K.resampled(ramp, jnp.arange(10) * 1.5, 1)
    np.testing.assert_allclose(beyond[0, :, 0], np.minimum(np.arange(10) * 1.5, 9))
    model = dataclasses.replace(TINY, warp=0.0, shift=0.5)
    picture = jnp.arange(8.0).reshape(1, 8, 1, 1) * jnp.ones((64, 1, 16, 1))
    moved = np.asarray(model.augment(picture, jax.random.split(jax.random.key(0), 64)))[:, :, 0, 0]
    assert {int(row[0]) for row in moved} == {0, 1, 2, 3, 4, 5, 6, 7}
    assert all((np.diff(row) % 8 == 1).all() for row in moved)


def test_dropout_keeps_the_mean_and_is_off_without_keys():
    x, keys = jnp.ones((64, 100)), jax.random.split(jax.random.key(0), 64)
    dropped = K.dropout(x, 0.25, keys, 3)
    assert set(np.unique(dropped).round(4)) == {0.0, np.float32(4 / 3).round(4)}
    assert abs(float(jnp.mean(dropped)) - 1) < 0.03
    assert K.dropout(x, 0.25, None, 3) is x
    assert float(jnp.mean(jnp.abs(dropped - K.dropout(x, 0.25, keys, 4)))) > 0.1, "places draw apart"


def test_the_loss_is_the_cross_entropy_of_smoothed_mixed_targets(state, monkeypatch):
    """With the network replaced by one that says the same of every picture."""
    said = jnp.array([1.0, -0.5, 0.25])

    class Says:
        def apply(self, given, picture, keys, shard, mutable):
            return (jnp.tile(said[None], (len(picture), 1)), None), {"batch_stats": {}}

    monkeypatch.setattr(Classifier, "module", Says())
    model = dataclasses.replace(TINY, smoothing=0.3, mixup=0.5)
    label, key = jnp.array([0, 2, 1, 1]), jax.random.key(3)
    value, _ = model.loss({}, batch=Batch(waves(4), label), statistics={}, key=key, shard=Shard())
    draw = lambda k: jax.random.beta(jax.random.fold_in(k, 1), 0.5, 0.5)
    share = np.asarray(jax.vmap(draw)(Shard().keys(key, 4)))[:, None]
    target = 0.7 * np.eye(3)[np.asarray(label)] + 0.1
    target = share * target + (1 - share) * target[[1, 0, 3, 2]]
    log_p = np.asarray(said) - np.log(np.exp(np.asarray(said)).sum())
    np.testing.assert_allclose(value, -(target * log_p).sum(1).mean(), rtol=1e-5)


def test_evaluation_changes_nothing_and_is_not_augmented(state):
    batch = Batch(waves(4), jnp.array([0, 1, 2, 0]))
    first, second = (TINY.evaluate(state, batch, jax.random.key(k)) for k in (0, 1))
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    logits, _ = TINY.classify(TINY.weights(state), batch.wave)
    wrong = np.asarray(logits).argmax(1) != np.asarray(batch.label)
    np.testing.assert_array_equal(first["error"], wrong)


@pytest.mark.parametrize("how", ["loud", "quiet", "silent"])
def test_any_level_gives_finite_logits(state, how):
    wave = waves(2) * {"loud": 3.0, "quiet": 1e-6, "silent": 0.0}[how]
    logits, embedding = TINY.classify(TINY.weights(state), wave)
    assert np.isfinite(logits).all()
    assert np.isfinite(embedding).all()


def test_the_pictures_are_the_official_codes():
    """sc09: TensorFlow's frames, bands of one height, log(x + 1e-6); panns: torchlibrosa's, powers, at least 1e-10."""
    sc09, panns = (dataclasses.replace(zoo.load(f"classifier:{name}"), classes=3) for name in ("sc09", "cnn14"))
    wave = np.asarray(waves(2, dataclasses.replace(sc09, segment=16384)), np.float64)[:, :, 0]
    padded = np.pad(wave, ((0, 0), (0, sc09.window - sc09.hop)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, sc09.window, -1)[:, :: sc09.hop]
    level = np.abs(np.fft.rfft(frames * np.hanning(sc09.window + 1)[:-1]))
    filters = librosa.filters.mel(sr=16000, n_fft=1024, n_mels=128, fmin=40, fmax=7800, htk=True, norm=None)
    ours = sc09.picture(jnp.asarray(wave[..., None], jnp.float32))[..., 0]
    np.testing.assert_allclose(ours, np.log(level @ filters.T + 1e-6), rtol=1e-4, atol=1e-4)
    long = np.random.default_rng(0).standard_normal(4000) * 0.1
    theirs = librosa.feature.melspectrogram(
        y=long, sr=32000, n_fft=1024, hop_length=320, n_mels=64, fmin=50, fmax=14000, pad_mode="reflect"
    )
    ours = panns.picture(jnp.asarray(long[None, :, None], jnp.float32))[0, ..., 0]
    np.testing.assert_allclose(ours, np.log(np.maximum(theirs.T, 1e-10)), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("optimizer", "moments"), [("sgd", 0), ("adamw", 2), ("amsgrad", 3)])
def test_every_optimiser_steps_downhill(optimizer, moments):
    model = dataclasses.replace(TINY, optimizer=optimizer, warmup=2, decay_steps=6, learning_rate=0.1)
    params = {"w": jnp.ones((2, 2))}
    opt = model.tx.init(params)
    assert sum(leaf.shape == (2, 2) for leaf in jax.tree.leaves(opt)) == moments
    for expected in (0.0, 0.05, 0.1):  # the rate rises over two steps
        updates, opt = model.tx.update({"w": jnp.ones((2, 2))}, opt, params)
        size = float(jnp.abs(updates["w"][0, 0]))
        assert (size == 0) == (expected == 0)
        if optimizer == "sgd":
            np.testing.assert_allclose(size, expected, rtol=1e-5)


def test_the_sc09_network_trains_and_its_statistics_see_the_whole_batch():
    """Batch norm under pmap on four devices is that of jit; max pooling and the flattened end are the paper's."""
    model = dataclasses.replace(TINY, network="sc09", widths=(4, 4), hidden=0, mixup=0.0, batch_size=8)
    batch, after = Batch(np.asarray(waves(8)), np.arange(8, dtype=np.int32) % 3), []
    for how in ("jit", "pmap"):
        devices = Devices(how, 4)
        start = jax.jit(lambda: model.init(jax.random.key(0), {}), out_shardings=devices.replicated)()
        after.append(jax.device_get(devices.compile(model)(start, devices.shard(batch), jax.random.key(1), None)[0]))
    for a, b in zip(*(jax.tree.leaves((s.opt, s.extra["statistics"])) for s in after), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert after[0].params["network"]["classes"]["kernel"].shape == (model.shape[0] // 4 * 4 * 4, 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"widths": (8,) * 6}, "halve both"),
        ({"hop": 0}, "hop is 0"),
        ({"hop": 512}, "at most the window, 256"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"mixup": -1.0}, "mixup is -1.0"),
        ({"widths": ()}, "widths is"),
        ({"classes": 1}, "one class"),
        ({"mel_width": 17}, "mel_width 17"),
        ({"batch_size": 7}, "mixup pairs neighbours"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"mels": 200}, "mel bands"),
        ({"high": 9000.0}, "Hz"),
    ],
)
def test_fields_that_do_not_fit_together_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(TINY, **fields)


def test_a_run_ends_where_the_learning_rate_does(monkeypatch):
    """Without --steps; a model without a decay takes as many as any other."""
    digits = zoo.load("classifier:digits")
    assert digits.steps == digits.decay_steps
    assert zoo.load("classifier:sc09").steps == zoo.load("wavegan").steps
    asked = []
    monkeypatch.setattr(train, "train", lambda run: asked.append(run.steps))
    train.main(["classifier:digits"])
    train.main(["classifier:digits", "--steps", "7"])
    train.main(["classifier:digits", "--model.decay-steps", "30"])
    assert asked == [digits.decay_steps, 7, 30]
