"""Several seeds in one program."""

import json
import shutil
import statistics

import jax
import numpy as np
import pytest

import sample
import train
from jaxaudio.runtime.checkpoint import Checkpoints, abstract
from jaxaudio.runtime.folder import described
from jaxaudio.runtime.parallel import Devices
from tests.commands import run

WORDS = ("wavegan:tiny", "--log-every", 2, "--samples", 2, "--eval-every", 4)


def state_of(folder):
    model, _ = described(folder)
    return jax.device_get(
        Checkpoints(folder / "checkpoints", 1, model.criterion).latest(abstract(model, Devices("jit", 1)))
    )


@pytest.fixture(scope="module")
def population(tmp_path_factory):
    """Seeds 3 and 4, in two starts."""
    folder = tmp_path_factory.mktemp("population")
    for steps in (4, 6):
        assert run(train.main, *WORDS, "--seed", 3, "--seeds", 2, "--steps", steps, "--out", folder)[0] == 0
    return folder


def test_every_member_is_the_run_of_its_seed(population, tmp_path):
    for seed in (3, 4):
        assert run(train.main, *WORDS, "--seed", seed, "--steps", 6, "--out", tmp_path / str(seed))[0] == 0
        for a, b in zip(
            *map(jax.tree.leaves, (state_of(tmp_path / str(seed)), state_of(population / f"seed-{seed}"))), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_the_log_has_the_mean_the_deviation_and_every_seeds_own_value(population):
    lines = [json.loads(line) for line in (population / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "critic/loss" in line]
    judged = [line for line in lines if "valid/distance" in line or any(k.startswith("valid/") for k in line)]
    assert [line["step"] for line in trained] == [2, 4, 6]
    assert judged
    for line in (*trained, *judged):
        for name in [name for name in line if f"{name}/deviation" in line]:
            own = [line[f"{name}/seed-{seed}"] for seed in (3, 4)]
            assert line[name] == pytest.approx(statistics.mean(own), rel=1e-5, abs=1e-7)
    name = "critic/loss"
    per_step = [line for line in trained if line["step"] == 2]
    assert per_step[0][f"{name}/deviation"] > 0


def test_each_member_is_a_run_to_sample_from_and_the_population_says_so(population, tmp_path, capsys):
    code, _, err = run(sample.main, "generate", population, "--out", tmp_path / "a", capsys=capsys)
    assert code == 2
    assert "seed-" in err
    assert run(sample.main, "generate", population / "seed-4", "--n", 1, "--out", tmp_path / "b")[0] == 0
    code, _, err = run(train.main, *WORDS, "--seed", 3, "--steps", 9, "--out", population, capsys=capsys)
    assert code == 2
    assert "seeds is 2 there and None here" in err


def test_a_population_whose_states_are_split_goes_on_from_whole_ones(population, tmp_path):
    shutil.copytree(population, tmp_path / "run")
    words = (*WORDS, "--seed", 3, "--seeds", 2, "--out", tmp_path / "run", "--model.width", 8)
    assert run(train.main, *words, "--steps", 8, "--fsdp")[0] == 0
    assert int(state_of(tmp_path / "run" / "seed-3").step) == 8
