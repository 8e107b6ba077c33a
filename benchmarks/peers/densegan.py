"""The fully connected GAN on log-mel spectrograms in plain PyTorch: what the JAX model is timed and compared with.

Goodfellow et al. 2014 (arXiv 1406.2661). Pictures are [batch, channels, frames, mels] outside the networks, and
[batch, frames, mels, channels] is the order in which the networks flatten them, so that `load` takes the JAX parameters
as they are.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers import common
from benchmarks.peers.common import adam, follower, glorot, magnitudes, standardised, uniform

SLOPE = 0.2  # of leaky ReLU below zero
FLOOR = 1e-5  # of the mel magnitudes, before the logarithm


class Generator(nn.Sequential):
    """Noise [batch, latent] to a picture [batch, channels, frames, mels] in [-1, 1].

    shape: (frames, mels, channels).
    """

    def __init__(
        self, widths: Sequence[int] = (256, 512, 1024), shape: tuple[int, ...] = (128, 128, 1), latent: int = 100
    ):
        super().__init__(dense_layers([latent, *widths, math.prod(shape)], "picture"))
        self.shape, self.latent = shape, latent
        self.apply(glorot)

    def forward(self, latents: Tensor) -> Tensor:
        return torch.tanh(super().forward(latents)).unflatten(1, self.shape).movedim(-1, 1)


class Critic(nn.Sequential):
    """Picture [batch, channels, frames, mels] to a logit [batch]; shape: (frames, mels, channels)."""

    def __init__(self, widths: Sequence[int] = (512, 256), shape: tuple[int, ...] = (128, 128, 1)):
        super().__init__(dense_layers([math.prod(shape), *widths, 1], "dense"))
        self.apply(glorot)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1).flatten(1)).squeeze(1)


def dense_layers(sizes: Sequence[int], last: str) -> OrderedDict[str, nn.Module]:
    """Layers `dense_0` and on between these sizes, leaky ReLU behind all but the last."""
    layers, (*hidden, final) = OrderedDict(), pairwise(sizes)
    for i, between in enumerate(hidden):
        layers[f"dense_{i}"] = nn.Linear(*between)
        layers[f"leaky_{i}"] = nn.LeakyReLU(SLOPE)
    layers[last] = nn.Linear(*final)
    return layers


@torch.no_grad()
def picture(wave: Tensor, filters: Tensor, window: int, hop: int, measured: Mapping[str, Tensor]) -> Tensor:
    """Standardised log-mel magnitudes of sounds [batch, channels, time]; filters: [bins, mels]."""
    return standardised(torch.log((magnitudes(wave, window, hop, centred=True) @ filters).clip(min=FLOOR)), measured)


def update_critic(
    generator: Generator, critic: Critic, optimizer: torch.optim.Optimizer, pictures: Tensor, latents: Tensor
) -> Tensor:
    """One critic update of binary cross-entropy; returns the loss."""
    loss = lambda fake: (F.softplus(-critic(pictures)) + F.softplus(critic(fake))).mean() / 2
    return common.update_critic(generator, optimizer, latents, loss)


def update_generator(generator: Generator, critic: Critic, optimizer: torch.optim.Optimizer, latents: Tensor) -> Tensor:
    """One generator update; returns the loss."""
    loss = lambda fake: F.softplus(-critic(fake)).mean()
    return common.update_generator(generator, critic, optimizer, latents, loss)


def train_step(
    generator: Generator,
    critic: Critic,
    g_opt: torch.optim.Optimizer,
    c_opt: torch.optim.Optimizer,
    pictures: Tensor,
) -> tuple[Tensor, Tensor]:
    """A critic update on pictures [batch, channels, frames, mels], then a generator update; both losses."""
    latents = partial(uniform, (len(pictures), generator.latent), pictures.device)
    c_loss = update_critic(generator, critic, c_opt, pictures, latents())
    return c_loss, update_generator(generator, critic, g_opt, latents())


def trainer(model, compiled: bool) -> Callable[[], object]:
    """A training step of the same size as the JAX model's, on fixed clips of noise: call it, and it is done.

    compiled: through `torch.compile`. Raises ValueError for what this peer does not have.
    """
    if model.conditional or model.loss != "dcgan" or model.batch_norm or model.dtype != "float32":
        raise ValueError(
            "the PyTorch DenseGAN has cross-entropy alone: add --model.no-conditional (dcgan, no batch norm, float32)"
        )
    if model.n_critic != 1 or model.noise != "uniform":
        raise ValueError("the PyTorch DenseGAN has one critic update a step and uniform noise: --model.n-critic 1")
    generator = Generator(model.generator_widths, model.shape, model.latent)
    critic = Critic(model.critic_widths, model.shape)
    if compiled:
        generator.compile()
        critic.compile()
    optimizers = adam(generator, 2e-4, (0.5, 0.999)), adam(critic, 2e-4, (0.5, 0.999))
    clips = torch.randn(model.batch_size, model.channels, model.segment).mul_(0.1)
    filters = torch.from_numpy(model.filters)
    measured = {"mean": torch.zeros(model.mels), "deviation": torch.ones(model.mels)}
    follow = follower(generator, model.decay)

    def step() -> object:
        pictures = picture(clips, filters, model.window, model.hop, measured)
        losses = train_step(generator, critic, *optimizers, pictures)
        follow()
        return losses

    return step
