"""Training steps per second: a row for every stage of a model."""

import json

from benchmarks import step
from tests.commands import run


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
