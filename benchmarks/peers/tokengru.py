"""TokenGRU in plain PyTorch: what the JAX model is timed and compared with.

`nn.GRU` over time; over the codebooks of a frame a loop, as what the network over time says is an input of its gates
that stays the same. Codes are [batch, frames, codebooks]; masks of units are arguments of the loss: both sides can be
fed the same.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.common import adam, follower

Masks = tuple[Tensor, Tensor, Tensor]  # [batch, units] of the embedding, the network over time, that over codebooks


class TokenGRU(nn.Module):
    """Both networks: the bits per code of codes, from a cold start."""

    def __init__(self, model):
        super().__init__()
        self.model, size = model, model.embedding
        self.embedding = nn.Parameter(torch.randn(model.codebooks, model.codebook_size, size) / model.codebooks**0.5)
        self.begin = nn.Parameter(0.1 * torch.randn(size))
        self.label = nn.Parameter(0.1 * torch.randn(model.classes, size)) if model.conditional else None
        self.time = nn.ModuleList(
            nn.GRU(model.width if i else size, model.width, batch_first=True) for i in range(model.layers)
        )
        self.start = nn.Linear(model.width, model.depth)
        self.around = nn.Linear(model.width, 3 * model.depth, bias=False)
        self.position = nn.Parameter(0.1 * torch.randn(model.codebooks, 3 * model.depth))
        self.depth_input = nn.Linear(size, 3 * model.depth)
        self.depth_state = nn.Linear(model.depth, 3 * model.depth)
        self.head = nn.ModuleList(nn.Linear(model.depth, model.codebook_size) for _ in range(model.codebooks))

    def forward(self, codes: Tensor, label: Tensor | None, masks: Masks | None) -> Tensor:
        heard = sum(F.embedding(codes[:, :-1, i], table) for i, table in enumerate(self.embedding))
        x = torch.cat([self.begin.expand(len(codes), 1, -1), heard], 1)
        x = x if self.label is None else x + self.label[label][:, None]
        x = x if masks is None else x * masks[0][:, None]
        total = 0.0
        for i, layer in enumerate(self.time):
            total = total + layer(total if i else x)[0]
        total = total if masks is None else total * masks[1][:, None]
        return self.cost(total.flatten(0, 1), codes.flatten(0, 1), masks)

    def cost(self, outputs: Tensor, codes: Tensor, masks: Masks | None) -> Tensor:
        """Of rows: frames of each recording, one behind the other."""
        around, state, total = self.around(outputs), torch.tanh(self.start(outputs)), 0.0
        mask = None if masks is None else masks[2].repeat_interleave(len(outputs) // len(masks[2]), 0)
        known = outputs.new_zeros(len(outputs), self.model.embedding)
        for i, head in enumerate(self.head):
            given, own = self.depth_input(known) + around + self.position[i], self.depth_state(state)
            (r_x, z_x, n_x), (r_h, z_h, n_h) = given.chunk(3, 1), own.chunk(3, 1)
            new = torch.tanh(n_x + torch.sigmoid(r_x + r_h) * n_h)
            state = torch.lerp(new, state, torch.sigmoid(z_x + z_h))
            seen = state if mask is None else state * mask
            total = total + F.cross_entropy(head(seen), codes[:, i])
            known = F.embedding(codes[:, i], self.embedding[i])
        return total / len(self.head) / math.log(2)


@torch.no_grad()
def load(network: TokenGRU, params: Mapping) -> None:
    """Copies the JAX parameters in."""
    tensor = lambda x: torch.from_numpy(np.array(x))

    def linear(module: nn.Linear, given: Mapping) -> None:
        module.weight.copy_(tensor(given["kernel"]).T)
        if module.bias is not None:
            module.bias.copy_(tensor(given["bias"]))

    for name in ("embedding", "begin", "position", *(["label"] if network.label is not None else [])):
        getattr(network, name).copy_(tensor(params[name]))
    for i, layer in enumerate(network.time):
        for half, part in (("ih", "input"), ("hh", "recurrent_0")):
            given = params[f"time_{i}"][part]
            getattr(layer, f"weight_{half}_l0").copy_(tensor(given["kernel"]).T)
            getattr(layer, f"bias_{half}_l0").copy_(tensor(given["bias"]))
    for name in ("start", "around"):
        linear(getattr(network, name), params[name])
    linear(network.depth_input, params["depth"]["input"])
    linear(network.depth_state, params["depth"]["recurrent_0"])
    for i, head in enumerate(network.head):
        linear(head, params[f"head_{i}"])


def trainer(model, compiled: bool) -> Callable[[], object]:
    """A training step of the same size as the JAX model's, on fixed codes: call it, and it is done.

    compiled: through `torch.compile`. Raises ValueError for what this peer does not have.
    """
    if model.dtype != "float32":
        raise ValueError("the PyTorch TokenGRU computes in float32: --model.dtype float32")
    network = TokenGRU(model)
    if compiled:
        network.compile()
    optimizer = adam(network, model.learning_rate, (0.9, 0.999))
    follow = follower(network, model.decay) if model.decay else lambda: None
    codes = torch.randint(model.codebook_size, (model.batch_size, model.segment // model.hop, model.codebooks))
    label = torch.randint(model.classes, (model.batch_size,)) if model.conditional else None
    sizes, kept = (model.embedding, model.width, model.depth), 1 - model.dropout

    def step() -> object:
        masks = None
        if model.dropout:
            masks = tuple(torch.empty(len(codes), size).bernoulli_(kept).div_(kept) for size in sizes)
        loss = network(codes, label, masks)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), model.clip)
        optimizer.step()
        follow()
        return loss.detach()

    return step
