"""The classifiers in plain PyTorch: what the JAX model is timed and compared with.

`panns` is CNN14 (Kong et al. 2020, arXiv 1912.10211), `sc09` the network of the WaveGAN code's scores (Donahue et al.
2019). Pictures are [batch, channels, frames, mels]. Left out: the schedule of the learning rate.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.common import follower, magnitudes


class PANNs(nn.ModuleDict):
    """Logits [batch, classes]; in training, masked and mixed by shares [batch]."""

    def __init__(self, model):
        layers, into = {"norm_mels": nn.BatchNorm2d(model.mels)}, model.channels
        for i, width in enumerate(model.widths):
            for n in (0, 1):
                layers[f"conv_{i}_{n}"] = nn.Conv2d(into, width, 3, padding=1, bias=False)
                layers[f"norm_{i}_{n}"] = nn.BatchNorm2d(width)
                into = width
        if model.hidden:
            layers["hidden"] = nn.Linear(into, model.hidden)
            into = model.hidden
        layers["classes"] = nn.Linear(into, model.classes)
        super().__init__(layers)
        self.model = model

    def forward(self, x: Tensor, share: Tensor | None) -> Tensor:
        model = self.model
        x = self["norm_mels"](x.transpose(1, 3)).transpose(1, 3)
        if self.training:
            x = hidden_stripes(x, 2, model.time_masks, model.time_width)
            x = hidden_stripes(x, 3, model.mel_masks, model.mel_width)
        x = mixed(x, share)
        for i in range(len(model.widths)):
            for n in (0, 1):
                x = F.relu(self[f"norm_{i}_{n}"](self[f"conv_{i}_{n}"](x)))
            if i + 1 < len(model.widths):
                x = F.avg_pool2d(x, 2)
            x = F.dropout(x, model.block_dropout, self.training)
        x = x.mean(3)
        x = x.amax(2) + x.mean(2)
        if model.hidden:
            x = F.relu(self["hidden"](F.dropout(x, model.dropout, self.training)))
        return self["classes"](F.dropout(x, model.dropout, self.training))


class SC09(nn.ModuleDict):
    """The same of four blocks of batch norm, 5 x 5 convolution, ReLU and max pooling."""

    def __init__(self, model):
        layers, into = {}, model.channels
        for i, width in enumerate(model.widths):
            layers[f"norm_{i}"] = nn.BatchNorm2d(model.mels if i == 0 else into, 1e-3, 0.01)
            layers[f"conv_{i}"] = nn.Conv2d(into, width, 5, padding=2)
            into = width
        frames, mels = (size >> len(model.widths) for size in model.shape)
        layers["norm"] = nn.BatchNorm1d(frames * mels * into, 1e-3, 0.01)
        layers["classes"] = nn.Linear(frames * mels * into, model.classes)
        super().__init__(layers)
        self.blocks = len(model.widths)

    def forward(self, x: Tensor, share: Tensor | None) -> Tensor:
        x = mixed(x, share)
        for i in range(self.blocks):
            norm = self[f"norm_{i}"]
            x = norm(x) if i else norm(x.transpose(1, 3)).transpose(1, 3)
            x = F.max_pool2d(F.relu(self[f"conv_{i}"](x)), 2)
        return self["classes"](self["norm"](x.permute(0, 2, 3, 1).flatten(1)))


def picture(model, filters: Tensor, wave: Tensor) -> Tensor:
    """Log-mel bands of sounds [batch, channels, time]."""
    if model.padding == "tensorflow":
        found = magnitudes(wave, model.window, model.hop)
    else:
        given = {"window": torch.hann_window(model.window), "return_complex": True, "pad_mode": "reflect"}
        found = torch.stft(wave.flatten(0, 1), model.window, model.hop, **given).abs().mT.unflatten(0, wave.shape[:2])
    bands = found**model.power @ filters
    return (bands + model.floor if model.network == "sc09" else bands.clamp(min=model.floor)).log()


def augmented(model, x: Tensor) -> Tensor:
    """Pictures stretched along the frequency axis and moved in time, each by its own draw."""
    rows, _, frames, mels = x.shape
    along = lambda at, axis: at.reshape([-1, 1, *((1, mels) if axis == 3 else (frames, 1))]).expand(x.shape)
    if model.warp:
        factor = 1 + torch.empty(rows, 1).uniform_(-model.warp, model.warp)
        at = (torch.arange(mels) * factor).clamp(0, mels - 1)
        below = at.long().clamp(max=mels - 2)
        low, high = (x.gather(3, along(each, 3)) for each in (below, below + 1))
        x = torch.lerp(low, high, along(at - below, 3))
    if model.shift:
        most = round(model.shift * frames)
        by = torch.randint(-most, most + 1, (rows, 1))
        x = x.gather(2, along((torch.arange(frames) - by) % frames, 2))
    return x


def hidden_stripes(x: Tensor, axis: int, count: int, width: int) -> Tensor:
    """SpecAugment: `count` stripes across `axis` of every example set to 0, each up to `width` wide."""
    rows, size = len(x), x.shape[axis]
    for _ in range(count if width else 0):
        wide = torch.randint(width + 1, (rows, 1))
        start = (torch.rand(rows, 1) * (size - wide + 1)).long()
        place = torch.arange(size)
        hidden = (place >= start) & (place < start + wide)
        x = x.masked_fill(hidden[:, None, :, None] if axis == 2 else hidden[:, None, None], 0.0)
    return x


def mixed(x: Tensor, share: Tensor | None) -> Tensor:
    """Every row mixed with its neighbour in the pair (0, 1), (2, 3), ...; x itself without shares [batch]."""
    if share is None:
        return x
    other = x.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    return torch.lerp(other, x, share.reshape(-1, *[1] * (x.ndim - 1)))


def loss(model, network: nn.Module, x: Tensor, label: Tensor, share: Tensor | None) -> Tensor:
    """Cross-entropy of pictures with smoothed, mixed targets."""
    target = (1 - model.smoothing) * F.one_hot(label, model.classes) + model.smoothing / model.classes
    return F.cross_entropy(network(x, share), mixed(target, share))


def network_of(model) -> nn.Module:
    """As its fields say."""
    return {"panns": PANNs, "sc09": SC09}[model.network](model)


def optimizer_of(model, network: nn.Module) -> torch.optim.Optimizer:
    """As its fields say; kernels alone decay."""
    if model.optimizer == "sgd":
        return torch.optim.SGD(network.parameters(), model.learning_rate, fused=True)
    if model.optimizer == "amsgrad":
        return torch.optim.Adam(network.parameters(), model.learning_rate, amsgrad=True, fused=True)
    kernels, others = ([p for p in network.parameters() if (p.ndim > 1) == which] for which in (True, False))
    groups = [{"params": kernels, "weight_decay": model.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, model.learning_rate, fused=True)


def trainer(model, compiled: bool) -> Callable[[], object]:
    """A training step of the same size as the JAX model's, on fixed sounds of noise: call it, and it is done.

    compiled: through `torch.compile`. Raises ValueError for what this peer does not have.
    """
    if model.dtype != "float32":
        raise ValueError("the PyTorch classifier computes in float32: --model.dtype float32")
    network, filters = network_of(model), torch.from_numpy(model.filters)
    if compiled:
        network.compile()
    optimizer = optimizer_of(model, network)
    follow = follower(network, model.decay) if model.decay else lambda: None
    wave = torch.randn(model.batch_size, model.channels, model.segment).mul_(0.1)
    label = torch.randint(model.classes, (model.batch_size,))
    beta = torch.distributions.Beta(model.mixup, model.mixup) if model.mixup else None

    def step() -> object:
        share = beta.sample((len(wave),)) if beta else None
        value = loss(model, network, augmented(model, picture(model, filters, wave)), label, share)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        follow()
        return value.detach()

    return step
