"""A Descript codec beside the one of `transformers`: python -m benchmarks.codec [MODEL[:PRESET] ...] [--json FILE]

Sound to codes and codes to sound, dac:16khz where no model is named. Both sides carry the same weights, drawn anew:
speed does not depend on what they say. Windows of the two alternate in one process. Beside the speeds the row tells how
many of the codes are alike, and by how much the sounds of the same codes differ at most, but for the last `reach`
frames: where a stride is odd, the original's sound is shorter.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before PyTorch is loaded: spinning threads would slow the others

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.realtime import MOST_SECONDS, fresh, noise
from benchmarks.rows import named, publish
from benchmarks.timing import OtherLoad, alternate, quartiles
from jaxaudio import zoo
from jaxaudio.core import InputError, Model, Params
from jaxaudio.runtime.command import guarded, keep_freed_memory
from jaxaudio.vae.dac import DAC

PARTS = ("encode", "decode")
LAYERS = {"first": "conv1", "last": "conv2", "active_last": "snake1"}  # the original's names
UNIT = {"before": "snake1", "dilated": "conv1", "between": "snake2", "plain": "conv2"}
STAGE = {"active": "snake1", "down": "conv1", "up": "conv_t1"}
CODEBOOK = {"into": "in_proj", "out": "out_proj"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of this benchmark."""

    model: Model  # the hyper-parameters, as train.py takes them
    seconds: float = 10.0  # of a recording
    batch: int = 1  # recordings at once
    windows: int = 7  # of each contestant
    window_seconds: float = 2.0  # length of a window
    json: Path | None = None  # a line is added per model


def measure(options: Options) -> dict[str, object]:
    """One row: what was measured of this model. Raises InputError for one that the original has no likes of."""
    import torch

    model = options.model
    if not isinstance(model, DAC):
        raise InputError(f"{zoo.name_of(model)} is no Descript codec: choose dac")
    hops = round(options.seconds * model.sample_rate) // model.hop if 0 < options.seconds <= MOST_SECONDS else 0
    if min(hops, options.batch, options.windows) < 1:
        raise InputError(
            f"{options.seconds} seconds, batch {options.batch} and {options.windows} windows: at least a hop of "
            f"{model.hop} samples and at most {MOST_SECONDS:.0f} s, at least 1 and 1"
        )
    params = fresh(model)
    theirs, programs = original(model, params), {"encode": jax.jit(model.codes), "decode": jax.jit(sounding(model))}
    wave = noise(options.batch, hops * model.hop, 1)
    given, signal = jax.device_put(wave), torch.from_numpy(np.moveaxis(wave, -1, 1).copy())
    codes = programs["encode"](params, given)
    indices = torch.from_numpy(np.moveaxis(np.asarray(codes), -1, 1).astype(np.int64))
    run = {
        "jax encode": lambda: jax.block_until_ready(programs["encode"](params, given)),
        "torch encode": lambda: theirs.encode(signal).audio_codes,
        "jax decode": lambda: jax.block_until_ready(programs["decode"](params, codes)),
        "torch decode": lambda: theirs.decode(audio_codes=indices).audio_values,
    }
    with torch.inference_mode(), OtherLoad() as other:
        alike = float(np.mean(run["torch encode"]().numpy() == indices.numpy()))
        apart = difference(model, np.asarray(run["jax decode"]())[..., 0], run["torch decode"]().numpy())
        times = alternate(run, options.windows, options.window_seconds)
    for side in ("jax", "torch"):
        times[f"{side} both"] = times[f"{side} encode"] + times[f"{side} decode"]
    length = options.batch * hops * model.hop / model.sample_rate
    factors = {name: [length / value for value in reversed(quartiles(values))] for name, values in times.items()}
    return {
        "model": zoo.name_of(model),
        "batch": options.batch,
        "seconds": hops * model.hop / model.sample_rate,
        "times_real_time": factors,
        "ratio": {part: float(np.median(times[f"torch {part}"] / times[f"jax {part}"])) for part in (*PARTS, "both")},
        "codes_alike": alike,
        "peak_difference": apart,
        "other_load_cores": other.cores,
    }


def sounding(model: DAC) -> Any:
    """The program that makes codes sound."""
    return lambda params, codes: model.decode(params, model.frames_of(params, codes), jax.random.key(0))


def difference(model: DAC, ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest, between sounds [batch, time], but for the last `reach` frames; nan where there are no others."""
    length = min(ours.shape[-1], theirs.shape[-1]) - model.reach * model.hop
    return float(np.max(np.abs(ours[:, :length] - theirs[:, :length]))) if length > 0 else float("nan")


def original(model: DAC, params: Params) -> Any:
    """The codec of `transformers` with these weights, as `Model.weights` gives them. Raises InputError for a model that
    it has no likes of."""
    from transformers import DacConfig, DacModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    plain = {"bottleneck": "factorised", "activation": "snake", "bounded": True, "causal": False, "channels": 1}
    first, last, stages = model.encoder_widths[0], model.decoder_widths[0], len(model.encoder_rates)
    plain |= {
        "dilations": (1, 3, 9),
        "decoder_rates": model.encoder_rates[::-1],
        "encoder_widths": tuple(first * 2**i for i in range(stages + 1)),
        "decoder_widths": tuple(last // 2**i for i in range(stages + 1)),
        "latent": first * 2**stages,
        "dtype": "float32",
    }
    for name, value in plain.items():
        if getattr(model, name) != value:
            raise InputError(f"{name} is {getattr(model, name)}: the codec of transformers has {value} with the others")
    config = DacConfig(
        encoder_hidden_size=first,
        downsampling_ratios=list(model.encoder_rates),
        decoder_hidden_size=last,
        n_codebooks=model.codebooks,
        codebook_size=model.codebook_size,
        codebook_dim=model.codebook_dim,
        sampling_rate=model.sample_rate,
    )
    codec = DacModel(config).eval()
    codec.load_state_dict(renamed(jax.device_get(params["autoencoder"]["params"])))
    return codec


def renamed(params: Mapping[str, Any]) -> dict[str, Any]:
    """The weights as `transformers` names and shapes them."""
    import torch

    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        part, layer, *below = (entry.key for entry in path)
        kind, *numbers = layer.split("_")
        if part == "quantizer":
            name = f"quantizer.quantizers.{numbers[0]}.{CODEBOOK.get(below[0], 'codebook')}"
        elif layer in LAYERS:
            name = f"{part}.{LAYERS[layer]}"
        elif kind == "units":
            name = f"{part}.block.{numbers[0]}.res_unit{int(numbers[1]) + 1}.{UNIT[numbers[2]]}"
        else:
            name = f"{part}.block.{numbers[0]}.{STAGE[kind]}"
        array, last = np.asarray(leaf), below[-1]
        if last == "kernel":
            array = array if array.ndim == 3 else array[None]
            array = np.transpose(array, (1, 2, 0) if kind == "up" else (2, 1, 0))
        elif last == "alpha":
            array = array.reshape(1, -1, 1)
        found[f"{name}.{last if last in ('bias', 'alpha') else 'weight'}"] = torch.from_numpy(array.copy())
    return found


def table(row: Mapping) -> str:
    """The row for people."""
    lines = [f"{row['model']}: {row['batch']} x {row['seconds']:.1f} s"]
    for part in (*PARTS, "both"):
        ours, theirs = (row["times_real_time"][f"{side} {part}"] for side in ("jax", "torch"))
        lines.append(
            f"  {part:17} {ours[1]:.2f} times real time (quartiles {ours[0]:.2f} to {ours[2]:.2f}), transformers "
            f"{theirs[1]:.2f}: jaxaudio is {row['ratio'][part]:.2f} times as fast"
        )
    return "\n".join(
        [
            *lines,
            f"  codes alike       {row['codes_alike']:.2%}",
            f"  peak difference   {row['peak_difference']:.1e}, of the sounds of the same codes",
            f"  other load        {row['other_load_cores']:.2f} cores",
        ]
    )


def main(arguments: list[str]) -> None:
    """One row per model."""
    keep_freed_memory()
    if not arguments or arguments[0].startswith("-"):
        arguments = ["dac:16khz", *arguments]
    for spec, options in named(Options, "codec", arguments, "dac:16khz"):
        publish(measure(options), table, spec, options)


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
