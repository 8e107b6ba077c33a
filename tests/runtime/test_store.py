"""What is put into a store comes back as it was or not at all."""

import json
from pathlib import Path

import pytest

import sample
from jaxaudio.core import InputError
from jaxaudio.runtime import store as stores
from jaxaudio.runtime.checkpoint import Checkpoints
from jaxaudio.runtime.store import MANIFEST, WHOLE, Store, located, shown, url_of
from tests.commands import run
from tests.runtime.test_checkpoint import like, state


@pytest.fixture(params=["file", "memory"])
def store(request, tmp_path):
    return Store(f"file://{tmp_path / 'bucket'}" if request.param == "file" else f"memory://{tmp_path}")


@pytest.fixture
def folder(tmp_path):
    """Four files, of which one is empty and one large."""
    where = tmp_path / "folder"
    (where / "deep" / "er").mkdir(parents=True)
    (where / "a").write_bytes(b"first")
    (where / "empty").write_bytes(b"")
    (where / "deep" / "b").write_bytes(bytes(range(256)) * 10)
    (where / "deep" / "er" / "c").write_bytes(b"last")
    return where


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_url_survives_being_a_path_and_other_paths_are_no_urls():
    for url in ("gs://bucket/a/b", "s3://bucket/a", "file:///tmp/a", "memory://a"):
        assert url_of(Path(url)) == url_of(url) == url_of(url + "/") == url + "/"
        assert shown(Path(url)) == url
    assert url_of(Path("runs/gs")) is url_of("/gs:/a") is url_of("http://a/b") is None
    assert shown(Path("runs/a")) == "runs/a"
    assert located(Path("runs/a")) == Path("runs/a")


@pytest.mark.parametrize("part", [2**25, 1000])
@pytest.mark.parametrize("parted", [False, True])
def test_a_folder_comes_back_as_it_was(store, folder, tmp_path, monkeypatch, part, parted):
    monkeypatch.setattr(stores, "PART", part)
    monkeypatch.setattr(stores, "IN_FLIGHT", 2 * part)
    store.put("x/", folder, parted)
    assert ("x/deep/b" in store.names("x/")) == (not parted or part > 2560)
    store.get("x/", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(folder)
    (folder / "a").unlink()
    store.put("x/", folder)
    store.get("x/", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(folder), "what was there before is gone"


def test_what_was_cut_off_is_not_whole(store, folder, monkeypatch):
    store.put("x/", folder)
    assert store.whole("x/")
    real = store.write

    def cut(after):
        def write(items):
            for i, item in enumerate(items):
                if i == after:
                    raise InputError("the machine is gone")
                real([item])

        return write

    for after in range(4):
        monkeypatch.setattr(store, "write", cut(after))
        with pytest.raises(InputError, match="gone"):
            store.put("x/", folder)
        assert not store.whole("x/")


def damage_file(store):
    store.write([("x/deep/b", bytes(2560))])
    return "deep/b is not what its manifest says"


def shorten_file(store):
    store.write([("x/a", b"firs")])
    return "a is shorter than its manifest says"


def lose_file(store):
    store.kv.write("x/a", None).result()
    return "a is missing"


def damage_manifest(store):
    store.write([(f"x/{MANIFEST}", b'{"format": 1, "fi')])
    return f"{MANIFEST} can't be read"


def use_another_format(store):
    store.write([(f"x/{MANIFEST}", b'{"format": 99, "files": {}}')])
    return "format is 99"


def lead_outside(store):
    told = json.loads(store.read(f"x/{MANIFEST}"))
    told["files"] = {"../a": told["files"]["a"]}
    store.write([(f"x/{MANIFEST}", json.dumps(told).encode())])
    return "names '../a'"


@pytest.mark.parametrize(
    "harm", [damage_file, shorten_file, lose_file, damage_manifest, use_another_format, lead_outside]
)
def test_damage_is_told_in_one_line(store, folder, tmp_path, harm):
    store.put("x/", folder)
    with pytest.raises(InputError, match=harm(store)) as error:
        store.get("x/", tmp_path / "back")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "a").exists()


def test_what_can_not_be_used_is_told_in_one_line(tmp_path, folder):
    with pytest.raises(InputError, match="no store: name one as gs://BUCKET/FOLDER"):
        Store("bucket/folder")
    with pytest.raises(InputError, match="can't be opened .*check its name"):
        Store("gs://A_/x")
    (tmp_path / "file").write_text("")
    below_a_file = Store(f"file://{tmp_path / 'file'}/x")
    with pytest.raises(InputError, match="can't be written .*Not a directory.*check its name"):
        below_a_file.put("x/", folder)
    with pytest.raises(InputError, match="can't be listed") as error:
        below_a_file.names()
    assert "\n" not in str(error.value)


def test_checkpoints_in_a_store_are_written_and_read_by_orbax_and_by_copies(tmp_path):
    url = f"file://{tmp_path / 'bucket'}"
    saved = Checkpoints(f"{url}/checkpoints", 2, "score")
    saved.save(1, state(1), {"score": 1.0})
    saved.wait()
    store = Store(url)
    assert store.steps() == {1}
    store.fetch_step(1, tmp_path / "run")
    assert int(Checkpoints(tmp_path / "run" / "checkpoints", 2, "score").latest(like()).step) == 1

    here = Checkpoints(tmp_path / "run" / "checkpoints", 2, "score")
    here.save(2, state(2), {"score": 2.0})
    here.wait()
    store.put("checkpoints/2/", tmp_path / "run" / "checkpoints" / "2")
    again = Checkpoints(f"{url}/checkpoints", 2, "score")
    assert int(again.latest(like()).step) == 2
    assert again.best() == 1
    store.remove("checkpoints/1/")
    assert list(Checkpoints(f"{url}/checkpoints", 2, "score").manager.all_steps()) == [2]
    with pytest.raises(InputError, match=f"the checkpoint file://{tmp_path}/bucket/checkpoints/2 is damaged or of"):
        again.latest(like(5))


@pytest.mark.parametrize("url", ["memory://x", "gs://bucket/run"])
def test_checkpoints_where_they_can_not_be_written_are_refused(url):
    with pytest.raises(InputError, match="can't take checkpoints .*gcsfs|can't take checkpoints .*memory"):
        Checkpoints(url, 2, "score")


def test_a_run_in_a_store_is_used_as_one_of_this_machine(maker, tmp_path, capsys):
    store = Store(f"memory://{tmp_path}")
    with pytest.raises(InputError, match="is not a run's folder .no model.json in it.: give what --store named"):
        located(store.url)
    store.write((name, (maker / name).read_bytes()) for name in ("model.json", "run.json"))
    store.put("checkpoints/2/", maker / "checkpoints" / "2")
    first, second = tmp_path / "first", tmp_path / "second"
    code, out, _ = run(sample.main, "generate", store.url, "--out", first, "--n", 2, capsys=capsys)
    assert code == 0
    assert f"step 2 of {shown(store.url)} -> {first}" in out
    assert run(sample.main, "generate", maker, "--out", second, "--n", 2)[0] == 0
    assert contents(first) == contents(second)

    (located(store.url) / "checkpoints" / "1").mkdir()
    store.kv.write(f"checkpoints/2/{WHOLE}", None).result()
    assert stores.steps_of(located(store.url)) == set(), "what is not there any more goes from the cache"
    code, _, err = run(sample.main, "generate", store.url, capsys=capsys)
    assert code == 2
    assert "has no checkpoint" in err
