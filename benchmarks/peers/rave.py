"""RAVE in plain PyTorch (Caillon & Esling 2021, arXiv 2111.05011): what the JAX model is timed and compared with.

Signals are [batch, channels, time] and layers are named so that `load` takes the JAX parameters as they are. Randomness
is an argument of the losses: both sides can be fed the same.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from benchmarks.peers.common import adam, descend, follower, magnitudes
from jaxaudio.dsp.pqmf import CENTRED, PAST, SPAN, prototype

AMPLITUDES = 5  # of a frame of noise, per band
PERIODS = (2, 3, 5, 7, 11)
POOLED = 3
QUIET = 1e-6  # the mean power that a silent example is taken for
LEAST = 1e-4  # of a posterior's deviation


def leaky(x: Tensor) -> Tensor:
    """The activation everywhere."""
    return F.leaky_relu(x, 0.2)


def mod_sigmoid(x: Tensor) -> Tensor:
    """Amplitudes of a wide range."""
    return 2 * torch.sigmoid(x) ** 2.3 + 1e-7


class Conv(nn.Conv1d):
    """T frames to T / stride frames, centred or causal."""

    def __init__(self, into: int, out: int, taps: int, stride: int = 1, dilation: int = 1, groups: int = 1, **options):
        causal = options.pop("causal", False)
        over = dilation * (taps - 1) + 1 - stride
        self.edges = (over, 0) if causal else (over - over // 2, over // 2)
        if self.edges[0] == self.edges[1]:
            self.edges, options["padding"] = (0, 0), over // 2
        super().__init__(into, out, taps, stride, dilation=dilation, groups=groups, **options)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.edges) if any(self.edges) else x)


class ConvTranspose(nn.ConvTranspose1d):
    """T frames to T * stride frames, centred or causal; taps: twice the stride."""

    def __init__(self, into: int, out: int, stride: int, causal: bool):
        self.left = 0 if causal else stride // 2
        super().__init__(into, out, 2 * stride, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[..., self.left : self.left + x.shape[-1] * self.stride[0]]


class Unit(nn.Module):
    """A residual unit of two convolutions."""

    def __init__(self, conv: Callable[..., nn.Module], width: int, dilation: int, second: int):
        super().__init__()
        self.dilated, self.plain = conv(width, width, 3, dilation=dilation), conv(width, width, second)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.plain(leaky(self.dilated(leaky(x))))


class Banks(nn.Module):
    """The filter bank's two directions, as convolutions over frames of as many samples as there are bands."""

    def __init__(self, bands: int, causal: bool):
        super().__init__()
        size, band = SPAN * bands, torch.arange(bands)[:, None]
        time = torch.arange(size) - (size - 1) / 2
        angle = (2 * band + 1) * math.pi / (2 * bands) * time.double() + (-1.0) ** band * math.pi / 4
        filters = math.sqrt(2) * torch.from_numpy(prototype(bands)) * torch.cos(angle)
        frames = filters.flip(1).reshape(bands, SPAN, bands)  # band, frame, sample
        self.register_buffer("analysis", frames.permute(0, 2, 1).float().contiguous())
        self.register_buffer("synthesis", frames.flip(1).permute(2, 0, 1).float().contiguous())
        self.register_buffer("sign", 1.0 - 2.0 * torch.outer(torch.arange(bands) % 2, torch.arange(2)))
        self.bands, self.edges = bands, ((PAST, 0), (PAST, 0)) if causal else CENTRED

    def analyse(self, wave: Tensor) -> Tensor:
        """[batch, channels, time] -> [batch, channels * bands, time / bands]."""
        frames = wave.flatten(0, 1).unflatten(1, (-1, self.bands)).mT
        found = self.signed(F.conv1d(F.pad(frames, self.edges[0]), self.analysis))
        return found.unflatten(0, wave.shape[:2]).flatten(1, 2)

    def synthesise(self, bands: Tensor) -> Tensor:
        """Its inverse."""
        mono = self.signed(bands.unflatten(1, (-1, self.bands)).flatten(0, 1))
        wave = F.conv1d(F.pad(mono, self.edges[1]), self.synthesis).mT
        return wave.reshape(len(bands), -1, wave.shape[1] * self.bands)

    def signed(self, bands: Tensor) -> Tensor:
        """Odd frames of odd bands with their sign changed."""
        return (bands.unflatten(2, (-1, 2)) * self.sign[:, None]).flatten(2)


class Encoder(nn.Module):
    """Bands to means and raw deviations of the latent frames, both [batch, latent, frames] (v1)."""

    def __init__(self, model):
        super().__init__()
        widths = [model.capacity * 2**i for i in range(len(model.ratios) + 1)]
        given = {"causal": model.causal, "bias": False}
        self.first = Conv(model.bands * model.channels, widths[0], 7, **given)
        self.norm = nn.ModuleList(nn.BatchNorm1d(width) for width in widths[:-1])
        self.down = nn.ModuleList(
            Conv(widths[i], widths[i + 1], 2 * ratio + 1, ratio, **given) for i, ratio in enumerate(model.ratios)
        )
        self.last = Conv(widths[-1], 2 * model.latent, 5, groups=2, **given)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.first(x)
        for norm, down in zip(self.norm, self.down, strict=True):
            x = down(leaky(norm(x)))
        return self.last(leaky(x)).chunk(2, 1)


class EncoderV2(nn.Module):
    """The same of v2."""

    def __init__(self, model):
        super().__init__()
        widths = [model.capacity * 2**i for i in range(len(model.ratios) + 1)]
        conv = normed(model)
        self.first = conv(model.bands * model.channels, widths[0], 7)
        self.units = nn.ModuleList(
            stack(conv, width, dilations(r), 1) for width, r in zip(widths, model.ratios, strict=False)
        )
        self.down = nn.ModuleList(
            conv(widths[i], widths[i + 1], 2 * ratio, ratio) for i, ratio in enumerate(model.ratios)
        )
        self.last = conv(widths[-1], 2 * model.latent, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.first(x)
        for units, down in zip(self.units, self.down, strict=True):
            x = down(leaky(units(x)))
        return self.last(leaky(x)).chunk(2, 1)


class Decoder(nn.Module):
    """Latent frames to bands, of both versions. noise: [batch, bands, frames, samples], or None."""

    def __init__(self, model):
        super().__init__()
        self.second = model.network == "v2"
        conv, width, bands = normed(model), model.capacity * 2 ** len(model.ratios), model.bands * model.channels
        self.first = conv(model.latent, width, 3 if self.second else 7)
        self.up, self.units = nn.ModuleList(), nn.ModuleList()
        for ratio in reversed(model.ratios) if self.second else model.ratios:
            self.up.append(weight_norm(ConvTranspose(width, width // 2, ratio, model.causal)))
            width //= 2
            self.units.append(stack(conv, width, *((dilations(ratio), 1) if self.second else ((1, 3, 5), 3))))
        self.wave = conv(width, bands * (2 if self.second else 1), 7)
        if not self.second:
            self.loudness = conv(width, 1, 3)
        outs = [width] * len(model.noise_strides[:-1]) + [bands * AMPLITUDES] * len(model.noise_strides[-1:])
        self.noise = nn.ModuleList(
            conv(width, out, 3, stride) for out, stride in zip(outs, model.noise_strides, strict=True)
        )
        self.register_buffer("responses", responses(math.prod(model.noise_strides)))

    def forward(self, x: Tensor, noise: Tensor | None) -> Tensor:
        x = self.first(x)
        for up, units in zip(self.up, self.units, strict=True):
            x = units(up(leaky(x)))
        if self.second:
            x = leaky(x)
            wave, amplitude = self.wave(x).chunk(2, 1)
            made = torch.tanh(wave * torch.sigmoid(amplitude))
        else:
            made = torch.tanh(self.wave(x)) * mod_sigmoid(self.loudness(x))
        return made if noise is None else made + self.hiss(x, noise)

    def hiss(self, x: Tensor, noise: Tensor) -> Tensor:
        """Noise through filters that the network draws."""
        for i, layer in enumerate(self.noise):
            x = layer(leaky(x) if i else x)
        amplitude = mod_sigmoid(x - 5).unflatten(1, (-1, AMPLITUDES)).movedim(2, 3)
        return torch.fft.irfft(torch.fft.rfft(noise) * (amplitude @ self.responses), noise.shape[-1]).flatten(2)


class Autoencoder(nn.Module):
    """Both halves, with the filter bank around them."""

    def __init__(self, model):
        super().__init__()
        self.banks = Banks(model.bands, model.causal)
        self.encoder = (Encoder if model.network == "v1" else EncoderV2)(model)
        self.decoder = Decoder(model)

    def encode(self, wave: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Bands, and the posterior's means and deviations."""
        bands = self.banks.analyse(wave)
        mean, raw = self.encoder(bands)
        return bands, mean, F.softplus(raw) + LEAST


class Critic(nn.Module):
    """A sound to maps and scores, a list of maps and a map for each critic."""

    def __init__(self, model):
        super().__init__()
        given = (model.channels, model.critic_width, model.critic_layers)
        self.period = nn.ModuleDict({str(period): Judge(*given, 5) for period in PERIODS if model.periods})
        self.scale = nn.ModuleList(Judge(*given, 15) for _ in range(POOLED))

    def forward(self, wave: Tensor) -> tuple[list[list[Tensor]], list[Tensor]]:
        found = []
        for period, judge in self.period.items():
            x = F.pad(wave, (0, -wave.shape[-1] % int(period)))
            found.append(judge(x.unflatten(2, (-1, int(period))).movedim(3, 1).flatten(0, 1)))
        for i, judge in enumerate(self.scale):
            wave = F.avg_pool1d(wave, 2) if i else wave
            found.append(judge(wave))
        features, scores = zip(*found, strict=True)
        return list(features), list(scores)


class Judge(nn.ModuleDict):
    """One critic: its maps before the activation, and the score."""

    def __init__(self, channels: int, width: int, layers: int, taps: int):
        widths = [channels, *(width * 2**i for i in range(layers))]
        parts = {str(i): weight_norm(Conv(widths[i], widths[i + 1], taps, 4)) for i in range(layers)}
        super().__init__({**parts, "score": weight_norm(Conv(widths[-1], 1, 1))})

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        *layers, score = self.values()
        features = []
        for layer in layers:
            features.append(layer(x))
            x = leaky(features[-1])
        return features, score(x)


def normed(model) -> Callable[..., nn.Module]:
    """What makes the model's convolutions with weight norm."""
    return lambda *sizes, **given: weight_norm(Conv(*sizes, causal=model.causal, bias=False, **given))


def stack(conv: Callable[..., nn.Module], width: int, spread: Sequence[int], second: int) -> nn.Sequential:
    """Residual units of these dilations."""
    return nn.Sequential(*(Unit(conv, width, dilation, second) for dilation in spread))


def dilations(ratio: int) -> tuple[int, ...]:
    """Of v2's units around a layer of this ratio."""
    return (1, 3, 9) if ratio > 2 else (1, 3)


def responses(size: int) -> Tensor:
    """[AMPLITUDES, size // 2 + 1]: the frequency response of the windowed zero-phase filter behind each amplitude."""
    taps = 2 * (AMPLITUDES - 1)
    if size < taps:
        return torch.full((AMPLITUDES, size // 2 + 1), 1 / AMPLITUDES)
    impulses = torch.fft.irfft(torch.eye(AMPLITUDES), taps).roll(taps // 2, 1) * torch.hann_window(taps)
    return torch.fft.rfft(F.pad(impulses, (0, size - taps)).roll(-(taps // 2), 1)).real


def distance(a: Tensor, b: Tensor, sizes: Sequence[int], floor: float) -> Tensor:
    """The multi-scale spectral distance of b from a, the mean over examples; a needs no gradient."""
    total = 0.0
    for size in sizes:
        if size > a.shape[-1]:
            continue
        norm = torch.hann_window(size).square().sum().sqrt()
        with torch.no_grad():
            x = magnitudes(a, size, size // 4) / norm
            power, level = x.square().mean((1, 2, 3)).clip(min=QUIET), torch.log(x + floor)
        y = magnitudes(b, size, size // 4) / norm
        total = total + ((x - y).square().mean((1, 2, 3)) / power).mean() + (level - torch.log(y + floor)).abs().mean()
    return total


def distances(net: Autoencoder, model, wave: Tensor, bands: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
    """The distances of the full band and of the bands together, and the sound of what was made."""
    sound = net.banks.synthesise(made)
    full = distance(late(model, wave), sound, model.scales, model.floor)
    return full + distance(bands, made, model.scales, model.floor), sound


def late(model, wave: Tensor) -> Tensor:
    """As late as what comes back."""
    return F.pad(wave, (model.delay, -model.delay)) if model.delay else wave


def first_loss(net: Autoencoder, model, wave: Tensor, drawn: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """The loss of the first phase, and the posterior means. drawn: standard normal, as the latent frames."""
    bands, mean, deviation = net.encode(wave)
    spectral, _ = distances(net, model, wave, bands, net.decoder(mean + deviation * drawn, None))
    nats = ((mean.square() + deviation.square() - 1) / 2 - deviation.log()).sum(1).mean()
    return spectral + beta * 2 * nats, mean


def second_loss(net: Autoencoder, critic: Critic, model, wave: Tensor, drawn: Tensor, noise: Tensor | None):
    """The decoder's loss in the second phase, and the posterior means. noise: uniform in [-1, 1]."""
    with torch.no_grad():
        bands, mean, deviation = net.encode(wave)
        real, _ = critic(late(model, wave))
    made = net.decoder(mean + deviation * drawn, noise)
    spectral, sound = distances(net, model, wave, bands, made)
    fake, scores = critic(sound)
    adversarial = -model.adversarial * sum(score.mean() for score in scores)
    return spectral + adversarial + model.feature_weight * feature_distance(model, real, fake), mean


def feature_distance(model, real: list[list[Tensor]], fake: list[list[Tensor]]) -> Tensor:
    """L1 of the critics' maps, the mean over a critic's, the sum over critics."""
    examples, total = len(real[-1][0]), 0.0
    rows = lambda x: x.abs().reshape(examples, -1).mean(1)
    for reals, fakes in zip(real, fake, strict=True):
        if model.relative_features:
            gaps = [(rows(a - b) / (rows(a) + 1e-6)).mean() for a, b in zip(reals[1:], fakes[1:], strict=True)]
        else:
            gaps = [F.l1_loss(b, a) for a, b in zip(reals, fakes, strict=True)]
        total = total + sum(gaps) / len(gaps)
    return total


def critic_loss(net: Autoencoder, critic: Critic, model, wave: Tensor, drawn: Tensor, noise: Tensor | None) -> Tensor:
    """The hinge, summed over the critics."""
    with torch.no_grad():
        _, mean, deviation = net.encode(wave)
        sound = net.banks.synthesise(net.decoder(mean + deviation * drawn, noise))
    _, scores = critic(torch.cat([late(model, wave), sound]))
    halves = (score.chunk(2) for score in scores)
    return sum(F.relu(1 - real).mean() + F.relu(1 + fake).mean() for real, fake in halves)


class Moments:
    """Running mean and covariance of the latent frames."""

    def __init__(self, latent: int):
        self.mean, self.covariance = torch.zeros(latent), torch.eye(latent)

    @torch.no_grad()
    def follow(self, frames: Tensor) -> None:
        rows = frames.movedim(1, 0).flatten(1)
        centred = rows - self.mean[:, None]
        self.covariance.lerp_(centred @ centred.T / rows.shape[1], 0.001)
        self.mean.lerp_(rows.mean(1), 0.001)


@torch.no_grad()
def load(module: nn.Module, params: Mapping, statistics: Mapping | None = None) -> None:
    """Copies the JAX parameters in, and the batch statistics."""
    kinds = (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d)
    layers = {name.replace(".", "_"): layer for name, layer in module.named_modules() if isinstance(layer, kinds)}
    given, seen = flat(params), flat(statistics or {})
    if layers.keys() != given.keys():
        raise ValueError(f"parameters are named {sorted(given)}, the layers are {sorted(layers)}")
    copy = lambda parameter, array: parameter.copy_(torch.from_numpy(np.array(array)).reshape(parameter.shape))
    for name, layer in layers.items():
        leaves = given[name]
        if isinstance(layer, nn.BatchNorm1d):
            copy(layer.weight, leaves["scale"])
            if name in seen:
                copy(layer.running_mean, seen[name]["mean"])
                copy(layer.running_var, seen[name]["var"])
        else:
            ends = (1, 2, 0) if layer.transposed else (2, 1, 0)
            kernel = np.transpose(leaves["kernel"], ends)
            if "scale" in leaves:
                copy(layer.parametrizations.weight.original0, leaves["scale"])
                copy(layer.parametrizations.weight.original1, kernel)
            else:
                copy(layer.weight, kernel)
        if layer.bias is not None:
            copy(layer.bias, leaves["bias"])


def flat(tree: Mapping, path: tuple[str, ...] = ()) -> dict[str, Mapping]:
    """The layers of a tree of parameters by the names that lead there, without "conv"."""
    if tree and not any(isinstance(leaf, Mapping) for leaf in tree.values()):
        return {"_".join(name for name in path if name != "conv"): tree}
    return {name: leaf for key, below in tree.items() for name, leaf in flat(below, (*path, key)).items()}


def trainer(model, compiled: bool, stage: str) -> Callable[[], object]:
    """A training step of the same size as the JAX model's at this stage, on fixed clips of noise: call it, and it is
    done.

    compiled: through `torch.compile`. Raises ValueError for what this peer does not have.
    """
    if model.dtype != "float32":
        raise ValueError("the PyTorch RAVE computes in float32: --model.dtype float32")
    net, critic, moments = Autoencoder(model), Critic(model), Moments(model.latent)
    if compiled:
        for part in (net.encoder, net.decoder, critic):
            part.compile()
    net.encoder.train(stage == "autoencoder")
    critic.requires_grad_(stage == "critic")
    rates = {"critic": (critic, model.critic_rate)}
    optimizer = adam(*rates.get(stage, (net, model.learning_rate)))
    wave = torch.randn(model.batch_size, model.channels, model.segment).mul_(0.1)
    frames, size = model.segment // model.hop, math.prod(model.noise_strides)
    steps = model.segment // model.bands // size
    follow = follower(net, model.decay) if model.decay else lambda: None

    def step() -> object:
        drawn = torch.randn(model.batch_size, model.latent, frames)
        noise = None
        if model.noise_strides and stage != "autoencoder":
            noise = torch.empty(model.batch_size, model.bands * model.channels, steps, size).uniform_(-1, 1)
        if stage == "critic":
            return descend(optimizer, critic_loss(net, critic, model, wave, drawn, noise))
        if stage == "decoder":
            loss, mean = second_loss(net, critic, model, wave, drawn, noise)
        else:
            loss, mean = first_loss(net, model, wave, drawn, model.beta)
        loss = descend(optimizer, loss)
        follow()
        moments.follow(mean)
        return loss

    return step
