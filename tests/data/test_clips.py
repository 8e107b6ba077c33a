"""The plan of a batch and the two ways to fetch it."""

import dataclasses
import gc
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxaudio import zoo
from jaxaudio.core import InputError
from jaxaudio.data.clips import Ahead, Clips, DeviceClips, Noise, permute
from jaxaudio.data.pack import Pack
from jaxaudio.runtime.parallel import Devices

MODEL = zoo.load("wavegan:tiny")
SEGMENT = MODEL.segment


def pack_of(lengths, channels=1, split=0, peak=None) -> Pack:
    """Recordings in which every sample tells where it is."""
    lengths = np.array(lengths)
    rng = np.random.default_rng(0)
    samples = rng.integers(-30000, 30000, (lengths.sum(), channels)).astype(np.int16)
    count = len(lengths)
    return Pack(
        samples=samples,
        start=np.cumsum([0, *lengths[:-1]]),
        length=lengths.astype(np.int64),
        peak=np.full(count, 30000 if peak is None else peak, np.int32),
        label=np.arange(count, dtype=np.int32),
        group=np.full(count, -1, np.int32),
        split=np.full(count, split, np.int8),
        names=tuple(f"{i}.wav" for i in range(count)),
        classes=tuple(str(i) for i in range(count)),
        groups=(),
        sample_rate=MODEL.sample_rate,
        channels=channels,
        layout="test",
        fingerprint="",
        folder=Path(),
        rejected=(),
    )


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 100, 10007])
def test_a_permutation_is_a_bijection_and_its_keys_differ(size):
    orders = [permute(np.arange(size), size, np.full(size, key, np.uint64)) for key in (1, 2)]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(size))
    if size > 50:
        assert np.mean(orders[0] == orders[1]) < 0.1
        assert np.mean(orders[0] == np.arange(size)) < 0.1


def test_every_unit_comes_once_per_epoch_even_where_epochs_end_inside_a_batch():
    pack = pack_of([SEGMENT // 2, SEGMENT, 3 * SEGMENT + 5, 10 * SEGMENT] * 5)
    clips = Clips(pack, MODEL, seed=3)
    assert clips.units == 15 * 5
    labels = np.concatenate([clips.plan(step).label for step in range(2 * clips.units)])
    epochs = labels[: len(labels) // clips.units * clips.units].reshape(-1, clips.units)
    for epoch in epochs:
        assert np.array_equal(np.bincount(epoch, minlength=20), np.tile([1, 1, 3, 10], 5))
    assert not np.array_equal(epochs[0], epochs[1])


def test_balanced_every_class_comes_once_a_round_and_its_units_once_an_epoch():
    pack = pack_of([SEGMENT, SEGMENT // 2, 3 * SEGMENT, SEGMENT, SEGMENT, SEGMENT, SEGMENT])
    pack = dataclasses.replace(pack, label=np.array([5, 0, 5, 0, 5, 0, 9], np.int32))
    clips = Clips(pack, dataclasses.replace(MODEL, balanced=True), seed=3)
    plans = [clips.plan(step) for step in range(90)]
    label, start = (np.concatenate([getattr(plan, name) for plan in plans]) for name in ("label", "start"))
    rounds = label[: len(label) // 3 * 3].reshape(-1, 3)
    assert np.array_equal(np.sort(rounds, 1), np.tile([0, 5, 9], (len(rounds), 1)))
    assert len(np.unique(rounds, axis=0)) == 6, "the order changes"
    recording = np.searchsorted(pack.start, start, side="right") - 1
    for one, units in ((0, {1: 1, 3: 1, 5: 1}), (5, {0: 1, 2: 3, 4: 1}), (9, {6: 1})):
        mine = recording[label == one]
        epochs = mine[: len(mine) // sum(units.values()) * sum(units.values())].reshape(-1, sum(units.values()))
        for epoch in epochs:
            assert dict(zip(*np.unique(epoch, return_counts=True), strict=True)) == units
    assert {n for _, n in Clips(pack, MODEL, 3, "valid").survey(9)} == set(), "only training is balanced"


def test_of_notes_an_example_is_the_beginning():
    notes = dataclasses.replace(zoo.load("gansynth:tiny"), batch_size=MODEL.batch_size)
    pack = pack_of([10 * notes.segment, notes.segment // 2, notes.segment])
    clips = Clips(pack, notes, seed=0)
    assert clips.units == 3
    starts = np.concatenate([clips.plan(step).start for step in range(30)])
    assert dict(zip(*np.unique(starts, return_counts=True), strict=True)) == dict.fromkeys(pack.start, len(starts) / 3)
    assert sum(n for _, n in clips.survey(99)) == 3


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_the_hosts_together_plan_what_one_host_plans(hosts, balanced):
    clips = Clips(pack_of([SEGMENT * 4] * 9), dataclasses.replace(MODEL, balanced=balanced), seed=3)
    share = MODEL.batch_size // hosts
    for step in (0, 1, 10**9):
        parts = [clips.plan(step, slice(host * share, (host + 1) * share)) for host in range(hosts)]
        for whole, *pieces in zip(*map(jax.tree.leaves, (clips.plan(step), *parts)), strict=True):
            assert np.array_equal(whole, np.concatenate(pieces))


def test_the_plan_follows_from_seed_and_step_alone():
    clips = [Clips(pack_of([SEGMENT * 4] * 9), MODEL, seed=seed) for seed in (3, 3, 4)]
    plans = [c.plan(7) for c in clips]
    assert all(np.array_equal(a, b) for a, b in zip(plans[0], plans[1], strict=True))
    assert not np.array_equal(plans[0].start, plans[2].start)
    assert not np.array_equal(plans[0].start, clips[0].plan(8).start)


def test_crops_of_a_long_recording_start_anywhere_and_end_inside():
    clips = Clips(pack_of([SEGMENT + 7]), MODEL, seed=0)
    starts = np.concatenate([clips.plan(step).start for step in range(50)])
    assert np.array_equal(np.unique(starts), np.arange(8))
    counts = np.bincount(starts)
    assert counts.min() > 0.8 * counts.mean()


def test_a_shorter_recording_is_followed_by_zeros_and_gain_is_of_the_recording():
    pack = pack_of([SEGMENT // 2, SEGMENT // 16], peak=15000)
    clips = Clips(pack, MODEL, seed=0)
    batch = clips.gather(clips.plan(0))
    row = int(np.flatnonzero(batch.label == 0)[0])
    np.testing.assert_allclose(batch.wave[row, : SEGMENT // 2], pack.samples[: SEGMENT // 2] / 15000, rtol=1e-6)
    assert not batch.wave[row, SEGMENT // 2 :].any()
    assert (batch.label == 1).any(), "one of exactly 1/16 is used"


def test_a_recording_that_is_too_short_is_left_out_and_named():
    clips = Clips(pack_of([SEGMENT, SEGMENT // 16 - 1]), MODEL, seed=0)
    ((name, reason),) = clips.left_out
    assert name == "1.wav"
    assert "1/16" in reason
    assert set(clips.plan(0).label) == {0}
    with pytest.raises(InputError, match="no recording of 1 can be trained on"):
        Clips(pack_of([3]), MODEL, seed=0)


@pytest.mark.parametrize("channels", [1, 2])
def test_device_gather_equals_host_gather_bit_for_bit(channels):
    pack = pack_of([SEGMENT // 3, SEGMENT + 1, 5 * SEGMENT - 1, SEGMENT, SEGMENT // 5], channels)
    clips, devices = Clips(pack, MODEL, seed=1), Devices("jit", 4)
    on_device = DeviceClips(clips, devices)
    for step in range(5):
        plan = clips.plan(step)
        host, device = clips.gather(plan), on_device.gather(plan)
        assert device.wave.sharding.is_equivalent_to(devices.sharded, 3)
        assert np.array_equal(host.wave.view(np.int32), np.asarray(device.wave).view(np.int32))
        assert np.array_equal(host.label, device.label)


def test_fetching_moves_nothing_but_what_it_says():
    """With the pack on the device no transfer is implicit: only the plan crosses, and it is put there by name."""
    on_device = DeviceClips(clips := Clips(pack_of([5 * SEGMENT]), MODEL, seed=1), Devices("jit", 4))
    plan = clips.plan(0)
    on_device.gather(plan)
    with jax.transfer_guard("disallow"):
        jax.block_until_ready(on_device.gather(plan))


def test_a_survey_sees_every_unit_once_without_overlap():
    lengths = [SEGMENT // 2, 3 * SEGMENT + 5, SEGMENT, 70 * SEGMENT]
    clips = Clips(pack_of(lengths, split=1), MODEL, seed=0, split="valid")
    seen = [(s, n) for plan, count in clips.survey(1000) for s, n in zip(plan.start[:count], plan.length, strict=False)]
    first = np.cumsum([0, *lengths[:-1]])
    want = [
        (f + k * SEGMENT, min(n, SEGMENT))
        for f, n in zip(first, lengths, strict=True)
        for k in range(max(1, n // SEGMENT))
    ]
    assert sorted(seen) == sorted(want)
    assert seen != want, "neighbours in a folder are no independent draws"
    some = [n for _, n in clips.survey(10)]
    assert sum(some) == 10
    assert {len(plan.start) for plan, _ in clips.survey(10)} == {MODEL.batch_size}


LENGTHS = [SEGMENT // 3, SEGMENT + 1, 5 * SEGMENT - 1, SEGMENT, SEGMENT // 16]


def noisy(lengths=LENGTHS, noises=LENGTHS[::-1], model=MODEL, seed=1, split=0, **fields):
    """Clips of one pack with the noise of another one."""
    name = ("train", "valid")[split]
    noise = Noise(pack_of(noises, split=split, **fields), model, seed, name)
    return Clips(pack_of(lengths, split=split, **fields), model, seed, name, noise)


@pytest.mark.parametrize("channels", [1, 2])
def test_noise_on_the_device_is_the_hosts_bit_for_bit(channels):
    clips, devices = noisy(channels=channels), Devices("jit", 4)
    on_device, seen = DeviceClips(clips, devices), set()
    for step in range(8):
        plan = clips.plan(step)
        seen |= set(plan.noise.length.tolist())
        host, device = clips.gather(plan), on_device.gather(plan)
        assert device.noise.sharding.is_equivalent_to(devices.sharded, 3)
        for mine, other in zip(host, device, strict=True):
            assert mine is other is None or np.array_equal(mine.view(np.int32), np.asarray(other).view(np.int32))
    assert seen == {SEGMENT // 16, SEGMENT // 3, SEGMENT}


def test_a_short_noise_is_repeated_from_anywhere_on_as_loud_as_it_is():
    clips = noisy(noises=[SEGMENT // 3], peak=15000)
    recording = clips.noise.samples / 32768
    turns = []
    for step in range(60):
        plan = clips.plan(step)
        wave = clips.gather(plan).noise
        for row, turn in zip(wave, plan.noise.turn, strict=True):
            np.testing.assert_array_equal(row, np.resize(np.roll(recording, -turn, 0), row.shape))
        turns += plan.noise.turn.tolist()
    assert np.ptp(turns) > 0.9 * (SEGMENT // 3 - 1)
    assert max(turns) < SEGMENT // 3


def test_a_long_noise_is_cut_anywhere_and_never_repeated():
    clips = noisy(noises=[SEGMENT + 7])
    plans = [clips.plan(step).noise for step in range(50)]
    assert set(np.concatenate([plan.start for plan in plans]).tolist()) == set(range(8))
    assert not np.concatenate([plan.turn for plan in plans]).any()


def test_the_noise_of_an_example_follows_from_its_number_alone():
    half = dataclasses.replace(MODEL, batch_size=MODEL.batch_size // 2)
    whole, other, halves = noisy(), noisy(lengths=[9 * SEGMENT] * 3), noisy(model=half)
    joined = lambda crops: [np.concatenate(field) for field in zip(*crops, strict=True)]
    for step in (0, 3, 10**8):
        of_halves = joined(halves.plan(2 * step + i).noise for i in (0, 1))
        of_hosts = joined(whole.plan(step, slice(i, i + 4)).noise for i in range(0, MODEL.batch_size, 4))
        for found in (other.plan(step).noise, of_halves, of_hosts):
            for mine, theirs in zip(whole.plan(step).noise, found, strict=True):
                np.testing.assert_array_equal(mine, theirs)


def test_noise_and_recordings_of_one_pack_are_drawn_independently():
    count = 40
    clips = noisy([2 * SEGMENT] * count, [2 * SEGMENT] * count)
    plans = [clips.plan(step) for step in range(200)]
    start, noise = (np.concatenate(starts) for starts in zip(*((p.start, p.noise.start) for p in plans), strict=True))
    which, other = start // (2 * SEGMENT), noise // (2 * SEGMENT)
    assert np.mean(which == other) < 3 / count
    assert len(set(zip(which.tolist(), other.tolist(), strict=True))) > 0.5 * count**2
    assert abs(np.corrcoef(start % (2 * SEGMENT), noise % (2 * SEGMENT))[0, 1]) < 0.1


def test_noise_too_short_is_left_out_and_none_at_all_is_an_error():
    noise = Noise(pack_of([SEGMENT, SEGMENT // 16 - 1]), MODEL, 0)
    assert [name for name, _ in noise.left_out] == ["1.wav"]
    with pytest.raises(InputError, match="no recording of 1 can be noise: 1 are in the train split and the longest"):
        Noise(pack_of([3]), MODEL, 0)
    assert not Noise(pack_of([SEGMENT]), MODEL, 0, "valid").units


def test_a_survey_pairs_units_with_the_same_noises_each_time_and_statistics_hear_them_too():
    clips = noisy([3 * SEGMENT, 70 * SEGMENT], split=1)
    first, second = (list(clips.survey(1000)) for _ in range(2))
    for (plan, count), (again, _) in zip(first, second, strict=True):
        for mine, other in zip(jax.tree.leaves(plan), jax.tree.leaves(again), strict=True):
            np.testing.assert_array_equal(mine, other)
            np.testing.assert_array_equal(mine[count:], np.resize(mine[:count], mine.shape)[count:])
    numbers = np.arange(sum(count for _, count in first))
    for field, want in zip(
        zip(*(plan.noise for plan, _ in first), strict=True), clips.noise.crop(numbers), strict=True
    ):
        np.testing.assert_array_equal(np.concatenate(field)[: len(numbers)], want)
    batches = list(clips.batches())
    assert sum(len(batch.noise) for batch in batches) == clips.units
    assert all(batch.noise.shape == batch.wave.shape for batch in batches)


def test_what_comes_next_is_made_meanwhile_whatever_is_asked_for():
    made, done = [], threading.Event()

    def make(step):
        if step == 9:
            raise InputError("nine is not there")
        made.append(step)
        if step == 4:
            done.set()
        return 10 * step

    before = set(threading.enumerate())
    ahead = Ahead(make)
    (thread,) = set(threading.enumerate()) - before
    assert ahead(3) == 30
    assert done.wait(10), "nothing is made before it is asked for"
    assert ahead(4) == 40
    assert ahead(7) == 70
    assert ahead(8) == 80
    with pytest.raises(InputError, match="nine"):
        ahead(9)
    assert ahead(3) == 30
    with pytest.raises(InputError, match="nine"):
        ahead(9)  # not what was made ahead
    assert ahead(5) == 50
    assert made[:2] == [3, 4]
    assert made[:5].count(4) == 1
    del ahead
    gc.collect()  # what was raised refers to it
    thread.join(10)
    assert not thread.is_alive(), "the thread outlives what it works for"
