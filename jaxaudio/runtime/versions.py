"""What a result depends on beside the command: packages, device, revision of the code."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import jax

PACKAGES = ("jaxaudio", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "torch")


def versions() -> dict[str, str]:
    """Of Python and the packages that results depend on, and the device."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES if _installed(name)}
    device = jax.devices()[0]
    return {"python": sys.version.split()[0], **found, "device": f"{jax.device_count()} {device.device_kind}"}


def revision() -> str | None:
    """The git revision of the code, with "+" where it was changed since; None outside a checkout."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
