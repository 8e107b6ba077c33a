"""What a run writes while it trains: metrics.jsonl, TensorBoard events, a progress bar or plain lines."""

import collections
import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
import tqdm

from jaxaudio.core import InputError, Metrics

IN_FLIGHT = 2  # steps: an unbounded queue of work aborts on several CPU devices, and serves nothing


class Diverged(Exception):
    """Too many steps in a row had an update that was not finite."""


class Log:
    """Metrics of a run from step `start` on: lines of later steps, from a run that was killed, are dropped.

    Without a folder, as on all hosts but one, nothing is written or said."""

    def __init__(self, folder: Path | None, start: int, steps: int, every: int, patience: int):
        from tensorboardX import SummaryWriter

        self.folder, self.every, self.patience = folder, every, patience
        if folder:
            path = folder / "metrics.jsonl"
            kept = [line for line in _lines(path) if line.get("step", 0) <= start]
            fresh = path.with_suffix(".new")
            fresh.write_text("".join(json.dumps(line) + "\n" for line in kept))
            fresh.replace(path)
            self.file = open(path, "a", buffering=1)  # noqa: SIM115
            # max_queue 0: no limit. With one, a writer that died (a full disk) would block the loop for ever.
            self.events = SummaryWriter(str(folder), purge_step=start + 1, flush_secs=30, max_queue=0)
        disable = None if folder else True
        self.bar = tqdm.tqdm(total=steps, initial=start, unit="step", dynamic_ncols=True, disable=disable)
        self.steps, self.flying, self.early = steps, collections.deque(), jax.process_count() == 1
        self.window: list[dict[str, float]] = []
        self.waited, self.since = 0.0, 0.0
        self.skipped = collections.Counter()  # of each network, its updates in a row: a stage may train one of several
        self.timed, self.heard = 0, 0.0  # steps since then, and seconds of audio in them

    def add(self, step: int, metrics: Metrics, examples: float, waited: float) -> None:
        """Metrics of a step that was just started; waits for the one two before it, and takes in those that are done.
        Of several hosts all take in the same ones here, since all must stop at the same step. `examples`: seconds of
        audio."""
        for leaf in jax.tree.leaves(metrics):
            leaf.copy_to_host_async()
        self.flying.append((step, metrics, examples))
        self.waited += waited
        while len(self.flying) > IN_FLIGHT or (self.early and self.flying and _done(self.flying[0])):
            self._land()

    def busy(self) -> bool:
        """Whether the devices still have a step to work on."""
        return bool(self.flying) and not _done(self.flying[-1])

    def drain(self) -> None:
        """Waits for every step that was started."""
        while self.flying:
            self._land()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """All started steps are done when it begins; the time inside, evaluation or saving, does not count."""
        self.drain()
        began = time.perf_counter()
        yield
        self.since += time.perf_counter() - began

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line of metrics.jsonl, the same as TensorBoard scalars."""
        if not self.folder:
            return
        clean = {k: v if math.isfinite(v) else str(v) for k, v in metrics.items()}
        self.file.write(json.dumps({"step": step, **clean}) + "\n")
        if not self.events.file_writer.event_writer._worker.is_alive():
            raise InputError(f"TensorBoard's events can't be written to {self.folder}: make room, and start again")
        for name, value in metrics.items():
            self.events.add_scalar(name, value, step)

    def say(self, text: str) -> None:
        """A line for people, above the bar if there is one."""
        if not self.bar.disable:
            self.bar.write(text)
        elif self.folder:
            print(text, flush=True)

    def media(self, step: int, sounds: np.ndarray, sample_rate: int, sheet: np.ndarray) -> None:
        """Sounds [n, time, channels] and their picture [height, width, 3] (uint8) for TensorBoard."""
        self.events.add_image("samples", sheet, step, dataformats="HWC")
        for i, sound in enumerate(sounds[:4]):
            self.events.add_audio(f"samples/{i}", sound[:, :1], step, sample_rate)

    def close(self) -> None:
        """Writes what is left."""
        self.bar.close()
        if self.folder:
            self.file.close()
            self.events.close()

    def _land(self) -> None:
        step, metrics, examples = self.flying.popleft()
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self.bar.update(step - self.bar.n)
        self.window.append(values)
        if self.since:
            self.timed, self.heard = self.timed + 1, self.heard + examples
        else:  # the clock starts when the first step is done: it is compilation for the most part
            self.since, self.waited = time.perf_counter(), 0.0
        for name in (k for k in values if k.endswith("skipped")):
            self.skipped[name] = self.skipped[name] + 1 if values[name] > 0 else 0
        if step % self.every == 0 or step == self.steps:
            self._line(step)
        bad = [name for name in sorted(self.skipped) if self.skipped[name] >= self.patience]
        if bad:
            named = (name.replace("skipped", "loss") for name in bad)
            losses = ", ".join(f"{name} = {values.get(name)}" for name in named)
            raise Diverged(
                f"{self.patience} updates in a row had a gradient that is not finite: {losses} at step {step}; "
                "a lower learning rate may help, in another --out"
            )

    def _line(self, step: int) -> None:
        now = time.perf_counter()
        names = dict.fromkeys(name for line in self.window for name in line)  # stages of a model differ in theirs
        metrics = {k: float(np.mean([line[k] for line in self.window if k in line])) for k in names}
        seconds = max(now - self.since, 1e-9)
        metrics["steps_per_second"] = self.timed / seconds
        metrics["audio_per_second"] = self.heard / seconds
        metrics["input_wait"] = self.waited / seconds
        self.write(step, metrics)
        main = "  ".join(f"{k} {v:.4g}" for k, v in metrics.items() if k.endswith("/loss"))
        if self.bar.disable:
            self.say(f"step {step}/{self.steps}  {main}  {metrics['steps_per_second']:.3g} steps/s")
        else:
            self.bar.set_postfix_str(main)
        self.since, self.waited, self.timed, self.heard, self.window = now, 0.0, 0, 0.0, []


def _done(started: tuple[int, Metrics, float]) -> bool:
    """Whether a step's numbers are there; all are results of one program."""
    return jax.tree.leaves(started[1])[0].is_ready()


def _lines(path: Path) -> list[dict]:
    """The whole lines of a file that may have been cut off."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found
