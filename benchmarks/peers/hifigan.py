"""HiFi-GAN and BigVGAN in plain PyTorch (Kong et al. 2020, Lee et al. 2023): what the JAX model is timed and compared
with.

Signals are [batch, channels, time] and layers are named so that `load` takes the JAX parameters as they are. Both
sounds of a critics' update go through them as one batch, as there.
"""

import itertools
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import spectral_norm
from torch.nn.utils.parametrizations import weight_norm

from benchmarks.peers.common import follower
from benchmarks.peers.dac import Conv, ConvTranspose, Maps, Periods, Snake, flat

FLOOR, LEAST = 1e-5, 1e-9  # of the mels, and of the power of a bin
RATIO, TAPS = 2, 12  # of the activation: its rate and its filters


class SnakeBeta(nn.Module):
    """The activation with amplitude and frequency apart, as logarithms."""

    def __init__(self, width: int):
        super().__init__()
        self.alpha, self.beta = (nn.Parameter(torch.zeros(width)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        alpha, beta = (x.exp()[:, None] for x in (self.alpha, self.beta))
        return x + torch.sin(alpha * x).square() / (beta + 1e-9)


class AntiAliased(nn.Module):
    """An activation at twice the rate, between a transposed convolution of each channel and a convolution of each."""

    def __init__(self, activation: nn.Module):
        super().__init__()
        self.activation = activation
        self.register_buffer("filter", low_pass(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        width, edge = x.shape[1], TAPS // RATIO - 1
        bank = self.filter.expand(width, 1, -1)
        x = RATIO * F.conv_transpose1d(F.pad(x, (edge, edge), "replicate"), bank, stride=RATIO, groups=width)
        cut = edge * RATIO + (TAPS - RATIO) // 2
        x = F.pad(self.activation(x[..., cut:-cut]), (TAPS // 2 - 1, TAPS // 2), "replicate")
        return F.conv1d(x, bank, stride=RATIO, groups=width)


def low_pass() -> Tensor:
    """A sinc of a quarter of the rate under Kaiser's window, of sum 1."""
    attenuation = 2.285 * (TAPS // 2 - 1) * torch.pi * 4 * 0.3 + 7.95
    taps = torch.kaiser_window(TAPS, False, 0.1102 * (attenuation - 8.7)) * torch.sinc(
        0.5 * (torch.arange(TAPS) - TAPS // 2 + 0.5)
    )
    return taps / taps.sum()


class Generator(nn.ModuleDict):
    """Frames [batch, mels, frames] to sound [batch, 1, time]."""

    def __init__(self, model):
        width, causal, layers = model.width, model.causal, {}
        layers["first"] = weight_norm(Conv(model.bands, width, 7, causal=causal))
        for i, factor in enumerate(model.rates):
            layers[f"up_{i}"] = weight_norm(ConvTranspose(width, width // 2, factor, causal))
            width //= 2
            for j, block in enumerate(model.blocks):
                layers[f"block_{i}_{j}"] = Residual(model, width, *block)
        layers["active_last"] = active(model, width, model.last_slope)
        layers["last"] = weight_norm(Conv(width, 1, 7, causal=causal))
        if not model.bounded:
            layers["last"].bias = None
        super().__init__(layers)
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        model, x = self.model, self["first"](x)
        for i in range(len(model.rates)):
            x = F.leaky_relu(x, model.slope) if model.activation == "leaky" else x
            x = self[f"up_{i}"](x)
            x = sum(self[f"block_{i}_{j}"](x) for j in range(len(model.blocks))) / len(model.blocks)
        x = self["last"](self["active_last"](x))
        return torch.tanh(x) if model.bounded else x.clamp(-1, 1)


class Residual(nn.ModuleDict):
    """A residual block."""

    def __init__(self, model, width: int, taps: int, dilations: tuple[int, ...]):
        layers = {}
        for i, dilation in enumerate(dilations):
            layers[f"{i}_before"] = active(model, width, model.slope)
            layers[f"{i}_dilated"] = weight_norm(Conv(width, width, taps, dilation=dilation, causal=model.causal))
            if model.paired:
                layers[f"{i}_between"] = active(model, width, model.slope)
                layers[f"{i}_plain"] = weight_norm(Conv(width, width, taps, causal=model.causal))
        super().__init__(layers)
        self.count, self.paired = len(dilations), model.paired

    def forward(self, x: Tensor) -> Tensor:
        for i in range(self.count):
            y = self[f"{i}_dilated"](self[f"{i}_before"](x))
            x = x + (self[f"{i}_plain"](self[f"{i}_between"](y)) if self.paired else y)
        return x


def active(model, width: int, slope: float) -> nn.Module:
    """The activation."""
    if model.activation == "leaky":
        return nn.LeakyReLU(slope)
    return AntiAliased({"snake": Snake, "snake_beta": SnakeBeta}[model.activation](width))


class Scales(nn.ModuleDict):
    """Critics of ever lower rates, spectral norm in the first."""

    def __init__(self, model):
        layers = {}
        widths = itertools.pairwise((1, *model.scale_widths))
        shapes = list(zip(widths, model.scale_taps, model.scale_strides, model.scale_groups, strict=True))
        for scale in range(model.scales):
            norm = weight_norm if scale else spectral_norm
            for i, ((into, out), taps, stride, groups) in enumerate(shapes):
                layers[f"scale_{scale}_{i}"] = norm(nn.Conv1d(into, out, taps, stride, taps // 2, groups=groups))
            layers[f"scale_{scale}_score"] = norm(nn.Conv1d(model.scale_widths[-1], 1, 3, padding=1))
        super().__init__(layers)
        self.scales, self.count = model.scales, len(shapes)

    def forward(self, wave: Tensor) -> list[Maps]:
        found = []
        for scale in range(self.scales):
            wave, maps = F.avg_pool1d(wave, 4, 2, 2) if scale else wave, []
            x = wave
            for i in range(self.count):
                x = F.leaky_relu(self[f"scale_{scale}_{i}"](x), 0.1)
                maps.append(x)
            found.append([*maps, self[f"scale_{scale}_score"](x)])
        return found


class Magnitudes(nn.ModuleDict):
    """Critics of magnitude spectra [batch, 1, bins, frames]."""

    def __init__(self, model):
        layers, width = {}, model.size_width
        for size in model.sizes:
            for i in range(5):
                taps, stride = (3, 3 if i == 4 else 9), (1, 2 if 0 < i < 4 else 1)
                edges = (1, taps[1] // 2)
                layers[f"size_{size}_{i}"] = weight_norm(nn.Conv2d(width if i else 1, width, taps, stride, edges))
            layers[f"size_{size}_score"] = weight_norm(nn.Conv2d(width, 1, 3, padding=1))
        super().__init__(layers)
        self.spectra = list(zip(model.sizes, model.hops, model.lengths, strict=True))

    def forward(self, wave: Tensor) -> list[Maps]:
        found = []
        for size, hop, length in self.spectra:
            around = F.pad(wave, ((size - hop) // 2,) * 2, "reflect")[:, 0]
            window = torch.ones(length)
            x = torch.stft(around, size, hop, length, window, center=False, return_complex=True).abs()[:, None]
            maps = []
            for i in range(5):
                x = F.leaky_relu(self[f"size_{size}_{i}"](x), 0.1)
                maps.append(x)
            found.append([*maps, self[f"size_{size}_score"](x)])
        return found


class Critic(nn.Module):
    """All critics."""

    def __init__(self, model):
        super().__init__()
        self.periods = Periods(1, model.intervals, model.period_widths, always=False)
        kind = {"scales": Scales, "magnitudes": Magnitudes}[model.critics]
        self.add_module(model.critics, kind(model))
        self.other = model.critics

    def forward(self, wave: Tensor) -> list[Maps]:
        return self.periods(wave) + getattr(self, self.other)(wave)


def mels(model, filters: np.ndarray, wave: Tensor) -> Tensor:
    """ln of the mels [batch, bands, frames] of sounds [batch, 1, time]."""
    size, hop = model.window, model.hop
    around = F.pad(wave, ((size - hop) // 2,) * 2, "reflect")[:, 0]
    found = torch.stft(around, size, hop, size, torch.hann_window(size), center=False, return_complex=True)
    power = torch.view_as_real(found).square().sum(-1)
    return (torch.from_numpy(filters).T @ (power + LEAST).sqrt()).clamp(FLOOR).log()


def critic_loss(critic: Critic, wave: Tensor, made: Tensor) -> Tensor:
    """Least squares, summed over the critics."""
    found = [maps[-1].chunk(2) for maps in critic(torch.cat([wave, made.detach()]))]
    return sum((1 - real).square().mean() + fake.square().mean() for real, fake in found)


def generator_loss(critic: Critic | None, model, wave: Tensor, made: Tensor) -> Tensor:
    """The weighted terms; critic: None where it is not heard."""
    filters = model.loss_filters
    with torch.no_grad():
        heard = mels(model, filters, wave)
    total = model.mel * F.l1_loss(mels(model, filters, made), heard)
    if critic is None:
        return total
    with torch.no_grad():
        real = critic(wave)
    fake, end = critic(made), None if model.score_matching else -1
    pairs = ((a, b) for r, f in zip(real, fake, strict=True) for a, b in zip(r[:end], f[:end], strict=True))
    total = total + model.adversarial * sum((1 - maps[-1]).square().mean() for maps in fake)
    return total + model.feature_matching * sum(F.l1_loss(b, a) for a, b in pairs)


@torch.no_grad()
def load(module: nn.Module, params: Mapping, spectral: Mapping | None = None) -> None:
    """Copies the JAX parameters in and, if they are given, the vectors of the spectral norms. Raises ValueError where
    there are others than the module has."""
    leaves = {"scale": ["parametrizations_weight_original0"], "u": ["weight_u"]}
    leaves["kernel"] = ["parametrizations_weight_original1", "weight_orig"]
    given, own = flat(params), dict(module.named_parameters())
    if spectral is not None:
        given |= flat(spectral)
        own |= {name: buffer for name, buffer in module.named_buffers() if name.endswith("weight_u")}
    known, places = {name.replace(".", "_"): name for name in own}, {}
    for path in given:
        names = ("_".join([*path[:-1], leaf]) for leaf in leaves.get(path[-1], [path[-1]]))
        places[path] = next((known[name] for name in names if name in known), None)
    if sorted(map(str, places.values())) != sorted(own):
        raise ValueError(f"parameters are named {sorted(given)}, those here {sorted(own)}")
    for path, name in places.items():
        array = np.asarray(given[path])
        if path[-1] == "kernel":  # [*taps, in, out]; a transposed convolution's is [in, out, *taps] here
            array = np.moveaxis(array, (-2, -1), (0, 1) if path[-2].startswith("up_") else (1, 0))
        own[name].copy_(torch.from_numpy(array.copy()).reshape(own[name].shape))


def trainer(model, compiled: bool, stage: str | None = None) -> Callable[[], object]:
    """A training step of the same size as the JAX model's, on fixed clips of noise: call it, and it is done.

    compiled: through `torch.compile`. Raises ValueError for what this peer does not have.
    """
    if model.dtype != "float32" or model.mel_windows:
        raise ValueError("the PyTorch HiFi-GAN computes in float32 and compares the paper's mels alone")
    net, critic, alone = Generator(model), Critic(model), stage == "alone"
    if compiled:
        for part in (net, critic):
            part.compile()
    rates = ((net, model.learning_rate), (critic, model.critic_rate))
    given = {"betas": (0.8, 0.99), "weight_decay": model.weight_decay, "fused": True}
    optimizer, critic_optimizer = (torch.optim.AdamW(part.parameters(), lr=rate, **given) for part, rate in rates)
    wave, filters = torch.randn(model.batch_size, 1, model.segment).mul_(0.1), model.filters
    follow = follower(net, model.decay) if model.decay else lambda: None

    def descend(part: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, clip: float) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(part.parameters(), clip)
        optimizer.step()

    def step() -> object:
        made = net(mels(model, filters, wave))
        if not alone:
            descend(critic, critic_optimizer, critic_loss(critic, wave, made), model.critic_clip)
        critic.requires_grad_(False)
        loss = generator_loss(None if alone else critic, model, wave, made)
        descend(net, optimizer, loss, model.clip)
        critic.requires_grad_(True)
        follow()
        return loss.detach()

    return step
