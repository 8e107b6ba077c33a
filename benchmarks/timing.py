"""How time is measured here: in windows that alternate between the contestants, with the machine's other load told."""

import os
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np


def alternate(contestants: Mapping[str, Callable[[], object]], windows: int, seconds: float) -> dict[str, np.ndarray]:
    """Seconds per call of each contestant, one number per window of about `seconds`; a call returns when it is done.

    Each is called twice before the first window (compilation, caches).
    """
    calls = {}
    for name, call in contestants.items():
        call()
        began = time.perf_counter()
        call()
        calls[name] = max(1, round(seconds / (time.perf_counter() - began)))
    times = {name: [] for name in contestants}
    for _ in range(windows):
        for name, call in contestants.items():
            began = time.perf_counter()
            for _ in range(calls[name]):
                call()
            times[name].append((time.perf_counter() - began) / calls[name])
    return {name: np.array(values) for name, values in times.items()}


def quartiles(values: np.ndarray) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return float(low), float(middle), float(high)


class OtherLoad:
    """How many cores other processes kept busy while it was open; nan where the system does not tell."""

    def __enter__(self) -> "OtherLoad":
        self.before = self._read()
        return self

    def __exit__(self, *exception: object) -> None:
        wall, all_busy, mine = (now - then for now, then in zip(self._read(), self.before, strict=True))
        self.cores = max(0.0, (all_busy - mine) / wall)

    @staticmethod
    def _read() -> tuple[float, float, float]:
        try:
            with open("/proc/stat") as file:
                user, nice, system = (int(field) for field in file.readline().split()[1:4])
            busy = (user + nice + system) / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError):
            busy = float("nan")
        spent = os.times()
        return time.perf_counter(), busy, spent.user + spent.system


def matmul(dtype: str = "float32", size: int = 2048) -> Callable[[], object]:
    """A matrix product of `size`, the machine's limit to compare with: 2 * size**3 operations a call."""
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(jnp.dot)
    return lambda: jax.block_until_ready(product(a, a))
