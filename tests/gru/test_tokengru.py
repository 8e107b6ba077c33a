"""TokenGRU: the codes it draws are drawn from what it was trained to predict, each knowing those before it alone."""

import dataclasses
import json
import shutil
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import soundfile

import sample
import train
from benchmarks import prediction, quality
from jaxaudio import zoo
from jaxaudio.autoregressive import uniforms
from jaxaudio.core import Batch, InputError, Shard
from jaxaudio.data import audio
from jaxaudio.nn.recurrent import advance
from jaxaudio.runtime import folder
from jaxaudio.runtime.folder import trained
from jaxaudio.tasks import generate
from tests.commands import run

TINY = dataclasses.replace(zoo.load("tokengru:tiny"), classes=3)
ROWS, LABEL, KEY = 2, jnp.array([1, 2]), jax.random.key(2)


@cache
@jax.jit
def params():
    """Weights that differ from their start, so that none of them can hide."""
    leaves, tree = jax.tree.flatten(TINY.weights(TINY.init(jax.random.key(0), {})))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [leaf + 0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, moved)


EXTEND = jax.jit(TINY.extend, static_argnums=3)
HEAR, BITS = jax.jit(TINY.hear), jax.jit(TINY.bits)


@jax.jit
def logits_of(params, codes, label):
    """[codebooks, time, batch, codebook_size] that training sees, from a cold start."""
    ready = TINY.ready(params)
    outputs, _ = ready.over(TINY.inputs(ready, codes, label)[:, :-1], TINY.silence(len(codes)))
    rows = codes.swapaxes(0, 1).reshape(-1, TINY.codebooks)
    logits = ready.taught(outputs.reshape(len(rows), -1), rows)
    return logits.reshape(TINY.codebooks, codes.shape[1], len(codes), -1)


def codes_of(seed, frames=11):
    return jax.random.randint(jax.random.key(seed), (ROWS, frames, TINY.codebooks), 0, TINY.codebook_size)


def test_every_code_is_the_one_at_which_the_trained_probability_passes_its_uniform_number():
    carry, codes = EXTEND(params(), TINY.begin(params(), ROWS, LABEL), KEY, 11)
    probability = np.asarray(jax.nn.softmax(logits_of(params(), codes, LABEL), -1), np.float64)
    summed = np.moveaxis(np.cumsum(probability, -1), 0, 1)  # [time, codebooks, batch, codebook_size]
    numbers = np.asarray(uniforms(KEY, 0, 11, ROWS, TINY.codebooks))
    drawn = np.asarray(codes).transpose(1, 2, 0)
    at = lambda which: np.take_along_axis(np.pad(summed, [(0, 0)] * 3 + [(1, 0)]), which[..., None], -1)[..., 0]
    assert (at(drawn) <= numbers + 1e-5).all()
    assert (numbers <= at(drawn + 1) + 1e-5).all()
    heard = HEAR(params(), codes, LABEL)
    np.testing.assert_allclose(carry["x"], heard["x"], atol=1e-6)
    for a, b in zip(jax.tree.leaves(carry["states"]), jax.tree.leaves(heard["states"]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_bits_are_those_of_the_probabilities_that_drew_the_codes_whatever_the_parts():
    _, codes = EXTEND(params(), TINY.begin(params(), ROWS, LABEL), KEY, 11)
    nats = jax.nn.log_softmax(logits_of(params(), codes, LABEL), -1)
    chosen = np.take_along_axis(np.asarray(nats), np.asarray(codes).transpose(2, 1, 0)[..., None], -1)[..., 0]
    np.testing.assert_allclose(BITS(params(), codes, LABEL), -chosen.mean(1).T / np.log(2), rtol=1e-5)
    assert codes.shape[1] % (TINY.segment // TINY.hop), "the last part is shorter than the others"


def test_losses_and_gradients_equal_pytorchs():
    torch = pytest.importorskip("torch", reason="the parity with PyTorch needs the extra `compare`")
    from benchmarks.peers import tokengru as peer

    codes, masks = codes_of(4), TINY.masks(jax.random.split(KEY, ROWS))
    loss = partial(TINY.loss, codes=codes, label=LABEL, masks=masks)
    (value, _), slopes = jax.jit(jax.value_and_grad(loss, has_aux=True))(params())
    net, like = peer.TokenGRU(TINY), peer.TokenGRU(TINY)
    peer.load(net, jax.device_get(params()))
    peer.load(like, jax.device_get(slopes))
    as_torch = lambda x: torch.tensor(np.array(x))
    theirs = net(as_torch(codes).long(), as_torch(LABEL).long(), tuple(map(as_torch, masks)))
    np.testing.assert_allclose(value, theirs.item(), rtol=1e-5)
    found = torch.autograd.grad(theirs, list(net.parameters()))
    largest = max(float(x.norm()) for x in found)
    for (name, ours), x in zip(like.named_parameters(), found, strict=True):
        assert float((ours.detach() - x).norm()) <= 1e-4 * float(x.norm()) + 1e-6 * largest, name


def test_the_pytorch_model_takes_a_step_and_refuses_what_it_lacks():
    pytest.importorskip("torch", reason="the parity with PyTorch needs the extra `compare`")
    from benchmarks.peers import tokengru as peer

    for fields in ({}, {"conditional": False, "dropout": 0.0}):
        assert np.isfinite(float(peer.trainer(dataclasses.replace(TINY, **fields), False)()))
    with pytest.raises(ValueError, match="computes in float32"):
        peer.trainer(dataclasses.replace(TINY, dtype="bfloat16"), False)


def test_codes_drawn_in_parts_behind_what_was_heard_are_those_drawn_at_once_and_rows_differ():
    begin = HEAR(params(), codes_of(3), LABEL)
    _, whole = EXTEND(params(), begin, KEY, 5)
    carry, first = EXTEND(params(), begin, KEY, 2)
    _, rest = EXTEND(params(), carry, KEY, 3)
    np.testing.assert_array_equal(jnp.concatenate([first, rest], 1), whole)
    assert (whole[0] != whole[1]).any()
    assert (whole != EXTEND(params(), begin, jax.random.key(3), 5)[1]).any()


def test_a_frame_is_one_step_of_the_layer_over_codebooks_for_each_code():
    """The scan that training takes, against steps by hand."""
    ready, codes = TINY.ready(params()), codes_of(4)[:, 0]
    outputs = jax.random.normal(KEY, (ROWS, TINY.width))
    state = jnp.tanh(outputs @ ready.start.kernel + ready.start.bias[None])
    around, known = outputs @ ready.around.kernel, jnp.zeros((ROWS, TINY.embedding))
    for i, logits in enumerate(ready.taught(outputs, codes)):
        gates = known @ ready.depth.input.kernel + ready.depth.input.bias[None] + around + ready.position[i][None]
        state = advance("gru", ready.depth, state, gates)
        expected = state @ ready.heads[i].kernel + ready.heads[i].bias[None]
        np.testing.assert_allclose(logits, expected, atol=1e-5)
        known = ready.embedding[i, codes[:, i]]


def test_no_code_is_predicted_from_itself_or_what_follows_and_each_from_all_before():
    """A code that is changed changes what comes behind it, in its frame and in the next, and nothing before."""
    codes = codes_of(5, 4)
    before = np.asarray(logits_of(params(), codes, LABEL))
    for frame in range(3):
        for book in range(TINY.codebooks):
            other = codes.at[:, frame, book].add(7) % TINY.codebook_size
            moved = np.abs(np.asarray(logits_of(params(), other, LABEL)) - before).max((2, 3))  # [codebooks, time]
            order = moved.T.ravel()  # as codes are drawn
            place = frame * TINY.codebooks + book
            assert (order[: place + 1] == 0).all()
            assert (order[place + 1 : place + 1 + TINY.codebooks] > 1e-5).all()


def test_the_label_and_what_comes_before_the_first_frame_bear_on_the_codes():
    codes, at = codes_of(6), LABEL[::-1]
    here = logits_of(params(), codes, LABEL)
    assert float(jnp.min(jnp.max(jnp.abs(here - logits_of(params(), codes, at)), (2, 3)))) > 1e-5
    other = params() | {"begin": params()["begin"] + 1}
    assert float(jnp.max(jnp.abs(here - logits_of(other, codes, LABEL))[:, 0])) > 1e-3


def test_temperature_0_takes_the_most_likely_code_and_top_p_no_unlikely_one():
    cold = dataclasses.replace(TINY, temperature=0.0)
    _, codes = jax.jit(cold.extend, static_argnums=3)(params(), cold.begin(params(), ROWS, LABEL), KEY, 4)
    logits = np.asarray(logits_of(params(), codes, LABEL))
    np.testing.assert_array_equal(logits.argmax(-1), np.asarray(codes).transpose(2, 1, 0))
    few = dataclasses.replace(TINY, top_p=0.3)
    _, codes = jax.jit(few.extend, static_argnums=3)(params(), few.begin(params(), ROWS, LABEL), KEY, 11)
    chance = np.asarray(jax.nn.softmax(logits_of(params(), codes, LABEL), -1))
    picked = np.take_along_axis(chance, np.asarray(codes).transpose(2, 1, 0)[..., None], -1)
    likelier = np.where(chance > picked, chance, 0).sum(-1)
    assert likelier.max() < 0.3 + 1e-5


def test_a_step_is_one_update_with_whole_units_left_out_for_whole_recordings():
    """By hand, in SGD so that nothing is hidden."""

    class Plain(type(TINY)):
        tx = property(lambda self: optax.sgd(0.1))

    model = Plain(**{f.name: getattr(TINY, f.name) for f in dataclasses.fields(TINY)} | {"dropout": 0.5})
    state, codes = jax.jit(lambda: model.init(jax.random.key(0), {}))(), codes_of(7, 8)
    batch = Batch(jnp.zeros((ROWS, 0, 1)), LABEL, given=codes)
    new, metrics = jax.jit(lambda s: model.train_step(s, batch, KEY, Shard(), None))(state)
    masks = jax.jit(lambda: model.masks(Shard().keys(KEY, ROWS)))()
    assert {float(value) for mask in masks for value in mask.ravel()} == {0.0, 2.0}
    assert (masks.width[0] != masks.width[1]).any()

    def loss(network):
        ready = model.ready(network)
        x = model.inputs(ready, codes, LABEL)[:, :-1] * masks.embedding[:, None]
        outputs = ready.over(x, model.silence(ROWS))[0] * masks.width[None]
        rows, bits = codes.swapaxes(0, 1).reshape(-1, 3), []
        left = masks._replace(depth=jnp.tile(masks.depth, (8, 1))).depth
        for i, logits in enumerate(ready.taught(outputs.reshape(len(rows), -1), rows, left)):
            nats = jax.nn.log_softmax(logits)
            bits.append(-jnp.take_along_axis(nats, rows[:, i, None], 1) / np.log(2))
        return jnp.mean(jnp.stack(bits))

    value, gradient = jax.jit(jax.value_and_grad(loss))(state.params["network"])
    np.testing.assert_allclose(metrics["network/bits"], value, rtol=1e-5)
    for a, b, slope in zip(*map(jax.tree.leaves, (new.params, state.params, gradient)), strict=True):
        np.testing.assert_allclose(a, b - 0.1 * slope, atol=1e-5)


def test_it_learns_a_pattern_by_heart_and_then_goes_on_with_it():
    """Rows of codes that run through all values, each codebook at its own pace and from the same start."""
    model = dataclasses.replace(TINY, width=48, depth=32, conditional=False, decay=0.0, dropout=0.0, classes=0)
    time = np.arange(16).reshape(1, -1, 1)
    pattern = jnp.asarray((time * np.array([1, 3, 7]) + 5) % model.codebook_size, jnp.int32)
    batch = Batch(jnp.zeros((4, 0, 1)), jnp.zeros(4, jnp.int32), given=jnp.tile(pattern[:, :8], (4, 1, 1)))

    @jax.jit
    def trained():
        step = lambda state, i: (model.train_step(state, batch, jax.random.key(i), Shard(), None)[0], ())
        state, _ = jax.lax.scan(step, model.init(jax.random.key(0), {}), jnp.arange(300))
        found = model.weights(state)
        _, codes = model.extend(found, model.hear(found, pattern[:, :3], None), KEY, 5)
        return model.bits(found, pattern[:, :8], None), codes

    bits, codes = trained()
    assert float(jnp.max(bits)) < 0.1
    np.testing.assert_array_equal(codes, pattern[:, 3:8])


def test_bfloat16_computes_nearly_what_float32_computes():
    half = dataclasses.replace(TINY, dtype="bfloat16")
    near = jax.jit(half.bits)(params(), codes_of(8), LABEL)
    assert near.dtype == jnp.float32
    np.testing.assert_allclose(near, BITS(params(), codes_of(8), LABEL), rtol=0.03)
    _, codes = jax.jit(half.extend, static_argnums=3)(params(), half.begin(params(), ROWS, LABEL), KEY, 2)
    assert int(jnp.min(codes)) >= 0


def test_weights_and_codes_that_are_none_give_bits_that_are_not_a_number():
    broken = params() | {"around": jax.tree.map(lambda x: x * jnp.nan, params()["around"])}
    assert bool(jnp.isnan(BITS(broken, codes_of(9), LABEL)).all())
    assert bool((EXTEND(broken, TINY.begin(broken, ROWS, LABEL), KEY, 5)[1] == -1).all())
    for wrong in (-1, TINY.codebook_size):
        bits = BITS(params(), codes_of(9).at[0, 2, 1].set(wrong), LABEL)
        np.testing.assert_array_equal(jnp.isnan(bits), [[False, True, False], [False] * 3])


def test_evaluation_tells_bits_per_code_and_the_rate_of_the_sound():
    state, codes = jax.jit(lambda: TINY.init(jax.random.key(0), {}))(), codes_of(10, 8)
    metrics = jax.jit(TINY.evaluate)(state, Batch(jnp.zeros((ROWS, 0, 1)), LABEL, given=codes), KEY)
    np.testing.assert_allclose(metrics["bits"], np.mean(BITS(jax.jit(TINY.weights)(state), codes, LABEL), 1), rtol=1e-5)
    np.testing.assert_allclose(metrics["kbps"], metrics["bits"] * 3 * 16000 / 8 / 1000, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"codebooks": 0}, "codebooks is 0: it is at least 1"),
        ({"codebook_size": 1}, "codebook_size is 1: it is at least 2"),
        ({"depth": 0}, "depth is 0"),
        ({"dropout": 1.0}, "dropout is 1.0: it is at least 0 and less than 1"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"top_p": 0.0}, "top_p is 0.0"),
    ],
)
def test_impossible_fields_are_refused(fields, words):
    with pytest.raises(InputError, match=words):
        dataclasses.replace(TINY, **fields)


# ------------------------------------------------------------------------------------------------ as a user runs it


@pytest.fixture(scope="module")
def codec(learn):
    """A codec that has hardly begun."""
    return learn("codec", "dac:tiny", 2, "--samples", 2)


@pytest.fixture(scope="module")
def composer(learn, codec):
    """A model of its codes that has hardly begun."""
    return learn("composer", "tokengru:tiny", 2, "--codec", codec, "--samples", 2)


def test_training_takes_from_the_codec_what_it_has_to_say_and_tells_it(codec, composer):
    made, own = trained(codec), trained(composer).model
    about = json.loads((composer / "run.json").read_text())["codec"]
    assert about == {"folder": str(codec), "step": 2, "fingerprint": generate.identity_of(made)}
    for name in generate.FROM_CODEC:
        assert getattr(own, name) == getattr(made.model, name), name
    assert own.classes == 3
    assert (composer / "samples" / "real.png").exists()
    waves = [soundfile.read(path)[0] for path in sorted((composer / "samples").glob("*.wav"))]
    assert [len(wave) for wave in waves] == [own.sample_rate] * 2
    lines = [json.loads(line) for line in (composer / "metrics.jsonl").read_text().splitlines()]
    assert any("valid/kbps" in line for line in lines)


def test_a_trained_model_makes_any_length_through_its_codec_and_goes_on_from_a_file(codec, composer, tmp_path, capsys):
    def sounds(name, *words):
        code, _, err = run(sample.main, *words, "--out", tmp_path / name, "--seed", 5, capsys=capsys)
        assert code == 0, err
        return [soundfile.read(path)[0] for path in sorted((tmp_path / name).glob("*.wav"))]

    long = sounds("long", "generate", composer, "--n", 2, "--seconds", 1.3)
    assert [len(wave) for wave in long] == [20800] * 2
    moved = tmp_path / "moved"
    shutil.copytree(codec, moved)
    short = sounds("short", "generate", composer, "--n", 2, "--seconds", 0.2, "--codec", moved)
    for a, b in zip(short, long, strict=True):
        np.testing.assert_allclose(a[:2500], b[:2500], atol=1e-4)
    audio.write(tmp_path / "in.wav", 0.1 * np.random.default_rng(0).standard_normal((4000, 1)), 16000)
    (further,) = sounds("further", "continue", composer, tmp_path / "in.wav", "--seconds", 0.3, "--label", "hum")
    np.testing.assert_array_equal(further[:4000], soundfile.read(tmp_path / "in.wav")[0])
    assert len(further) == 4000 + 4800


def test_wrong_codecs_are_refused_in_one_line(codec, composer, maker, recordings_of_three, tmp_path, capsys):
    data = ("--data", recordings_of_three, "--steps", 3)
    where = ("--out", tmp_path / "run", *data)
    for main, words, message in (
        (train.main, ("tokengru:tiny", *where), "learns the codes of a codec: train one first, then name its run"),
        (train.main, ("tokengru:tiny", "--codec", maker, *where), "which makes no codes: name a codec's run"),
        (train.main, ("tokengru:tiny", "--codec", tmp_path, *where), "is not a run's folder"),
        (train.main, ("wavegan:tiny", "--codec", codec, *where), "wavegan learns no codes: leave --codec away"),
        (train.main, ("tokengru:tiny", "--codec", codec, "--model.hop", 4, *where), "leave --model.hop away"),
        (train.main, ("tokengru:tiny", "--codec", codec, "--model.segment", 40, *where), "--model.segment 32"),
        (train.main, ("tokengru:tiny", "--codec", codec, "--gather", "device", *where), "leave --gather away"),
        (train.main, ("tokengru:tiny", "--codec", codec, "--codec-checkpoint", 9, *where), "no checkpoint '9'"),
        (sample.main, ("generate", composer, "--codec", maker), f"{maker}, which makes no codes: name the run"),
        (sample.main, ("generate", composer, "--codec", composer), f"{composer}, which makes no codes: name the run"),
        (sample.main, ("generate", composer, "--codec", tmp_path), "(no model.json in it): name the run that was"),
        (sample.main, ("generate", maker, "--codec", codec), "makes no codes: leave --codec away"),
        (sample.main, ("reconstruct", composer, tmp_path), "can't reconstruct: it can continue, generate"),
    ):
        out = () if main is train.main else ("--out", tmp_path / "out")
        code, _, err = run(main, *words, *out, capsys=capsys)
        assert code == 2, err
        assert message in err
        assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_run_goes_on_with_its_own_codec_alone(learn, codec, composer, recordings_of_three, capsys):
    other = learn("other", "dac:tiny", 2, "--samples", 2, "--seed", 1)
    words = ("tokengru:tiny", "--data", recordings_of_three, "--out", composer, "--samples", 2)
    code, _, err = run(train.main, *words, "--steps", 3, "--codec", other, capsys=capsys)
    assert code == 2
    there, here = (generate.identity_of(trained(folder)) for folder in (codec, other))
    assert f"holds another run: codec is {there} there and {here} here; give --codec {codec} --codec-check" in err
    assert "--codec-checkpoint 2, or another --out" in err
    code, out, err = run(train.main, *words, "--steps", 3, "--codec", codec, capsys=capsys)
    assert code == 0, err
    assert "continues at step 2" in out


def test_a_codec_with_a_continuous_latent_is_refused(tmp_path, monkeypatch):
    continuous = dataclasses.replace(zoo.load("dac:tiny"), bottleneck="vae")
    monkeypatch.setattr(folder, "described", lambda where: (continuous, {}))
    monkeypatch.setattr(folder, "trained", lambda where, which: folder.Trained(where, continuous, {}, 1, ()))
    with pytest.raises(InputError, match=f"codec is {tmp_path}: bottleneck is vae: its latent is continuous"):
        generate.codec_at(tmp_path, "latest")


def test_its_card_tells_what_the_codes_need_and_what_they_take_without(composer, capsys):
    code, out, err = run(quality.main, composer, "--n", 12, "--resamples", 40, capsys=capsys)
    assert code == 0, err
    card = json.loads((composer / "scores" / "predicted.json").read_text(), parse_constant=pytest.fail)
    rows, model = {row["metric"]: row for row in card["rows"]}, trained(composer).model
    raw = model.codebooks * 4 * 16000 / model.hop / 1000
    assert rows[prediction.RAW]["value"] == pytest.approx(raw)
    assert rows[prediction.COUNTED]["value"] < raw
    each = [rows[f"{prediction.RATE}, codebook {i + 1}"]["value"] for i in range(model.codebooks)]
    assert sum(each) == pytest.approx(rows[prediction.RATE]["value"])
    less = rows[prediction.RATE]["value"] - rows[prediction.COUNTED]["value"]
    assert rows[prediction.LESS]["value"] == pytest.approx(less)
    assert prediction.LESS in out
    assert {row["unit"] for row in card["rows"]} == {"kbit/s"}
