"""train.py and sample.py as a user runs them: what they leave, how they go on, what they say to wrong input."""

import csv
import fcntl
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import soundfile

import sample
import train
from jaxaudio.data import audio
from jaxaudio.runtime.folder import trained
from jaxaudio.runtime.parallel import Devices
from tests.commands import run
from tests.conftest import REPOSITORY

STEPS = 300  # of a run that is killed and stopped


def start(*words):
    """train.py as a process of its own, on one device."""
    words_of = [sys.executable, REPOSITORY / "train.py", *map(str, words)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(words_of, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of six steps on the built-in recordings."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert run(train.main, "wavegan:tiny", "--out", folder, "--steps", 6, "--eval-every", 3, "--log-every", 2)[0] == 0
    return folder


@pytest.fixture
def folder_of_sounds(tmp_path):
    """Two classes of short sounds, one of them too short, and a text that calls itself a sound."""
    rng = np.random.default_rng(0)
    for i in range(30):
        audio.write(tmp_path / "data" / "ab"[i % 2] / f"{i}.wav", 0.1 * rng.standard_normal(300), 16000)
    audio.write(tmp_path / "data" / "a" / "short.wav", 0.1 * rng.standard_normal(12), 16000)
    (tmp_path / "data" / "b" / "text.wav").write_text("no sound")
    return tmp_path / "data"


def test_a_run_leaves_what_the_readme_promises(finished):
    assert {p.name for p in finished.iterdir()} >= {"model.json", "run.json", "metrics.jsonl", "samples", "checkpoints"}
    assert any(p.name.startswith("events.") for p in finished.iterdir())
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert {line["step"] for line in lines} == {2, 3, 4, 6}
    assert any("valid/spectral_energy" in line for line in lines)
    assert all(key in lines[0] for key in ("critic/loss", "generator/loss", "steps_per_second", "input_wait"))
    about = json.loads((finished / "run.json").read_text())
    assert about["versions"]["jax"] == jax.__version__
    assert about["data"]["classes"][0] == "additive"
    wave, rate = soundfile.read(finished / "samples" / "0000006-000-additive.wav")
    assert (len(wave), rate) == (256, 16000)
    assert (finished / "samples" / "0000006.png").stat().st_size > 10_000


def test_a_finished_run_says_so_and_more_steps_go_on(finished, capsys):
    code, out, _ = run(train.main, "wavegan:tiny", "--out", finished, "--steps", 6, capsys=capsys)
    assert code == 0
    assert "is finished (6 steps)" in out
    code, out, _ = run(train.main, "wavegan:tiny", "--out", finished, "--steps", 7, capsys=capsys)
    assert code == 0
    assert "continues at step 6" in out
    assert out.splitlines()[-1] == f"done: 7 steps -> {finished}"


def test_the_same_checkpoint_goes_on_under_pmap(finished, capsys):
    step = trained(finished).step + 1
    words = ["wavegan:tiny", "--out", finished, "--steps", step, "--parallel", "pmap"]
    code, out, _ = run(train.main, *words, capsys=capsys)
    assert code == 0
    assert "(pmap)" in out


def test_a_folder_is_trained_on_and_what_cannot_be_used_is_named(folder_of_sounds, tmp_path, capsys):
    words = ["--data", folder_of_sounds, "--out", tmp_path / "run", "--steps", 2, "--samples", 4]
    code, out, _ = run(train.main, "wavegan:tiny", *words, "--gather", "device", capsys=capsys)
    assert code == 0
    assert "2 classes" in out
    rejected = dict(list(csv.reader((tmp_path / "run" / "rejected.csv").read_text().splitlines()))[1:])
    assert set(rejected) == {"a/short.wav", "b/text.wav"}
    assert "1/16 of a segment" in rejected["a/short.wav"]


def test_a_killed_and_stopped_run_ends_in_the_state_of_one_that_was_not(tmp_path):
    """kill -9 at a random step, SIGTERM at a later one; continued by the same command; all bits equal at the end."""
    words = ["wavegan:tiny", "--steps", STEPS, "--save-every", 20, "--eval-every", 10_000, "--log-every", 1]
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    alone = start(*words, "--out", undisturbed)
    for number in (signal.SIGKILL, signal.SIGTERM):
        process, log = start(*words, "--out", disturbed), disturbed / "metrics.jsonl"
        step = random.randint(30, 100) + (log.read_text().count("\n") if log.exists() else 0)
        print(f"{number.name} after step {step}")
        wait_for_step(log, step, process)
        process.send_signal(number)
        out = process.communicate(timeout=120)[0]
        if number == signal.SIGTERM:
            assert process.returncode == 3, out
            assert "stopped by SIGTERM; saved at step" in out.splitlines()[-1]
            assert "the same command continues" in out.splitlines()[-1]
        else:
            assert process.returncode == -signal.SIGKILL, out
    again = start(*words, "--out", disturbed)
    for process in (again, alone):
        out = process.communicate(timeout=120)[0]
        assert process.returncode == 0, out
        assert ("continues at step" in out) == (process is again)
    for leaves in zip(*map(jax.tree.leaves, map(trained_state, (undisturbed, disturbed))), strict=True):
        assert np.array_equal(*leaves)
    lines = [json.loads(line) for line in (disturbed / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "critic/loss" in line]
    assert steps == [*range(1, STEPS + 1)], "every step is logged, none twice"


def wait_for_step(path, step, process):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_text().count("\n") >= step:
            return
        time.sleep(0.01)
    pytest.fail(f"step {step} was not reached: {process.communicate()[0]}")


def trained_state(folder):
    """All that the last checkpoint holds."""
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager((folder / "checkpoints").absolute()) as manager:
        assert manager.latest_step() == STEPS
        return manager.restore(STEPS, args=ocp.args.StandardRestore())


def test_a_full_disk_ends_the_run_in_one_line_and_it_goes_on_when_there_is_room(tmp_path):
    """First it is TensorBoard's events or the report that do not fit, then a checkpoint."""

    def train_within(limit, out, *every):
        words = [sys.executable, REPOSITORY / "train.py", "wavegan:tiny", "--out", tmp_path / out, "--steps", 200]
        return subprocess.run(
            [str(word) for word in (*words, "--log-every", 25, *every)],
            capture_output=True,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY)),
        )

    full = train_within(600_000, "run", "--eval-every", 25)
    room = train_within(resource.RLIM_INFINITY, "run", "--eval-every", 25)
    unsaved = train_within(60_000, "other", "--save-every", 25)
    for failed, message in ((full, "can't be written"), (unsaved, "saving to")):
        assert failed.returncode == 2, failed.stderr
        (line,) = [line for line in failed.stderr.splitlines() if line.startswith("train.py: ")]
        assert message in line
        assert "make room" in line
    assert room.returncode == 0, room.stderr
    assert "continues at step" in room.stdout


def test_a_run_that_diverges_stops_with_its_state_saved_and_names_the_loss(tmp_path, capsys):
    words = ["--out", tmp_path / "run", "--model.learning-rate", "1e30", "--patience", 5, "--eval-every", 3]
    code, out, _ = run(train.main, "wavegan:tiny", *words, capsys=capsys)
    assert code == 3
    last = out.splitlines()[-1]
    assert "5 updates in a row had a gradient that is not finite" in last
    assert "critic/loss" in last
    assert trained(tmp_path / "run").step > 5


def test_sampling_repeats_itself_for_the_same_seed(finished, tmp_path, capsys):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        words = ["generate", finished, "--n", 3, "--label", "fm", "--seed", seed, "--out", tmp_path / name]
        code, out, _ = run(sample.main, *words, capsys=capsys)
        assert code == 0
        assert str(tmp_path / name) in out.splitlines()[-1]
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["000-fm.wav", "001-fm.wav", "002-fm.wav", "sheet.png"]
    same = [(tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files[:3]]
    other = [(tmp_path / "a" / name).read_bytes() == (tmp_path / "c" / name).read_bytes() for name in files[:3]]
    assert all(same)
    assert not any(other)
    assert (
        run(sample.main, "generate", finished, "--label", "1", "--n", 3, "--seed", 3, "--out", tmp_path / "d")[0] == 0
    )
    assert (tmp_path / "d" / "000-fm.wav").read_bytes() == (tmp_path / "a" / "000-fm.wav").read_bytes()


def test_morphing_writes_the_path_between_two_sounds(finished, tmp_path):
    words = ["morph", finished, "--seeds", "3,4", "--steps", 5, "--label", "fm", "--out", tmp_path / "m"]
    assert run(sample.main, *words, "--checkpoint", "best")[0] == 0
    waves = [soundfile.read(path)[0] for path in sorted((tmp_path / "m").glob("*.wav"))]
    assert len(waves) == 5
    words = ["generate", finished, "--n", 1, "--label", "fm", "--checkpoint", "best"]
    for seed, end in ((3, waves[0]), (4, waves[-1])):
        assert run(sample.main, *words, "--seed", seed, "--out", tmp_path / str(seed))[0] == 0
        np.testing.assert_allclose(soundfile.read(tmp_path / str(seed) / "000-fm.wav")[0], end, atol=2 / 32768)


WRONG = {
    "no step": (["wavegan:tiny", "--log-every", 0], "log_every is 0: it is at least 1"),
    "nothing kept": (["wavegan:tiny", "--keep", 0], "keep is 0: it is at least 1"),
    "a seed out of range": (["wavegan:tiny", "--seed", -1], "seed is -1: it is 0 to"),
    "no critic": (["wavegan:tiny", "--model.n-critic", 0], "n_critic is 0: it is at least 1"),
    "no model of that name": (["wavegann"], "no model named 'wavegann' (did you mean wavegan?)"),
    "no preset of that name": (["wavegan:tinny"], "no preset of wavegan named 'tinny' (did you mean tiny?)"),
    "a missing folder": (["wavegan:tiny", "--data", "{tmp}/nowhere"], "nowhere"),
    "an empty folder": (["wavegan:tiny", "--data", "{tmp}/empty"], "empty"),
    "a folder without audio": (["wavegan:tiny", "--data", "{tmp}/texts"], "texts"),
    "labels that are missing": (["wavegan:tiny", "--data", "{tmp}/flat"], "needs labels, but the data has none"),
    "a batch that does not split": (["wavegan:tiny", "--model.batch-size", 6], "batch_size 6 does not split over 4"),
    "updates that do not split": (
        ["wavegan:tiny", "--model.batch-size", 7],
        "batch_size 7 does not split into n_critic",
    ),
    "a length that cannot be": (["wavegan:tiny", "--model.segment", 300], "segment is 300"),
    "a file in the run's place": (["wavegan:tiny", "--out", "{tmp}/file"], "file"),
    "a folder below a file": (["wavegan:tiny", "--out", "{tmp}/file/run"], "file"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_gets_one_line_and_exit_code_2(case, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("no sound")
    (tmp_path / "file").write_text("in the way")
    audio.write(tmp_path / "flat" / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(300), 16000)
    words, message = WRONG[case]
    words = [str(word).format(tmp=tmp_path) for word in words]
    words += [] if "--out" in words else ["--out", tmp_path / "run"]
    code, _, err = run(train.main, *words, "--steps", 1, capsys=capsys)
    assert code == 2, err
    assert message in err
    assert err.count("\n") == 1, err


def test_an_unknown_option_gets_a_suggestion_and_help_lists_every_field(capsys):
    code, _, err = run(train.main, "wavegan:tiny", "--stepz", 3, capsys=capsys)
    assert code == 2
    assert "--steps" in err
    code, out, _ = run(train.main, "wavegan:tiny", "--help", capsys=capsys)
    assert code == 0
    for words in ("--model.n-critic", "critic updates per generator update", "--save-every", "--parallel {jit,pmap}"):
        assert words in out
    code, out, _ = run(train.main, "--help", capsys=capsys)
    assert code == 0
    assert "wavegan: paper, digits, tiny" in out


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("reconstruct", ["share of the latent variance", "the folder that train.py wrote", "latest, best, or"]),
        ("stream", ["latent frames that are processed at once", "--live", "writes to standard output"]),
        ("morph", ["recordings to go between", "--seeds", "--steps"]),
        ("restore", ["START:END in seconds", "share of what is restored", "--force"]),
        ("generate", ["how many sounds", "--label", "New sounds from nothing."]),
    ],
)
def test_help_of_a_verb_tells_what_its_options_mean(verb, words, capsys):
    code, out, _ = run(sample.main, verb, "--help", capsys=capsys)
    assert code == 0
    for each in words:
        assert each in out
    assert "options." not in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.width", 4], "width is 8 there and 4 here"),
        (["--seed", 1], "seed is 0 there and 1 here"),
        (["--data", "{data}"], "data is"),
    ],
)
def test_another_run_in_the_same_folder_is_refused_field_by_field(words, message, finished, folder_of_sounds, capsys):
    before = trained(finished).step
    words = [str(word).format(data=folder_of_sounds) for word in words]
    code, _, err = run(train.main, "wavegan:tiny", "--out", finished, "--steps", 99, *words, capsys=capsys)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert trained(finished).step == before, "nothing already written is lost"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.json", "{}", "is damaged"),
        ("model.json", "[]", "is damaged"),
        ("run.json", '{"seed": 0', "is damaged"),
        ("model.json", '{"model": "wavegan", "depth": 3}', "is of another version"),
    ],
)
def test_a_damaged_run_is_named_in_one_line(name, content, message, finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / name).write_text(content)
    code, _, err = run(sample.main, "generate", tmp_path / "run", "--out", tmp_path / "out", capsys=capsys)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert "--out" not in err, "there is nothing to write elsewhere"


def test_a_damaged_checkpoint_names_the_one_before_it(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    steps = sorted(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdecimal())
    for path in (tmp_path / "run" / "checkpoints" / str(steps[-1])).rglob("*"):
        if path.is_file() and path.stat().st_size > 1000:
            path.write_bytes(path.read_bytes()[:500])
    words = ["wavegan:tiny", "--out", tmp_path / "run", "--steps", 99]
    code, _, err = run(train.main, *words, capsys=capsys)
    assert code == 2, err
    assert f"delete it to go on from step {steps[-2]}" in err
    shutil.rmtree(tmp_path / "run" / "checkpoints" / str(steps[-1]))
    code, out, _ = run(train.main, *words[:-1], steps[-2] + 1, capsys=capsys)
    assert code == 0
    assert f"continues at step {steps[-2]}" in out


def test_hostile_class_names_and_few_recordings_are_trained_on(tmp_path, capsys):
    """Names that are no text, no file name, no formula; and too few recordings to hold any out."""
    rng = np.random.default_rng(0)
    for name in (b"caf\xe9", b"$\\frac$", b"two\nlines", b"x" * 200):
        folder = os.path.join(os.fsencode(tmp_path), b"data", name)
        os.makedirs(folder)
        soundfile.write(os.path.join(folder, b"a.wav"), 0.1 * rng.standard_normal(300), 16000)
    with open(os.path.join(os.fsencode(tmp_path), b"data", b"caf\xe9", b"\nbad\xe9.wav"), "w") as file:
        file.write("no sound")
    words = ["--data", tmp_path / "data", "--out", tmp_path / "run", "--steps", 1, "--samples", 4]
    code, out, _ = run(train.main, "wavegan:tiny", *words, capsys=capsys)
    assert code == 0
    assert "no held-out recordings" in out
    out.encode("utf-8")
    assert len(list((tmp_path / "run" / "samples").glob("*.wav"))) == 4


def test_a_second_process_in_the_same_folder_is_refused(finished, capsys):
    with open(finished / "lock", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, err = run(train.main, "wavegan:tiny", "--out", finished, "--steps", 99, capsys=capsys)
    assert code == 2
    assert "is in use by process" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generat", "{run}"], "no verb named 'generat' (did you mean generate?)"),
        (["generate", "{tmp}"], "is not a run's folder"),
        (["generate", "{run}", "--label", "z"], "there is no label 'z': choose from 0 additive"),
        (["generate", "{run}", "--n", "0"], "n is 0"),
        (["generate", "{run}", "--n", "1000000000000"], "ask for 1 to 100000 sounds"),
        (["generate", "{run}", "--seconds", "9"], "this model makes 1 to 256 samples"),
        (["generate", "{run}", "--seconds", "nan"], "n is 16 and seconds nan"),
        (["generate", "{run}", "--seconds", "1e9"], "3600 s at most in all"),
        (["generate", "{run}", "--seconds", "300"], "n is 16 and seconds 300"),
        (["generate", "{run}", "--seconds", "-1"], "each of a sample or more"),
        (["generate", "{run}", "--checkpoint", "5"], "has no checkpoint '5': it has latest"),
        (["morph", "{run}", "--seeds", "3"], "give two seeds"),
    ],
)
def test_sampling_with_wrong_input_gets_one_line_and_exit_code_2(words, message, finished, tmp_path, capsys):
    words = [word.format(run=finished, tmp=tmp_path) for word in words]
    code, _, err = run(sample.main, *words, *(["--out", tmp_path / "out"] if len(words) > 1 else []), capsys=capsys)
    assert code == 2, err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_machine_that_has_nothing_goes_on_from_the_store_and_samples_from_it(tmp_path, capsys):
    words = ("wavegan:tiny", "--store", f"file://{tmp_path}/bucket/run", "--samples", 2, "--eval-every", 2)
    assert run(train.main, *words, "--out", tmp_path / "here", "--steps", 4, capsys=capsys)[0] == 0
    code, out, _ = run(train.main, *words, "--out", tmp_path / "there", "--steps", 6, capsys=capsys)
    assert code == 0
    assert "continues at step 4" in out
    lines = [json.loads(line)["step"] for line in (tmp_path / "there" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0] < 4, "what was logged before is there too"
    code, out, _ = run(sample.main, "generate", words[2], "--n", 1, "--out", tmp_path / "sounds", capsys=capsys)
    assert code == 0
    assert "step 6" in out
    code, _, err = run(train.main, *words, "--seed", 1, "--out", tmp_path / "other", "--steps", 6, capsys=capsys)
    assert code == 2
    assert "seed is 0 there and 1 here" in err
    code, _, err = run(train.main, *words[:2], "bucket", "--out", tmp_path / "x", "--steps", 1, capsys=capsys)
    assert code == 2
    assert "is no store" in err


def test_a_device_without_room_ends_the_run_in_one_line_and_any_other_failure_is_a_bug(tmp_path, monkeypatch, capsys):
    def failing(words):
        def step(*given):
            raise jax.errors.JaxRuntimeError(words)

        monkeypatch.setattr(Devices, "compile", lambda self, model: step)

    words = ("wavegan:tiny", "--samples", 2, "--out", tmp_path / "run")
    failing("RESOURCE_EXHAUSTED: Out of memory allocating 1099511627776 bytes.")
    code, _, err = run(train.main, *words, capsys=capsys)
    assert code == 2
    assert "1099511627776 bytes" in err
    assert "--model.batch-size 32" in err
    assert err.count("\n") == 1
    failing("INTERNAL: something else")
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        run(train.main, *words)
