"""SampleRNN in plain PyTorch, on nn.GRU: what the JAX model is timed and compared with.

Mehri et al. 2017 (arXiv 1612.07837), built as PyTorch users build it: the embeddings of the nearest codes side by side
through a linear layer, sequences through `nn.GRU`, samples one by one through the same modules. Left out: cells other
than PyTorch's GRU, weight norm, labels, 16 bits, the independent head.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.common import adam, follower


class Tier(nn.Module):
    """A recurrence over frames of codes."""

    def __init__(self, model, number: int):
        super().__init__()
        frame, self.ratio = model.frames[number], model.frames[number] // (*model.frames, 1)[number + 1]
        self.expand = nn.Linear(frame, model.width) if number else None
        self.gru = nn.GRU(model.width if number else frame, model.width, model.layers, batch_first=True)
        self.first = nn.Parameter(torch.zeros(model.layers, 1, model.width))
        self.up = nn.Linear(model.width, self.ratio * model.width)

    def forward(self, frames: Tensor, above: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """frames: [batch, time, frame]; above: [batch, time, width]. What the next tier hears, and the state."""
        x = frames if self.expand is None else self.expand(frames) + above
        state = self.first.expand(-1, len(x), -1).contiguous() if state is None else state
        x, state = self.gru(x, state)
        return self.up(x).unflatten(2, (self.ratio, -1)).flatten(1, 2), state


class SampleRNN(nn.Module):
    """All tiers; codes are [batch, time]."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.tiers = nn.ModuleList(Tier(model, i) for i in range(len(model.frames)))
        self.embedding = nn.Embedding(model.levels, model.embedding)
        self.first = nn.Linear(model.frames[-1] * model.embedding, model.width, bias=False)
        self.second, self.third = nn.Linear(model.width, model.width), nn.Linear(model.width, model.width)
        self.out = nn.Linear(model.width, model.levels)

    def forward(self, codes: Tensor, states: list[Tensor | None]) -> tuple[Tensor, list[Tensor]]:
        """Bits per sample [batch, time] of all codes behind the first frame, and the states behind them."""
        model, above, after = self.model, None, []
        time, seen = codes.shape[1] - model.frame, 2 * (codes.float() * (2 / (model.levels - 1)) - 1)
        for tier, frame, state in zip(self.tiers, model.frames, states, strict=True):
            start = model.frame - frame
            above, state = tier(seen[:, start : start + time].unflatten(1, (-1, frame)), above, state)
            after.append(state)
        near = codes[:, model.frame - model.frames[-1] : -1].unfold(1, model.frames[-1], 1)
        logits = self.sample(near, above)
        return F.cross_entropy(logits.transpose(1, 2), codes[:, model.frame :], reduction="none") / math.log(2), after

    def sample(self, near: Tensor, above: Tensor) -> Tensor:
        """Logits; near: [..., codes just before the sample]."""
        hidden = F.relu(self.second(self.first(self.embedding(near).flatten(-2)) + above))
        return self.out(F.relu(self.third(hidden)))


def load(network: SampleRNN, params: Mapping) -> None:
    """Copies the JAX parameters in."""
    tensor = lambda x: torch.from_numpy(np.array(x))

    def linear(module: nn.Linear, given: Mapping) -> None:
        module.weight.data = tensor(given["kernel"]).T.contiguous()
        if module.bias is not None:
            module.bias.data = tensor(given["bias"])

    for number, tier in enumerate(network.tiers):
        name = f"tier_{number}"
        if tier.expand is not None:
            linear(tier.expand, params[f"{name}_expand"])
        linear(tier.up, params[f"{name}_up"])
        for i in range(network.model.layers):
            layer = params[f"{name}_gru_{i}"]
            for half, part in (("ih", "input"), ("hh", "recurrent_0")):
                getattr(tier.gru, f"weight_{half}_l{i}").data = tensor(layer[part]["kernel"]).T.contiguous()
                getattr(tier.gru, f"bias_{half}_l{i}").data = tensor(layer[part]["bias"])
            tier.first.data[i] = tensor(params[f"{name}_first_{i}"])
    network.embedding.weight.data = tensor(params["embedding"])[0]
    for name in ("first", "second", "third", "out"):
        linear(getattr(network, name), params[name])


def network_of(model) -> SampleRNN:
    """The network. Raises ValueError for what this peer does not have."""
    if model.cell != "gru" or model.weight_norm or model.softmaxes != 1 or model.conditional or model.independent:
        words = "--model.no-weight-norm --model.no-conditional --model.no-independent"
        raise ValueError(f"PyTorch's SampleRNN wants --model.cell gru {words} and levels below 65536")
    if model.dtype != "float32":
        raise ValueError("the PyTorch SampleRNN has float32 alone")
    return SampleRNN(model)


def trainer(model, compiled: bool) -> Callable[[], object]:
    """A training step of the same size as the JAX model's, on fixed codes: call it, and it is done.

    compiled: through `torch.compile`. Raises ValueError for what this peer does not have.
    """
    network = network_of(model)
    if compiled:
        network.compile()
    optimizer = adam(network, model.learning_rate, (0.9, 0.999))
    codes = torch.randint(model.levels, (model.batch_size, model.frame + model.segment))
    follow = follower(network, model.decay) if model.decay else lambda: None

    def step() -> object:
        states, loss = [None] * len(model.frames), None
        for start in range(0, model.segment, model.sequence):
            bits, states = network(codes[:, start : start + model.frame + model.sequence], states)
            states, loss = [state.detach() for state in states], bits.mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_value_(network.parameters(), model.clip)
            optimizer.step()
        follow()
        return loss

    return step


def sampler(model, streams: int, frames: int) -> Callable[[], Tensor]:
    """Draws so many frames of so many streams, codes [streams, samples]: call it, and it is done. Raises ValueError for
    what this peer does not have."""
    network = network_of(model)
    return lambda: sample(network, streams, frames * model.frame)


@torch.inference_mode()
def sample(network: SampleRNN, streams: int, length: int) -> Tensor:
    """Codes [streams, samples] from a cold start, one sample of each stream after the other."""
    model = network.model
    states, above = [None] * len(model.frames), [None] * len(model.frames)
    codes = torch.full((streams, model.frame + length), model.levels // 2)
    for t in range(model.frame, model.frame + length):
        for i, (tier, frame) in enumerate(zip(network.tiers, model.frames, strict=True)):
            if t % frame == 0:
                seen = 2 * (codes[:, t - frame : t].float() * (2 / (model.levels - 1)) - 1)
                slower = above[i - 1][:, (t % model.frames[i - 1]) // frame].unsqueeze(1) if i else None
                above[i], states[i] = tier(seen.unsqueeze(1), slower, states[i])
        logits = network.sample(codes[:, t - model.frames[-1] : t], above[-1][:, t % model.frames[-1]])
        codes[:, t] = torch.multinomial(logits.softmax(-1), 1)[:, 0]  # a Categorical takes twice as long
    return codes[:, model.frame :]
