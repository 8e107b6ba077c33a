"""metrics.jsonl and the guard against divergence."""

import json
import time

import jax
import jax.numpy as jnp
import pytest

from jaxaudio.runtime.log import Diverged, Log


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def feed(log, first, last, skipped=0.0, loss=1.0):
    for step in range(first, last + 1):
        log.add(step, {"net/loss": jnp.float32(loss), "net/skipped": jnp.float32(skipped)}, 2.0, 0.0)
    log.drain()


def test_a_line_holds_the_mean_over_its_steps_and_a_restart_drops_what_came_after_it(tmp_path):
    log = Log(tmp_path, 0, 9, every=3, patience=25)
    for step, loss in enumerate([1.0, 2.0, 6.0, 5.0, 5.0, 5.0, 7.0, 7.0], 1):
        feed(log, step, step, loss=loss)
    log.close()
    assert [(line["step"], line["net/loss"]) for line in lines(tmp_path)] == [(3, 3.0), (6, 5.0)]
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "net/lo')  # cut off by a kill
    log = Log(tmp_path, 4, 9, every=3, patience=25)
    feed(log, 5, 6, loss=8.0)
    log.close()
    assert [(line["step"], line["net/loss"]) for line in lines(tmp_path)] == [(3, 3.0), (6, 8.0)]


def test_the_clock_starts_when_the_first_step_is_done(tmp_path):
    """Also where a step is done before the next one begins, as on a CPU: both steps that follow take their time."""
    log = Log(tmp_path, 0, 9, every=3, patience=25)
    for step in range(1, 4):
        log.add(step, {"net/skipped": jax.block_until_ready(jnp.float32(0))}, 1.0, 0.0)
        time.sleep(0.1)
    log.close()
    assert lines(tmp_path)[0]["steps_per_second"] <= 2 / 0.2


def test_what_is_not_finite_is_still_json(tmp_path):
    log = Log(tmp_path, 0, 9, every=1, patience=25)
    feed(log, 1, 1, loss=float("nan"))
    log.write(1, {"valid/x": float("inf")})
    log.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0], parse_constant=pytest.fail)
    assert lines(tmp_path)[1]["valid/x"] == "inf"


def test_skipped_updates_in_a_row_stop_the_run_and_name_the_loss(tmp_path):
    log = Log(tmp_path, 0, 99, every=10, patience=3)
    feed(log, 1, 2, skipped=1.0)
    feed(log, 3, 3)
    with pytest.raises(Diverged, match=r"3 updates in a row .* net/loss = nan at step 6"):
        feed(log, 4, 8, skipped=1.0, loss=float("nan"))
    log.close()


def test_stages_of_a_model_may_have_metrics_of_their_own(tmp_path):
    """A line has the mean of each over the steps that had it; one that is trained every other step can diverge too."""
    log = Log(tmp_path, 0, 99, every=4, patience=3)
    with pytest.raises(Diverged, match=r"critic/loss = 7.0 at step 7"):
        for step in range(1, 9):
            name = "critic" if step % 2 else "decoder"
            bad = float(name == "critic" and step > 2)
            log.add(step, {f"{name}/loss": jnp.float32(step), f"{name}/skipped": jnp.float32(bad)}, 1.0, 0.0)
            if step >= 7:
                log.drain()
    log.close()
    line = lines(tmp_path)[0]
    assert (line["critic/loss"], line["decoder/loss"]) == (2.0, 3.0)
