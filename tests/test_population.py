"""Several seeds in one program."""

import json
import statistics
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import sample
import train
from jaxaudio.core import InputError
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
    """Seeds 3 and 4, in two starts, and a copy in a store beside them."""
    folder = tmp_path_factory.mktemp("population") / "run"
    words = (*WORDS, "--seed", 3, "--seeds", 2, "--out", folder, "--store", bucket(folder))
    for steps in (4, 6):
        assert run(train.main, *words, "--steps", steps)[0] == 0
    return folder


def bucket(folder):
    return f"file://{folder.parent}/bucket"


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


def test_a_machine_that_has_nothing_of_a_population_splits_the_states_that_the_store_has_whole(
    population, tmp_path, capsys
):
    words = (*WORDS, "--seed", 3, "--seeds", 2, "--out", tmp_path / "run", "--model.width", 8)
    code, out, _ = run(train.main, *words, "--store", bucket(population), "--steps", 8, "--fsdp", capsys=capsys)
    assert code == 0
    assert "continues at step 6" in out
    assert int(state_of(tmp_path / "run" / "seed-3").step) == 8
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps[0] == 2, "what was logged before is there too"
    name = f"{bucket(population)}/seed-4"
    assert run(sample.main, "generate", name, "--n", 1, "--out", tmp_path / "sounds")[0] == 0
    assert "step 8" in capsys.readouterr().out
    code, _, err = run(sample.main, "generate", bucket(population), "--out", tmp_path / "x", capsys=capsys)
    assert code == 2
    assert "one in each of" in err


def test_every_seeds_save_comes_to_its_end_where_one_fails():
    ended = []

    def member(problem):
        def wait():
            ended.append(problem)
            if problem:
                raise InputError(problem)

        return SimpleNamespace(saved=SimpleNamespace(wait=wait))

    with pytest.raises(InputError, match="no room"):
        train.wait([member(None), member("no room"), member(None)])
    assert sorted(map(str, ended)) == ["None", "None", "no room"]
