"""GANSynth in plain PyTorch (Engel et al. 2019, arXiv 1902.08710): what the JAX model is timed and compared with.

Pictures are [batch, channels, frames, bands] and layers are named so that `load` takes the JAX parameters as they are.
Randomness is an argument of the losses: both sides can be fed the same. `parts` says which resolutions make up a
picture, and each one's share.
"""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.common import adam, descend, follower
from jaxaudio.dsp.specgram import FLOOR, bank

Parts = Mapping[int, float]


def scaled(weight: Tensor, slope: float = 0.0, transposed: bool = False) -> Tensor:
    """Weights of a deviation of 1 by He's scale; inputs are all axes but the one of outputs."""
    inputs = weight.numel() / weight.shape[1 if transposed else 0]
    return weight * math.sqrt(2 / ((1 + slope**2) * inputs))


class Conv(nn.Conv2d):
    """Keeps both sides, or has no padding."""

    def __init__(self, into: int, out: int, taps: int | tuple[int, int], slope: float = 0.0, padding: str = "same"):
        super().__init__(into, out, taps, padding=padding)
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, scaled(self.weight, self.slope), self.bias, padding=self.padding)


class Start(nn.ConvTranspose2d):
    """A vector to a picture."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x[:, :, None, None], scaled(self.weight, transposed=True), self.bias)


class Dense(nn.Linear):
    """For logits."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, scaled(self.weight, 1.0), self.bias)


class Generator(nn.Module):
    """[batch, latent], [batch] -> a picture of the finest resolution among the parts."""

    def __init__(self, model):
        super().__init__()
        widths = [model.features(k) for k in range(model.resolutions)]
        self.classes, into = model.classes, model.latent + model.classes
        self.first = nn.ModuleList(
            [Start(into, widths[0], model.shape(0)), *(Conv(a, b, 3) for a, b in pairwise(widths))]
        )
        self.second = nn.ModuleList(Conv(width, width, 3) for width in widths)
        self.picture = nn.ModuleList(Conv(width, 2 * model.channels, 1, 1.0) for width in widths)
        self.apply(normal)

    def forward(self, latent: Tensor, label: Tensor, parts: Parts) -> Tensor:
        x = pixel_norm(torch.cat([latent, F.one_hot(label, self.classes)], 1))
        finest, total = max(parts), 0.0
        for k in range(finest + 1):
            x = pixel_norm(leaky(self.first[k](upscaled(x, 2) if k else x)))
            x = pixel_norm(leaky(self.second[k](x)))
            if k in parts:
                total = total + parts[k] * upscaled(torch.tanh(self.picture[k](x)), 2 ** (finest - k))
        return total


class Critic(nn.Module):
    """A picture of the finest resolution among the parts -> scores [batch], logits of pitches [batch, classes]."""

    def __init__(self, model):
        super().__init__()
        widths = [model.features(k) for k in range(model.resolutions)]
        self.picture = nn.ModuleList(Conv(2 * model.channels, width, 1) for width in widths)
        self.first = nn.ModuleList(
            [Conv(widths[0] + 1, widths[0], 3), *(Conv(width, width, 3) for width in widths[1:])]
        )
        last = Conv(widths[0], model.features(-1), model.shape(0), padding="valid")
        self.second = nn.ModuleList([last, *(Conv(b, a, 3) for a, b in pairwise(widths))])
        self.score, self.pitch = Dense(model.features(-1), 1), Dense(model.features(-1), model.classes)
        self.apply(normal)

    def forward(self, picture: Tensor, parts: Parts) -> tuple[Tensor, Tensor]:
        picture, finest = picture.clip(-1, 1), max(parts)
        seen = lambda k: leaky(self.picture[k](downscaled(picture, 2 ** (finest - k))))
        x = seen(finest)
        for k in range(finest, 0, -1):
            x = downscaled(leaky(self.second[k](leaky(self.first[k](x)))), 2)
            if k - 1 in parts:
                x = parts[k - 1] * seen(k - 1) + (1 - parts[k - 1]) * x
        deviation = (x.var(0, unbiased=False) + 1e-6).sqrt().mean()
        x = leaky(self.first[0](torch.cat([x, deviation.expand_as(x[:, :1])], 1)))
        x = leaky(self.second[0](x)).flatten(1)
        return self.score(x).squeeze(1), self.pitch(x)


def normal(module: nn.Module) -> None:
    """Kernels of a deviation of 1, biases of 0."""
    if hasattr(module, "weight"):
        nn.init.normal_(module.weight)
        nn.init.zeros_(module.bias)


def leaky(x: Tensor) -> Tensor:
    """The activation everywhere."""
    return F.leaky_relu(x, 0.2)


def pixel_norm(x: Tensor) -> Tensor:
    """Channels over the root of their mean square."""
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


def upscaled(x: Tensor, times: int) -> Tensor:
    """Every pixel repeated."""
    return x if times == 1 else F.interpolate(x, scale_factor=times, mode="nearest")


def downscaled(x: Tensor, times: int) -> Tensor:
    """The mean of every `times` x `times` pixels."""
    return x if times == 1 else F.avg_pool2d(x, times)


@torch.no_grad()
def picture(model, wave: Tensor) -> Tensor:
    """The finest picture [batch, 2 * channels, frames, bands] of sounds [batch, channels, time], normalised."""
    front, window = model.front, torch.hann_window(model.window)
    padded = F.pad(wave.flatten(0, 1), (front.before, 0))
    spectrum = torch.stft(padded, front.size, front.hop, window=window, center=False, return_complex=True)[:, 1:].mT
    level, phase = (spectrum.abs() + FLOOR).log(), spectrum.angle() / math.pi
    steps = torch.cat([phase[:, :1], wrapped(phase.diff(dim=1))], 1)
    if front.bands:
        power, weights = map(torch.from_numpy, bank(front.sample_rate, front.bins, front.bands, front.mean)[:2])
        level, steps = ((2 * level).exp() @ power + FLOOR).log(), steps @ weights
        steps = torch.cat([steps[:, :1], wrapped(steps[:, 1:])], 1)
    both = torch.stack([level * model.level_scale + model.level_offset, steps * model.step_scale], 1)
    return both.unflatten(0, wave.shape[:2]).flatten(1, 2)


def wrapped(x: Tensor) -> Tensor:
    """Modulo 2, in [-1, 1]."""
    return x - 2 * (x / 2).round()


def blended(model, fine: Tensor, parts: Parts) -> Tensor:
    """The finest picture as one of these parts."""
    seen = lambda k: upscaled(downscaled(fine, 2 ** (model.resolutions - 1 - k)), 2 ** (max(parts) - k))
    return sum(share * seen(k) for k, share in parts.items())


def critic_loss(critic: Critic, model, real: Tensor, fake: Tensor, label: Tensor, mix: Tensor, parts: Parts) -> Tensor:
    """Of the critic. mix [batch]: 0 for the recording, 1 for the generated picture."""
    (real_score, logits), (fake_score, _) = critic(real, parts), critic(fake, parts)
    loss = fake_score.mean() - real_score.mean() + model.drift * real_score.square().mean()
    loss = loss + model.auxiliary * F.cross_entropy(logits, label)
    between = torch.lerp(real, fake, mix.reshape(-1, 1, 1, 1)).requires_grad_()
    (slopes,) = torch.autograd.grad(critic(between, parts)[0].sum(), between, create_graph=True)
    scale = torch.ones(1)
    if model.slopes == "unnormalised":
        scale = torch.tensor([model.level_scale, model.step_scale] * model.channels).reshape(1, -1, 1, 1)
    norms = (scale * slopes).flatten(1).norm(dim=1) * slopes.shape[2] / model.shape()[0]
    return loss + model.penalty * (norms - 1).square().mean()


def generator_loss(generator: Generator, critic: Critic, model, latent: Tensor, label: Tensor, parts: Parts) -> Tensor:
    """Of the generator."""
    score, logits = critic(generator(latent, label, parts), parts)
    return model.auxiliary * F.cross_entropy(logits, label) - score.mean()


def trainer(model, compiled: bool, stage: tuple[int, bool]) -> Callable[[], object]:
    """A training step of the same size as the JAX model's at this stage, on fixed clips of noise: call it, and it is
    done.

    compiled: through `torch.compile`. Raises ValueError for what this peer does not have.
    """
    if model.dtype != "float32" or not model.penalty:
        raise ValueError("the PyTorch GANSynth computes in float32 and has a penalty: --model.dtype float32")
    generator, critic = Generator(model), Critic(model)
    if compiled:
        generator.compile()
        critic.compile()
    optimizers = [adam(net, model.learning_rate, (0.0, 0.99)) for net in (generator, critic)]
    wave = torch.randn(model.batch_size, model.channels, model.segment).mul_(0.1)
    label = torch.arange(model.batch_size) % model.classes
    resolution, blending = stage
    parts = {resolution - 1: 0.5, resolution: 0.5} if blending else {resolution: 1.0}
    follow = follower(generator, model.decay)

    def step() -> object:
        real = blended(model, picture(model, wave), parts)
        latent, mix = torch.randn(model.batch_size, model.latent), torch.rand(model.batch_size)
        with torch.no_grad():
            fake = generator(latent, label, parts)
        seen = descend(optimizers[1], critic_loss(critic, model, real, fake, label, mix, parts))
        critic.requires_grad_(False)
        made = descend(optimizers[0], generator_loss(generator, critic, model, latent, label, parts))
        critic.requires_grad_(True)
        follow()
        return seen, made

    return step
