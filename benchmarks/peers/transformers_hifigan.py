"""The HiFi-GAN generator of `transformers`, with a model's weights: what it is compared and timed with."""

import jax
import numpy as np
import torch
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from benchmarks.originals import Beside, refuse_others
from jaxaudio.core import Params
from jaxaudio.gan.hifigan import Generator, HiFiGAN


def beside(model: HiFiGAN, params: Params, wave: np.ndarray) -> Beside:
    """Mels to sound; by how much the sounds differ at most. Raises InputError for a model without its like."""
    theirs, program = original(model, params), jax.jit(sounding(model))
    frames = jax.jit(model.features)(wave)
    given = torch.from_numpy(np.array(frames))
    calls = {
        "jax vocode": lambda: jax.block_until_ready(program(params, frames)),
        "torch vocode": lambda: theirs(given),
    }
    apart = np.asarray(calls["jax vocode"]())[..., 0] - calls["torch vocode"]().numpy().reshape(len(wave), -1)
    return Beside(calls, ("vocode",), {"peak_difference": float(np.max(np.abs(apart)))})


def sounding(model: HiFiGAN):
    """All frames, without any that lie around."""
    return lambda params, frames: Generator(model).apply({"params": params["generator"]}, frames)


def original(model: HiFiGAN, params: Params) -> SpeechT5HifiGan:
    """The vocoder of `transformers` with these weights, as `Model.weights` gives them. Raises InputError for a model
    that it has no likes of."""
    plain = {"paired": True, "activation": "leaky", "last_slope": 0.01, "bounded": True, "causal": False}
    refuse_others(model, plain | {"dtype": "float32"})
    config = SpeechT5HifiGanConfig(
        model_in_dim=model.bands,
        sampling_rate=model.sample_rate,
        upsample_initial_channel=model.width,
        upsample_rates=list(model.rates),
        upsample_kernel_sizes=[2 * factor for factor in model.rates],
        resblock_kernel_sizes=[taps for taps, _ in model.blocks],
        resblock_dilation_sizes=[list(dilations) for _, dilations in model.blocks],
        leaky_relu_slope=model.slope,
        normalize_before=False,
    )
    vocoder, net = SpeechT5HifiGan(config).eval(), jax.device_get(params["generator"])
    given = {"conv_pre": net["first"], "conv_post": net["last"]}
    given |= {f"upsampler.{i}": net[f"up_{i}"] for i in range(len(model.rates))}
    for i, j in np.ndindex(len(model.rates), len(model.blocks)):
        for n in range(len(model.blocks[j][1])):
            block = f"resblocks.{len(model.blocks) * i + j}"
            given[f"{block}.convs1.{n}"] = net[f"block_{i}_{j}_{n}_dilated"]
            given[f"{block}.convs2.{n}"] = net[f"block_{i}_{j}_{n}_plain"]
    with torch.no_grad():
        for name, layer in given.items():
            kernel = np.moveaxis(layer["conv"]["kernel"], (1, 2), (0, 1) if "upsampler" in name else (1, 0))
            vocoder.get_submodule(name).weight.copy_(torch.from_numpy(kernel.copy()))
            vocoder.get_submodule(name).bias.copy_(torch.from_numpy(np.array(layer["conv"]["bias"])))
    return vocoder
