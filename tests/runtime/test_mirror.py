"""A run that goes on from a store on a machine that has nothing of it."""

import json
import shutil
import time

import pytest

from jaxaudio.core import InputError
from jaxaudio.runtime.mirror import Mirror
from jaxaudio.runtime.store import WHOLE, Store, located, steps_of


@pytest.fixture
def url(tmp_path):
    return f"memory://{tmp_path}"


def claimed(folder, seed=0):
    """A run's folder as `claim` leaves it."""
    folder.mkdir()
    (folder / "model.json").write_text(json.dumps({"model": "wavegan", "width": 4}))
    (folder / "run.json").write_text(json.dumps({"seed": seed, "data": {"fingerprint": "f", "classes": []}}))
    (folder / "lock").write_text("1")
    return folder


def save(folder, step, keep=2):
    """As a save that came to its end."""
    whole, fresh = folder / "checkpoints" / str(step), folder / f".{step}"
    (fresh / "default").mkdir(parents=True)
    (fresh / "default" / "arrays").write_bytes(bytes([step]) * 100)
    whole.parent.mkdir(exist_ok=True)
    fresh.rename(whole)
    for old in sorted(steps_of(folder))[:-keep]:
        shutil.rmtree(folder / "checkpoints" / str(old))
    (folder / "samples").mkdir(exist_ok=True)
    (folder / "samples" / f"{step}.wav").write_text(f"sound {step}")
    (folder / "metrics.jsonl").write_text(f"step {step}")


def until(condition):
    for _ in range(600):
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_a_new_machine_goes_on_where_the_last_one_was(tmp_path, url, capsys):
    first = claimed(tmp_path / "first")
    with Mirror(url, first) as mirror:
        for step in (1, 2, 3):
            mirror.copy(step)
            save(first, step)
            assert until(lambda step=step: step in Store(url).steps())
        (first / "report.html").write_text("report")
        mirror.finish()
    assert Store(url).steps() == {2, 3}, "what is deleted here is deleted there"
    assert not any(name.startswith("checkpoints/1/") for name in Store(url).names())
    assert "lock" not in Store(url).names()

    second = claimed(tmp_path / "second")
    Mirror(url, second)
    assert steps_of(second) == {2, 3}
    assert (second / "checkpoints" / "3" / "default" / "arrays").read_bytes() == bytes([3]) * 100
    assert {path.name for path in (second / "samples").iterdir()} == {"1.wav", "2.wav", "3.wav"}
    assert (second / "metrics.jsonl").read_text() == "step 3"
    assert (second / "report.html").read_text() == "report"
    assert "step 3 of there is taken over" in capsys.readouterr().out
    assert steps_of(located(url)) == {2, 3}


def test_a_folder_that_is_further_on_takes_nothing_and_replaces_what_is_there(tmp_path, url):
    first, second = claimed(tmp_path / "first"), claimed(tmp_path / "second")
    save(first, 1)
    with Mirror(url, first) as mirror:
        mirror.finish()
    save(second, 5)
    with Mirror(url, second) as mirror:
        assert (second / "metrics.jsonl").read_text() == "step 5"
        mirror.finish()
    assert Store(url).steps() == {5}
    assert Store(url).read("metrics.jsonl") == b"step 5"


def test_a_copy_that_was_cut_off_is_no_checkpoint_and_is_done_again(tmp_path, url):
    first = claimed(tmp_path / "first")
    save(first, 1)
    save(first, 2)
    with Mirror(url, first) as mirror:
        mirror.finish()
    store = Store(url)
    store.kv.write(f"checkpoints/2/{WHOLE}", None).result()
    second = claimed(tmp_path / "second")
    with Mirror(url, second) as mirror:
        assert steps_of(second) == {1}
        save(second, 2)
        mirror.finish()
    assert store.steps() == {1, 2}


def test_of_several_seeds_a_step_that_all_have_is_always_in_the_store(tmp_path, url, monkeypatch):
    names, store, put = ("seed-0", "seed-1"), Store(url), Store.put
    first, second = claimed(tmp_path / "first"), claimed(tmp_path / "second")
    found = []

    def counted(*given):
        put(*given)
        found.append(store.steps("seed-0/") & store.steps("seed-1/"))

    monkeypatch.setattr(Store, "put", counted)
    with Mirror(url, first, names) as mirror:
        for step in (1, 2):
            mirror.copy(step)
            save(first / "seed-0", step, keep=1)
            assert not mirror.job.done()
            save(first / "seed-1", step, keep=1)
            mirror.job.result()
    assert found == [set(), {1}, {1}, {1, 2}]
    assert [store.steps(f"{name}/") for name in names] == [{2}, {2}]
    Mirror(url, second, names)
    assert [steps_of(second / name) for name in names] == [{2}, {2}]
    assert (second / "seed-1" / "samples" / "2.wav").read_text() == "sound 2"


def test_a_failing_copy_is_told_in_a_line_and_made_up_for(tmp_path, url, capsys, monkeypatch):
    folder = claimed(tmp_path / "run")
    with Mirror(url, folder) as mirror:
        real, failing = mirror.store.write, []

        def write(items):
            if failing:
                raise InputError("the network is away")
            real(items)

        monkeypatch.setattr(mirror.store, "write", write)
        failing.append(True)
        save(folder, 1)
        mirror.copy(1)
        mirror.job.result()
        assert Store(url).steps() == set()
        line = capsys.readouterr().err
        assert "step 1 is not in memory://" in line
        assert "the network is away" in line
        assert "tried again after the next save" in line
        assert line.count("\n") == 1
        failing.clear()
        mirror.copy(2)
        save(folder, 2)
        mirror.job.result()
        assert Store(url).steps() == {1, 2}
        failing.append(True)
        with pytest.raises(InputError, match="the network is away"):
            mirror.finish()


def test_a_save_that_fails_does_not_keep_anyone_waiting(tmp_path, url):
    folder = claimed(tmp_path / "run")
    with Mirror(url, folder) as mirror:
        mirror.copy(1)
        mirror.copy(2)
        save(folder, 2)
        assert until(lambda: Store(url).steps() == {2})
        mirror.copy(3)
    assert Store(url).steps() == {2}


def test_another_run_in_the_store_is_refused_by_what_differs(tmp_path, url):
    first, second = claimed(tmp_path / "first"), claimed(tmp_path / "second", seed=1)
    save(first, 1)
    with Mirror(url, first) as mirror:
        mirror.finish()
    with pytest.raises(InputError, match="holds another run: seed is 0 there and 1 here; give another --store"):
        Mirror(url, second)
    assert steps_of(second) == set()
    Store(url).write([("run.json", b"{")])
    with pytest.raises(InputError, match="model.json or run.json in memory://.* is damaged"):
        Mirror(url, first)


def test_of_a_run_whose_checkpoints_lie_in_the_store_the_rest_is_copied_and_taken_over(tmp_path, url):
    first, second = claimed(tmp_path / "first"), claimed(tmp_path / "second")
    (first / "metrics.jsonl").write_text("step 4")
    store = Store(url)
    store.write([("checkpoints/4/arrays", b"x"), (f"checkpoints/4/{WHOLE}", b"")])
    with Mirror(url, first, checkpoints=False) as mirror:
        mirror.copy(4)
        assert until(lambda: store.read("metrics.jsonl") == b"step 4")
        mirror.finish()
    assert store.steps() == {4}
    Mirror(url, second, checkpoints=False)
    assert (second / "metrics.jsonl").read_text() == "step 4"
    assert steps_of(second) == set()
    alone = claimed(tmp_path / "alone")
    Mirror(url, alone)
    assert steps_of(alone) == {4}, "one process goes on from what several have saved"
