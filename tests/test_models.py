"""The contract, over every model of the zoo at its `tiny` preset: a model is tested by existing."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxaudio import zoo
from jaxaudio.core import (
    Batch,
    Classifies,
    Composes,
    Continues,
    Generates,
    InputError,
    Model,
    Morphs,
    Restores,
    Shard,
    Vocodes,
)
from jaxaudio.runtime.checkpoint import Checkpoints, abstract
from jaxaudio.runtime.parallel import Devices
from tests.communication import only_sums, sums_allowed

CLASSES = 10
SOON = 100  # steps after which every stage but the last has had its turn; tiny presets give one of them 500
LINES = 10_000  # of StableHLO that a stage of a tiny preset may have: about a second of compilation per 2000
ONE_PER_FAMILY = {module.split(".")[-2]: name for name, module in reversed(zoo.names().items())}.values()


def labelled(model: Model) -> Model:
    return dataclasses.replace(model, classes=CLASSES) if model.needs_labels else model


def capable(capability: type[Model]):
    """Marks a test of the models that have it."""
    names = [name for name in zoo.names() if issubclass(zoo.model_class(name), capability)]
    assert names, f"no model {capability.__name__}"
    return pytest.mark.parametrize("subject", names, indirect=True)


class Subject:
    """A tiny model with its compiled step on four devices, made once for all tests."""

    def __init__(self, name: str):
        self.model = labelled(zoo.load(f"{name}:tiny"))
        if getattr(self.model, "warm_up", 0) > SOON:
            self.model = dataclasses.replace(self.model, warm_up=SOON)
        self.devices = Devices("jit", 4)
        self.stages = self.model.variants
        self.make = partial(self.model.init, jax.random.key(0), self.model.measure([self.batch(0)]))
        self.init = jax.jit(self.make, out_shardings=self.devices.replicated)
        self.weights = cache(lambda: jax.jit(self.model.weights)(self.init()))
        self.lowered, self.program = cache(self._lowered), cache(lambda stage: self.lowered(stage).compile())

    def _lowered(self, stage) -> jax.stages.Lowered:
        batch = self.devices.shard(self.batch(0))
        return self.devices.compile(self.model).lower(self.init(), batch, jax.random.key(0), stage)

    def step(self, state, batch, key, stage):
        """The program of the stage, which refuses a state of other shapes or types."""
        return self.program(stage)(state, batch, key)

    def batch(self, i: int) -> Batch:
        """Tones of random pitch and level: something to learn."""
        model, rng = self.model, np.random.default_rng(i)
        time = np.arange(model.segment)[None, :, None] / model.sample_rate
        pitch, level = rng.uniform(200, 2000, (model.batch_size, 1, 1)), rng.uniform(0.2, 0.8, (model.batch_size, 1, 1))
        wave = np.repeat(level * np.sin(2 * np.pi * pitch * time), model.channels, -1).astype(np.float32)
        label = rng.integers(0, CLASSES, model.batch_size).astype(np.int32)
        if model.needs_codes:  # a frame's codes count on from those of the one before
            first = rng.integers(0, model.codebook_size, (model.batch_size, 1, model.codebooks))
            given = (first + np.arange(model.segment // model.hop).reshape(1, -1, 1)) % model.codebook_size
            return Batch(wave[:, :0], label, given=given.astype(np.int32))
        noise = 0.1 * rng.standard_normal(wave.shape).astype(np.float32) if model.needs_noise else None
        return Batch(wave, label, noise)

    def run(self, step, devices, state, first: int, last: int, fixed: bool = False):
        metrics, shown = None, devices.shard(self.batch(0))
        for i in range(first, last):
            batch = shown if fixed else devices.shard(self.batch(i))
            state, metrics = step(state, batch, jax.random.fold_in(jax.random.key(1), i), self.model.stage(i))
            jax.block_until_ready(metrics)  # never many in flight: several CPU devices abort
        return jax.block_until_ready(state), metrics


@cache
def subject_named(name: str) -> Subject:
    return Subject(name)


@pytest.fixture(scope="module", autouse=True)
def forget():
    """Programs that a subject holds are not among those that jax.clear_caches forgets."""
    yield
    subject_named.cache_clear()


@pytest.fixture(scope="module", params=zoo.names())
def subject(request) -> Subject:
    """Every model in turn, where a test does not name those that it is of."""
    return subject_named(request.param)


def test_one_step_gives_finite_metrics_and_skips_nothing(subject):
    state, metrics = subject.run(subject.step, subject.devices, subject.init(), 0, 1)
    values = {name: float(value) for name, value in metrics.items()}
    assert all(np.isfinite(value) for value in values.values()), values
    assert any(name.endswith("skipped") for name in values), "the step does not go through descend"
    assert not any(value for name, value in values.items() if name.endswith("skipped"))
    assert int(state.step) == 1
    assert all(leaf.size for leaf in jax.tree.leaves(state)), "orbax refuses arrays of size zero"


def test_a_step_gives_a_state_like_the_one_it_takes(subject):
    """What `jax.jit` would compile anew for: then there is one compilation per stage."""
    assert {subject.model.stage(i) for i in range(1000)} == set(subject.stages)
    state, batch = subject.init(), subject.devices.shard(subject.batch(0))
    kinds = jax.tree.map(jax.typeof, state)
    for stage in subject.stages:
        state, _ = subject.step(state, batch, jax.random.key(0), stage)
        assert jax.tree.map(jax.typeof, state) == kinds


def test_devices_send_each_other_sums_alone(subject):
    """Under jit; nobody writes a collective by hand."""
    for stage in subject.stages:
        only_sums(subject.program(stage).as_text(), sums_allowed(subject.model, subject.batch(0), stage))


def test_a_stage_is_small_enough_to_compile_quickly(subject):
    for stage in subject.stages:
        assert subject.lowered(stage).as_text().count("\n") <= LINES


def test_pmap_on_four_devices_computes_the_gradients_of_jit_on_four(subject):
    pmap = Devices("pmap", 4)
    after_jit, _ = subject.run(subject.step, subject.devices, subject.init(), 0, 1)
    after_pmap, _ = subject.run(pmap.compile(subject.model), pmap, subject.init(), 0, 1)
    same_moments(after_jit, after_pmap)
    for leaf in jax.tree.leaves(after_pmap):
        replicas = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(replicas) == 4
        assert all(np.array_equal(replica, replicas[0]) for replica in replicas), "a mean over devices is missing"


@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_one_device_computes_the_gradients_of_four(name):
    subject, single = subject_named(name), Devices("jit", 1)
    after_four, _ = subject.run(subject.step, subject.devices, subject.init(), 0, 1)
    state = single.replicate(jax.device_get(subject.init()))
    after_one, _ = subject.run(single.compile(subject.model), single, state, 0, 1)
    same_moments(after_four, after_one)


def same_moments(a, b):
    """The optimisers' moments are the gradients; parameters would hide a factor, as Adam does."""
    for network in a.opt:
        first, second = ([np.asarray(x) for x in jax.tree.leaves(state.opt[network]) if x.ndim] for state in (a, b))
        difference = np.sqrt(sum(np.sum((x - y) ** 2.0) for x, y in zip(first, second, strict=True)))
        assert difference <= 1e-5 * np.sqrt(sum(np.sum(x**2.0) for x in first)), network


def test_resume_is_exact(subject, tmp_path):
    straight, _ = subject.run(subject.step, subject.devices, subject.init(), 0, 5)
    half, _ = subject.run(subject.step, subject.devices, subject.init(), 0, 3)
    saved = Checkpoints(tmp_path / "checkpoints", 2, subject.model.criterion)
    saved.save(3, half, None)
    saved.wait()
    del half
    again = Checkpoints(tmp_path / "checkpoints", 2, subject.model.criterion)
    state = again.latest(abstract(subject.model, subject.devices))
    assert int(state.step) == 3
    resumed, _ = subject.run(subject.step, subject.devices, state, 3, 5)
    same_bits(straight, resumed)


def test_a_batch_that_is_not_finite_leaves_the_networks_it_reaches_untouched(subject):
    """Every update that sees the batch is skipped, the averages that follow it stand still, the steps count on."""
    before = subject.init()
    kept = jax.tree.map(np.asarray, jax.device_get(before))
    batch = subject.batch(0)._replace(wave=np.full_like(subject.batch(0).wave, np.nan))
    if subject.model.needs_codes:
        batch = batch._replace(given=np.full_like(batch.given, -1))
    after, metrics = subject.step(before, subject.devices.shard(batch), jax.random.key(0), subject.model.stage(0))
    skipped = [name.removesuffix("/skipped") for name, value in metrics.items() if name.endswith("skipped") and value]
    assert skipped
    for network in skipped:
        same_bits(kept.params[network], after.params[network])
        same_bits(kept.opt[network], after.opt[network])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(after)))
    assert int(after.step) == 1


def same_bits(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_it_overfits_one_batch(subject):
    """The criterion on the batch that it is shown again and again is down by a fifth within 600 steps, and in the last
    stage: a stage before that may end above it."""
    examine = jax.jit(subject.model.evaluate)
    score = lambda state: float(jnp.mean(examine(state, subject.batch(0), jax.random.key(2))[subject.model.criterion]))
    state = subject.init()
    before = score(state)
    for last in range(50, 601, 50):
        state, _ = subject.run(subject.step, subject.devices, state, last - 50, last, fixed=True)
        after = score(state)
        if subject.model.stage(last - 1) == subject.stages[-1] and after < 0.8 * before:
            break
    assert after < 0.8 * before


def test_evaluation_gives_one_number_per_example_and_the_criterion(subject):
    metrics = jax.jit(subject.model.evaluate)(subject.init(), subject.batch(0), jax.random.key(0))
    assert subject.model.criterion in metrics
    assert {value.shape for value in metrics.values()} == {(subject.model.batch_size,)}
    assert all(np.isfinite(value).all() for value in metrics.values())


@capable(Generates)
def test_generated_sound_has_the_promised_shape_and_depends_on_its_own_row_alone(subject):
    model = subject.model
    params, length = subject.weights(), model.segment - 3
    label = jnp.arange(5) if model.classes else None
    sound = jax.jit(model.generate, static_argnums=(2, 3))
    five = sound(params, jax.random.key(3), 5, length, label)
    assert five.shape == (5, length, model.channels)
    assert float(jnp.max(jnp.abs(five))) <= 1
    two = sound(params, jax.random.key(3), 2, length, None if label is None else label[:2])
    np.testing.assert_allclose(two, five[:2], atol=1e-6)
    assert float(jnp.max(jnp.abs(five[0] - five[1]))) > 0


@capable(Morphs)
def test_morphing_passes_through_the_sounds_at_its_ends(subject):
    model = subject.model
    params = subject.weights()
    label = jnp.zeros(2, int) if model.classes else None
    whole = jax.jit(model.generate, static_argnums=(2, 3))(params, jax.random.key(3), 2, model.segment, label)
    rendered = jax.jit(lambda params, key: model.render(params, model.latents(key, 2), label))
    np.testing.assert_allclose(rendered(params, jax.random.key(3)), whole, atol=1e-6)


@capable(Continues)
def test_what_is_continued_goes_on_in_parts_and_needs_some_bits(subject):
    model = subject.model
    params, wave = subject.weights(), jnp.asarray(subject.batch(0).wave)[:2]
    label = jnp.arange(2) if model.classes else None
    heard = jax.jit(model.hear)(params, wave, label)
    extend = jax.jit(model.extend, static_argnums=3)
    _, whole = extend(params, heard, jax.random.key(3), 2)
    assert whole.shape == (2, 2 * model.frame, model.channels)
    assert float(jnp.max(jnp.abs(whole))) <= 1
    carry, first = extend(params, heard, jax.random.key(3), 1)
    _, second = extend(params, carry, jax.random.key(3), 1)
    np.testing.assert_allclose(jnp.concatenate([first, second], 1), whole, atol=1e-6)
    bits = jax.jit(model.bits)(params, wave, label)
    assert bits.shape == (2,)
    assert float(jnp.min(bits)) > 0


@capable(Composes)
def test_codes_go_on_in_parts_and_need_the_bits_of_what_is_heard_before(subject):
    model = subject.model
    params, codes = subject.weights(), jnp.asarray(subject.batch(0).given)[:2]
    label = jnp.arange(2) if model.classes else None
    assert model.segment == codes.shape[1] * model.hop
    heard = jax.jit(model.hear)(params, codes, label)
    extend = jax.jit(model.extend, static_argnums=3)
    _, whole = extend(params, heard, jax.random.key(3), 4)
    assert whole.shape == (2, 4, model.codebooks)
    assert int(jnp.min(whole)) >= 0
    assert int(jnp.max(whole)) < model.codebook_size
    carry, first = extend(params, heard, jax.random.key(3), 1)
    _, second = extend(params, carry, jax.random.key(3), 3)
    np.testing.assert_array_equal(jnp.concatenate([first, second], 1), whole)
    _, alone = extend(params, model.begin(params, 1, None if label is None else label[:1]), jax.random.key(3), 4)
    _, both = extend(params, model.begin(params, 2, label), jax.random.key(3), 4)
    np.testing.assert_array_equal(alone[0], both[0])
    bits = jax.jit(model.bits)(params, codes, label)
    assert bits.shape == (2, model.codebooks)
    assert float(jnp.min(bits)) > 0


@capable(Vocodes)
def test_a_vocoder_makes_a_hop_of_sound_of_every_frame_but_those_around(subject):
    model = subject.model
    params, around = subject.weights(), 2 * model.reach
    wave = jnp.resize(jnp.asarray(subject.batch(0).wave)[:2], (2, (3 + around) * model.hop, model.channels))
    frames = jax.jit(model.features)(wave)
    assert frames.shape[:2] == (2, 3 + around)
    for ready in (params, model.prepared(params)):
        _, sound = jax.jit(model.vocode)(ready, model.open(ready, 2), frames, jax.random.key(3))
        assert sound.shape == (2, 3 * model.hop, model.channels)
        assert float(jnp.max(jnp.abs(sound))) <= 1


@capable(Restores)
def test_what_is_restored_is_in_range_and_depends_on_its_own_row_alone(subject):
    model, params, wave, gap = restored_by(subject)
    restore = jax.jit(model.restore)
    for where in (None, gap) if model.longest else (None,):
        three = restore(params, wave, where, jax.random.key(3))
        assert three.shape == wave.shape
        assert np.isfinite(three).all()
        assert float(jnp.max(jnp.abs(three))) <= 1
        assert float(jnp.max(jnp.abs(three - wave))) > 0
        two = restore(params, wave[:2], None if where is None else where[:2], jax.random.key(3))
        np.testing.assert_allclose(two, three[:2], atol=1e-5)
    if not model.longest:
        with pytest.raises(InputError, match="gap"):
            model.restore(params, wave, gap, jax.random.key(3))


@capable(Restores)
def test_a_part_of_a_sound_with_its_reach_around_it_is_restored_as_the_whole(subject):
    model, params, wave, gap = restored_by(subject)
    hops, restore = wave.shape[1] // model.hop, jax.jit(model.restore)
    part, inside = (slice(n * model.hop, (hops - n) * model.hop) for n in (1, 1 + model.reach))
    beyond = slice(model.reach * model.hop, (model.reach + 1) * model.hop)
    for where in (None, gap) if model.longest else (None,):
        whole = restore(params, wave, where, jax.random.key(3))
        given = None if where is None else where[:, part]
        found = restore(params, wave[:, part], given, jax.random.key(3), 1)
        np.testing.assert_allclose(found[:, beyond], whole[:, inside], atol=1e-4)
        assert float(jnp.std(whole[:, inside])) > 1e-3, "too quiet to tell"


@capable(Restores)
def test_damage_is_heard_and_takes_away_one_stretch_at_most(subject):
    model = subject.model
    damage, gaps = jax.jit(lambda batch, key: model.damaged(batch, key, Shard())), 0
    for i in range(4):
        batch = jax.tree.map(jnp.asarray, subject.batch(i))
        wave, gap = damage(batch, jax.random.key(i))
        assert wave.shape == batch.wave.shape
        assert gap.shape == wave.shape[:2]
        assert np.isfinite(wave).all()
        assert float(jnp.max(jnp.abs(wave - batch.wave))) > 0
        other, _ = damage(batch, jax.random.key(i + 1))
        assert float(jnp.max(jnp.abs(wave - other))) > 0, "the key changes nothing"
        assert set(np.unique(gap)) <= {0, 1}
        begins = np.diff(np.asarray(gap), axis=1, prepend=0) > 0
        assert begins.sum(1).max() <= 1
        assert np.sum(gap, 1).max() <= model.longest
        gaps += begins.sum()
    assert bool(gaps) == bool(model.longest)


def restored_by(subject):
    """A model that restores, its weights, three sounds that are the reach of a hop and a hop more at both ends, and the
    longest gap in their middle."""
    model = subject.model
    length = (2 * model.reach + 3) * model.hop
    wave = jnp.asarray(subject.batch(0).wave)[:3]
    wave = jnp.tile(wave, (1, -(-length // wave.shape[1]), 1))[:, :length]
    from_middle = jnp.abs(jnp.arange(length) - (length - 1) / 2)
    gap = (from_middle < max(model.longest, 2) / 2).astype(jnp.float32)
    return model, subject.weights(), wave, jnp.tile(gap[None], (3, 1))


@capable(Classifies)
def test_classifying_reads_every_row_alone_and_gives_a_logit_per_class(subject):
    model = subject.model
    params, wave = subject.weights(), jnp.asarray(subject.batch(0).wave)
    program = jax.jit(model.classify)
    logits, embedding = program(params, wave)
    assert logits.shape == (model.batch_size, CLASSES)
    assert embedding.ndim == 2
    reversed_logits, reversed_embedding = program(params, wave[::-1])
    np.testing.assert_allclose(reversed_logits[::-1], logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(reversed_embedding[::-1], embedding, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", zoo.names())
def test_every_preset_builds_and_the_papers_has_the_published_size(name):
    for preset in zoo.model_class(name).presets:
        model = labelled(zoo.load(f"{name}:{preset}"))
        counts = counts_of(model)
        if preset == "paper":
            assert {k: round(v / 1e6, 2) for k, v in counts.items()} == dict(model.published)
        assert zoo.parse(zoo.dump(model)) == model
        assert hash(model) == hash(dataclasses.replace(model))


@cache
def counts_of(model):
    """Of each network its parameters."""
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), model.measure(()))).params
    return {network: sum(leaf.size for leaf in jax.tree.leaves(p)) for network, p in params.items()}
