"""A run's folder: whose it is, who works in it, and what it was trained with."""

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxaudio import zoo
from jaxaudio.core import InputError, Model, Params, State
from jaxaudio.runtime import hosts
from jaxaudio.runtime.checkpoint import Checkpoints, abstract
from jaxaudio.runtime.parallel import Devices
from jaxaudio.runtime.store import located
from jaxaudio.runtime.versions import revision, versions

VISIBLE = 30.0  # seconds within which a file of one host is seen by the others
OTHER = "give another --out, or delete the folder"


def claim(folder: Path, model: Model, run: Mapping[str, Any]) -> Any:
    """Makes the folder this run's for as long as the returned lock lives.

    `run` holds `seed` and `data`, and `noise` of a model that learns from it, `codec` of one that learns codes, `mels`
    where they are given, `begin` where it begins with another run's networks: these must be the same when a run is
    continued. And it holds what else is worth keeping.
    Raises InputError where another process works in it or another run lies in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = open(folder / "lock", "a+")  # noqa: SIM115
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as taken:
        with lock:
            lock.seek(0)
            holder = lock.read().strip()
        raise InputError(f"{folder} is in use by process {holder}: wait for it, or {OTHER}") from taken
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()

    with contextlib.ExitStack() as held:  # let go where anything fails
        held.enter_context(lock)
        if (folder / "model.json").exists():
            there, there_run = _written(folder, OTHER)
            if found := differing(there, there_run, zoo.dump(model), run):
                remedy = OTHER
                (name, *others), each = found, "; ".join(found.values())
                if not others and name in ("codec", "begin") and (was := there_run.get(name)):  # it may have learned on
                    option = f"--{name}"
                    remedy = (
                        f"give {option} {was.get('folder')} {option}-checkpoint {was.get('step')}, or another --out"
                    )
                raise InputError(f"{folder} holds another run: {each}; {remedy}")
        more = {"command": sys.argv, "versions": versions(), "git": revision(), "start": secrets.token_hex(8)}
        _write(folder / "run.json", {**run, **more})
        _write(folder / "model.json", zoo.dump(model))
        held.pop_all()
    return lock


def shared(folder: Path) -> None:
    """Raises InputError where the folder that process 0 has claimed is not the one that is seen here."""
    told = lambda: _written(folder, OTHER)[1].get("start") if (folder / "model.json").exists() else None
    theirs, until = hosts.gathered(str(told()))[0], time.monotonic() + VISIBLE
    while str(told()) != theirs:  # a network's file system may show it late
        if time.monotonic() > until:
            raise InputError(
                f"{folder} is not the same folder on all hosts, and each writes its part of the checkpoints there: "
                "give an --out that all share"
            )
        time.sleep(0.5)


def differing(
    there: Mapping[str, Any], there_run: Mapping[str, Any], here: Mapping[str, Any], here_run: Mapping[str, Any]
) -> dict[str, str]:
    """In what two runs, as model.json and run.json tell of them, are not the same one: a field's name and both values
    in words."""
    here = json.loads(json.dumps(here)) | identity(here_run)
    there = {**there, **identity(there_run)}
    names = [name for name in sorted(there | here) if there.get(name) != here.get(name)]
    return {name: f"{name} is {there.get(name)} there and {here.get(name)} here" for name in names}


class Trained(NamedTuple):
    """A trained run, ready to use."""

    folder: Path  # as it was named: in a store too
    model: Model
    params: Params
    step: int
    labels: tuple[str, ...]  # the classes' names; () where it is unconditional
    fingerprint: str = ""  # `digest` of the checkpoint's own arrays

    @property
    def identity(self) -> str:
        """What tells its checkpoint from others: hex digits.

        They are those of what was saved: parameters are computed from that, and round otherwise on another machine. The
        model's fields are not in it, so that one may be added."""
        return self.fingerprint or digest(self.params)


class Saved(NamedTuple):
    """A checkpoint of a run, with all that training wants."""

    model: Model
    state: State
    labels: tuple[str, ...]  # as those of `Trained`
    fingerprint: str


def trained(folder: Path, which: str = "latest") -> Trained:
    """The run in this folder, which may be in a store, at the checkpoint `which`: latest, best, or a step's number."""
    model, state, labels, fingerprint = saved(folder, which)
    return Trained(folder, model, jax.jit(model.weights)(state), int(state.step), labels, fingerprint)


def saved(folder: Path, which: str = "latest") -> Saved:
    """The same, with all that training wants."""
    model, run = described(folder)
    kept = Checkpoints(located(folder) / "checkpoints", 1, model.criterion, read_only=True)
    steps = {"latest": kept.manager.latest_step(), "best": kept.best()}
    steps |= {str(step): step for step in kept.manager.all_steps()}
    if steps.get(which) is None:
        have = ", ".join(k for k, step in steps.items() if step is not None) or "none yet"
        if "seeds" in run:
            have = f"one in each of {folder / 'seed-*'}: give one of these"
        raise InputError(f"{folder} has no checkpoint {which!r}: it has {have}")
    state = kept.restore(steps[which], abstract(model, Devices(count=1)))
    labels = tuple(run["data"]["classes"]) if model.classes else ()
    return Saved(model, state, labels, digest({"params": state.params, "extra": state.extra}))


def networks(other: Saved, like: State, folder: Path) -> dict[str, Any]:
    """The networks of the checkpoint of a run in `folder`, `params`, and what follows them, such as averages, `extra`,
    placed as in `like`, for another run to begin with. Raises InputError where these are of other shapes."""
    given = {"params": other.state.params, "extra": other.state.extra}
    wanted = {"params": like.params, "extra": like.extra}
    shapes = lambda tree: {jax.tree_util.keystr(path): x.shape for path, x in jax.tree.leaves_with_path(tree)}
    here, there = shapes(wanted), shapes(given)
    if differing := [name for name in sorted(here | there) if here.get(name) != there.get(name)]:
        name = differing[0]
        raise InputError(
            f"begin is {folder}, of whose arrays {len(differing)} do not fit, the first {name}: "
            f"{there.get(name, 'missing')} there and {here.get(name, 'missing')} here: take a run of the same networks"
        )
    return jax.tree.map(lambda x, place: jax.device_put(np.asarray(x), place.sharding), given, wanted)


def described(folder: Path) -> tuple[Model, dict[str, Any]]:
    """The model of the run in this folder, and what its run.json tells; no checkpoint is looked at."""
    folder = located(folder)
    if not (folder / "model.json").is_file():
        raise InputError(f"{folder} is not a run's folder (no model.json in it): give the folder that train.py wrote")
    fields, run = _written(folder, "copy it from where it is whole, or train the run anew")
    try:
        return zoo.parse(fields), run
    except TypeError as problem:
        raise InputError(f"{folder / 'model.json'} is of another version ({problem}): train it anew") from problem


def digest(tree: Any) -> str:
    """Of a tree of arrays: hex digits of their places, kinds, shapes and bytes."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        leaf = np.asarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        found.update(leaf.tobytes())
    return found.hexdigest()


def _written(folder: Path, remedy: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `claim` wrote: model.json and run.json."""
    try:
        model, run = (json.loads((folder / f"{name}.json").read_text()) for name in ("model", "run"))
        model["model"], identity(run), run["data"]["classes"]
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise InputError(f"model.json or run.json in {folder} is damaged ({problem!r}): {remedy}") from problem
    return model, run


def identity(run: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same when a run is continued, beside its model."""
    # No field of a model is called as one of these.
    titles = {"noise": "noise data", "codec": "codec", "mels": "given mels", "begin": "begin"}
    more = {title: run[name]["fingerprint"] for name, title in titles.items() if name in run}
    more |= {"seeds": run["seeds"]} if "seeds" in run else {}
    return {"seed": run["seed"], "data": run["data"]["fingerprint"], **more}


def _write(path: Path, what: Mapping[str, Any]) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(what, indent=1, default=str) + "\n")
    fresh.replace(path)
