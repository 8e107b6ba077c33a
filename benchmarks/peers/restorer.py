"""The restorer of noise in plain PyTorch: what the JAX model is timed and compared with.

Sounds are [batch, channels, time]. They come damaged: making noise, filtering voices and mixing both is left out, which
the JAX step does too. So are gaps, and the noise that is added to a spectrum where a mask finds too little.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.common import descend, follower, magnitudes
from benchmarks.peers.dac import Maps, Spectra

COMPRESSION, QUIET = 0.3, 1e-4
MEAN, LEAST = 9, 64  # frames that a bin's power is averaged over, and of which the least is its floor


class Generator(nn.ModuleDict):
    """Damaged sound to sound."""

    def __init__(self, model):
        bins, width = model.size // 2 + 1, model.width
        layers = {"first": nn.Linear(4 * bins, width), "norm": nn.LayerNorm(width, 1e-6)}
        for i, dilation in enumerate(model.dilations):
            layers[f"norm_{i}"] = nn.LayerNorm(width, 1e-6)
            layers[f"conv_{i}"] = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
            layers[f"dense_{i}"] = nn.Linear(width, width)
        super().__init__({**layers, "last": nn.Linear(width, 3 * bins)})
        self.depth, self.size, self.hop = len(model.dilations), model.size, model.hop

    def forward(self, wave: Tensor) -> Tensor:
        given = {"n_fft": self.size, "hop_length": self.hop, "window": torch.hann_window(self.size)}
        spectrum = torch.stft(wave.flatten(0, 1), **given, pad_mode="constant", return_complex=True).mT
        x = self["first"](seen(spectrum))
        for i in range(self.depth):
            y = F.silu(self[f"conv_{i}"](self[f"norm_{i}"](x).mT).mT)
            x = x + self[f"dense_{i}"](y)
        mask, real, imaginary = self["last"](self["norm"](x)).chunk(3, -1)
        result = spectrum * torch.sigmoid(mask + 1) * torch.complex(1 + real, imaginary)
        return torch.istft(result.mT, **given, length=wave.shape[-1]).unflatten(0, wave.shape[:2])


def seen(spectrum: Tensor) -> Tensor:
    """What the network knows of a spectrum [batch, frames, bins]."""
    power = spectrum.real.square() + spectrum.imag.square() + QUIET**2
    phased = power ** ((COMPRESSION - 1) / 2)
    floor = steady(power) ** (COMPRESSION / 2)
    parts = [power ** (COMPRESSION / 2), floor, spectrum.real * phased, spectrum.imag * phased]
    return 2 * torch.cat(parts, -1) - 0.5


def steady(power: Tensor) -> Tensor:
    """The noise floor: the least, within LEAST frames around each, of the mean of MEAN frames."""
    mean = F.avg_pool1d(F.pad(power.mT, (MEAN // 2, MEAN // 2), "replicate"), MEAN, 1)
    around = F.pad(-mean, (LEAST // 2, LEAST // 2 - 1), value=-torch.inf)
    return -F.max_pool1d(around, LEAST, 1).mT


def compressed_distance(a: Tensor, b: Tensor, windows: tuple[int, ...]) -> Tensor:
    """Of magnitudes, the mean over examples; a needs no gradient."""
    total = 0.0
    for size in windows:
        with torch.no_grad():
            x = magnitudes(a, size, size // 4).clamp(QUIET)
        y = magnitudes(b, size, size // 4).clamp(QUIET)
        total = total + 4 * F.l1_loss(y**COMPRESSION, x**COMPRESSION)
        total = total + F.l1_loss((y + 1e-2).log(), (x + 1e-2).log()) / 2
    return total / len(windows)


def error_db(real: Tensor, made: Tensor) -> Tensor:
    """Power of the error over that of the recording [batch], in dB."""
    power, error = (x.square().mean((1, 2)) for x in (real, made - real))
    return 10 * torch.log10((error + 1e-3 * power + 1e-8) / (power + 1e-3 * power + 1e-7))


def critic_of(model) -> Spectra:
    """All its critics."""
    return Spectra(model.channels, model.critic_windows, (0.0, 1.0), model.critic_width, (1, 1, 1))


def critic_loss(critic: Spectra, clean: Tensor, made: Tensor) -> Tensor:
    """Least squares, summed over the critics."""
    real, fake = critic(clean), critic(made.detach())
    return sum((1 - r[-1]).square().mean() + f[-1].square().mean() for r, f in zip(real, fake, strict=True))


def generator_loss(model, critic: Spectra | None, clean: Tensor, made: Tensor) -> Tensor:
    """The weighted terms."""
    loss = model.spectral * compressed_distance(clean, made, model.windows)
    loss = loss + model.waveform * error_db(clean, made).mean()
    if critic is None:
        return loss
    with torch.no_grad():
        real = critic(heard(model, clean))
    fake = critic(heard(model, made))
    return loss + model.adversarial * score(fake) + model.features * feature_distance(real, fake)


def score(fake: list[Maps]) -> Tensor:
    """How far the critics are from taking it for a recording."""
    return sum((1 - maps[-1]).square().mean() for maps in fake)


def feature_distance(real: list[Maps], fake: list[Maps]) -> Tensor:
    """L1, summed over maps and critics."""
    return sum(F.l1_loss(b, a) for r, f in zip(real, fake, strict=True) for a, b in zip(r[:-1], f[:-1], strict=True))


def heard(model, wave: Tensor) -> Tensor:
    """The middle, which the critics hear."""
    first = max(0, model.segment - model.critic_segment) // 2
    return wave[..., first : first + model.critic_segment]


def trainer(model, compiled: bool, stage: str) -> Callable[[], object]:
    """A training step of the same size as the JAX model's, on fixed sounds of noise: call it, and it is done.

    compiled: through `torch.compile`. Raises ValueError for what this peer does not have.
    """
    if model.damages != ("noise",) or model.dtype != "float32":
        raise ValueError("the PyTorch restorer takes noise off in float32: --model.damages noise")
    generator, critic = Generator(model), critic_of(model)
    if compiled:
        generator.compile()
        critic.compile()
    rates = ((generator, model.learning_rate, 0.9), (critic, model.critic_rate, 0.8))
    optimizer, critic_optimizer = (
        torch.optim.Adam(net.parameters(), rate, (b1, 0.99), fused=True) for net, rate, b1 in rates
    )
    sounds = lambda level: torch.randn(model.batch_size, model.channels, model.segment).mul_(level)
    clean, noise = sounds(0.1), sounds(0.03)
    follow = follower(generator, model.decay)

    def step() -> object:
        made = generator(clean + noise)
        if stage == "critics":
            descend(critic_optimizer, critic_loss(critic, heard(model, clean), heard(model, made)))
        critic.requires_grad_(False)
        optimizer.zero_grad(set_to_none=True)
        loss = generator_loss(model, critic if stage == "critics" else None, clean, made)
        loss.backward()
        nn.utils.clip_grad_norm_(generator.parameters(), 1.0)
        optimizer.step()
        critic.requires_grad_(True)
        follow()
        return loss.detach()

    return step
