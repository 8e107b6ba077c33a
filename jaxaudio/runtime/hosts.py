"""Several processes that train together, one on each host: finding each other, agreeing, ending together.

One that loses another can't go on, and JAX ends it from within, by SIGABRT. So each is started by a second process that
only waits, passes signals on and says in one line what became of it.
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxaudio.core import InputError
from jaxaudio.runtime.command import STOPPED

WATCHED = "JAXAUDIO_WATCHED"  # in the environment of a process that another one waits for
SHUTDOWN = 30  # seconds that the first to end waits for the others
PR_SET_PDEATHSIG = 1

Result = TypeVar("Result")


def watched(remedy: str) -> int | None:
    """None in the process that is to work; the one that started it gets that one's exit code, once it has ended.

    Where a signal ended it, `remedy` is said and the exit code is 3."""
    if WATCHED in os.environ:
        with contextlib.suppress(AttributeError):  # Linux alone has it
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # not to outlive the one that waits
        return None
    mine = {**os.environ, WATCHED: str(os.getpid())}
    worker = subprocess.Popen([sys.executable, *sys.argv], env=mine, start_new_session=True)
    for number in (signal.SIGTERM, signal.SIGINT):  # jax.distributed tells the other hosts of SIGTERM
        signal.signal(number, lambda number, frame: worker.terminate())
    code = worker.wait()
    if code >= 0:
        return code
    print(
        f"{Path(sys.argv[0]).name}: ended by {signal.Signals(-code).name}, as happens where another process is lost or "
        f"does not come (JAX's words are above): {remedy}",
        file=sys.stderr,
    )
    return STOPPED


def join(coordinator: str | None, processes: int | None, process: int | None, patience: int, lost: int) -> None:
    """Makes this process one of several, before the first device use; waits `patience` seconds for the others. One that
    gives no sign of life for `lost` seconds ends them all.

    coordinator: HOST:PORT of process 0; None: all three are found, as on Cloud TPU, Slurm, Kubernetes and Open MPI.
    """
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    if missing := [name for name, value in given.items() if value is None]:
        if len(missing) < len(given):
            raise InputError(f"{missing[0]} is missing: give --coordinator, --processes and --process, or none of them")
    elif not 0 <= process < processes:
        raise InputError(f"process is {process} of {processes}: it is 0 to {processes - 1}")
    elif process:
        _await(coordinator, patience)
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            initialization_timeout=patience,
            heartbeat_timeout_seconds=lost,
            shutdown_timeout_seconds=SHUTDOWN,
        )
    except ValueError as problem:
        raise InputError(
            f"no cluster was found ({' '.join(str(problem).split())}): outside of Cloud TPU, Slurm, Kubernetes and "
            "Open MPI give --coordinator HOST:PORT --processes N --process I"
        ) from problem


def first() -> bool:
    """Whether this is the process that writes what is written once."""
    return jax.process_index() == 0


def everywhere(act: Callable[[], Result]) -> Result:
    """What `act` gives, once it came to its end on all hosts; raises InputError on all where it, or the system, fails
    on one."""
    if jax.process_count() == 1:
        return act()
    result, problem = None, ""
    try:
        result = act()
    except (InputError, OSError) as reason:
        problem = str(reason)
    problems = gathered(problem)
    if problem:
        raise InputError(problem)
    for index, other in enumerate(problems):
        if other:
            raise InputError(f"process {index} of {len(problems)} can't begin: {other}")
    return result


def agree(facts: Mapping[str, Any]) -> None:
    """Raises InputError on all hosts where they differ in any of these, and names it."""
    every = [json.loads(text) for text in gathered(json.dumps({name: str(value) for name, value in facts.items()}))]
    for index, theirs in enumerate(every):
        for name, value in every[0].items():
            if theirs.get(name) != value:
                raise InputError(
                    f"the hosts disagree: {name} is {value} in process 0 and {theirs.get(name)} in process {index}: "
                    "start the same command with the same data and versions everywhere"
                )


def gathered(text: str) -> Sequence[str]:
    """This text of every process, in their order."""
    if jax.process_count() == 1:
        return [text]
    mine = np.frombuffer(text.encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.array([mine.size]))).ravel()
    padded = np.pad(mine, (0, sizes.max() + 1 - mine.size))
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


def broadcast(tree: Any) -> Any:
    """The arrays of process 0."""
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)


def stopping(step: int) -> str | None:
    """Why all hosts stop behind this step: one of them was sent SIGTERM. None where they don't."""
    if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
        return "SIGTERM on a host"
    return None


def _await(coordinator: str, patience: int) -> None:
    """Until process 0 listens there; InputError after so many seconds."""
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdigit()):
        raise InputError(f"coordinator is {coordinator}: it is HOST:PORT of process 0")
    until = time.monotonic() + patience
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            return
        except OSError as problem:
            if time.monotonic() > until:
                raise InputError(
                    f"nobody answers at {coordinator} within {patience} s ({problem}): start process 0 there, and see "
                    "that the port is open between the hosts"
                ) from problem
            time.sleep(0.2)
