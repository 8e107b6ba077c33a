"""Models of listeners from other packages (PESQ, STOI, ViSQOL), one pair of sounds at a time, spread over processes.

numpy only: `python -m jaxaudio.metrics.listeners NAME RATE` is the process that `rate` starts, and it loads neither jax
nor the script that asked. The packages come with `pip install -e '.[metrics]'`.
"""

import io
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

Sound = Float[np.ndarray, "time"]

ALONE = 100.0  # seconds of sound up to which starting processes (3 s each) does not pay


def pesq(reference: Sound, estimate: Sound, sample_rate: int) -> float:
    """ITU-T P.862.2 at 16 kHz; NaN where it finds no utterance in the reference: 200 ms above its noise."""
    import pesq

    try:
        return pesq.pesq(sample_rate, reference.astype(np.float32), estimate.astype(np.float32), "wb")
    except pesq.NoUtterancesError:
        return float("nan")


def stoi(reference: Sound, estimate: Sound, sample_rate: int) -> float:
    """Taal et al. 2011; NaN where fewer than 30 frames (0.4 s) of the reference lie within 40 dB of its loudest."""
    import pystoi

    with warnings.catch_warnings():
        # pystoi gives 1e-5 with this warning, which would count as unintelligible in a mean.
        warnings.filterwarnings("error", "Not enough STFT frames", RuntimeWarning)
        try:
            return float(pystoi.stoi(reference, estimate, sample_rate, extended=False))
        except RuntimeWarning:
            return float("nan")


def visqol_audio(reference: Sound, estimate: Sound, sample_rate: int) -> float:
    """ViSQOL v3 at 48 kHz, its support vector regression."""
    return _visqol("audio").measure_from_arrays(reference, estimate, sample_rate).moslqo


def visqol_speech(reference: Sound, estimate: Sound, sample_rate: int) -> float:
    """ViSQOL v3 at 16 kHz, its polynomial mapping."""
    return _visqol("speech").measure_from_arrays(reference, estimate, sample_rate).moslqo


LISTENERS: Mapping[str, Callable[[Sound, Sound, int], float]] = {
    "pesq": pesq,
    "stoi": stoi,
    "visqol_audio": visqol_audio,
    "visqol_speech": visqol_speech,
}


def rate(
    name: str, reference: Float[np.ndarray, "batch time"], estimate: Float[np.ndarray, "batch time"], sample_rate: int
) -> Float[np.ndarray, "batch"]:
    """What this listener says of each pair, NaN where it cannot tell; more than 100 s of sound go to all CPU cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = min(cores, len(reference)) if reference.size > ALONE * sample_rate else 1
    if processes == 1:
        return _rate_here(name, reference, estimate, sample_rate)

    def part(first: int) -> np.ndarray:
        pairs = io.BytesIO()
        np.save(pairs, np.stack([reference[first::processes], estimate[first::processes]]))
        done = subprocess.run(
            [sys.executable, "-m", "jaxaudio.metrics.listeners", name, str(sample_rate)],
            input=pairs.getvalue(),
            capture_output=True,
            # One thread each, where the libraries below would start as many as there are cores.
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
            | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"),
        )
        if done.returncode:
            raise RuntimeError(f"{name}: its process ended with {done.returncode}: {done.stderr.decode()[-2000:]}")
        return np.load(io.BytesIO(done.stdout))

    values = np.empty(len(reference))
    with ThreadPoolExecutor(processes) as pool:
        for first, of_part in enumerate(pool.map(part, range(processes))):
            values[first::processes] = of_part
    return values


def _rate_here(name: str, reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> np.ndarray:
    return np.array([LISTENERS[name](a, b, sample_rate) for a, b in zip(reference, estimate, strict=True)], np.float64)


@cache
def _visqol(mode: str) -> Any:
    import visqol

    api = visqol.VisqolApi()
    # Not its lattice model, which it takes where a further package is there: scores would depend on that.
    api.create(mode=mode, use_lattice_model=False)
    return api


if __name__ == "__main__":
    results, sys.stdout = sys.stdout.buffer, sys.stderr  # what a package prints must not get among the results
    np.save(results, _rate_here(sys.argv[1], *np.load(io.BytesIO(sys.stdin.buffer.read())), int(sys.argv[2])))
