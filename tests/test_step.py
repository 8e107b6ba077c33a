"""Training steps per second: a row for every stage of a model, and where it goes."""

import json

import jax
import jax.numpy as jnp

from benchmarks import step
from tests.commands import run


def test_there_is_a_row_for_every_stage(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(step, "input_wait", lambda *given: (given[4], 0.0))  # takes seconds
    monkeypatch.setattr(step, "MATMUL", 64)
    monkeypatch.setattr(step, "beside", lambda *given: {}["y"])  # fails
    known = iter((True, True, False))
    monkeypatch.setattr(step, "has_peer", lambda model: next(known))
    words = (
        "--against",
        "eager",
        "--json",
        tmp_path / "rows.jsonl",
        "--windows",
        1,
        "--seconds",
        0.01,
        "--model.scales",
        64,
    )
    code, out, _ = run(step.main, "rave:tiny", *words, "--model.critic-layers", 1, capsys=capsys)
    assert code == 0
    assert "rave (critic): autoencoder " in out
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["autoencoder", "critic", "decoder"]
    operations = [row["operations_per_step"] for row in rows]
    assert len(set(operations)) == 3, "a program each"
    assert [row["peer"] for row in rows] == [True, True, False]
    assert [row.get("torch_failed") for row in rows] == ["'y'", "'y'", None]
    assert all(row["dtype"] == "float32" for row in rows)
    assert "torch             does not run: 'y'" in out
    assert "torch.compile" not in out


def test_a_row_says_what_it_is_of_and_no_model_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(step, "measure", lambda options, stage: {"steps_per_second": 1 + options.windows})
    monkeypatch.setattr(step, "table", lambda row: f"{row['steps_per_second']} steps/s")
    path = tmp_path / "new" / "rows.jsonl"
    words = ("wavegan:tiny", "wavegan:digits", "--windows", 2, "--model.batch-size", 10, "--json", path)
    code, out, _ = run(step.main, *words, capsys=capsys)
    assert code == 0
    assert out.splitlines() == ["3 steps/s", f"a line was added to {path}"] * 2
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["preset"] for row in rows] == ["wavegan:tiny", "wavegan:digits"]
    assert [row["fields"]["batch_size"] for row in rows] == [10, 10]
    assert {"steps_per_second", "versions", "git"} < set(rows[0])
    code, _, err = run(step.main, "--windows", 2, capsys=capsys)
    assert code == 2
    assert "name a model, as in: python -m benchmarks.step wavegan:digits; there are ['densegan', " in err


def test_products_in_loops_count_for_every_turn():
    def program(x):
        inner = lambda y, _: (y @ y, ())
        outer = lambda y, _: (jax.lax.scan(inner, y, None, length=3)[0] @ y, ())
        return jax.lax.scan(outer, x @ x, None, length=5)[0]

    product = 2 * 4**3
    assert step.repeated(jax.make_jaxpr(program)(jnp.ones((4, 4))).jaxpr) == product * (5 * 3 - 1 + 5 - 1)
    rectangular = lambda x: jax.lax.scan(lambda y, _: (y, y @ x), jnp.ones((2, 8)), None, length=3)
    assert step.repeated(jax.make_jaxpr(jax.jit(rectangular))(jnp.ones((8, 4))).jaxpr) == 2 * 2 * 2 * 8 * 4
