"""Two processes of two devices each, as two hosts, over gloo: one run, whoever is stopped, lost or wrong."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import train
from jaxaudio.runtime import folder
from tests.commands import run
from tests.conftest import REPOSITORY

MODEL = "wavegan:tiny"
EVERY = ("--log-every", 1, "--samples", 2, "--eval-every", 10_000)


class Pair:
    """The same command, but for `own` words of each, in two processes; what they print goes to files."""

    def __init__(self, folder, *words, own=((), ())):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.outputs = [folder / f"process-{i}.txt" for i in range(2)]
        self.processes = [self.start(i, port, [*words, *own[i]]) for i in range(2)]

    def start(self, index, port, words):
        told = ["--distributed", "--coordinator", f"127.0.0.1:{port}", "--processes", 2, "--process", index]
        told += ["--lost-seconds", 10]
        command = [sys.executable, "-u", REPOSITORY / "train.py", MODEL, *told, *words]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
        with open(self.outputs[index], "w") as file:
            return subprocess.Popen(
                [str(word) for word in command], env=environment, stdout=file, stderr=subprocess.STDOUT
            )

    def until(self, words, index=0):
        """Waits until a process has said this."""
        deadline = time.monotonic() + 180
        while words not in self.outputs[index].read_text():
            assert time.monotonic() < deadline, self.said()
            assert self.processes[index].poll() is None, self.said()
            time.sleep(0.02)

    def worker(self, index):
        """The process that trains: the child of the one that was started."""
        (child,) = (
            int(pid) for pid in os.listdir("/proc") if pid.isdigit() and parent(pid) == self.processes[index].pid
        )
        return child

    def end(self):
        """Both exit codes."""
        return [process.wait(timeout=240) for process in self.processes]

    def said(self):
        return "\n".join(path.read_text() for path in self.outputs)


def parent(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return None


def alone(out, steps, *words, capsys=None):
    """In this process, on four devices."""
    return run(train.main, MODEL, "--out", out, "--steps", steps, *EVERY, *words, capsys=capsys)


def near(one, other, step):
    """Two runs at this step: the optimisers' moments are equal to 1e-3 of their norm."""
    a, b = (jax.device_get(folder.saved(out, str(step)).state) for out in (one, other))
    for network in a.opt:
        first, second = ([x for x in jax.tree.leaves(state.opt[network]) if x.ndim] for state in (a, b))
        difference = np.sqrt(sum(np.sum((x - y) ** 2.0) for x, y in zip(first, second, strict=True)))
        assert difference <= 1e-3 * np.sqrt(sum(np.sum(x**2.0) for x in first)), network


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of one process, never disturbed, with a checkpoint on its way."""
    out = tmp_path_factory.mktemp("straight")
    assert alone(out, 8, "--save-every", 4)[0] == 0
    return out


def test_one_host_that_is_told_to_stop_stops_all_at_one_step_and_one_process_goes_on(tmp_path, capsys):
    out = tmp_path / "run"
    pair = Pair(tmp_path, "--out", out, "--steps", 100_000, *EVERY)
    pair.until("step 2/")
    pair.processes[1].send_signal(signal.SIGTERM)
    assert pair.end() == [3, 3], pair.said()
    (last,) = re.findall(r"stopped by SIGTERM on a host; saved at step (\d+)", pair.said())
    code, said, _ = alone(out, int(last) + 1, capsys=capsys)
    assert code == 0
    assert f"continues at step {last} on 4 cpu" in said


def test_two_hosts_come_to_the_state_of_one_and_the_loss_of_one_ends_the_other(straight, tmp_path):
    out = tmp_path / "run"
    assert alone(out, 4, "--save-every", 2)[0] == 0
    pair = Pair(tmp_path, "--out", out, "--steps", 100_000, "--save-every", 4, "--keep", 1000, *EVERY)
    pair.until("step 10/")
    os.kill(pair.worker(1), signal.SIGKILL)
    assert pair.end() == [3, 3], pair.said()
    assert "continues at step 4 on 4 cpu (jit)" in pair.said()
    for path in pair.outputs:
        assert "start the same command on all hosts again, it continues from" in path.read_text()
    near(straight, out, 8)


@pytest.mark.slow
def test_pmap_of_two_hosts_comes_to_the_state_of_one(straight, tmp_path):
    pair = Pair(tmp_path, "--out", tmp_path / "run", "--steps", 8, "--parallel", "pmap", *EVERY)
    assert pair.end() == [0, 0], pair.said()
    near(straight, tmp_path / "run", 8)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (((), ("--model.width", 4)), "width is 8 in process 0 and 4 in process 1"),
        (((), ("--data", "nowhere")), "nowhere"),
    ],
)
def test_hosts_that_disagree_end_with_what_they_disagree_in(own, message, tmp_path):
    pair = Pair(tmp_path, "--out", tmp_path / "run", "--steps", 2, own=own)
    assert pair.end() == [2, 2], pair.said()
    for path in pair.outputs:
        (line,) = [line for line in path.read_text().splitlines() if line.startswith("train.py: ")]
        assert message in line
    assert not (tmp_path / "run").exists(), "nothing is begun"


def test_a_coordinator_that_is_not_there_is_named_within_the_time_given(tmp_path, capfd):
    words = ["--distributed", "--coordinator", "127.0.0.1:1", "--processes", 2, "--process", 1, "--join-seconds", 1]
    command = [sys.executable, REPOSITORY / "train.py", MODEL, *words, "--out", tmp_path / "run"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "nobody answers at 127.0.0.1:1 within 1 s" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--process", 1), "process is 1: it goes with --distributed"),
        (("--seeds", 0), "seeds is 0"),
        (("--profile", "5"), "profile is 5: it is FIRST:LAST"),
    ],
)
def test_options_that_make_no_sense_are_named(words, message, tmp_path, capsys):
    code, _, err = run(train.main, MODEL, "--out", tmp_path / "run", *words, capsys=capsys)
    assert code == 2
    assert message in err
