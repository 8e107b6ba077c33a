"""What every command of the project does alike: compile once per machine, fail in one line."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax

from jaxaudio.core import InputError

DONE, BUG, WRONG_INPUT, STOPPED = 0, 1, 2, 3  # exit codes


def prepare(cache: Path, deterministic: bool = False) -> None:
    """Compiled programs are kept in `cache`; and what `--deterministic` asks of a GPU. Before the first device use."""
    if deterministic:
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true"
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    threading.excepthook = _of_a_thread
    sys.unraisablehook = partial(_unless_after_a_failed_save, sys.unraisablehook)
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Has glibc keep what is freed, and XLA's CPU backend allocate in the calling thread. Before the first device use.

    That backend allocates a program's buffers at every call. What glibc gives back in between costs a page fault for
    every 4 KB, a third of a training step; only what the main thread allocates can it keep. One arena for all threads
    (M_ARENA_MAX) would keep it too, but they wait for each other there: after a large program was compiled in the
    same process, a step took three times as long. Other C libraries are left alone.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    never_trimmed, never_mapped = (-1, -1), (-4, 0)  # M_TRIM_THRESHOLD, M_MMAP_MAX
    with contextlib.suppress(AttributeError, OSError, TypeError):
        for option in (never_trimmed, never_mapped):
            ctypes.CDLL(None).mallopt(*option)


def _of_a_thread(happened: threading.ExceptHookArgs) -> None:
    """Whoever waits for a thread that writes reports its failure, in one line."""
    if not isinstance(happened.exc_value, OSError):
        threading.__excepthook__(happened)


def _unless_after_a_failed_save(report, happened) -> None:
    """After a failed save tensorstore's threads each report to an event loop that orbax has closed."""
    if "Event loop is closed" not in str(happened.exc_value):
        report(happened)


def check_seed(seed: int) -> None:
    """Raises InputError for a seed that jax or numpy would not take, or would take for another."""
    if not 0 <= seed < 2**32:
        raise InputError(f"seed is {seed}: it is 0 to {2**32 - 1}")


def guarded(main: Callable[[list[str]], int | None], arguments: list[str]) -> int:
    """The exit code of main(arguments); what the caller can mend becomes one line on stderr. As shells have it, 130
    where Ctrl-C and 141 where the reader of the output ended it."""
    try:
        return main(arguments) or DONE
    except InputError as problem:
        return _fail(str(problem))
    except BrokenPipeError:  # whoever reads the output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as problem:
        if problem.filename is None and problem.errno is None:
            raise
        where = f": {problem.filename}" if problem.filename else ""
        return _fail(f"{problem.strerror}{where} (the system's error {problem.errno}); free it or give another folder")
    except KeyboardInterrupt:
        return _fail("interrupted", 128 + signal.SIGINT)


def _fail(text: str, code: int = WRONG_INPUT) -> int:
    print(f"{Path(sys.argv[0]).name}: {' '.join(text.split())}", file=sys.stderr)
    return code


class Signals:
    """SIGTERM and SIGINT as a flag while it is open; the second one acts at once. Of several hosts none catches them:
    `jax.distributed` does, for all."""

    def __enter__(self) -> "Signals":
        self.caught: str | None = None
        numbers = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
        self.before = {number: signal.signal(number, self._catch) for number in numbers}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: object) -> None:
        del frame
        self.caught = signal.Signals(number).name
        signal.signal(number, self.before[number])
