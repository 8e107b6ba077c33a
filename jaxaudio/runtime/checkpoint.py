"""Checkpoints: the state and nothing else, written in the background by orbax."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from jaxaudio.core import InputError, State
from jaxaudio.runtime.parallel import Devices, shapes
from jaxaudio.runtime.store import shown, url_of

policies = ocp.checkpoint_managers


class Checkpoints:
    """The folder of a run's checkpoints: the `keep` latest and the best by `criterion` (smaller is better).

    It may be one of a store, as gs://BUCKET/RUN/checkpoints: several processes that share no disk write to one.
    """

    def __init__(self, folder: Path | str, keep: int, criterion: str, read_only: bool = False):
        for name in ("absl", "asyncio"):  # what goes wrong is raised, in one line
            logging.getLogger(name).setLevel(logging.CRITICAL)

        def score(metrics: Mapping[str, float]) -> float:
            return metrics.get(criterion, math.inf)

        best = policies.BestN(
            n=1,
            get_metric_fn=score,
            reverse=True,
            keep_checkpoints_without_metrics=False,
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
            best_fn=score,
            best_mode="min",
            read_only=read_only,
        )
        self.folder = shown(folder)
        try:
            self.manager = ocp.CheckpointManager(_place(folder), options=options)
        except ValueError as problem:  # JSON among it
            raise InputError(
                f"{folder} can't be opened ({_line(problem)}): delete the step that is damaged"
            ) from problem

    def latest(self, like: State) -> State | None:
        """The last complete checkpoint, as `restore` gives it; None where there is none."""
        step = self.manager.latest_step()
        return None if step is None else self.restore(step, like)

    def steps(self) -> set[int]:
        """Those of which there is a complete checkpoint."""
        return set(self.manager.all_steps())

    def rewind(self, step: int) -> None:
        """Deletes the checkpoints behind this step."""
        for later in self.steps():
            if later > step:
                self.manager.delete(later)

    def restore(self, step: int, like: State) -> State:
        """The checkpoint of this step, with the shardings of `like` (arrays or shapes)."""
        try:
            return self.manager.restore(step, args=ocp.args.StandardRestore(like))
        except (ValueError, KeyError, FileNotFoundError) as problem:
            others = [n for n in self.manager.all_steps() if n != step]
            raise InputError(
                f"the checkpoint {self.folder}/{step} is damaged or of another model ({_line(problem)}): "
                f"delete it to go on from {f'step {max(others)}' if others else 'the start'}, or give another --out"
            ) from problem

    def save(self, step: int, state: State, metrics: Mapping[str, float] | None) -> None:
        """Starts saving. A failure of the save before is raised here, of the last one by `wait`."""
        if metrics is not None:
            metrics = {k: float(v) if math.isfinite(v) else math.inf for k, v in metrics.items()}
        self._checked(self.manager.save, step, args=ocp.args.StandardSave(state), metrics=metrics, force=True)

    def best(self) -> int | None:
        """The step of the best checkpoint among those that were evaluated."""
        return self.manager.best_step()

    def wait(self) -> None:
        """Returns when all is on disk; raises what went wrong."""
        self._checked(self.manager.wait_until_finished)

    def _checked(self, act, *args, **kwargs) -> Any:
        try:
            return act(*args, **kwargs)
        except (OSError, ValueError, RuntimeError) as problem:  # tensorstore's are ValueErrors
            raise InputError(
                f"saving to {self.folder} failed ({_line(problem)}): make room or give another --out; "
                f"the checkpoints before are whole, and the same command continues from them"
            ) from problem


def _place(folder: Path | str) -> Any:
    """What orbax takes for a folder."""
    url = url_of(folder)
    scheme, _, rest = (url or "").partition("://")
    if url is None or scheme == "file":
        return Path(rest or folder).absolute()
    try:
        place = epath.Path(url)
        place.exists()  # what is needed for it is loaded now
    except (KeyError, ImportError) as problem:
        raise InputError(
            f"{shown(url)} can't take checkpoints ({_line(problem)}): pip install 'jaxaudio[gcs]', and name a "
            "gs:// folder or one that all processes see"
        ) from problem
    return place


def abstract(model, devices: Devices) -> State:
    """The shapes of a model's state, and how it lies on these devices: what `Checkpoints.latest` wants."""
    state = shapes(model)
    given = lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
    return jax.tree.map(given, state, devices.placed(state))


def _line(problem: Exception) -> str:
    text = " ".join(str(problem).split())
    return f"{type(problem).__name__}: {text[:200]}"
