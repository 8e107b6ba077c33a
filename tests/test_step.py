"""Training steps per second: a row for every stage of a model."""

import json

import pytest

from benchmarks import step
from jaxaudio import zoo
from tests.commands import run


@pytest.mark.parametrize("name", zoo.names())
def test_the_variants_of_a_model_are_all_that_its_stage_ever_names(name):
    model = zoo.load(f"{name}:tiny")
    stages = list(dict.fromkeys(model.stage(i) for i in range(1000)))
    assert sorted(map(str, stages)) == sorted(map(str, model.variants))
    assert model.variants[0] == model.stage(0)


def test_there_is_a_row_for_every_stage(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(step, "input_wait", lambda model, stage, devices, program, state: (state, 0.0))  # takes seconds
    monkeypatch.setattr(step, "MATMUL", 64)
    words = ("--json", tmp_path / "rows.jsonl", "--windows", 1, "--seconds", 0.01, "--model.scales", 64)
    code, out, _ = run(step.main, "rave:tiny", *words, "--model.critic-layers", 1, capsys=capsys)
    assert code == 0
    assert "rave (critic): autoencoder " in out
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["autoencoder", "critic", "decoder"]
    operations = [row["operations_per_step"] for row in rows]
    assert len(set(operations)) == 3, "a program each"
