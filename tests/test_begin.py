"""train.py --begin: a run that begins with another one's networks."""

import json

import jax
import numpy as np
import pytest

import train
from jaxaudio.runtime.folder import saved
from tests.commands import run

FEW = ("--samples", 2, "--eval-clips", 8)
MODEL = ("densegan:tiny", "--model.no-conditional")


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run of three steps."""
    where = tmp_path_factory.mktemp("begin") / "first"
    assert run(train.main, *MODEL, "--out", where, "--steps", 3, *FEW)[0] == 0
    return where


def same(a, b) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def test_a_run_begins_with_the_networks_of_another_and_optimisers_of_its_own(first, tmp_path, capsys):
    words = (*MODEL, "--begin", first, "--out", tmp_path / "next", "--model.learning-rate", 1e-30, *FEW)
    code, out, err = run(train.main, *words, "--steps", 1, capsys=capsys)
    assert code == 0, err
    assert f"starts with the networks of step 3 of {first}" in out
    before, after = saved(first).state, saved(tmp_path / "next").state
    assert int(after.step) == 1
    assert same(before.params, after.params), "with steps of 1e-30 they stay what they were"
    counts = [int(x) for x in jax.tree.leaves(after.opt) if x.dtype == np.int32]
    assert counts
    assert max(counts) <= 1, "the optimisers count from 0"
    about = json.loads((tmp_path / "next" / "run.json").read_text())["begin"]
    assert about == {"folder": str(first), "step": 3, "fingerprint": saved(first).fingerprint}

    assert run(train.main, *words, "--steps", 2)[0] == 0, "the same goes on"
    assert run(train.main, *MODEL, "--out", first, "--steps", 4, *FEW)[0] == 0
    code, _, err = run(train.main, *words, "--steps", 3, capsys=capsys)
    assert code == 2
    assert f"give --begin {first} --begin-checkpoint 3, or another --out" in err
    code, out, _ = run(train.main, *words, "--steps", 3, "--begin-checkpoint", 3, capsys=capsys)
    assert code == 0
    assert "continues at step 2" in out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--model.latent", 5), "of whose arrays"),
        (("--begin-checkpoint", 9), "has no checkpoint '9': it has latest"),
        (("--begin", "nowhere"), "nowhere is not a run's folder"),
    ],
)
def test_a_run_that_can_not_be_begun_with_is_refused_before_anything_is_written(
    change, message, first, tmp_path, capsys
):
    words = (*MODEL, "--begin", first, "--out", tmp_path / "next", "--steps", 1, *FEW, *change)
    code, _, err = run(train.main, *words, capsys=capsys)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "next").exists()
