"""Finds models by their file's name: `load("wavegan:tiny")`."""

import dataclasses
import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from typing import Any

from jaxaudio.core import InputError, Model

FAMILIES = ("gan", "vae", "gru", "cnn")


def names() -> dict[str, str]:
    """Every model's name and the module it is in."""
    found = {}
    for family in FAMILIES:
        package = importlib.import_module(f"jaxaudio.{family}")
        for module in pkgutil.iter_modules(package.__path__):
            found[module.name] = f"{package.__name__}.{module.name}"
    return found


def model_class(name: str) -> type[Model]:
    """The one model that the file of this name defines."""
    module = importlib.import_module(names()[choose("model", name, names())])
    own = [c for c in vars(module).values() if inspect.isclass(c) and issubclass(c, Model)]
    (found,) = [c for c in own if c.__module__ == module.__name__]
    return found


def load(spec: str) -> Model:
    """The model MODEL[:PRESET], as in "wavegan:tiny"; the preset is "paper" where none is named."""
    name, _, preset = spec.partition(":")
    cls = model_class(name)
    return cls(**cls.presets[choose(f"preset of {name}", preset or "paper", cls.presets)])


def name_of(model: Model) -> str:
    """The name that `load` takes."""
    return type(model).__module__.rpartition(".")[2]


def dump(model: Model) -> dict[str, Any]:
    """The model as what JSON can hold; `parse` reads it."""
    return {"model": name_of(model), **dataclasses.asdict(model)}


def parse(saved: Mapping[str, Any]) -> Model:
    """The model that `dump` wrote. JSON turns tuples into lists: they are turned back."""
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items() if k != "model"}
    return model_class(saved["model"])(**fields)


def choose(what: str, given: str, choices: Mapping[str, Any]) -> str:
    """`given` if it is one of the choices, else an error that names them and the nearest."""
    if given in choices:
        return given
    near = difflib.get_close_matches(given, choices, 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise InputError(f"there is no {what} named {given!r}{hint}: choose from {', '.join(sorted(choices))}")
