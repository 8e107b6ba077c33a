"""Who may import whom (the house), and what a machine without the readers of audio can still do."""

import ast
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

PAPERS = ("gan", "vae", "gru", "cnn", "classical")
ALLOWED = {
    "core": set(),
    "dsp": {"core", "dsp"},
    "nn": {"core", "dsp", "nn"},
    "losses": {"core", "dsp", "nn"},
    "adversarial": {"core", "losses"},
    "variational": {"core"},
    "autoregressive": {"core", "dsp"},
    **{family: {"core", "dsp", "nn", "losses", "adversarial", "variational", "autoregressive"} for family in PAPERS},
    "zoo": {"core"},
    "runtime": {"core", "dsp", "zoo", "runtime"},
    "data": {"core", "runtime", "data"},
    "metrics": {"core", "dsp", "nn", "losses", "metrics"},
    "tasks": {"core", "dsp", "zoo", "runtime", "data", "metrics", "tasks"},
    "training": {"core", "zoo", "runtime", "data", "tasks", "training"},
}
FILES = sorted((REPOSITORY / "jaxaudio").rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_file_imports_only_what_its_place_in_the_house_allows(path):
    place = path.relative_to(REPOSITORY / "jaxaudio").with_suffix("").parts[0]
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [f"jaxaudio.{alias.name}" for alias in node.names] if names == ["jaxaudio"] else []
        for name in names:
            if name.startswith("jaxaudio."):
                assert name.split(".")[1] in ALLOWED[place], f"{path.name} imports {name}"


def test_a_step_runs_where_only_jax_flax_optax_and_numpy_are():
    missing = [
        "soundfile",
        "soxr",
        "librosa",
        "tyro",
        "tensorboardX",
        "tqdm",
        "matplotlib",
        "orbax",
        "orbax.checkpoint",
        "scipy.signal",
        "constriction",
        "mido",
    ]
    code = f"""
import sys
sys.modules.update(dict.fromkeys({missing!r}))
import dataclasses, jax
from benchmarks import step
from jaxaudio import zoo
from jaxaudio.core import Shard
model = dataclasses.replace(zoo.load("wavegan:tiny"), classes=10)
key = jax.random.key(0)
jax.eval_shape(lambda: model.train_step(model.init(key, {{}}), step.noise(model), key, Shard(), None))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_loads_nothing():
    code = "import sys, jaxaudio; assert 'jax' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0
