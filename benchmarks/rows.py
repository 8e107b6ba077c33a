"""Rows of measurements: models that are named on the command line, a table each for people, a line for programs."""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxaudio import zoo
from jaxaudio.core import InputError
from jaxaudio.runtime.versions import revision, versions


def named(options: type, program: str, arguments: Sequence[str], example: str) -> Iterator[tuple[str, Any]]:
    """(MODEL[:PRESET], its options) for each that the arguments begin with; the words after these are of all of them.

    options: a dataclass with a field `model`. Raises InputError where no model is named.
    """
    import tyro  # a step is measured on machines without it too

    specs = list(itertools.takewhile(lambda word: not word.startswith("-"), arguments))
    if not specs:
        raise InputError(f"name a model, as in: python -m benchmarks.{program} {example}")
    for spec in specs:
        default, words = options(model=zoo.load(spec)), arguments[len(specs) :]
        yield spec, tyro.cli(options, default=default, args=words, prog=f"benchmarks.{program} {spec}")


def publish(row: Mapping[str, Any], table: Callable[[Mapping[str, Any]], str], spec: str, options: Any) -> None:
    """Prints the row's table; adds the row, with what it is of, to the file `options.json` if there is one."""
    print(table(row), flush=True)
    if options.json:
        fields = zoo.dump(options.model)
        append(options.json, {**row, "preset": spec, "fields": fields, "versions": versions(), "git": revision()})
        print(f"a line was added to {options.json}")


def append(path: Path, row: Mapping[str, Any]) -> None:
    """A line of JSON at the end of a file, which may not be there yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="ascii") as file:
        file.write(json.dumps(row) + "\n")
