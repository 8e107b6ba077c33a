"""Folders in a store of objects, such as a bucket of Google's: gs://BUCKET/FOLDER, s3://BUCKET/FOLDER, file:///FOLDER.

A folder is copied there file by file, then its manifest (each file's size and digest), and last a file that says that
all is there: a copy that was cut off lacks it and is never taken for a whole one. The same file tells orbax that a
checkpoint is whole, so each reads what the other has written. memory://FOLDER is of this process alone, for tests.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from jaxaudio.core import InputError

MANIFEST, WHOLE = "manifest.json", "commit_success.txt"  # the second is orbax's name
FORMAT = 1  # of a manifest
PART = 2**25  # bytes that are read at once, and of an object of a file that is kept in parts
IN_FLIGHT = 8 * PART  # bytes on their way
RETRIES = {"max_retries": 6, "initial_delay": "1s", "max_delay": "16s"}
REMEDY = "check its name, the network and whether this machine may use it; gs:// wants application default credentials"


def url_of(where: str | Path) -> str | None:
    """The URL that this is, ending in a slash; None where it is a folder of this machine. A `Path` of a URL, which has
    one slash behind the scheme, is taken for it too."""
    found = re.fullmatch(r"(gs|s3|file|memory):/+(.+)", str(where))
    if not found:
        return None
    scheme, rest = found[1], found[2].strip("/")
    return f"{scheme}://{'/' if scheme == 'file' else ''}{rest}/"


def shown(where: str | Path) -> str:
    """As a person would write it."""
    url = url_of(where)
    return url.rstrip("/") if url else str(where)


def cache_folder() -> Path:
    """Where what can be had again lies: $JAXAUDIO_CACHE, else $XDG_CACHE_HOME/jaxaudio, else ~/.cache/jaxaudio."""
    if chosen := os.environ.get("JAXAUDIO_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxaudio"


def located(run: str | Path) -> Path:
    """A run's folder on this machine. Of a run in a store: a folder of the cache, which takes over from there what has
    changed: what the run is, and its checkpoints."""
    url = url_of(run)
    if url is None:
        return Path(run)
    store, folder = Store(url), cache_folder() / "runs" / hashlib.blake2b(url.encode(), digest_size=16).hexdigest()
    for name in ("model.json", "run.json"):
        if (data := store.read(name)) is None:
            raise InputError(f"{shown(url)} is not a run's folder (no {name} in it): give what --store named")
        _replace(folder / name, data)
    there = store.steps()
    for step in sorted(steps_of(folder) - there):
        shutil.rmtree(folder / "checkpoints" / str(step), ignore_errors=True)
    for step in sorted(there - steps_of(folder)):
        store.fetch_step(step, folder)
    return folder


def steps_of(folder: Path) -> set[int]:
    """The checkpoints in a run's folder on this machine: orbax gives a step its name when it is whole."""
    found = (path.name for path in (folder / "checkpoints").glob("*") if path.is_dir())
    return {int(name) for name in found if name.isdigit()}


class File(NamedTuple):
    """What a manifest says of a file."""

    size: int  # bytes
    digest: str
    parts: int = 0  # objects NAME.00000, ... that it is kept in; 0: it is one object, NAME


class Store:
    """What lies below a URL. Raises InputError where it can't be used."""

    def __init__(self, url: str | Path):
        import tensorstore

        self.url = url_of(url)
        if self.url is None:
            raise InputError(f"{url} is no store: name one as gs://BUCKET/FOLDER, s3://BUCKET/FOLDER or file:///FOLDER")
        self.range = tensorstore.KvStore.KeyRange
        with self._told("opened"):
            self.kv = tensorstore.KvStore.open(self.url, context=_context()).result()

    def names(self, below: str = "") -> list[str]:
        """All objects below a prefix that ends in a slash, by their whole names."""
        with self._told("listed"):
            return sorted(name.decode() for name in self.kv.list(self._range(below)).result())

    def read(self, name: str) -> bytes | None:
        """An object; None where there is none."""
        with self._told("read"):
            found = self.kv.read(name).result()
        return None if found.state == "missing" else found.value

    def write(self, items: Iterable[tuple[str, bytes]]) -> None:
        """Objects, several at once; all are there when it returns."""
        flying: deque[tuple[Any, int]] = deque()
        for name, data in items:
            with self._told("written"):
                flying.append((self.kv.write(name, data), len(data)))
                while len(flying) > 1 and sum(size for _, size in flying) > IN_FLIGHT:
                    flying.popleft()[0].result()
        with self._told("written"):
            for future, _ in flying:
                future.result()

    def remove(self, below: str) -> None:
        """All objects below a prefix that ends in a slash; what says that they are whole goes first."""
        with self._told("written"):
            self.kv.write(below + WHOLE, None).result()
            self.kv.delete_range(self._range(below)).result()
        if self.url.startswith("file:"):  # an empty folder would be a checkpoint to orbax
            shutil.rmtree(self.url.removeprefix("file://") + below, ignore_errors=True)

    def whole(self, below: str) -> bool:
        """Whether all of a folder is there."""
        return self.read(below + WHOLE) is not None

    def steps(self, run: str = "") -> set[int]:
        """The checkpoints of a run that are whole. run: the prefix that it lies below, if any, ending in a slash."""
        below = f"{run}checkpoints/"
        found = (re.fullmatch(rf"(\d+)/{re.escape(WHOLE)}", name.removeprefix(below)) for name in self.names(below))
        return {int(match[1]) for match in found if match}

    def fetch_step(self, step: int, folder: Path, run: str = "") -> None:
        """A checkpoint, into a run's folder on this machine: it has its name there when it is whole."""
        target, temporary = folder / "checkpoints" / str(step), folder / f".{step}.{os.getpid()}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            self.get(f"{run}checkpoints/{step}/", temporary)
            target.parent.mkdir(exist_ok=True)
            try:
                temporary.rename(target)
            except OSError:
                if not target.is_dir():  # else another process was faster
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def put(self, below: str, folder: Path, parted: bool = False) -> None:
        """A folder of this machine, in place of what is there. parted: large files in several objects, so that none is
        held in memory; orbax would not find them."""
        self.remove(below)
        files: dict[str, File] = {}

        def contents() -> Iterator[tuple[str, bytes]]:
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                name, digest, parts = path.relative_to(folder).as_posix(), _hash(), 0
                size, split = path.stat().st_size, parted and path.stat().st_size > PART
                with open(path, "rb") as file:
                    while data := file.read(PART if split else -1):
                        digest.update(data)
                        yield below + (_part(name, parts) if split else name), data
                        parts += 1
                    if not size:
                        yield below + name, b""
                files[name] = File(size, digest.hexdigest(), parts if split else 0)

        self.write(item for item in contents() if item[0] != below + WHOLE)
        told = {"format": FORMAT, "files": {name: file._asdict() for name, file in files.items() if name != WHOLE}}
        self.write([(below + MANIFEST, json.dumps(told, indent=1).encode())])
        self.write([(below + WHOLE, b"all files are there\n")])

    def get(self, below: str, folder: Path) -> None:
        """A folder that is whole, into one of this machine. What has no manifest, a checkpoint that orbax wrote there,
        is taken as it is."""
        manifest = self.read(below + MANIFEST)
        if manifest is None:
            files = {name.removeprefix(below): None for name in self.names(below)}
        else:
            files = self.files(below, manifest)
        for name, told in files.items():
            path, found, size = folder / name, _hash(), 0
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "wb") as file:
                for data in self._contents(below, name, told):
                    file.write(data)
                    found.update(data)
                    size += len(data)
            if told and (told.size, told.digest) != (size, found.hexdigest()):
                raise self._damaged(below, f"{name} is not what its manifest says")

    def files(self, below: str, manifest: bytes) -> dict[str, File]:
        """What a manifest says."""
        try:
            told = json.loads(manifest)
            if told["format"] != FORMAT:
                raise ValueError(f"format is {told['format']}, not {FORMAT}")
            files = {name: File(int(f["size"]), str(f["digest"]), int(f["parts"])) for name, f in told["files"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise self._damaged(below, f"{MANIFEST} can't be read: {problem!r}") from problem
        for name in files:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise self._damaged(below, f"{MANIFEST} names {name!r}")
        return files

    def _contents(self, below: str, name: str, told: File | None) -> Iterator[bytes]:
        """A file, piece by piece; several are on their way at once."""
        if told is None:
            requests = [(name, None)]
        elif told.parts:
            requests = [(_part(name, i), None) for i in range(told.parts)]
        else:
            requests = [(name, slice(at, min(at + PART, told.size))) for at in range(0, told.size, PART)]
        flying: deque[tuple[str, Any]] = deque()
        for each, piece in requests:
            with self._told("read"):
                flying.append((each, self.kv.read(below + each, byte_range=piece)))
            if len(flying) >= IN_FLIGHT // PART:
                yield self._taken(below, *flying.popleft())
        while flying:
            yield self._taken(below, *flying.popleft())

    def _taken(self, below: str, name: str, future: Any) -> bytes:
        try:
            with self._told("read"):
                found = future.result()
        except InputError as problem:
            if "OUT_OF_RANGE" in str(problem):  # tensorstore's word where an object ends before a piece of it does
                raise self._damaged(below, f"{name} is shorter than its manifest says") from problem
            raise
        if found.state == "missing":
            raise self._damaged(below, f"{name} is missing")
        return found.value

    def _damaged(self, below: str, problem: str) -> InputError:
        return InputError(f"{self.url}{below} is damaged ({problem}): delete it there, and what remains is used")

    def _range(self, below: str) -> Any:
        return self.range(below, below[:-1] + chr(ord(below[-1]) + 1)) if below else self.range()

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Tensorstore's errors in one line. Those of this machine's files are OSErrors, and pass."""
        try:
            yield
        except (ValueError, RuntimeError, NotImplementedError) as problem:
            line = " ".join(str(problem).split())[:200]
            raise InputError(f"{shown(self.url)} can't be {what} ({line}): {REMEDY}") from problem


def _replace(path: Path, data: bytes) -> None:
    """Writes a file as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_bytes(data)
    fresh.replace(path)


def _part(name: str, i: int) -> str:
    return f"{name}.{i:05d}"


_hash: Callable[[], Any] = functools.partial(hashlib.blake2b, digest_size=16)


@functools.cache
def _context() -> Any:
    """One for all stores: what is in memory is shared by them."""
    import tensorstore

    return tensorstore.Context({"gcs_request_retries": RETRIES, "s3_request_retries": RETRIES})
