"""What a trained run can do, a verb each: python sample.py VERB RUN [--out FOLDER] [--seed S] [options of the verb].

Each verb is a file of jaxaudio/tasks; `python sample.py VERB --help` lists its options.
"""

import dataclasses
import importlib
import pkgutil
import sys
from pathlib import Path
from typing import Annotated

import tyro

from jaxaudio import tasks
from jaxaudio.core import InputError
from jaxaudio.runtime import command
from jaxaudio.runtime.folder import trained
from jaxaudio.runtime.store import cache_folder, shown
from jaxaudio.zoo import choose


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common:
    """Of every verb."""

    run: Annotated[Path, tyro.conf.Positional]  # the folder that train.py wrote, or its --store
    out: Path = Path("sounds")  # where files go; stream writes to standard output
    seed: int = 0  # the same seed gives the same files
    checkpoint: str = "latest"  # latest, best, or a step's number


def main(arguments: list[str]) -> None:
    """One verb, done."""
    verbs = {found.name: f"jaxaudio.tasks.{found.name}" for found in pkgutil.iter_modules(tasks.__path__)}
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        for verb, module in verbs.items():
            print(f"  {verb:12} {importlib.import_module(module).__doc__.strip()}")
        return
    verb = importlib.import_module(verbs[choose("verb", arguments[0], verbs)])
    flat = tyro.conf.arg(name="")  # two classes, not one made of both: help is read where a class is written
    parts = [("common", Annotated[Common, flat]), ("options", Annotated[verb.Options, flat])]
    asked = dataclasses.make_dataclass("Asked", parts, frozen=True)
    given = tyro.cli(asked, args=arguments[1:], prog=f"sample.py {arguments[0]}", description=verb.__doc__)
    common, options = given.common, given.options
    command.check_seed(common.seed)
    command.prepare(cache_folder())

    run = trained(common.run, common.checkpoint)
    if not isinstance(run.model, verb.NEEDS):
        able = [name for name, path in verbs.items() if isinstance(run.model, importlib.import_module(path).NEEDS)]
        raise InputError(f"{shown(common.run)} can't {arguments[0]}: it can {', '.join(able)}")
    where = verb.perform(run, options, common.seed, common.out)
    words = f"{arguments[0]}: step {run.step} of {shown(common.run)}" + (f" -> {where}" if where else "")
    print(words, file=getattr(sys, getattr(verb, "SPEAKS_ON", "stdout")))


if __name__ == "__main__":
    sys.exit(command.guarded(main, sys.argv[1:]))
