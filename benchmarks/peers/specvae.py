"""The spectrogram VAE in plain PyTorch: what the JAX model is timed and compared with.

Kingma, Welling 2014 (arXiv 1312.6114), around the linear maps of a Gaussian model. Pictures are [batch, channels,
frames, mels]; [batch, frames, mels, channels] is the order in which they are flattened, so that `load` takes the JAX
parameters as they are. Left out: the cosine of the learning rate, and the running covariance of the latents.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers import common
from benchmarks.peers.common import descend, follower, glorot, magnitudes
from jaxaudio.vae.specvae import FLOOR, WARPS, warped
from jaxaudio.variational import LEAST


class Encoder(nn.Module):
    """Picture [batch, channels, frames, mels] to what is added to the linear map, [batch, 2 latent]."""

    def __init__(self, model):
        super().__init__()
        frames, mels, channels = model.shape
        self.layers = nn.ModuleDict()
        if model.network == "dense":
            sizes = [math.prod(model.shape), model.width, model.width]
            self.layers.update({f"dense_{i}": nn.Linear(sizes[i], sizes[i + 1]) for i in range(2)})
            flat = model.width
        else:
            sizes = [channels, *(model.width * 2**i for i in range(model.stages))]
            convs = (nn.Conv2d(sizes[i], sizes[i + 1], 4, 2, 1) for i in range(model.stages))
            self.layers.update({f"conv_{i}": conv for i, conv in enumerate(convs)})
            flat = sizes[-1] * (frames * mels >> 2 * model.stages)
        self.dense = model.network == "dense"
        self.last = zeroed(nn.Linear(flat, 2 * model.latent))

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1).flatten(1) if self.dense else x
        for layer in self.layers.values():
            x = F.silu(layer(x))
        return self.last(x if self.dense else x.movedim(1, -1).flatten(1))


class Decoder(nn.Module):
    """Latent [batch, latent] to what is added to the linear map and, if they are predicted, to the deviations."""

    def __init__(self, model):
        super().__init__()
        self.shape, self.both = model.shape, model.variance == "bin"
        self.start, self.layers = None, nn.ModuleDict()
        if model.network == "dense":
            sizes = [model.latent, model.width, model.width]
            self.layers.update({f"dense_{i}": nn.Linear(sizes[i], sizes[i + 1]) for i in range(2)})
            self.last = zeroed(nn.Linear(model.width, math.prod(model.shape) * (1 + self.both)))
            return
        sizes = [model.channels * (1 + self.both), *(model.width * 2**i for i in range(model.stages))]
        self.first = (*(n >> model.stages for n in model.shape[:2]), sizes[-1])
        self.start = nn.Linear(model.latent, math.prod(self.first))
        for i in reversed(range(1, model.stages)):
            self.layers[f"conv_{i}"] = nn.ConvTranspose2d(sizes[i + 1], sizes[i], 4, 2, 1)
        self.last = zeroed(nn.ConvTranspose2d(sizes[1], sizes[0], 4, 2, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.start:
            x = F.silu(self.start(x)).unflatten(1, self.first).movedim(-1, 1)
        for layer in self.layers.values():
            x = F.silu(layer(x))
        x = self.last(x)
        if not self.start:
            x = x.unflatten(1, (*self.shape[:2], -1)).movedim(-1, 1)
        return x.chunk(2, 1) if self.both else (x,)


class Autoencoder(nn.Module):
    """Both halves, the linear maps, the likelihood; measured: of `measured_of`."""

    def __init__(self, model, measured: Mapping[str, np.ndarray]):
        super().__init__()
        self.model, self.encoder, self.decoder = model, Encoder(model), Decoder(model)
        for module in (self.encoder.layers, self.decoder.layers, self.decoder.start):
            if module:
                module.apply(glorot)
        shape = {"one": (), "band": model.shape[1:], "bin": model.shape}.get(model.variance)
        self.deviation = None if shape is None else nn.Parameter(torch.zeros(shape))
        for name, value in measured.items():
            self.register_buffer(name, torch.from_numpy(np.array(value)))

    def forward(self, picture: Tensor, noise: Tensor, beta: float) -> Tensor:
        """The loss; noise: [batch, latent]."""
        frames, flat = self.model.shape[0], picture.movedim(1, -1).flatten(1)
        centred = flat - self.mean
        scaled = self.components / self.noise
        precision = 1 + (scaled * self.components).sum(1)
        added = self.encoder((centred / self.scale).unflatten(1, self.model.shape).movedim(-1, 1))
        mean, raw = added.chunk(2, 1)
        mean = mean + centred @ scaled.T / precision
        deviation = F.softplus(raw + before_softplus(precision.rsqrt() - LEAST)) + LEAST
        distortion = -self.log_likelihood(flat, mean + deviation * noise).mean() / frames
        spent = ((mean**2 + deviation**2 - 1) / 2 - deviation.log()).mean(0)
        return distortion + beta * spent.clip(min=self.model.free_bits).sum() / frames

    def log_likelihood(self, flat: Tensor, latent: Tensor) -> Tensor:
        """Of flattened pictures."""
        added, *raw = (x.movedim(1, -1).flatten(1) for x in self.decoder(latent))
        mean = self.mean + latent @ self.components + added * self.scale
        if self.deviation is None:
            deviation = torch.full((1, 1), self.model.deviation)
        else:
            own = self.deviation.expand(self.model.shape).flatten()
            deviation = self.model.least + F.softplus(own + (raw[0] if raw else 0))
        density = -(((flat - mean) / deviation) ** 2) / 2 - deviation.log() - math.log(2 * math.pi) / 2
        return density.sum(1)


def zeroed(layer: nn.Module) -> nn.Module:
    """A layer that starts at zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def before_softplus(x: Tensor) -> Tensor:
    """What softplus takes to x."""
    return x + torch.log(-torch.expm1(-x))


def load(autoencoder: Autoencoder, params: Mapping) -> None:
    """Copies the JAX parameters in."""
    for half in ("encoder", "decoder"):
        named = {name.removeprefix("layers."): layer for name, layer in getattr(autoencoder, half).named_modules()}
        holder = nn.Module()
        for name, layer in named.items():
            if hasattr(layer, "weight"):
                holder.add_module(name, layer)
        common.load(holder, params[half])
    if autoencoder.deviation is not None:
        autoencoder.deviation.data = torch.from_numpy(np.array(params["deviation"]))


@torch.no_grad()
def picture(wave: Tensor, filters: Tensor, window: int, hop: int) -> Tensor:
    """Log-mel magnitudes of sounds [batch, channels, time]; filters: [bins, mels], or [batch, 1, bins, mels]."""
    return torch.log((magnitudes(wave, window, hop, centred=True) @ filters).clip(min=FLOOR))


@torch.no_grad()
def moved(wave: Tensor, start: Tensor, level: Tensor, most: int) -> Tensor:
    """Sounds [batch, channels, time] that begin at sample start - most, mirrored at their ends, and are louder by
    `level` nats; start, level: [batch]."""
    padded = F.pad(wave, (most, most), "reflect") if most else wave
    at = start[:, None] + torch.arange(wave.shape[-1], device=wave.device)
    taken = padded.gather(-1, at[:, None].expand(-1, wave.shape[1], -1))
    return taken * level.exp()[:, None, None]


def trainer(model, compiled: bool) -> Callable[[], object]:
    """A training step of the same size as the JAX model's, on fixed clips of noise: call it, and it is done.

    compiled: through `torch.compile`. Raises ValueError for what this peer does not have.
    """
    if model.dtype != "float32" or model.beta_steps:
        raise ValueError("the PyTorch SpecVAE has float32 and no warm-up alone: --model.beta-steps 0")
    if model.network == "conv" and any(n % 2**model.stages for n in model.shape[:2]):
        raise ValueError("the PyTorch SpecVAE halves even pictures alone: choose fewer --model.stages")
    autoencoder = Autoencoder(model, measured_of(model.measure(())))
    if compiled:
        autoencoder.compile()
    named = [(name.endswith("weight"), x) for name, x in autoencoder.named_parameters()]
    groups = [
        {"params": [x for is_kernel, x in named if is_kernel], "weight_decay": model.weight_decay},
        {"params": [x for is_kernel, x in named if not is_kernel], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=model.learning_rate, fused=True)
    n, most = model.batch_size, round(model.shift * model.segment)
    clips = torch.randn(n, model.channels, model.segment).mul_(0.1)
    factors = np.linspace(1 - model.warp, 1 + model.warp, WARPS) if model.warp else [1.0]
    filters = torch.from_numpy(np.stack([warped(model.filters, factor) for factor in factors]))
    follow = follower(autoencoder, model.decay)

    def step() -> object:
        level = torch.empty(n).uniform_(-model.level, model.level)
        waves = moved(clips, torch.randint(2 * most + 1, (n,)), level, most)
        which = torch.randint(len(factors), (n,))
        pictures = picture(waves, filters[which][:, None], model.window, model.frame_hop)
        loss = descend(optimizer, autoencoder(pictures, torch.randn(n, model.latent), 1.0))
        follow()
        return loss

    return step


def measured_of(measured: Mapping) -> dict[str, np.ndarray]:
    """What the JAX model measured, under the names that the module has for it."""
    return {"scale" if name == "deviation" else name: np.asarray(value) for name, value in measured.items()}
