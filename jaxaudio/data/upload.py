"""Puts the pack of recordings into a store, for machines that have none of them:

python -m jaxaudio.data.upload gs://BUCKET/FOLDER --data FOLDER --sample-rate 16000; then train.py --data gs://BUCKET/FOLDER
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from jaxaudio.core import InputError
from jaxaudio.data.pack import Pack, below, open_pack, recordings
from jaxaudio.runtime import command
from jaxaudio.runtime.store import Store, shown, url_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of the command."""

    url: Annotated[str, tyro.conf.Positional]  # of the store, as train.py --data will name it
    data: tuple[Path, ...]  # folders of recordings
    sample_rate: int  # Hz, the model's
    channels: int = 1  # the model's
    label: str = "label"  # what a class is: a column of metadata.csv


def main(arguments: list[str]) -> None:
    """Packs, and puts the pack there."""
    options = tyro.cli(Options, args=arguments, prog="python -m jaxaudio.data.upload", description=__doc__)
    for name in ("sample_rate", "channels"):
        if getattr(options, name) < 1:
            raise InputError(f"{name} is {getattr(options, name)}: it is at least 1")
    if any(map(url_of, options.data)):
        raise InputError(f"data is {shown(options.data[0])}, in a store already: name folders of this machine")
    store = Store(options.url)
    pack = open_pack(recordings(options.data, options.sample_rate, options.channels, options.label))
    upload(pack, store, options.label)
    print(f"{len(pack.names)} recordings, {len(pack.rejected)} left out -> {shown(options.url)}")


def upload(pack: Pack, store: Store, column: str) -> None:
    """Puts a pack below where `recordings` looks for it."""
    store.put(below(pack.sample_rate, pack.channels, column), pack.folder, parted=True)


if __name__ == "__main__":
    sys.exit(command.guarded(main, sys.argv[1:]))
