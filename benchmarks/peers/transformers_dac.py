"""The Descript codec of `transformers`, with a model's weights: what it is compared and timed with."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import torch
from transformers import DacConfig, DacModel

from benchmarks.originals import Beside, refuse_others
from jaxaudio.core import Params
from jaxaudio.vae.dac import DAC

LAYERS = {"first": "conv1", "last": "conv2", "active_last": "snake1"}  # the original's names
UNIT = {"before": "snake1", "dilated": "conv1", "between": "snake2", "plain": "conv2"}
STAGE = {"active": "snake1", "down": "conv1", "up": "conv_t1"}
CODEBOOK = {"into": "in_proj", "out": "out_proj"}


def beside(model: DAC, params: Params, wave: np.ndarray) -> Beside:
    """Sound to codes and codes to sound; how many of the codes are alike, and by how much the sounds of the same codes
    differ at most. Raises InputError for a model that there are no likes of."""
    theirs, encode, decode = original(model, params), jax.jit(model.codes), jax.jit(sounding(model))
    given, signal = jax.device_put(wave), torch.from_numpy(np.moveaxis(wave, -1, 1).copy())
    codes = encode(params, given)
    indices = torch.from_numpy(np.moveaxis(np.asarray(codes), -1, 1).astype(np.int64))
    calls = {
        "jax encode": lambda: jax.block_until_ready(encode(params, given)),
        "torch encode": lambda: theirs.encode(signal).audio_codes,
        "jax decode": lambda: jax.block_until_ready(decode(params, codes)),
        "torch decode": lambda: theirs.decode(audio_codes=indices).audio_values,
    }
    alike = float(np.mean(calls["torch encode"]().numpy() == indices.numpy()))
    apart = difference(model, np.asarray(calls["jax decode"]())[..., 0], calls["torch decode"]().numpy())
    return Beside(calls, ("encode", "decode"), {"codes_alike": alike, "peak_difference": apart})


def sounding(model: DAC) -> Any:
    """The program that makes codes sound."""
    return lambda params, codes: model.decode(params, model.frames_of(params, codes), jax.random.key(0))


def difference(model: DAC, ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest, between sounds [batch, time], but for the last `reach` frames; nan where there are no others."""
    length = min(ours.shape[-1], theirs.shape[-1]) - model.reach * model.hop
    return float(np.max(np.abs(ours[:, :length] - theirs[:, :length]))) if length > 0 else float("nan")


def original(model: DAC, params: Params) -> DacModel:
    """The codec of `transformers` with these weights, as `Model.weights` gives them. Raises InputError for a model that
    it has no likes of."""
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
    refuse_others(model, plain)
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
