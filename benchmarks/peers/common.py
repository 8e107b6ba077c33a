"""What the models in plain PyTorch share: updates, averaged weights, the JAX parameters, pictures of spectrograms.

Signals are [batch, channels, ...]; a critic maps them to scores [batch]. Randomness is an argument of the updates: both
sides of a comparison can be fed the same.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

DEVIATIONS = 3.0  # standard deviations that the range of the pictures spans to either side


def glorot(module: nn.Module) -> None:
    """TensorFlow's initialisation: Glorot uniform kernels, biases of zero."""
    if hasattr(module, "weight"):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


def adam(module: nn.Module, rate: float = 1e-4, betas: tuple[float, float] = (0.5, 0.9)) -> torch.optim.Adam:
    """The optimiser of a network; WGAN-GP's where nothing is said."""
    return torch.optim.Adam(module.parameters(), lr=rate, betas=betas, eps=1e-8, fused=True)


@torch.no_grad()
def load(module: nn.Module, params: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Copies the JAX parameters in: one weight, by any name, and a `bias` if there is one; `up.0` here is `up_0` there.

    Kernels are [in, out] for dense layers and [*taps, in, out] for both kinds of convolution; neither kind is flipped.
    Raises ValueError where layers are named otherwise.
    """
    layers = {name.replace(".", "_"): layer for name, layer in module.named_modules() if hasattr(layer, "weight")}
    if layers.keys() != params.keys():
        raise ValueError(f"parameters are named {sorted(params)}, the layers are {sorted(layers)}")
    for name, layer in layers.items():
        leaves = dict(params[name])
        if "bias" in leaves:
            layer.bias.copy_(torch.from_numpy(np.array(leaves.pop("bias"))))
        (weight,) = leaves.values()
        if "kernel" in leaves:
            ends = (-2, -1) if getattr(layer, "transposed", False) else (-1, -2)
            weight = np.moveaxis(weight, ends, (0, 1))
        layer.weight.copy_(torch.from_numpy(np.array(weight)))


def uniform(shape: Sequence[int], device: torch.device) -> Tensor:
    """Latents: uniform in [-1, 1]."""
    return torch.empty(*shape, device=device).uniform_(-1, 1)


def update_critic(
    generator: nn.Module, optimizer: torch.optim.Optimizer, latents: Tensor, loss: Callable[[Tensor], Tensor]
) -> Tensor:
    """One critic update; returns the loss. loss: of the generated signals; latents: [batch, latent]."""
    with torch.no_grad():
        fake = generator(latents)
    return descend(optimizer, loss(fake))


def update_generator(
    generator: nn.Module,
    critic: nn.Module,
    optimizer: torch.optim.Optimizer,
    latents: Tensor,
    loss: Callable[[Tensor], Tensor],
) -> Tensor:
    """One generator update, the critic held; returns the loss. loss: of the generated signals."""
    critic.requires_grad_(False)
    value = descend(optimizer, loss(generator(latents)))
    critic.requires_grad_(True)
    return value


def follower(module: nn.Module, decay: float) -> Callable[[], None]:
    """A call that moves averaged weights towards the module's, which sounds are made from in the end."""
    averages = [parameter.detach().clone() for parameter in module.parameters()]

    @torch.no_grad()
    def follow() -> None:
        for average, parameter in zip(averages, module.parameters(), strict=True):
            average.lerp_(parameter, 1 - decay)

    return follow


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    """One update down the slope of the loss, which comes back."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


def wasserstein(
    scores: Sequence[Callable[[Tensor], Tensor]], real: Tensor, fake: Tensor, mix: Tensor, penalty: float
) -> Tensor:
    """The critic's loss of WGAN-GP (eq. 3), without its last term if `penalty` is 0.

    scores: the critic as it is called on real signals, on generated ones and on those between, which lie at the share
    mix [batch] of the way.
    """
    loss = scores[1](fake).mean() - scores[0](real).mean()
    if penalty:
        between = torch.lerp(real, fake, mix.reshape(-1, *[1] * (real.ndim - 1))).requires_grad_()
        (slopes,) = torch.autograd.grad(scores[2](between).sum(), between, create_graph=True)
        loss = loss + penalty * (slopes.flatten(1).norm(dim=1) - 1).square().mean()
    return loss


def magnitudes(wave: Tensor, size: int, hop: int, centred: bool = False) -> Tensor:
    """|STFT| [batch, channels, frames, bins], Hann window. Frame n begins at sample n * hop, zeros behind the end; or
    lies around its hop (`centred`), the ends reflected."""
    batch, channels, length = wave.shape
    if centred:
        padded = F.pad(wave.flatten(0, 1), ((size - hop) // 2,) * 2, "reflect")
    else:
        padded = F.pad(wave.flatten(0, 1), (0, max(0, (-(-length // hop) - 1) * hop + size - length)))
    window = torch.hann_window(size, device=wave.device)
    spectrum = torch.stft(padded, size, hop, window=window, center=False, return_complex=True)
    return spectrum.abs().mT.unflatten(0, (batch, channels))


def standardised(level: Tensor, measured: Mapping[str, Tensor]) -> Tensor:
    """Levels by the `mean` and `deviation` [bins] of the data, in [-1, 1]."""
    return ((level - measured["mean"]) / (DEVIATIONS * measured["deviation"])).clip(-1, 1)
