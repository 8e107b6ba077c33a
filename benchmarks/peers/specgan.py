"""SpecGAN in plain PyTorch (Donahue et al. 2019, arXiv 1802.04208): what the JAX model is timed and compared with.

Pictures are [batch, channels, frames, bins]; channels_last is no faster in these layers on a CPU. Padding is
TensorFlow's SAME, as in the authors' code, and layers are named so that `load` takes the JAX parameters as they are.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers import common
from benchmarks.peers.common import adam, follower, glorot, magnitudes, standardised, uniform, wasserstein

KERNEL, STRIDE = 5, 2
SIDE = 4  # the shorter side of the picture in the innermost layers
FLOOR = 1e-6  # below the magnitudes, before the logarithm


class Generator(nn.Module):
    """Noise [batch, latent] to a picture [batch, channels, frames, bins] in [-1, 1]."""

    def __init__(self, width: int = 64, shape: tuple[int, int] = (128, 128), channels: int = 1, latent: int = 100):
        super().__init__()
        widths = layer_widths(width, shape)[::-1]
        self.start = widths[0], *(side // 2 ** len(widths) for side in shape)
        self.dense = nn.Linear(latent, self.start[0] * self.start[1] * self.start[2])
        # The full transposed convolution has 3 rows and columns too many: 1 goes in front, 2 behind.
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(c_in, c_out, KERNEL, STRIDE, padding=1)
            for c_in, c_out in zip(widths, [*widths[1:], channels], strict=True)
        )
        self.apply(glorot)

    def forward(self, latents: Tensor) -> Tensor:
        width, frames, bins = self.start
        x = self.dense(latents).unflatten(1, (frames, bins, width)).movedim(-1, 1)
        for layer in self.up:
            x = layer(F.relu(x))[..., :-1, :-1]
        return torch.tanh(x)


class Critic(nn.Module):
    """Picture [batch, channels, frames, bins] to a score [batch]."""

    def __init__(self, width: int = 64, shape: tuple[int, int] = (128, 128), channels: int = 1):
        super().__init__()
        widths = layer_widths(width, shape)
        self.down = nn.ModuleList(
            nn.Conv2d(c_in, c_out, KERNEL, STRIDE) for c_in, c_out in zip([channels, *widths[:-1]], widths, strict=True)
        )
        frames, bins = (side // 2 ** len(widths) for side in shape)
        self.dense = nn.Linear(frames * bins * widths[-1], 1)
        self.apply(glorot)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.down:
            x = F.leaky_relu(layer(F.pad(x, (1, 2, 1, 2))), 0.2)
        return self.dense(x.movedim(1, -1).flatten(1)).squeeze(1)


def layer_widths(width: int, shape: tuple[int, int]) -> list[int]:
    """Channels behind every layer of the critic; each halves both sides, until the shorter one is 4."""
    depth = (min(shape) // SIDE).bit_length() - 1
    return [width * 2**i for i in range(depth)]


@torch.no_grad()
def picture(wave: Tensor, window: int, hop: int, measured: Mapping[str, Tensor]) -> Tensor:
    """Standardised log-magnitudes of sounds [batch, channels, time], without the topmost bin."""
    return standardised(torch.log(magnitudes(wave, window, hop)[..., :-1] + FLOOR), measured)


def update_critic(
    generator: Generator,
    critic: Critic,
    optimizer: torch.optim.Optimizer,
    pictures: Tensor,
    latents: Tensor,
    mix: Tensor,
    penalty: float = 10.0,
) -> Tensor:
    """One critic update of WGAN-GP; returns the loss. mix [batch]: 0 for the picture, 1 for the generated one."""
    loss = lambda fake: wasserstein((critic,) * 3, pictures, fake, mix, penalty)
    return common.update_critic(generator, optimizer, latents, loss)


def update_generator(generator: Generator, critic: Critic, optimizer: torch.optim.Optimizer, latents: Tensor) -> Tensor:
    """One generator update; returns the loss."""
    return common.update_generator(generator, critic, optimizer, latents, lambda fake: -critic(fake).mean())


def train_step(
    generator: Generator,
    critic: Critic,
    g_opt: torch.optim.Optimizer,
    c_opt: torch.optim.Optimizer,
    pictures: Tensor,
    penalty: float = 10.0,
) -> tuple[Tensor, Tensor]:
    """A critic update for each of pictures [updates, batch, channels, frames, bins], then a generator update."""
    latents = partial(uniform, (pictures.shape[1], generator.dense.in_features), pictures.device)
    for real in pictures:
        mix = torch.rand(len(real), device=real.device)
        c_loss = update_critic(generator, critic, c_opt, real, latents(), mix, penalty)
    return c_loss, update_generator(generator, critic, g_opt, latents())


def trainer(model, compiled: bool) -> Callable[[], object]:
    """A training step of the same size as the JAX model's, on fixed clips of noise: call it, and it is done.

    compiled: through `torch.compile`. Raises ValueError for what this peer does not have.
    """
    if model.conditional or model.loss != "wgan-gp" or model.batch_norm or model.dtype != "float32":
        raise ValueError(
            "the PyTorch SpecGAN is the paper's alone: add --model.no-conditional (wgan-gp, no batch norm, float32)"
        )
    generator = Generator(model.width, model.shape, model.channels, model.latent)
    critic = Critic(model.width, model.shape, model.channels)
    if compiled:
        generator.compile()
        critic.compile()
    optimizers = adam(generator), adam(critic)
    clips = torch.randn(model.batch_size, model.channels, model.segment).mul_(0.1)
    measured = {"mean": torch.zeros(model.shape[1]), "deviation": torch.ones(model.shape[1])}
    follow = follower(generator, model.decay)

    def step() -> object:
        pictures = picture(clips, model.window, model.hop, measured).unflatten(0, (model.n_critic, -1))
        losses = train_step(generator, critic, *optimizers, pictures, model.penalty)
        follow()
        return losses

    return step
