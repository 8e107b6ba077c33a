"""WaveRNN in plain PyTorch (Kalchbrenner et al. 2018, and the public reimplementation): what the JAX model is timed and
compared with.

Frames are [batch, mels, frames], samples [batch, time, parts]; layers are named so that `load` takes the JAX parameters
as they are. Left out: the cosine of the learning rate, and pruning.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.common import adam, follower

REACH = 2  # frames to either side that the upsampling sees
BYTE = 256
FLOOR, RANGE_DB = 1e-5, 100.0  # of the mel magnitudes, and what the features span


class Upsampling(nn.Module):
    """Frames [batch, mels, frames + 2 REACH] to the mels and the features of every sample [batch, time, ...]."""

    def __init__(self, model, features: int):
        super().__init__()
        width, self.factors, self.hop = model.width, model.factors, model.hop
        self.frames = nn.ModuleDict({"first": nn.Conv1d(model.mels, width, 2 * REACH + 1, bias=False)})
        self.frames["norm"] = nn.BatchNorm1d(width)
        for i in range(model.blocks):
            for part in ("first", "second"):
                self.frames[f"block_{i}_{part}"] = nn.Conv1d(width, width, 1, bias=False)
                self.frames[f"block_{i}_norm_{part}"] = nn.BatchNorm1d(width)
        self.frames["last"] = nn.Conv1d(width, features, 1)
        self.smoothing = nn.ModuleDict(
            {
                f"filter_{i}": nn.Conv2d(1, 1, (1, 2 * factor + 1), padding=(0, factor), bias=False)
                for i, factor in enumerate(self.factors)
            }
        )
        for layer in self.smoothing.values():
            nn.init.constant_(layer.weight, 1 / layer.weight.numel())
        self.blocks = model.blocks

    def forward(self, mels: Tensor) -> tuple[Tensor, Tensor]:
        net = self.frames
        x = F.relu(net["norm"](net["first"](mels)))
        for i in range(self.blocks):
            y = F.relu(net[f"block_{i}_norm_first"](net[f"block_{i}_first"](x)))
            x = x + net[f"block_{i}_norm_second"](net[f"block_{i}_second"](y))
        aux = net["last"](x).repeat_interleave(self.hop, -1)
        fine = mels[:, None]
        for factor, layer in zip(self.factors, self.smoothing.values(), strict=True):
            fine = layer(fine.repeat_interleave(factor, -1))
        around = REACH * self.hop
        return fine[:, 0, :, around:-around].mT, aux.mT


class WaveRNN(nn.Module):
    """Samples before (inputs [batch, time, parts]) and frames to the outputs [batch, time, outputs]."""

    def __init__(self, model):
        super().__init__()
        self.model, self.dual = model, model.output == "dual"
        count = 1 if self.dual else model.layers + model.dense
        self.up = Upsampling(model, model.aux * count)
        self.net, seen = nn.ModuleDict(), model.mels + model.aux
        if self.dual:
            self.net["layer_0"] = HalfBlind(3 + seen, model.units)
            for part in ("coarse", "fine"):
                self.net[f"{part}_hidden"] = nn.Linear(model.units // 2, model.hidden)
                self.net[f"{part}_last"] = nn.Linear(model.hidden, BYTE)
            return
        self.net["source"] = nn.Linear(1 + seen, model.units)
        for i in range(model.layers):
            self.net[f"layer_{i}"] = nn.GRU(model.units + (model.aux if i else 0), model.units, batch_first=True)
        for i in range(model.dense):
            self.net[f"dense_{i}"] = nn.Linear((model.hidden if i else model.units) + model.aux, model.hidden)
        self.net["last"] = nn.Linear(model.hidden, 30 if model.output == "mol" else model.levels)

    def forward(self, inputs: Tensor, frames: Tensor) -> Tensor:
        model, net = self.model, self.net
        mels, aux = self.up(frames)
        if self.dual:
            h, _ = net["layer_0"](torch.cat([inputs, mels, aux], -1))
            halves = zip(("coarse", "fine"), h.chunk(2, -1), strict=True)
            return torch.cat([net[f"{n}_last"](F.relu(net[f"{n}_hidden"](x))) for n, x in halves], -1)
        aux = aux.split(model.aux, -1)
        x = net["source"](torch.cat([inputs, mels, aux[0]], -1))
        for i in range(model.layers):
            h, _ = net[f"layer_{i}"](torch.cat([x, aux[i]], -1) if i else x)
            x = x + h
        for i in range(model.dense):
            x = F.relu(net[f"dense_{i}"](torch.cat([x, aux[model.layers + i]], -1)))
        return net["last"](x)


class HalfBlind(nn.GRU):
    """The layer of `dual`: its first half does not see the third input, the upper byte that it is to predict."""

    def __init__(self, inputs: int, units: int):
        super().__init__(inputs, units, batch_first=True)
        self.blind()
        self.weight_ih_l0.register_hook(lambda slope: blinded(slope.clone()))

    @torch.no_grad()
    def blind(self) -> None:
        blinded(self.weight_ih_l0)


def blinded(weight: Tensor) -> Tensor:
    """Zeros where the weights [3 units, inputs] of the first half meet the third input; in place."""
    weight.unflatten(0, (3, 2, -1))[:, 0, :, 2] = 0
    return weight


@torch.no_grad()
def load(module: WaveRNN, params: Mapping, statistics: Mapping | None = None) -> None:
    """Copies the JAX parameters in and, if they are given, the running statistics of the batch norm."""
    as_torch = lambda x: torch.from_numpy(np.array(x))
    for name, layer in module.up.frames.items():
        given = params["frames"][name]
        if isinstance(layer, nn.BatchNorm1d):
            layer.weight.copy_(as_torch(given["scale"]))
            if statistics is not None:
                layer.running_mean.copy_(as_torch(statistics["frames"][name]["mean"]))
                layer.running_var.copy_(as_torch(statistics["frames"][name]["var"]))
        else:
            layer.weight.copy_(as_torch(given["kernel"]).mT.reshape(layer.weight.shape) if layer.kernel_size == (1,)
                               else as_torch(given["kernel"]).permute(2, 1, 0))  # fmt: skip
        if layer.bias is not None:
            layer.bias.copy_(as_torch(given["bias"]))
    for name, layer in module.up.smoothing.items():
        layer.weight.copy_(as_torch(params["smoothing"][name]).reshape(layer.weight.shape))
    for name, layer in module.net.items():
        given, ends = params[name], {"": ""}
        if isinstance(layer, nn.GRU):
            ends = {"_ih_l0": "input", "_hh_l0": "recurrent_0"}
        for end, part in ends.items():
            found = given[part] if part else given
            getattr(layer, f"weight{end}").copy_(as_torch(found["kernel"]).mT)
            getattr(layer, f"bias{end}").copy_(as_torch(found["bias"]))
        if isinstance(layer, HalfBlind):
            layer.blind()


# ---------------------------------------------------------------------------------------------------- sound and codes


def encode(model, wave: Tensor) -> Tensor:
    """Codes of amplitudes."""
    steps = model.levels - 1
    if model.output == "raw":
        wave = wave.sign() * torch.log1p(steps * wave.abs()) / math.log1p(steps)
    return torch.floor((wave.clip(-1, 1) + 1) / 2 * steps + 0.5).long()


def decode(model, codes: Tensor) -> Tensor:
    """Amplitudes of codes."""
    steps = model.levels - 1
    y = 2 * codes / steps - 1
    return y.sign() * torch.expm1(y.abs() * math.log1p(steps)) / steps if model.output == "raw" else y


def parts(model, codes: Tensor) -> Tensor:
    """Codes as the network sees them, [..., parts]."""
    if model.output == "dual":
        return torch.stack([codes // BYTE, codes % BYTE], -1) / 127.5 - 1
    return 2 * codes[..., None] / (model.levels - 1) - 1


def picture(model, wave: Tensor, filters: Tensor) -> Tensor:
    """Frames [batch, mels, frames] of the windows that lie wholly in sounds [batch, time]; filters: [bins, mels]."""
    missing = model.fft - model.window
    padded = F.pad(wave, (missing // 2, missing - missing // 2))
    window = torch.hann_window(model.window, device=wave.device, dtype=wave.dtype)
    spectrum = torch.stft(padded, model.fft, model.hop, model.window, window, center=False, return_complex=True)
    level = 20 * torch.log10((filters.T @ spectrum.abs()).clip(min=FLOOR))
    return ((level - model.loudest_db) / RANGE_DB + 1).clip(0, 1)


# ------------------------------------------------------------------------------------------------------------- training


def loss(net: WaveRNN, wave: Tensor, filters: Tensor) -> Tensor:
    """Nats per sample of training examples [batch, time]."""
    model, first = net.model, net.model.margin * net.model.hop
    around = (model.margin - REACH) * model.hop
    with torch.no_grad():
        frames = picture(model, wave[:, around - model.edges[0] : wave.shape[1] - around + model.edges[1]], filters)
        codes = encode(model, wave[:, first - 1 : first + model.predicted])
        inputs, codes = parts(model, codes[:, :-1]), codes[:, 1:]
        if net.dual:
            inputs = torch.cat([inputs, parts(model, codes)[..., :1]], -1)
    outputs = net(inputs, frames)
    if model.output == "mol":
        return -mixture_log_likelihood(outputs, codes, model.levels).mean()
    if net.dual:
        both = zip(outputs.chunk(2, -1), (codes // BYTE, codes % BYTE), strict=True)
        return sum(F.cross_entropy(logits.flatten(0, 1), code.flatten()) for logits, code in both)
    return F.cross_entropy(outputs.flatten(0, 1), codes.flatten())


def mixture_log_likelihood(outputs: Tensor, codes: Tensor, levels: int) -> Tensor:
    """ln of the probability of codes by a discretised mixture of logistics (Salimans et al. 2017)."""
    logits, mean, log_scale = outputs.chunk(3, -1)
    sharp, half = torch.exp(-log_scale.clip(min=math.log(1e-7))), 1 / (levels - 1)
    away = (2 * codes * half - 1)[..., None] - mean
    above, below = F.logsigmoid((away + half) * sharp), F.logsigmoid(-(away - half) * sharp)
    code = codes[..., None]
    inner = above + below + torch.log(-torch.expm1(-2 * half * sharp))
    cell = torch.where(code == 0, above, torch.where(code == levels - 1, below, inner))
    return torch.logsumexp(F.log_softmax(logits, -1) + cell, -1)


def trainer(model, compiled: bool) -> Callable[[], object]:
    """A training step of the same size as the JAX model's, on fixed clips of noise: call it, and it is done.

    compiled: through `torch.compile`. Raises ValueError for what this peer does not have.
    """
    if model.sparsity or model.dtype != "float32":
        raise ValueError("the PyTorch WaveRNN is not pruned and computes in float32: add --model.sparsity 0")
    net = WaveRNN(model)
    if compiled:
        net.compile()
    optimizer = adam(net, model.learning_rate, (0.9, 0.999))
    wave = torch.randn(model.batch_size, model.segment).mul_(0.1)
    filters = torch.from_numpy(model.filters)
    follow = follower(net, model.decay) if model.decay else lambda: None

    def step() -> object:
        optimizer.zero_grad(set_to_none=True)
        value = loss(net, wave, filters)
        value.backward()
        nn.utils.clip_grad_norm_(net.parameters(), model.clip)
        optimizer.step()
        follow()
        return value.detach()

    return step


# ------------------------------------------------------------------------------------------------------------- sampling


@torch.inference_mode()
def sample(net: WaveRNN, frames: Tensor) -> Tensor:
    """The sound [batch, time] of frames [batch, mels, frames + 2 REACH], as the public code draws it: an eager loop
    over samples, its layers as cells."""
    model = net.eval().model
    mels, aux = net.up(frames)
    cells = {name: cell(layer) for name, layer in net.net.items() if isinstance(layer, nn.GRU)}
    hidden = [torch.zeros(len(frames), model.units) for _ in cells]
    code, codes = encode(model, torch.zeros(len(frames))), []
    for t in range(mels.shape[1]):
        step = _dual_step if net.dual else _step
        code, hidden = step(net, cells, hidden, parts(model, code), mels[:, t], aux[:, t])
        codes.append(code)
    return decode(model, torch.stack(codes, 1))


def cell(gru: nn.GRU) -> nn.GRUCell:
    """One step of a layer, with its weights."""
    made = nn.GRUCell(gru.input_size, gru.hidden_size)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        setattr(made, name, getattr(gru, f"{name}_l0"))
    return made


def _step(net, cells, hidden, before, mels, aux):
    model, layers, aux, new = net.model, net.net, aux.split(net.model.aux, -1), []
    x = layers["source"](torch.cat([before, mels, aux[0]], -1))
    for i in range(model.layers):
        new.append(cells[f"layer_{i}"](torch.cat([x, aux[i]], -1) if i else x, hidden[i]))
        x = x + new[-1]
    for i in range(model.dense):
        x = F.relu(layers[f"dense_{i}"](torch.cat([x, aux[model.layers + i]], -1)))
    x = layers["last"](x)
    if model.output == "raw":
        return torch.multinomial(x.softmax(-1), 1)[:, 0], new
    logits, mean, log_scale = x.chunk(3, -1)
    chosen = torch.multinomial(logits.softmax(-1), 1)[:, 0][:, None]
    uniform = torch.empty(len(x)).uniform_(1e-5, 1 - 1e-5)
    scale = torch.exp(log_scale.gather(1, chosen).squeeze(1).clip(min=math.log(1e-7)))
    value = mean.gather(1, chosen).squeeze(1) + scale * torch.logit(uniform)
    return encode(model, value), new


def _dual_step(net, cells, hidden, before, mels, aux):
    """The product with the state is one, the gates of the lower byte wait for the upper one."""
    gru, layers, (h,) = cells["layer_0"], net.net, hidden
    products = F.linear(h, gru.weight_hh, gru.bias_hh).unflatten(1, (3, 2, -1))
    seen = torch.cat([before, torch.zeros(len(h), 1), mels, aux], -1)
    given = F.linear(seen, gru.weight_ih, gru.bias_ih).unflatten(1, (3, 2, -1)).clone()
    drawn, carried = [], []
    for i, name in enumerate(("coarse", "fine")):
        if i:
            upper = drawn[0][:, None] / 127.5 - 1
            given = given + (upper * gru.weight_ih[:, 2]).unflatten(1, (3, 2, -1))
        r, z = (torch.sigmoid(given[:, n, i] + products[:, n, i]) for n in range(2))
        n = torch.tanh(given[:, 2, i] + r * products[:, 2, i])
        carried.append(n + z * (h.chunk(2, 1)[i] - n))
        logits = layers[f"{name}_last"](F.relu(layers[f"{name}_hidden"](carried[i])))
        drawn.append(torch.multinomial(logits.softmax(-1), 1)[:, 0])
    return drawn[0] * BYTE + drawn[1], [torch.cat(carried, 1)]


def sampler(model, streams: int, frames: int) -> Callable[[], Tensor]:
    """Draws the sound of so many frames for so many streams: call it, and it is done."""
    net, given = WaveRNN(model), torch.rand(streams, model.mels, frames + 2 * REACH)
    return lambda: sample(net, given)
