"""Where the time of training steps goes: python -m benchmarks.profile RUN...

Reads the last trace that `train.py --profile FIRST:LAST` left in the folder of each run: the operations of the compiled
program, by their kind, as shares of the time that all of them take on all threads of a device.
"""

import collections
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from jax.profiler import ProfileData

from jaxaudio.core import InputError
from jaxaudio.runtime.command import guarded

AROUND = ("while", "call", "conditional")  # their time is that of the operations in them
MOST = 12  # operations that are named, beside the kinds


def operations(path: Path) -> Iterator[tuple[str, float]]:
    """(name, seconds) of every operation of a compiled program that a trace tells of."""
    for plane in ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            for event in line.events:
                stats = dict(event.stats)
                name = stats.get("hlo_op")
                if name and kind(name) not in AROUND:
                    yield name, event.duration_ns / 1e9


def kind(name: str) -> str:
    """What an operation does, by the name that XLA gave it: convolution.12 is a convolution."""
    return re.sub(r"[.\d]+(\.clone.*)?$", "", name)


def shares(folder: Path) -> tuple[dict[str, float], dict[str, float], float]:
    """Of the last trace of a run: the share of each kind and of each operation, the largest first, and seconds."""
    warnings.filterwarnings(
        "ignore", "builtin type .* has no __module__", DeprecationWarning
    )  # jaxlib's, on Python 3.12
    found = sorted((folder / "profile").rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise InputError(f"{folder} has no trace: train with --profile 10:15")
    single = collections.Counter()
    for name, seconds in operations(found[-1]):
        single[name] += seconds
    if not (whole := sum(single.values())):
        raise InputError(f"{found[-1]} tells of no operation of a compiled program: trace steps that were compiled")
    kinds = collections.Counter()
    for name, seconds in single.items():
        kinds[kind(name)] += seconds
    part = lambda counter: {name: seconds / whole for name, seconds in counter.most_common()}
    return part(kinds), part(single), whole


def main(arguments: list[str]) -> None:
    """A table for each run."""
    if not arguments or arguments[0].startswith("-"):
        raise InputError("name a run, as in: python -m benchmarks.profile runs/wavegan-digits")
    for folder in map(Path, arguments):
        kinds, single, seconds = shares(folder)
        print(f"{folder}: {seconds:.3f} s of operations")
        for name, share in list(kinds.items())[:MOST]:
            print(f"  {share:6.1%}  {name}")
        print("  the longest of them")
        for name, share in list(single.items())[:MOST]:
            print(f"  {share:6.1%}  {name}")


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
