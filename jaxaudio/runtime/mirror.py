"""A run's folder and its copy in a store: what a machine that may be taken away at any time leaves behind."""

import contextlib
import json
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from jaxaudio.core import InputError
from jaxaudio.runtime.folder import differing
from jaxaudio.runtime.store import Store, shown, steps_of

KEPT = ("model.json", "run.json")  # here: this start wrote them
UNFINISHED = (".new", ".tmp")
LOOKS = 0.1  # seconds between two looks whether a checkpoint is whole


class Mirror:
    """Copies a run's folder to a store in the background, and first takes over from there what is further on.

    The folder was claimed for the run, so model.json and run.json are in it. seeds: where there are several, the names
    of their folders in it, which have the checkpoints. checkpoints: False where they are written to the store already,
    by several processes. Raises InputError where the store holds another run or can't be used.
    """

    def __init__(self, url: str | Path, folder: Path, seeds: Sequence[str] = (), checkpoints: bool = True):
        self.store, self.folder, self.checkpoints = Store(url), folder, checkpoints
        self.runs = [f"{seed}/" for seed in seeds] or [""]
        self.known: dict[str, tuple[int, int]] = {}  # size and time of the files as they were copied
        self.pool, self.asked, self.ended = ThreadPoolExecutor(1, "mirror"), 0, threading.Event()
        self.job: Future | None = None  # the last one: they come one after the other
        names = [name for name in self.store.names() if "checkpoints" not in name.split("/")]
        self.listened = {name for name in names if "samples" in name.split("/")}  # a step's are always the same
        self._refuse_other()
        self._fetch([name for name in names if name.split("/")[-1] not in KEPT])

    def __enter__(self) -> "Mirror":
        return self

    def __exit__(self, *exception: object) -> None:
        self.ended.set()
        self.pool.shutdown(cancel_futures=True)

    def copy(self, step: int) -> None:
        """Copies the folder once the checkpoints of this step, whose save has begun, are whole. A failure is told in a
        line, and the next copy makes up for it."""
        self.asked = step
        self.job = self.pool.submit(self._attempt, step)

    def finish(self) -> None:
        """Copies what the folder holds now, to its end. Raises InputError where that fails."""
        self.ended.set()
        if self.job:
            self.job.result()
        self._copy()

    def _attempt(self, step: int) -> None:
        while self.checkpoints and not all((self._checkpoints(run) / str(step)).is_dir() for run in self.runs):
            if self.ended.wait(LOOKS) or self.asked != step:
                return  # the save failed, or another copy is asked for: a save begins when the one before is whole
        if self.asked != step:
            return
        try:
            self._copy()
        except (InputError, OSError) as problem:
            line = f"step {step} is not in {shown(self.store.url)} ({problem}); tried again after the next save"
            tqdm.write(" ".join(line.split()), file=sys.stderr)

    def _copy(self) -> None:
        """Checkpoints first: what else is in the store is never of an earlier time than they."""
        if self.checkpoints:
            self._copy_checkpoints()
        states: dict[str, tuple[int, int]] = {}
        self.store.write(self._changed(states))
        self.known |= states

    def _checkpoints(self, run: str) -> Path:
        return self.folder / run / "checkpoints"

    def _copy_checkpoints(self) -> None:
        """Those of all seeds, before what is deleted here goes there: a step that all have is always there."""
        for run in self.runs:
            for step in sorted(steps_of(self.folder / run) - self.store.steps(run), reverse=True):
                with contextlib.suppress(FileNotFoundError):  # another one took its place meanwhile: orbax deletes it
                    self.store.put(f"{run}checkpoints/{step}/", self._checkpoints(run) / str(step))
        here, there = self._common()
        if here and max(here) in there:
            for run in self.runs:
                below = f"{run}checkpoints/"
                steps = {name.removeprefix(below).split("/")[0] for name in self.store.names(below)}
                for step in sorted(steps - {str(step) for step in steps_of(self.folder / run) | {max(here)}}):
                    self.store.remove(f"{below}{step}/")

    def _common(self) -> tuple[set[int], set[int]]:
        """The steps of which all seeds have a checkpoint here, and in the store."""
        here = (steps_of(self.folder / run) for run in self.runs)
        there = (self.store.steps(run) for run in self.runs)
        return set.intersection(*here), set.intersection(*there)

    def _changed(self, states: dict[str, tuple[int, int]]) -> Iterator[tuple[str, bytes]]:
        """The other files, those that are not in the store as they are; `states` gets theirs."""
        for path in self._others():
            name = path.relative_to(self.folder).as_posix()
            with contextlib.suppress(FileNotFoundError):  # a .new file that has its name now
                found = path.stat()
                state = found.st_size, found.st_mtime_ns
                if self.known.get(name) != state and name not in self.listened:
                    states[name] = state
                    yield name, path.read_bytes()

    def _others(self) -> Iterator[Path]:
        """The files that are no checkpoint's. Checkpoints are not looked at: they are deleted at any time."""
        for where, folders, names in os.walk(self.folder):
            folders[:] = [name for name in folders if name != "checkpoints" and not name.startswith(".")]
            yield from (Path(where, name) for name in sorted(names) if name != "lock" and not name.endswith(UNFINISHED))

    def _refuse_other(self) -> None:
        """Raises InputError where the store holds another run than the folder."""
        theirs = {name: self.store.read(name) for name in KEPT}
        if not all(theirs.values()):
            return
        try:
            ours = (json.loads((self.folder / name).read_text()) for name in KEPT)
            found = differing(*(json.loads(theirs[name]) for name in KEPT), *ours)
        except (ValueError, KeyError, TypeError) as problem:
            raise InputError(
                f"model.json or run.json in {shown(self.store.url)} is damaged ({problem!r}): give another --store"
            ) from problem
        if found:
            each = "; ".join(found.values())
            raise InputError(f"{shown(self.store.url)} holds another run: {each}; give another --store")

    def _fetch(self, names: list[str]) -> None:
        """What is in the store, if it is further on than the folder. The newest checkpoint comes last, so that what was
        cut off is done again."""
        if self.checkpoints:
            here, there = self._common()
            if not there or max(here, default=-1) >= max(there):
                return
        for name in names:
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if (data := self.store.read(name)) is not None:
                path.write_bytes(data)
                self.known[name] = path.stat().st_size, path.stat().st_mtime_ns
        if self.checkpoints:
            for run in self.runs:
                for step in sorted(self.store.steps(run) - steps_of(self.folder / run)):
                    self.store.fetch_step(step, self.folder / run, run)
            print(f"{shown(self.store.url)}: step {max(there)} of there is taken over into {self.folder}", flush=True)
