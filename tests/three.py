"""Three kinds of sound that a classifier tells apart after a few steps."""

import numpy as np

RATE, SEGMENT = 16000, 512  # of `classifier:tiny`
CLASSES = ("hum", "hiss", "pulse")


def sound(kind, rng, length=SEGMENT):
    """[length], one of its kind."""
    if kind == "hum":
        return 0.5 * np.sin(2 * np.pi * rng.uniform(300, 500) * np.arange(length) / RATE + rng.uniform(0, 6))
    if kind == "hiss":
        return 0.2 * rng.standard_normal(length).clip(-4, 4)
    return np.where(np.arange(length) % rng.integers(60, 100) < 2, 0.8, 0.0)
