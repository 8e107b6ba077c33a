"""Efficiency on many chips: the formula at its limits, and the bytes that a compiled program sums against it."""

import json

import jax
import pytest

from benchmarks import scaling
from benchmarks.scaling import CHIPS, COUNTS, Chip, Link, all_reduce, efficiency, gradients, summed_bytes
from jaxaudio import zoo
from jaxaudio.runtime.parallel import Devices
from tests.commands import run
from tests.runtime.test_parallel import BATCH, Toy

RING = (Link("NVLink", 1.0, 4096),)  # 10^9 bytes a second


def test_one_chip_sends_nothing_and_a_link_without_limits_costs_nothing(monkeypatch):
    assert all_reduce(1, 1e9, 3, CHIPS["h200"].links) == 0
    assert efficiency(0.1, 0.0, False) == efficiency(0.1, 0.0, True) == 1
    monkeypatch.setattr(scaling, "HOP_US", {"NVLink": 0.0})
    assert all_reduce(512, 1e9, 3, (Link("NVLink", float("inf"), 4096),)) == 0


def test_a_ring_sends_twice_all_but_one_share_and_every_update_pays_its_hops(monkeypatch):
    monkeypatch.setattr(scaling, "HOP_US", {"NVLink": 1e6, "InfiniBand": 0.0})
    assert all_reduce(4, 1e9, 2, RING) == pytest.approx(2 * 3 / 4 + 2 * 2 * 2)
    monkeypatch.setattr(scaling, "HOP_US", {"NVLink": 0.0, "InfiniBand": 0.0})
    inside_out = (Link("NVLink", 1.0, 8), Link("InfiniBand", 0.5, 4096))
    expected = 2 * 7 / 8 + 2 * 3 / 4 / 8 / 0.5  # of 32 chips: rings of 8, then 4 groups that send an eighth each
    assert all_reduce(32, 1e9, 1, inside_out) == pytest.approx(expected)
    assert all_reduce(8, 1e9, 1, inside_out) == all_reduce(8, 1e9, 1, RING)


@pytest.mark.parametrize("chip", CHIPS)
def test_more_chips_more_bytes_and_shorter_steps_are_no_more_efficient(chip):
    links = CHIPS[chip].links
    times = [all_reduce(count, 1e8, 2, links) for count in COUNTS]
    assert times == sorted(times)
    assert all_reduce(64, 2e8, 2, links) > all_reduce(64, 1e8, 2, links)
    assert all_reduce(64, 1e8, 4, links) > all_reduce(64, 1e8, 2, links)
    for overlap in (False, True):
        shares = [efficiency(seconds, times[-1], overlap) for seconds in (1e-4, 1e-3, 1e-2, 1.0)]
        assert shares == sorted(shares)
        assert 0 < shares[0] < shares[-1] <= 1
    assert efficiency(0.01, 0.005, True) == 1 > efficiency(0.01, 0.005, False) == pytest.approx(2 / 3)
    assert efficiency(0.01, 0.5, True) < 1


def test_gradients_are_those_of_every_update():
    model = zoo.load("wavegan:tiny")
    sizes = scaling.shapes(scaling.with_labels(model)).params
    size = {name: 4 * sum(x.size for x in jax.tree.leaves(params)) for name, params in sizes.items()}
    found = gradients(scaling.with_labels(model), None)
    assert found.updates == model.n_critic + 1
    assert found.size == model.n_critic * size["critic"] + size["generator"]


def test_a_compiled_program_sums_the_bytes_of_its_parameters_and_of_its_metrics():
    devices, toy = Devices("jit", 4), Toy()
    program = devices.compile(toy).lower(toy.init(), devices.shard(BATCH), jax.random.key(0), None)
    parameters = 4 * sum(x.size for x in jax.tree.leaves(toy.init().params))
    assert summed_bytes(program.compile().as_text(), least=2) == parameters
    assert 0 < summed_bytes(program.compile().as_text()) - parameters <= 4 * 3, "loss, error"
    alone = Devices("jit", 1).compile(toy).lower(toy.init(), BATCH, jax.random.key(0), None)
    assert summed_bytes(alone.compile().as_text()) == 0
    text = "x = (f32[2,3]{1,0}, /*index=5*/f32[], bf16[4]{0}) all-reduce(a, b, c), to_apply=add"
    assert summed_bytes(text) == 4 * 6 + 4 + 2 * 4


def test_measured_steps_come_from_the_results_and_the_assumptions_are_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(CHIPS, "slow", Chip(1.0, RING))
    rows = [{"preset": "wavegan:tiny", "stage": None, "steps_per_second": [1.0, 4.0, 5.0]}, {"other": 1}]
    lines, listed, out = (tmp_path / name for name in ("rows.jsonl", "rows.json", "out.jsonl"))
    lines.write_text("\n".join(json.dumps(row) for row in rows))
    listed.write_text(json.dumps(rows))
    for path in (lines, listed):
        words = ("wavegan:tiny", "specvae:tiny", "--chip", "slow", "--results", path, "--json", out)
        code, text, err = run(scaling.main, *words, capsys=capsys)
        assert code == 0, err
        assert "assumed: 35% of the peak (1), measured (1)" in text
        assert "NVLink 1 GB/s a direction, 2 us a hop (assumed)" in text
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["step_seconds"] for row in found[::2]] == [0.25, 0.25]
    for row in found:
        shares = list(row["efficiency"].values())
        assert list(row["efficiency"]) == [str(count) for count in COUNTS]
        assert shares[0] == 1
        assert shares == sorted(shares, reverse=True)
        assert all(a <= b for a, b in zip(shares, row["efficiency_overlapped"].values(), strict=True))
    given = scaling.row_of(scaling.Options(step_seconds=2.0), "x", scaling.with_labels(zoo.load("wavegan:tiny")), None)
    assert (given["step_seconds"], given["step_from"]) == (2.0, "given")


def test_bad_input_is_refused_in_one_line(tmp_path, capsys):
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_text("{")
    for words, says in (
        (("--chip", "v9"), "there is no chip named 'v9'"),
        (("--step-seconds", "0"), "step_seconds is 0.0: it is more than 0"),
        (("--share", "-1"), "share is -1.0: it is more than 0"),
        (("--results", damaged), "which is no rows of JSON"),
        (("--results", tmp_path / "none"), "No such file"),
    ):
        code, _, err = run(scaling.main, "wavegan:tiny", *words, capsys=capsys)
        assert (code, err.count("\n")) == (2, 1)
        assert says in err


def test_bytes_on_more_devices_are_those_on_two(monkeypatch):
    made = []

    def asked(words, **how):
        made.append(words[-1])
        count = len(made)
        return type("Done", (), {"returncode": 0, "stdout": f"noise\nbytes {0 if count == 1 else 4100}", "stderr": ""})

    monkeypatch.setattr(scaling.subprocess, "run", asked)
    monkeypatch.setattr(scaling, "gradients", lambda model, stage: scaling.Sums(2, 4000))
    text = scaling.weak_table("wavegan:tiny", zoo.load("wavegan:tiny"))
    assert "1: 0  2: 4,100  4: 4,100  8: 4,100; gradients 4,000; beside them 100" in text
    assert all(f"'jax_num_cpu_devices', {count})" in code for count, code in zip(scaling.WEAK, made, strict=True))
