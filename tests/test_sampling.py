"""Samples drawn per second: how many weights a step takes, and a row as a user asks for it."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import sampling
from jaxaudio import zoo
from tests.commands import run

QUICK = ("--windows", 1, "--window-seconds", 0.05, "--seconds", 0.002)
SAMPLERNN = [
    ("samplernn:tiny", {}),
    ("samplernn:tiny", {"frames": (16, 4, 2), "layers": 2, "cell": "lstm"}),
    ("samplernn:tiny", {"frames": (4,), "cell": "rnn", "levels": 65536, "law": "linear"}),
    ("samplernn:paper", {}),
]
WAVERNN = [
    ("wavernn:tiny", {}),
    ("wavernn:tiny", {"layers": 3, "dense": 1, "output": "mol", "hidden": 24}),
    ("wavernn:tiny", {"layers": 1, "dense": 3}),
    ("wavernn:tiny", {"layers": 1, "dense": 1, "output": "dual", "hidden": 24}),
    ("wavernn:paper", {}),
    ("wavernn:dual", {}),
]


@pytest.fixture(autouse=True)
def small_product(monkeypatch):
    monkeypatch.setattr(sampling, "MATMUL", 64)


def loaded(spec, fields):
    """The model, which draws without any product and has nothing pruned, and the shapes of its parameters."""
    pruning = {"sparsity": 0.0} if spec.startswith("wavernn") else {}
    model = dataclasses.replace(zoo.load(spec), temperature=0.0, **pruning, **fields)
    if model.needs_labels:
        model = dataclasses.replace(model, classes=3)
    return model, jax.eval_shape(lambda: model.weights(model.init(jax.random.key(0), model.measure(()))))


def multiplications(jaxpr, depth):
    """Of all matrix products in at least `depth` loops that lie in each other, as often as these turn."""
    total = 0
    for step in jaxpr.eqns:
        if step.primitive.name == "dot_general" and depth <= 0:
            (contracted, _), _ = step.params["dimension_numbers"]
            lengths = [step.invars[0].aval.shape[axis] for axis in contracted]
            total += math.prod(lengths) * step.outvars[0].aval.size
        turns, deeper = (step.params["length"], 1) if step.primitive.name == "scan" else (1, 0)
        for inner in step.params.values():
            if hasattr(inner, "jaxpr"):
                total += turns * multiplications(inner.jaxpr, depth - deeper)
    return total


@pytest.mark.parametrize(("spec", "fields"), SAMPLERNN, ids=str)
def test_weights_of_samplernn_are_its_matrices_as_often_as_a_sample_needs_them(spec, fields):
    model, params = loaded(spec, fields)
    ready = jax.eval_shape(model.ready, params)
    size = lambda *linears: sum(linear.kernel.size for linear in linears if linear)
    expected = size(ready.second, ready.third, ready.out)
    if ready.fine:
        expected += size(ready.fine.third, ready.fine.out)
    for frame, tier in zip(model.frames, ready.tiers, strict=True):
        matrices = [linear for layer in tier.layers for linear in (layer.weights.input, *layer.weights.recurrent)]
        expected += size(tier.expand, tier.up, *matrices) / frame
    assert sampling.of_samplernn(model) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("spec", "fields"), WAVERNN, ids=str)
def test_weights_of_wavernn_are_its_matrices_but_for_what_sees_the_sample_and_the_frame_alone(spec, fields):
    model, params = loaded(spec, fields)
    expected, network = 0, params["network"]
    for name, given in network.items():
        if name.startswith("layer_"):
            expected += given["recurrent_0"]["kernel"].size
            if name != "layer_0":  # it hears the layers below, and the frame
                expected += given["input"]["kernel"].size - model.aux * given["input"]["kernel"].shape[1]
        elif name not in ("source", "frames", "smoothing"):
            inputs, outputs = given["kernel"].shape
            expected += (inputs - model.aux * name.startswith("dense_")) * outputs
    assert sampling.of_wavernn(model) == expected


@pytest.mark.parametrize(("spec", "fields"), [*SAMPLERNN[:2], SAMPLERNN[3], *WAVERNN], ids=str)
def test_the_program_multiplies_by_as_many_weights_as_are_counted(spec, fields):
    model, params = loaded(spec, fields)
    samples, key = 2 * sampling.frame_of(model), jax.random.key(0)
    if spec.startswith("samplernn"):
        label = jnp.zeros(3, jnp.int32) if model.classes else None
        carry = jax.eval_shape(lambda params: model.begin(params, 3, label), params)
        program = jax.make_jaxpr(lambda params, carry: model.extend(params, carry, key, 2))(params, carry)
        found = multiplications(program.jaxpr, 1)
    else:
        frames = jnp.zeros((3, 2 + 2 * model.reach, model.mels))
        program = jax.make_jaxpr(lambda params: model.vocode(params, model.open(params, 3), frames, key))(params)
        found = multiplications(program.jaxpr, 2)  # in the loop over the samples of a frame
        if model.output == "dual":
            found -= 3 * samples * 2 * 3 * model.units  # by the two bytes of the sample before
    assert sampling.WORK[zoo.name_of(model)](model) * samples * 3 == pytest.approx(found, rel=1e-12)


@pytest.mark.parametrize("spec", ["samplernn:tiny", "wavernn:tiny"])
def test_a_row_tells_the_speed_of_each_number_of_streams_and_its_bound(spec, tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    code, out, err = run(sampling.main, spec, *QUICK, "--streams", 1, 3, "--json", path, capsys=capsys)
    assert code == 0, err
    row = json.loads(path.read_text(), parse_constant=pytest.fail)
    weights, model = row["weights_per_sample"], zoo.load(spec)
    assert weights == round(sampling.WORK[row["model"]](model)) > 0
    assert (row["model"], row["preset"]) == (spec.split(":")[0], spec)
    assert [each["streams"] for each in row["rows"]] == [1, 3]
    reading_us = 4 * weights / row["reading_gb_per_second"] / 1e3
    for each in row["rows"]:
        n, (low, middle, high) = each["streams"], each["samples_per_second"]
        assert 0 < low <= middle <= high
        assert each["us_per_step"] == pytest.approx(1e6 * n / middle)
        assert each["real_time"] == pytest.approx(middle / model.sample_rate)
        arithmetic_us = 2 * weights * n / row["matmul_gflops"] / 1e3
        assert each["bound_us"] == pytest.approx(max(reading_us, arithmetic_us))
        assert each["share_of_bound"] == pytest.approx(each["bound_us"] / each["us_per_step"])
        assert each["compile_s"] > 0
    assert "torch_ratio" not in row
    assert "torch" not in out
    assert "   3 streams" in out
    assert "times real time in all" in out


def test_the_bound_is_the_longer_of_reading_and_arithmetic(monkeypatch):
    """In made-up times: the fastest window of what sets the bound, the middle one of the model."""
    times = {"1 streams": [3.0, 2.0, 4.0], "16 streams": [9.0, 8.0, 7.0], "reading": [0.02, 0.01, 0.03]}
    weights, samples = round(sampling.of_wavernn(zoo.load("wavernn:tiny"))), 32

    def timed(contestants, windows, seconds):
        assert list(contestants) == [*times, "matmul"]
        rate = 2 * weights / 0.002  # so that a step of one stream takes 2 ms
        return {name: np.array(value) for name, value in times.items()} | {
            "matmul": 2 * 64**3 / rate * np.array([1.5, 1.0, 2.0])
        }

    monkeypatch.setattr(sampling, "alternate", timed)
    monkeypatch.setattr(sampling, "drawing", lambda model, params, n, seconds: (lambda: None, samples))
    row = sampling.measure(sampling.Options(model=zoo.load("wavernn:tiny")))
    assert [each["bound_us"] for each in row["rows"]] == pytest.approx([10_000, 32_000])
    assert [each["us_per_step"] for each in row["rows"]] == pytest.approx([3e6 / samples, 8e6 / samples])
    assert [each["samples_per_second"][1] for each in row["rows"]] == pytest.approx([samples / 3, 16 * samples / 8])


def test_streams_are_drawn_for_as_long_as_asked_and_all_at_once():
    for spec in ("samplernn:tiny", "wavernn:tiny"):
        model, _ = loaded(spec, {})
        params = jax.jit(lambda model=model: model.weights(model.init(jax.random.key(0), {})))()
        call, samples = sampling.drawing(model, params, 3, 0.004)
        assert samples == 64 == sampling.frame_of(model) * (8 if spec.startswith("samplernn") else 4)
        _, wave = call()
        assert wave.shape == (3, 64, 1)
        assert sampling.drawing(model, params, 1, 1e-3 / 16)[1] == sampling.frame_of(model), "one frame at least"
    assert sampling.reading(10**5)().shape == (10**5 // 316,), "a matrix of about so many weights"


def test_pytorch_draws_as_many_streams_and_what_it_lacks_is_told(capsys, tmp_path, monkeypatch):
    """In made-up times: a second for whatever is called."""
    pytest.importorskip("torch", reason="the comparison with PyTorch needs the extra `compare`")
    drawn, classes = [], []

    def drawing(model, params, n, seconds):
        classes.append(model.classes)
        return lambda: None, 64

    def a_second(contestants, windows, seconds):
        drawn.extend(contestants[name]().shape for name in contestants if name == "torch")
        return dict.fromkeys(contestants, np.ones(windows))

    monkeypatch.setattr(sampling, "alternate", a_second)
    monkeypatch.setattr(sampling, "drawing", drawing)
    path = tmp_path / "rows.jsonl"
    words = ("--against", "torch", "--torch-samples", 36, "--streams", 3, 1, "--json", path)
    plain = ("--model.cell", "gru", *(f"--model.no-{name}" for name in ("weight-norm", "conditional", "independent")))
    for spec, fields in (("samplernn:tiny", plain), ("wavernn:tiny", ())):
        code, out, err = run(sampling.main, spec, *words, *fields, capsys=capsys)
        assert code == 0, err
        row = json.loads(path.read_text().splitlines()[-1])
        assert "torch_failed" not in row
        assert row["torch_samples_per_second"] == 3 * 32, "whole frames"
        assert row["torch_ratio"] == 2
        assert "3 streams: jaxaudio is 2.00 times as fast" in out
    assert drawn == [(3, 32), (3, 32)], "streams, samples"
    code, out, _ = run(sampling.main, "samplernn:tiny", *words, capsys=capsys)
    assert code == 0
    assert "torch, eager  does not run: PyTorch's SampleRNN wants --model.cell gru" in out
    assert "levels below 65536" in out
    assert classes == [0, 0, 0, 0, 10, 10], "labels where it needs them"


def test_what_does_not_draw_sample_by_sample_and_impossible_options_are_one_line(capsys):
    for words, message in (
        (("wavegan:tiny",), "wavegan does not draw sample by sample: choose from samplernn, wavernn"),
        (("rave:tiny",), "rave does not draw"),
        (("wavernn:tiny", "--streams", 0, 1), "streams is (0, 1): numbers of 1 to 4096"),
        (("wavernn:tiny", "--streams", 5000), "streams is (5000,)"),
        (("wavernn:tiny", "--windows", 0), "windows is 0: it is at least 1"),
        (("wavernn:tiny", "--torch-samples", 0), "torch_samples is 0"),
        (("wavernn:tiny", "--seconds", "nan"), "seconds is nan: it is 0.001 to 60"),
        (("wavernn:tiny", "--seconds", "inf"), "seconds is inf"),
        (("wavernn:tiny", "--window-seconds", 0), "window_seconds is 0"),
        (("wavernn:tiny", "--model.dtype", "bfloat16"), "dtype is bfloat16: the bound is that of float32"),
        ((), "name a model, as in: python -m benchmarks.sampling wavernn:small"),
    ):
        code, _, err = run(sampling.main, *words, capsys=capsys)
        assert code == 2, words
        assert message in err
        assert err.count("\n") == 1
