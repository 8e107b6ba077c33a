"""How fast recordings come in, and a run starts: python -m benchmarks.input [--start]

Packing (decode, mix, resample, write) in seconds of audio per second; planning and gathering a batch; with
--start the seconds from the command line to the first step, with an empty and with a warm compilation cache.
"""

import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.timing import OtherLoad
from jaxaudio import zoo
from jaxaudio.data import audio
from jaxaudio.data.clips import Clips
from jaxaudio.data.pack import Folder, Pack, open_pack

CROPS = 64
SECONDS = 60  # of each file that is packed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of this benchmark."""

    files: int = 32  # packed, of 60 s each
    start: bool = False  # also time the start of train.py wavegan:tiny


def packing(channels: int, files: int, root: Path) -> tuple[Pack, list[float]]:
    """A pack of 48 kHz WAV files at 16 kHz mono, and seconds of audio per second: by one thread, and by all."""
    rng, folder = np.random.default_rng(0), root / f"{channels} channels"
    for i in range(files):
        audio.write(folder / f"{i}.wav", 0.1 * rng.standard_normal((SECONDS * 48000, channels)), 48000)
    open_pack(Folder(folder, 8000, 1), root / "cache")  # the packages are loaded, the files in memory
    rates = []
    for workers in (1, None):
        began = time.perf_counter()
        pack = open_pack(Folder(folder, 16000, 1), root / f"cache {workers}", workers)
        rates.append(files * SECONDS / (time.perf_counter() - began))
    return pack, rates


def batches(pack: Pack) -> tuple[float, float]:
    """Milliseconds to plan and to gather 64 crops of 16384 samples: medians over 200 batches."""
    model = dataclasses.replace(zoo.load("wavegan:paper"), batch_size=CROPS, n_critic=1)
    clips, times = Clips(pack, model, 0), []
    for i in range(200):
        began = time.perf_counter()
        plan = clips.plan(i)
        planned = time.perf_counter()
        clips.gather(plan)
        times.append((planned - began, time.perf_counter() - planned))
    plan_ms, gather_ms = np.median(times, 0) * 1e3
    return float(plan_ms), float(gather_ms)


def first_step(root: Path, run: str) -> float:
    """Seconds from the start of `train.py wavegan:tiny` to the line of its first step; the cache lies in `root`."""
    train = Path(__file__).resolve().parent.parent / "train.py"
    command = [sys.executable, train, "wavegan:tiny", "--steps", "1000", "--log-every", "1", "--out", root / run]
    environment = {**os.environ, "JAXAUDIO_CACHE": str(root / "cache"), "PYTHONUNBUFFERED": "1"}
    began = time.perf_counter()
    with subprocess.Popen(map(str, command), stdout=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout:
            if line.startswith("step 1/"):
                break
        seconds = time.perf_counter() - began
        process.kill()
    return seconds


def main() -> None:
    """The table."""
    import tyro

    options = tyro.cli(Options, description=__doc__)
    with OtherLoad() as other, tempfile.TemporaryDirectory() as root:
        for channels, name in ((1, "mono"), (2, "stereo")):
            pack, (one, every) = packing(channels, options.files, Path(root))
            rates = f"{one:.0f} s of audio per second on one core, {every:.0f} on all"
            print(f"packing 48 kHz {name:6} WAV to 16 kHz  {rates}")
        plan_ms, gather_ms = batches(pack)
        print(f"{CROPS} crops of 16384 samples           {plan_ms:.2f} ms to plan, {gather_ms:.2f} ms to gather")
    print(f"other load                          {other.cores:.2f} cores")
    if options.start:
        with tempfile.TemporaryDirectory() as root:
            cold, warm = first_step(Path(root), "cold"), first_step(Path(root), "warm")
        print(f"train.py wavegan:tiny, first step   {cold:.1f} s cold, {warm:.1f} s with a warm cache")


if __name__ == "__main__":
    main()
