"""A trace of some training steps: where their time goes."""

from pathlib import Path

import jax

from jaxaudio.core import InputError
from jaxaudio.runtime.log import Log


class Profile:
    """While it is open, the steps FIRST:LAST of those that it is told of are traced; with None, none."""

    def __init__(self, span: str | None, folder: Path):
        self.folder, self.running = folder / "profile", False
        self.first, self.last = span_of(span) if span else (-1, -1)

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.running:
            jax.profiler.stop_trace()

    def step(self, done: int, log: Log) -> None:
        """Before the step that comes after so many."""
        if done == self.first:
            log.drain()
            jax.profiler.start_trace(str(self.folder))
            self.running = True
        if done == self.last:
            log.drain()
            jax.profiler.stop_trace()
            self.running = False
            log.say(f"profile of {self.last - self.first} steps: {self.folder} (python -m benchmarks.profile reads it)")


def span_of(text: str) -> tuple[int, int]:
    """10:15 as (10, 15). Raises InputError where it is none."""
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise InputError(f"profile is {text}: it is FIRST:LAST, numbers of steps, as in 10:15")
    return int(first), int(last)
