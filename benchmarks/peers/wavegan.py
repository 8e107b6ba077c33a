"""WaveGAN in plain PyTorch (Donahue et al. 2019, arXiv 1802.04208): what the JAX model is timed and compared with.

Sounds are [batch, channels, time]. Padding is TensorFlow's SAME, as in the authors' code, and layers are named so that
`load` takes the JAX parameters as they are. Randomness is an argument of the updates: both sides can be fed the same.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers import common
from benchmarks.peers.common import adam, follower, glorot, uniform, wasserstein

KERNEL = 25
START = 16  # samples that the generator's first layer makes, and that the critic's last layer sees
SHUFFLED = 4  # the first layers of the critic are followed by phase shuffle


def strides(segment: int) -> list[int]:
    """The generator's upsampling factors: fours, and a last two if need be; 5 for 16384, 6 for 32768 and 65536."""
    factors, rest = [], segment // START
    while rest > 1:
        factors.append(min(4, rest))
        rest //= factors[-1]
    return factors


class Generator(nn.Module):
    """Noise [batch, latent] to sound [batch, channels, segment] in [-1, 1]."""

    def __init__(self, width: int = 64, segment: int = 16384, channels: int = 1, latent: int = 100) -> None:
        super().__init__()
        factors = strides(segment)
        widths = [width * 2**i for i in reversed(range(len(factors)))]
        self.dense = nn.Linear(latent, START * widths[0])
        # The full transposed convolution has 25 - s samples too many: (25 - s) // 2 go in front, one more behind.
        self.up = nn.ModuleList(
            nn.ConvTranspose1d(c_in, c_out, KERNEL, s, padding=(KERNEL - s) // 2)
            for c_in, c_out, s in zip(widths, [*widths[1:], channels], factors, strict=True)
        )
        self.apply(glorot)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.dense(latents).unflatten(1, (START, -1)).transpose(1, 2)
        for layer in self.up:
            x = layer(F.relu(x))[..., :-1]
        return torch.tanh(x)


class Critic(nn.Module):
    """Sound [batch, channels, segment] to a score [batch]; `shuffle` is the largest shift of the phase shuffle."""

    def __init__(self, width: int = 64, segment: int = 16384, channels: int = 1, shuffle: int = 2) -> None:
        super().__init__()
        self.shuffle = shuffle
        factors = strides(segment)
        widths = [width * 2**i for i in range(len(factors))]
        self.down = nn.ModuleList(
            nn.Conv1d(c_in, c_out, KERNEL, s)
            for c_in, c_out, s in zip([channels, *widths[:-1]], widths, factors, strict=True)
        )
        self.dense = nn.Linear(START * widths[-1], 1)
        self.apply(glorot)

    def forward(self, x: Tensor, shifts: Sequence[int]) -> Tensor:
        """shifts: samples by which the outputs of the first layers are delayed, one for each shuffled layer."""
        for i, layer in enumerate(self.down):
            total = KERNEL - layer.stride[0]
            x = F.leaky_relu(layer(F.pad(x, (total // 2, total - total // 2))), 0.2)
            if i < len(shifts):
                x = phase_shuffle(x, shifts[i])
        return self.dense(x.transpose(1, 2).flatten(1)).squeeze(1)

    def draw_shifts(self) -> list[int]:
        """Shifts for one call: uniform in -shuffle to shuffle, shared by the batch."""
        layers = min(SHUFFLED, len(self.down) - 1)
        return torch.randint(-self.shuffle, self.shuffle + 1, (layers,)).tolist()


def phase_shuffle(x: Tensor, shift: int) -> Tensor:
    """x [batch, channels, time] delayed by `shift` samples (negative: advanced), the gap filled by reflection."""
    if shift > 0:
        return F.pad(x, (shift, 0), mode="reflect")[..., :-shift]
    if shift < 0:
        return F.pad(x, (0, -shift), mode="reflect")[..., -shift:]
    return x


def update_critic(
    generator: Generator,
    critic: Critic,
    optimizer: torch.optim.Optimizer,
    clips: Tensor,
    latents: Tensor,
    mix: Tensor,
    shifts: Sequence[Sequence[int]],
    gp_weight: float = 10.0,
) -> Tensor:
    """One critic update with gradient penalty (none if `gp_weight` is 0); returns the loss.

    clips: [batch, channels, segment]; latents: [batch, latent]; mix: [batch], 0 for the clip and 1 for the generated
    sound; shifts: those of the calls on clips, on generated sounds and on their mixtures.
    """
    scores = [partial(critic, shifts=call) for call in shifts]
    loss = lambda fakes: wasserstein(scores, clips, fakes, mix, gp_weight)
    return common.update_critic(generator, optimizer, latents, loss)


def update_generator(
    generator: Generator, critic: Critic, optimizer: torch.optim.Optimizer, latents: Tensor, shifts: Sequence[int]
) -> Tensor:
    """One generator update; returns the loss. latents: [batch, latent]."""
    loss = lambda fakes: -critic(fakes, shifts).mean()
    return common.update_generator(generator, critic, optimizer, latents, loss)


def train_step(
    generator: Generator,
    critic: Critic,
    g_opt: torch.optim.Optimizer,
    c_opt: torch.optim.Optimizer,
    clips: Tensor,
    gp_weight: float = 10.0,
) -> tuple[Tensor, Tensor]:
    """A critic update for each of clips [updates, batch, channels, segment], then a generator update; both losses."""
    latents = partial(uniform, (clips.shape[1], generator.dense.in_features), clips.device)
    for batch_clips in clips:
        mix = torch.rand(clips.shape[1], device=clips.device)
        shifts = [critic.draw_shifts() for _ in range(3)]
        c_loss = update_critic(generator, critic, c_opt, batch_clips, latents(), mix, shifts, gp_weight)
    return c_loss, update_generator(generator, critic, g_opt, latents(), critic.draw_shifts())


def trainer(model, compiled: bool) -> Callable[[], object]:
    """A training step of the same size as the JAX model's, on fixed clips of noise: call it, and it is done.

    compiled: through `torch.compile`. Raises ValueError for what this peer does not have.
    """
    if (
        model.conditional
        or model.loss != "wgan-gp"
        or model.batch_norm
        or model.post_filter
        or model.upsample != "zeros"
    ):
        raise ValueError(
            "the PyTorch WaveGAN is the paper's alone: add --model.no-conditional (wgan-gp, no batch norm)"
        )
    generator = Generator(model.width, model.segment, model.channels, model.latent)
    critic = Critic(model.width, model.segment, model.channels, model.shuffle)
    if compiled:
        generator.compile()
        critic.compile()
    optimizers = adam(generator), adam(critic)
    clips = torch.randn(model.n_critic, model.batch_size // model.n_critic, model.channels, model.segment).mul_(0.1)
    follow = follower(generator, model.decay)

    def step() -> object:
        losses = train_step(generator, critic, *optimizers, clips, model.penalty)
        follow()
        return losses

    return step
