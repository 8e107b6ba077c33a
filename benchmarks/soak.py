"""Killed again and again: python -m benchmarks.soak [MODEL[:PRESET]] [--kills 50] [--steps 3000] [--json FILE]

A run is killed (`kill -9`) in random places, from the start of its process on, and started again each time; every
checkpoint that it has then, and the last one, is compared bit for bit with that of a run that nobody disturbed.
"""

import dataclasses
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro

from benchmarks.rows import append
from jaxaudio.core import InputError
from jaxaudio.runtime.checkpoint import Checkpoints, abstract
from jaxaudio.runtime.command import guarded
from jaxaudio.runtime.folder import described, digest
from jaxaudio.runtime.parallel import Devices
from jaxaudio.runtime.versions import revision, versions

TRAIN = Path(__file__).resolve().parent.parent / "train.py"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of this benchmark."""

    kills: int = 50
    steps: int = 3000  # of the run; it may end before it was killed so often, then it begins anew
    every: int = 100  # steps between checkpoints; evaluations come half as often
    longest: float = 15.0  # seconds that a process lives, at most, before it is killed
    seed: int = 0  # of the places
    json: Path | None = None  # a line is added


def soak(spec: str, options: Options, folder: Path) -> dict[str, object]:
    """One row: in how many places the run was killed, and after how many of them all that it had was right."""
    words = [sys.executable, TRAIN, spec, "--steps", options.steps, "--save-every", options.every, "--samples", 2]
    words += ["--eval-every", 2 * options.every, "--keep", options.steps]
    command = lambda out: [str(word) for word in (*words, "--out", out)]
    whole, run, chance = folder / "whole", folder / "run", random.Random(options.seed)
    done = subprocess.run(command(whole), capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"the run that nobody disturbs ends with {done.returncode}: {done.stderr.strip()[-300:]}")
    right = digests(whole)
    places, wrong = [], 0
    while len(places) < options.kills:
        process = subprocess.Popen(command(run), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            process.wait(chance.uniform(0, options.longest))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            found = digests(run) if (run / "model.json").exists() else {}
            bad = [step for step, value in found.items() if right[step] != value]
            wrong += bool(bad)
            places.append(max(found, default=0))
            print(f"kill {len(places)} behind step {places[-1]}: {f'{bad} differ' if bad else 'all equal'}", flush=True)
            continue
        if process.returncode:
            raise InputError(f"started again it ends with {process.returncode}: {process.stderr.read().strip()[-300:]}")
        run = run.with_name(f"{run.name}-again")
    done = subprocess.run(command(run), capture_output=True, text=True)
    last = not done.returncode and digests(run)[options.steps] == right[options.steps]
    return {"model": spec, "kills": len(places), "equal": len(places) - wrong, "end_equal": last, "places": places}


def digests(folder: Path) -> dict[int, str]:
    """Of every checkpoint of a run."""
    model, _ = described(folder)
    if not (folder / "checkpoints").exists():
        return {}
    kept = Checkpoints(folder / "checkpoints", 1, model.criterion, read_only=True)
    like = abstract(model, Devices(count=1))
    return {step: digest(kept.restore(step, like)) for step in kept.steps()}


def main(arguments: list[str]) -> int:
    """Exit code 1 where anything differs."""
    spec = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "wavegan:tiny"
    options = tyro.cli(Options, args=arguments, prog=f"benchmarks.soak {spec}", description=__doc__)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        row = soak(spec, options, Path(folder))
    minutes = (time.perf_counter() - began) / 60
    end = "is too" if row["end_equal"] else "is not"
    print(f"{spec}: killed in {row['kills']} places, behind steps {min(row['places'])} to {max(row['places'])}; after "
          f"{row['equal']} of them all checkpoints were bit for bit those of a run that nobody disturbed; the end "
          f"{end} ({minutes:.0f} minutes)")  # fmt: skip
    if options.json:
        append(options.json, {**row, "minutes": minutes, "versions": versions(), "git": revision()})
        print(f"a line was added to {options.json}")
    return 0 if row["equal"] == row["kills"] and row["end_equal"] else 1


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
