"""The Descript audio codec in plain PyTorch (Kumar et al. 2023, arXiv 2306.06546): what the JAX model is timed and
compared with.

Signals are [batch, channels, time] and layers are named so that `load` takes the JAX parameters as they are. How many
codebooks count is an argument of the losses: both sides can be fed the same.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from benchmarks.peers.common import follower
from benchmarks.peers.rave import Moments
from jaxaudio.dsp.mel import mel_filters

Maps = list[Tensor]  # of one critic, its scores last


class Snake(nn.Module):
    """The activation everywhere."""

    def __init__(self, width: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        alpha = self.alpha[:, None]
        return x + torch.sin(alpha * x).square() / (alpha + 1e-9)


class Conv(nn.Conv1d):
    """T frames to T / stride frames, centred or causal."""

    def __init__(self, into: int, out: int, taps: int, stride: int = 1, dilation: int = 1, causal: bool = False):
        over = dilation * (taps - 1) + 1 - stride
        self.before = over if causal else 0
        super().__init__(into, out, taps, stride, 0 if causal else over - over // 2, dilation)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (self.before, 0)) if self.before else x)


class ConvTranspose(nn.ConvTranspose1d):
    """T frames to T * stride frames, centred or causal; taps: twice the stride."""

    def __init__(self, into: int, out: int, stride: int, causal: bool):
        self.left = 0 if causal else stride - stride // 2
        super().__init__(into, out, 2 * stride, stride)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[..., self.left : self.left + x.shape[-1] * self.stride[0]]


class Unit(nn.Module):
    """A residual unit."""

    def __init__(self, width: int, dilation: int, causal: bool):
        super().__init__()
        self.before, self.between = Snake(width), Snake(width)
        self.dilated = weight_norm(Conv(width, width, 7, dilation=dilation, causal=causal))
        self.plain = weight_norm(Conv(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.plain(self.between(self.dilated(self.before(x))))


class Encoder(nn.Module):
    """Sound to latent frames [batch, latent, frames]."""

    def __init__(self, model):
        super().__init__()
        widths, causal = model.encoder_widths, model.causal
        self.first = weight_norm(Conv(model.channels, widths[0], 7, causal=causal))
        self.units = nn.ModuleList(stack(model, width) for width in widths[:-1])
        self.active = nn.ModuleList(Snake(width) for width in widths[:-1])
        self.down = nn.ModuleList(
            weight_norm(Conv(a, b, 2 * rate, rate, causal=causal))
            for (a, b), rate in zip(itertools.pairwise(widths), model.encoder_rates, strict=True)
        )
        self.active_last = Snake(widths[-1])
        self.last = weight_norm(Conv(widths[-1], model.latent, 3, causal=causal))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for units, active, down in zip(self.units, self.active, self.down, strict=True):
            x = down(active(units(x)))
        return self.last(self.active_last(x))


class Decoder(nn.Module):
    """Latent frames to sound."""

    def __init__(self, model):
        super().__init__()
        widths, causal = model.decoder_widths, model.causal
        self.first = weight_norm(Conv(model.latent, widths[0], 7, causal=causal))
        self.active = nn.ModuleList(Snake(width) for width in widths[:-1])
        self.up = nn.ModuleList(
            weight_norm(ConvTranspose(a, b, rate, causal))
            for (a, b), rate in zip(itertools.pairwise(widths), model.decoder_rates, strict=True)
        )
        self.units = nn.ModuleList(stack(model, width) for width in widths[1:])
        self.active_last = Snake(widths[-1])
        self.last = weight_norm(Conv(widths[-1], model.channels, 7, causal=causal))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for active, up, units in zip(self.active, self.up, self.units, strict=True):
            x = units(up(active(x)))
        return torch.tanh(self.last(self.active_last(x)))


class Codebook(nn.Module):
    """One codebook of the quantiser: what it takes, both losses [batch], and its codes [batch, frames]."""

    def __init__(self, latent: int, size: int, dim: int):
        super().__init__()
        self.into, self.out = weight_norm(nn.Conv1d(latent, dim, 1)), weight_norm(nn.Conv1d(dim, latent, 1))
        self.rows = nn.Parameter(torch.randn(size, dim))

    def forward(self, left: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        query = self.into(left)
        with torch.no_grad():
            codes = (F.normalize(query, dim=1).mT @ F.normalize(self.rows, dim=1).T).argmax(-1)
        taken = F.embedding(codes, self.rows).mT
        commitment = (query - taken.detach()).square().mean((1, 2))
        codebook = (taken - query.detach()).square().mean((1, 2))
        return self.out(query + (taken - query).detach()), commitment, codebook, codes


class Quantizer(nn.Module):
    """Latent frames to what the codes of the first `kept` [batch] codebooks tell, both losses and all codes."""

    def __init__(self, model):
        super().__init__()
        sizes = model.latent, model.codebook_size, model.codebook_dim
        self.codebook = nn.ModuleList(Codebook(*sizes) for _ in range(model.codebooks))

    def forward(self, left: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        whole, commitments, losses, codes = 0.0, 0.0, 0.0, []
        for i, codebook in enumerate(self.codebook):
            part, commitment, loss, code = codebook(left)
            counts, left = (i < kept).float(), left - part
            whole = whole + part * counts[:, None, None]
            commitments, losses = commitments + commitment * counts, losses + loss * counts
            codes.append(code)
        return whole, commitments, losses, torch.stack(codes, -1)


class Autoencoder(nn.Module):
    """Both halves and the quantiser: sound to sound, latent, both losses and codes."""

    def __init__(self, model):
        super().__init__()
        self.encoder, self.quantizer, self.decoder = Encoder(model), Quantizer(model), Decoder(model)

    def forward(self, wave: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        latent, *losses, codes = self.quantizer(self.encoder(wave), kept)
        return self.decoder(latent), latent, *losses, codes


class Periods(nn.ModuleDict):
    """Critics of periods."""

    def __init__(self, channels: int, periods: Sequence[int], widths: Sequence[int], always: bool = True):
        layers, self.periods, self.always = {}, periods, always
        for period in periods:
            for i, (a, b) in enumerate(itertools.pairwise((channels, *widths))):
                stride = 1 if i == len(widths) - 1 else 3
                layers[f"period_{period}_{i}"] = weight_norm(nn.Conv2d(a, b, (5, 1), (stride, 1), (2, 0)))
            layers[f"period_{period}_score"] = weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))
        super().__init__(layers)
        self.count = len(widths)

    def forward(self, wave: Tensor) -> list[Maps]:
        found = []
        for period in self.periods:
            missing = -wave.shape[-1] % period or (period if self.always else 0)
            x, maps = F.pad(wave, (0, missing), "reflect").unflatten(-1, (-1, period)), []
            for i in range(self.count):
                x = F.leaky_relu(self[f"period_{period}_{i}"](x), 0.1)
                maps.append(x)
            found.append([*maps, self[f"period_{period}_score"](x)])
        return found


class Spectra(nn.ModuleDict):
    """Critics of bands of complex spectra; EnCodec's by the last four options."""

    def __init__(
        self,
        channels: int,
        windows: Sequence[int],
        bands: Sequence[float],
        width: int,
        dilations: Sequence[int],
        slope: float = 0.1,
        matched: bool = True,
        normalised: bool = False,
    ):
        layers, self.windows, self.slope, self.matched, self.normalised = {}, windows, slope, matched, normalised
        self.edges = {size: [int(edge * (size // 2 + 1)) for edge in bands] for size in windows}
        self.count = len(dilations) + 2
        for size in windows:
            for band in range(len(bands) - 1):
                name = f"window_{size}_band_{band}"
                layers[f"{name}_0"] = weight_norm(nn.Conv2d(2 * channels, width, (3, 9), padding=(1, 4)))
                for i, d in enumerate(dilations):
                    given = {"padding": (d, 4), "dilation": (d, 1)}
                    layers[f"{name}_{i + 1}"] = weight_norm(nn.Conv2d(width, width, (3, 9), (1, 2), **given))
                layers[f"{name}_{self.count - 1}"] = weight_norm(nn.Conv2d(width, width, 3, padding=1))
            layers[f"window_{size}_score"] = weight_norm(nn.Conv2d(width, 1, 3, padding=1))
        super().__init__(layers)

    def forward(self, wave: Tensor) -> list[Maps]:
        found = []
        for size in self.windows:
            spectrum, maps, ends = self.spectrum(wave, size), [], []
            for band, (low, high) in enumerate(itertools.pairwise(self.edges[size])):
                x = spectrum[..., low:high]
                for i in range(self.count):
                    x = F.leaky_relu(self[f"window_{size}_band_{band}_{i}"](x), self.slope)
                    maps.append(x)
                ends.append(x)
            found.append([*maps, self[f"window_{size}_score"](torch.cat(ends, -1))])
        return found

    def spectrum(self, wave: Tensor, size: int) -> Tensor:
        """[batch, 2 channels, frames, bins]."""
        hop, window = size // 4, torch.hann_window(size)
        if self.matched:
            around = (size - hop) // 2
            wave = F.pad(wave, (around, around - wave.shape[-1] % -hop), "reflect")
        found = torch.stft(wave.flatten(0, 1), size, hop, window=window, center=False, return_complex=True)
        if self.normalised:
            found = found / window.square().sum().sqrt()
        found = found.mT.unflatten(0, wave.shape[:2])
        return torch.cat([found.real, found.imag], 1)


class Critic(nn.Module):
    """All critics of the Descript codec."""

    def __init__(self, model):
        super().__init__()
        self.periods = Periods(model.channels, model.periods, model.period_widths)
        sizes = model.windows, model.bands, model.window_width, (1,) * model.halvings
        self.spectra = Spectra(model.channels, *sizes)

    def forward(self, wave: Tensor) -> list[Maps]:
        wave = wave - wave.mean(-1, keepdim=True)
        wave = 0.8 * wave / (wave.abs().amax(-1, keepdim=True) + 1e-9)
        return self.periods(wave) + self.spectra(wave)


def stack(model, width: int) -> nn.Sequential:
    """The residual units of a stage."""
    return nn.Sequential(*(Unit(width, dilation, model.causal) for dilation in model.dilations))


def mel_distance(model, filters: Sequence[Tensor], a: Tensor, b: Tensor) -> Tensor:
    """The mel distance of b from a, the mean over examples; a needs no gradient."""
    total = 0.0
    for size, bands in zip(model.mel_windows, filters, strict=True):
        window = torch.hann_window(size)
        heard = lambda x, size=size, bands=bands, window=window: (
            torch.stft(x.flatten(0, 1), size, size // 4, window=window, return_complex=True).abs().mT @ bands
        )
        with torch.no_grad():
            x = heard(a).clamp(1e-5).log10()
        total = total + F.l1_loss(heard(b).clamp(1e-5).log10(), x)
    return total


def filters_of(model) -> list[Tensor]:
    """The mel bands of each window."""
    sizes = zip(model.mel_windows, model.mels, strict=True)
    return [torch.from_numpy(mel_filters(model.sample_rate, size, count)) for size, count in sizes]


def critic_loss(critic: Critic, wave: Tensor, made: Tensor) -> Tensor:
    """Least squares, summed over the critics."""
    real, fake = critic(wave), critic(made.detach())
    return sum((1 - r[-1]).square().mean() + f[-1].square().mean() for r, f in zip(real, fake, strict=True))


def autoencoder_loss(critic: Critic, model, filters: Sequence[Tensor], wave: Tensor, found) -> Tensor:
    """The weighted terms; found: what the autoencoder gave."""
    made, _, commitment, codebook, _ = found
    with torch.no_grad():
        real = critic(wave)
    fake = critic(made)
    pairs = ((a, b) for r, f in zip(real, fake, strict=True) for a, b in zip(r[:-1], f[:-1], strict=True))
    return (
        model.mel * mel_distance(model, filters, wave, made)
        + model.adversarial * sum((1 - maps[-1]).square().mean() for maps in fake)
        + model.features * sum(F.l1_loss(b, a) for a, b in pairs)
        + model.commitment * commitment.mean()
        + model.codebook * codebook.mean()
    )


@torch.no_grad()
def load(module: nn.Module, params: Mapping) -> None:
    """Copies the JAX parameters in. Raises ValueError where there are others than the module has."""
    leaves = {"kernel": "parametrizations.weight.original1", "scale": "parametrizations.weight.original0"}
    given, own = flat(params), dict(module.named_parameters())
    known = {name.replace(".", "_"): name for name in own}
    places = {
        path: known.get("_".join([*path[:-1], leaves.get(path[-1], path[-1]).replace(".", "_")])) for path in given
    }
    if sorted(map(str, places.values())) != sorted(own):
        raise ValueError(f"parameters are named {sorted(given)}, those here {sorted(own)}")
    for path, name in places.items():
        array = np.asarray(given[path])
        if path[-1] == "kernel":  # [*taps, in, out]; a transposed convolution's is [in, out, *taps] here
            ends = (0, 1) if path[-2].startswith("up_") else (1, 0)
            array = np.moveaxis(array, (-2, -1), ends)
        own[name].copy_(torch.from_numpy(array.copy()).reshape(own[name].shape))


def flat(tree: Mapping, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], np.ndarray]:
    """The leaves of a tree of parameters by the names that lead there, without "conv"."""
    if not isinstance(tree, Mapping):
        return {tuple(name for name in path if name != "conv"): tree}
    return {name: leaf for key, below in tree.items() for name, leaf in flat(below, (*path, key)).items()}


def trainer(model, compiled: bool) -> Callable[[], object]:
    """A training step of the same size as the JAX model's, both networks, on fixed clips of noise: call it, and it is
    done.

    compiled: through `torch.compile`. Raises ValueError for what this peer does not have.
    """
    fields = {"dtype": "float32", "bottleneck": "factorised", "activation": "snake", "critic": "descript", "stft": 0}
    for name, value in fields.items():
        if getattr(model, name) != value:
            raise ValueError(f"the PyTorch codec has {name} {value} alone: --model.{name} {value}")
    net, critic, filters, moments = Autoencoder(model), Critic(model), filters_of(model), Moments(model.latent)
    if compiled:
        for part in (net, critic):
            part.compile()
    rates = ((net, model.learning_rate), (critic, model.critic_rate))
    given = {"betas": (0.8, 0.99), "weight_decay": model.weight_decay, "fused": True}
    optimizer, critic_optimizer = (torch.optim.AdamW(part.parameters(), lr=rate, **given) for part, rate in rates)
    wave = torch.randn(model.batch_size, model.channels, model.segment).mul_(0.1)
    follow = follower(net, model.decay) if model.decay else lambda: None

    def descend(part: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, clip: float) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(part.parameters(), clip)
        optimizer.step()

    def step() -> object:
        kept = torch.full((len(wave),), model.codebooks)
        dropped = torch.rand(len(wave)) < model.quantizer_dropout
        kept = torch.where(dropped, torch.randint(1, model.codebooks + 1, (len(wave),)), kept)
        found = net(wave, kept)
        descend(critic, critic_optimizer, critic_loss(critic, wave, found[0]), model.critic_clip)
        critic.requires_grad_(False)
        loss = autoencoder_loss(critic, model, filters, wave, found)
        descend(net, optimizer, loss, model.clip)
        critic.requires_grad_(True)
        moments.follow(found[1].detach())
        follow()
        return loss.detach()

    return step
