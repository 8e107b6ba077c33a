"""The speed of this machine: python -m benchmarks [MODEL[:PRESET] ...] [--quick] [--compare OLD.json] | --table

Every model at its preset for a CPU or, on an accelerator, at `paper`: its training step by jit and pmap, in float32 and
bfloat16, beside PyTorch; how fast it draws sound, codes and vocodes. A process each, one after the other: what one has
measured stands in benchmarks/results/DEVICE.json, in place of older numbers of the same case, before the next begins.
--quick writes DEVICE-quick.json. --compare tells what is slower than an older file says, by more than the noise; the
exit code is 4 where something is slower or runs no longer. --table prints all result files and measures nothing.
"""

import dataclasses
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from benchmarks import record
from benchmarks.sampling import WORK
from jaxaudio import zoo
from jaxaudio.core import Encodes, InputError, Model, Vocodes
from jaxaudio.runtime.command import DONE, guarded
from jaxaudio.runtime.versions import revision

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SLOWER = 4  # exit code, beside those of runtime/command.py
SMALL = ("small", "digits", "paper")  # presets for a CPU: the first that a model has
QUICK = ("wavegan", "rave", "wavernn", "classifier")  # one model per family
SHORT = {
    "step": ("--windows", "3", "--seconds", "0.5", "--input-seconds", "1"),
    "sampling": ("--windows", "3", "--window-seconds", "0.3"),
    "realtime": ("--windows", "3"),
}
BRIEF = ("--windows", "5", "--input-seconds", "0")  # of a step that is there in another way already
UNLIKE = {  # what the models in PyTorch are without: the field, what it is there, and how to ask for it
    **dict.fromkeys(("wavegan", "specgan", "densegan"), ("conditional", False, "--model.no-conditional")),
    "hifigan": ("mel_windows", (), "--model.mel-windows", "--model.mel-bands"),
}
PROBE = """
import json, jax
from jaxaudio.runtime.versions import versions
print(json.dumps({"backend": jax.default_backend(), "versions": versions()}))
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of this benchmark."""

    quick: bool = False  # one model per family, few short windows, float32 by jit alone: five minutes on two cores
    against: Literal["torch", "none"] = "torch"  # the same models in another framework
    limit: float = 3600.0  # seconds that a process may take
    json: Path | None = None  # the result file; none: benchmarks/results/DEVICE.json
    compare: Path | None = None  # an older result file, to tell what is slower since
    table: bool = False  # measures nothing: prints the tables of all result files


class Case(NamedTuple):
    """What one process measures."""

    program: str  # step, sampling or realtime
    spec: str  # MODEL:PRESET
    words: tuple[str, ...] = ()  # how the model differs from its preset
    dtype: str = "float32"
    parallel: str = "jit"
    how: tuple[str, ...] = ()  # options that change how well it is measured, and not what

    @property
    def asked(self) -> tuple[str, ...]:
        """Options of the program."""
        dtype = () if self.dtype == "float32" else ("--model.dtype", self.dtype)
        return (*self.words, *dtype, *(() if self.parallel == "jit" else ("--parallel", self.parallel)))

    @property
    def about(self) -> str:
        """What tells it from others."""
        return " ".join((self.program, self.spec, *self.asked))


def cases(specs: Sequence[str], options: Options, accelerator: bool) -> Iterator[Case]:
    """All there is to measure, model after model. Raises InputError for a model that is none."""
    names = specs or (QUICK if options.quick else zoo.names())
    against = ("--against", "eager" if options.quick and options.against == "torch" else options.against)
    short = SHORT if options.quick else dict.fromkeys(SHORT, ())
    for spec in dict.fromkeys(usual(name, accelerator) for name in names):
        model = zoo.load(spec)
        step = Case("step", spec, like_torch(model))
        yield step._replace(how=(*against, *short["step"]))
        if not options.quick:
            yield step._replace(dtype="bfloat16", how=against if accelerator else BRIEF)
            yield step._replace(parallel="pmap", how=BRIEF)
        if zoo.name_of(model) in WORK:
            eager = ("--against", options.against)
            yield step._replace(program="sampling", how=(*eager, *short["sampling"]))
        elif isinstance(model, Encodes | Vocodes):
            yield step._replace(program="realtime", how=short["realtime"])


def usual(spec: str, accelerator: bool) -> str:
    """MODEL:PRESET, with the preset of this machine where none is named."""
    name, _, preset = spec.partition(":")
    presets = zoo.model_class(name).presets
    return f"{name}:{preset or ('paper' if accelerator else next(each for each in SMALL if each in presets))}"


def like_torch(model: Model) -> tuple[str, ...]:
    """The words that make it a model that there is in PyTorch too."""
    if zoo.name_of(model) not in UNLIKE:
        return ()
    field, plain, *words = UNLIKE[zoo.name_of(model)]
    return () if getattr(model, field) == plain else tuple(words)


def machine() -> dict[str, Any]:
    """JAX's `backend` and the `versions`, from a process of its own: whoever asks for an accelerator holds it, and the
    cases want it. Raises InputError where there is no device."""
    done = subprocess.run([sys.executable, "-c", PROBE], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"JAX finds no device: {reason(done.returncode, done.stderr)}")
    return json.loads(done.stdout.splitlines()[-1])


def file_name(device: str) -> str:
    """Of a machine's results: "1 NVIDIA H200" is nvidia-h200, of 8 it is 8-nvidia-h200."""
    return re.sub("[^a-z0-9]+", "-", device.lower().removeprefix("1 ")).strip("-")


def command(case: Case, path: Path) -> list[str]:
    """What measures a case and adds its rows to a file."""
    words = (case.spec, *case.asked, *case.how, "--json", str(path))
    return [sys.executable, "-m", f"benchmarks.{case.program}", *words]


def measured(case: Case, limit: float) -> list[record.Row]:
    """The rows of a case; the last says why there are no more, if it failed."""
    fresh = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "said", "w+b") as said:
        path = Path(folder) / "rows.jsonl"
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": said}  # a pipe could be held open
        try:
            code = subprocess.run(command(case, path), cwd=ROOT, env=fresh, timeout=limit, **quiet).returncode
            said.seek(0)
            failed = reason(code, said.read().decode(errors="replace")) if code else None
        except subprocess.TimeoutExpired:
            failed = f"not done in {limit:g} s: give it more by --limit"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("\n")]  # it may have ended in the midst of one
    if not rows and not failed:
        failed = "it wrote no row"
    return rows + ([{"dtype": case.dtype, "parallel": case.parallel, "failed": failed}] if failed else [])


def reason(code: int, said: str) -> str:
    """Why a process ended, by what it wrote to stderr: its last line that names an error, else its last."""
    lines = [line for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt)\b|\w+\.py: ", line)]
    why = " ".join((errors or lines or ["it said nothing"])[-1].split())[:200]
    return f"ended by {signal.Signals(-code).name}: {why}" if code < 0 else why


def run(specs: Sequence[str], options: Options) -> int:
    """Measures all cases, writes them one by one and prints the table: the exit code."""
    if not options.limit > 0:
        raise InputError(f"limit is {options.limit}: a process takes more than 0 s")
    here = machine()
    device, git = here["versions"]["device"], revision()  # before results are written, which git takes for a change
    todo = list(cases(specs, options, here["backend"] != "cpu"))
    path = options.json or RESULTS / f"{file_name(device)}{'-quick' if options.quick else ''}.json"
    old = older(options.compare, device, todo) if options.compare else None
    record.write(path, record.read(path) if path.exists() else [])  # what cannot be written is found now
    done = []
    for i, case in enumerate(todo):
        began = time.perf_counter()
        told = {"program": case.program, "case": case.about, "words": case.words, "preset": case.spec}
        rows = [
            {**row, **told, "versions": row.get("versions", here["versions"]), "git": git}
            for row in measured(case, options.limit)
        ]
        record.write(path, record.replaced(record.read(path), rows))
        done += rows
        ended = f"fails: {rows[-1]['failed']}" if "failed" in rows[-1] else "done"
        print(f"{i + 1} of {len(todo)}: {case.about}: {ended} ({time.perf_counter() - began:.0f} s)", flush=True)
    done = json.loads(json.dumps(record.known(done)))
    print(f"\n{record.caption(done)}\n\n{record.table(done)}\n")
    change = record.compared(old, done) if old is not None else None
    if change:
        print(f"{change} by {options.compare}")
    print(f"the rows are in {path}")
    return SLOWER if change and change.worse else DONE


def older(path: Path, device: str, todo: Sequence[Case]) -> list[record.Row]:
    """The rows to compare with. Raises InputError where none is of what is to be measured."""
    rows = record.read(path)
    devices = sorted({row["versions"]["device"] for row in rows})
    if devices and device not in devices:
        raise InputError(f"{path} is of {', '.join(devices)} and this machine has {device}: name a file of its own")
    if not {row["case"] for row in rows} & {case.about for case in todo}:
        raise InputError(f"{path} has none of the cases to measure, such as {todo[0].about}: name its models")
    return rows


def tables() -> str:
    """All result files, in Markdown. Raises InputError where there is none."""
    each = {path.stem: record.read(path) for path in sorted(RESULTS.glob("*.json"))}
    shown = [f"**{name}**: {record.caption(rows)}\n\n{record.table(rows)}" for name, rows in each.items() if rows]
    if not shown:
        raise InputError(f"{RESULTS} has no results: run python -m benchmarks first")
    return "\n\n".join(shown)


def main(arguments: list[str]) -> int:
    """Measures, or prints what was measured."""
    import tyro

    specs = list(itertools.takewhile(lambda word: not word.startswith("-"), arguments))
    options = tyro.cli(Options, args=arguments[len(specs) :], prog="python -m benchmarks [MODEL[:PRESET] ...]")
    if not options.table:
        return run(specs, options)
    if specs or options != Options(table=True):
        raise InputError("--table prints what was measured before: leave the models and the other options away")
    print(tables())
    return DONE


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *given: sys.exit(128 + signal.SIGTERM))  # the process that measures ends too
    sys.exit(guarded(main, sys.argv[1:]))
