"""SEGAN in plain PyTorch (Pascual et al. 2017, arXiv 1703.09452): what the JAX model is timed and compared with.

Sounds are [batch, channels, time]. Padding is TensorFlow's SAME, as in the authors' code, and layers are named so that
`load` takes the JAX parameters as they are. What is drawn is an argument of the losses: both sides can be fed the same.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.common import descend

KERNEL, STRIDE = 31, 2
EDGES = ((KERNEL - STRIDE) // 2, (KERNEL - STRIDE + 1) // 2)
SLOPE = 0.3  # of the critic's leaky ReLU below zero
FLOOR = 1e-5  # of a variance


class Generator(nn.Module):
    """Noisy sound [batch, channels, segment] and z [batch, widths[-1], frames] to clean sound."""

    def __init__(self, widths: Sequence[int], channels: int) -> None:
        super().__init__()
        ins, outs = [channels, *widths[:-1]], [*widths[-2::-1], channels]
        self.down = nn.ModuleList(nn.Conv1d(a, b, KERNEL, STRIDE) for a, b in zip(ins, widths, strict=True))
        self.down_slope = nn.ModuleList(nn.PReLU(width, 0.0) for width in widths)
        self.up = nn.ModuleList(
            nn.ConvTranspose1d(2 * a, b, KERNEL, STRIDE, padding=EDGES[0])
            for a, b in zip(reversed(widths), outs, strict=True)
        )
        self.up_slope = nn.ModuleList(nn.PReLU(width, 0.0) for width in outs[:-1])
        self.apply(normal)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        skips = []
        for layer, slope in zip(self.down, self.down_slope, strict=True):
            x = layer(F.pad(x, EDGES))
            skips.append(x)
            x = slope(x)
        x = torch.cat([z, x], 1)
        for layer, slope, skip in zip(self.up, self.up_slope, skips[-2::-1], strict=False):
            x = torch.cat([slope(layer(x)[..., :-1]), skip], 1)
        return torch.tanh(self.up[-1](x)[..., :-1])


class Critic(nn.Module):
    """Pairs [batch, 2 * channels, segment] and reference pairs to scores [batch]."""

    def __init__(self, widths: Sequence[int], channels: int, segment: int) -> None:
        super().__init__()
        ins = [2 * channels, *widths[:-1]]
        self.down = nn.ModuleList(nn.Conv1d(a, b, KERNEL, STRIDE) for a, b in zip(ins, widths, strict=True))
        self.norm = nn.ModuleList(VirtualNorm(width) for width in widths)
        self.last = nn.Conv1d(widths[-1], 1, 1, bias=False)
        self.dense = nn.Linear(segment // STRIDE ** len(widths), 1)
        self.apply(normal)
        nn.init.xavier_uniform_(self.dense.weight)

    def forward(self, x: Tensor, reference: Tensor) -> Tensor:
        for layer, norm in zip(self.down, self.norm, strict=True):
            x, reference = norm(*(layer(F.pad(y, EDGES)) for y in (x, reference)))
            x, reference = (F.leaky_relu(y, SLOPE) for y in (x, reference))
        return self.dense(self.last(x)[:, 0])[:, 0]


class VirtualNorm(nn.Module):
    """Virtual batch norm, as Salimans et al. 2016 have it: means and mean squares of the reference and of the example
    itself."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        share, flat = 1 / (len(reference) + 1), reference.movedim(1, 0).flatten(1)
        known = flat.mean(1)[None, :, None], flat.square().mean(1)[None, :, None]
        own = x.mean(2, keepdim=True), x.square().mean(2, keepdim=True)
        both = tuple(share * a + (1 - share) * b for a, b in zip(own, known, strict=True))
        return self.normalised(x, *both), self.normalised(reference, *known)

    def normalised(self, x: Tensor, mean: Tensor, square: Tensor) -> Tensor:
        deviation = torch.sqrt(FLOOR + square - mean.square())
        return (x - mean) / deviation * self.weight[None, :, None] + self.bias[None, :, None]


def normal(module: nn.Module) -> None:
    """Weights of deviation 0.02 cut at two deviations, biases of zero; virtual batch norm's about 1."""
    if isinstance(module, VirtualNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)
    elif isinstance(module, nn.Conv1d | nn.ConvTranspose1d | nn.Linear):
        nn.init.trunc_normal_(module.weight, 0.0, 0.02, -0.04, 0.04)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def mixed(clean: Tensor, noise: Tensor, snr_db: Tensor) -> Tensor:
    """The clean sounds with noise at these SNRs [batch]."""
    power = lambda x: x.square().mean((1, 2), keepdim=True)
    return clean + noise * torch.sqrt(power(clean) / power(noise) / 10 ** (snr_db[:, None, None] / 10))


def emphasised(wave: Tensor, share: float) -> Tensor:
    """Every sample without so large a share of the one before."""
    return wave - share * F.pad(wave, (1, -1))


def critic_loss(critic: Critic, clean: Tensor, fake: Tensor, noisy: Tensor, reference: Tensor) -> Tensor:
    """Least squares: 1 for clean sounds beside the noisy ones, 0 for generated ones."""
    pairs = torch.cat([torch.cat([clean, noisy], 1), torch.cat([fake, noisy], 1)])
    real, made = critic(pairs, reference).chunk(2)
    return (real - 1).square().mean() + made.square().mean()


def generator_loss(
    critic: Critic, clean: Tensor, fake: Tensor, noisy: Tensor, reference: Tensor, weight: float
) -> Tensor:
    """Least squares, and so much of the distance to the clean sounds."""
    scores = critic(torch.cat([fake, noisy], 1), reference)
    return (scores - 1).square().mean() + weight * (fake - clean).abs().mean()


def trainer(model, compiled: bool) -> Callable[[], object]:
    """A training step of the same size as the JAX model's, on fixed sounds of noise: call it, and it is done.

    compiled: through `torch.compile`. Raises ValueError for what this peer does not have.
    """
    if model.dtype != "float32":
        raise ValueError("the PyTorch SEGAN computes in float32: --model.dtype float32")
    generator, critic = Generator(model.widths, model.channels), Critic(model.widths, model.channels, model.segment)
    if compiled:
        generator.compile()
        critic.compile()
    g_opt, c_opt = (
        torch.optim.RMSprop(net.parameters(), lr=model.learning_rate, alpha=0.9, eps=1e-10, foreach=True)
        for net in (generator, critic)
    )
    sounds = lambda rows: torch.randn(rows, model.channels, model.segment).mul_(0.1)
    wave, noise, snrs = sounds(model.batch_size), sounds(model.batch_size), torch.tensor(model.snrs)
    reference = torch.cat([sounds(model.reference), sounds(model.reference)], 1)

    def step() -> object:
        drawn = snrs[torch.randint(len(snrs), (len(wave),))]
        clean, noisy = (emphasised(x, model.emphasis) for x in (wave, mixed(wave, noise, drawn)))
        fake = generator(noisy, torch.randn(len(wave), model.widths[-1], model.frames))
        c_loss = descend(c_opt, critic_loss(critic, clean, fake.detach(), noisy, reference))
        critic.requires_grad_(False)
        g_loss = descend(g_opt, generator_loss(critic, clean, fake, noisy, reference, model.l1))
        critic.requires_grad_(True)
        return c_loss, g_loss

    return step
