"""A trace of training steps, and what is read from it."""

import pytest

import train
from benchmarks import profile
from jaxaudio.core import InputError
from tests.commands import run


def test_a_run_leaves_a_trace_of_the_steps_asked_for_and_its_shares_are_told(tmp_path, capsys):
    words = ("--out", tmp_path / "run", "--steps", 6, "--samples", 1, "--profile", "2:5")
    code, out, _ = run(train.main, "wavegan:tiny", *words, capsys=capsys)
    assert code == 0
    assert "profile of 3 steps" in out
    kinds, single, seconds = profile.shares(tmp_path / "run")
    assert seconds > 0
    for shares in (kinds, single):
        assert sum(shares.values()) == pytest.approx(1)
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert set(map(profile.kind, single)) == set(kinds)
    assert not set(profile.AROUND) & set(kinds)
    code, out, _ = run(profile.main, tmp_path / "run", capsys=capsys)
    assert code == 0
    assert next(iter(single)) in out


def test_a_run_without_a_trace_is_told_how_to_get_one(tmp_path):
    with pytest.raises(InputError, match="--profile 10:15"):
        profile.shares(tmp_path)


def test_operations_of_a_kind_are_those_of_one_name():
    assert profile.kind("fusion.12") == profile.kind("fusion") == profile.kind("fusion.3.clone.1") == "fusion"
