"""SampleRNN: recurrent networks at several rates, each conditioning the next faster one, the last one single samples.

Mehri, Kumar, Gulrajani, Kumar, Jain, Sotelo, Courville, Bengio: SampleRNN, ICLR 2017 (arXiv 1612.07837), and its
official code. Reproduced: two and three tiers, GRU (reset before), LSTM or plain recurrence, weight norm, learned first
state, learned upsampling, linear and mu-law codes, truncated back-propagation with the state carried on, gradients
clipped element by element, the cost in bits; also the head by which the code lets the top tier predict its frame alone
(`independent`), trained beside the network without bearing on it. Added: a class label as condition, averaged weights
to sample from, a falling learning rate, 16 bits as two softmaxes (Kalchbrenner et al. 2018). Departs: codes are of the
whole range of amplitudes, where the code stretches each recording to its own smallest and largest value; all recurrent
kernels start orthogonal.

    python train.py samplernn:digits --data FOLDER

On digits16k's held-out speakers: 3.515 bits per sample (README).
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from jaxaudio.autoregressive import BYTE, Autoregressive, coarse_fine, log_likelihood, pick, uniforms
from jaxaudio.core import (
    Carry,
    Continues,
    InputError,
    Labels,
    Metrics,
    Own,
    Params,
    State,
    Wave,
    average,
    descend,
    unless_skipped,
)
from jaxaudio.dsp.companding import linear_decode, linear_encode, mu_law_decode, mu_law_encode
from jaxaudio.nn.recurrent import Cell, Dense, Linear, Recurrent, Weights, advance, output, relu, scan_ahead, sequence

Symbols = Int[Array, "batch samples softmaxes"]  # codes, 16-bit ones in halves
Tables = tuple[Float[Array, "symbols units"], ...]  # a row for each code, of each softmax
Window = Int[Array, "batch window softmaxes"]  # the same, a frame and what follows
he = nn.initializers.he_uniform()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleRNN(Autoregressive, Continues):
    """Section 3.1 of the paper, and the best commands of its code for music."""

    sample_rate: int = 16000  # Hz
    segment: int = 128000  # samples per recording and step: parts of `sequence`, the state carried on
    sequence: int = 512  # samples through which gradients go back; an update each
    batch_size: int = 128  # recordings per step
    channels: int = 1  # 1: mono
    levels: int = 256  # of a sample; 65536: two softmaxes of 256, the fine one knowing the coarse
    law: Literal["mu_law", "linear"] = "linear"  # how amplitudes become codes; with 65536 levels: linear
    frames: tuple[int, ...] = (8, 2)  # samples per step of each recurrent tier, from the slowest to the fastest
    cell: Cell = "gru_before"  # gru: the reset gate behind the product (PyTorch); gru_before; lstm; rnn
    width: int = 1024  # units of every layer
    layers: int = 1  # recurrent layers per tier
    embedding: int = 256  # dimensions of a code
    weight_norm: bool = True  # of all kernels
    independent: bool = False  # a head by which the top tier predicts its frame alone; of 16 bits the upper byte
    conditional: bool = False  # on the class label
    learning_rate: float = 1e-3  # of Adam
    decay_steps: int = 0  # steps after which the rate has fallen to zero along a cosine; 0: constant
    clip: float = 1.0  # bound of every element of the gradient
    decay: float = 0.0  # of the averaged weights; 0: the last ones

    criterion: ClassVar = "bits"
    published: ClassVar = MappingProxyType({"network": 20.85})
    presets: ClassVar = MappingProxyType(
        {
            "paper": {"independent": True},
            "two_tier": {"frames": (16,), "layers": 3, "sequence": 1024},
            "digits": {
                **{"segment": 4096, "batch_size": 32, "law": "mu_law", "frames": (16, 4), "cell": "gru"},
                **{"width": 256, "embedding": 64, "weight_norm": False},
                **{"learning_rate": 2e-3, "decay_steps": 500, "decay": 0.99},
            },
            "tiny": {
                **{"segment": 64, "sequence": 32, "batch_size": 8, "law": "mu_law", "levels": 32, "frames": (8, 2)},
                **{"width": 16, "embedding": 8, "conditional": True, "independent": True, "decay": 0.5},
                **{"learning_rate": 1e-2},
            },
        }
    )

    def __post_init__(self):
        super().__post_init__()
        for name in ("batch_size", "width", "layers", "embedding"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: it is at least 1")
        for name in ("learning_rate", "clip"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name} is {getattr(self, name)}: it is above 0")
        if self.decay_steps < 0:
            raise InputError(f"decay_steps is {self.decay_steps}: it is at least 0")
        if not self.frames or min(self.frames) < 1:
            raise InputError(f"frames is {self.frames}: samples per step of each tier, 1 tier at least")
        sizes = (self.segment, self.sequence, *self.frames)
        for slow, fast in itertools.pairwise(sizes):
            if fast < 1 or slow < 1 or slow % fast:
                raise InputError(
                    f"segment {self.segment}, sequence {self.sequence} and frames {self.frames}: each of these is a "
                    f"multiple of the next, and {slow} is none of {fast}"
                )
        if self.channels != 1:
            raise InputError(f"channels is {self.channels}: SampleRNN is mono, 1")
        if not 0 <= self.decay < 1:
            raise InputError(f"decay is {self.decay}: it is at least 0 and less than 1")
        if self.levels == BYTE**2 and self.law != "linear":
            raise InputError("levels is 65536 with law mu_law: 16 bits are linear; choose --model.law linear")
        if self.levels != BYTE**2 and not (self.levels % 16 == 0 and 16 <= self.levels <= 4096):
            raise InputError(f"levels is {self.levels}: a multiple of 16 up to 4096 for one softmax, or 65536 for two")

    @property
    def needs_labels(self) -> bool:
        """A conditional model cannot do without."""
        return self.conditional

    @property
    def frame(self) -> int:
        """A step of the slowest tier."""
        return self.frames[0]

    @property
    def softmaxes(self) -> int:
        """Per sample."""
        return 2 if self.levels == BYTE**2 else 1

    @property
    def symbols(self) -> int:
        """Levels of one softmax."""
        return BYTE if self.softmaxes == 2 else self.levels

    @property
    def steps(self) -> int:
        """To where the learning rate has fallen to zero."""
        return self.decay_steps or super().steps

    @property
    def tx(self) -> optax.GradientTransformation:
        """Adam, behind the clipping."""
        parts, rate = self.segment // self.sequence, self.learning_rate
        rate = optax.cosine_decay_schedule(rate, self.decay_steps * parts) if self.decay_steps else rate
        return optax.chain(optax.clip(self.clip), optax.adam(rate))

    @property
    def network(self) -> nn.Module:
        """What the weights come from."""
        return Network(self)

    def init(self, key: Key[Array, ""], measured) -> State:
        """One network, the average at it."""
        del measured
        params = {"network": self.network.init(key)["params"]}
        extra = {"average": jax.tree.map(jnp.copy, params["network"])} if self.decay else {}
        return State(
            step=jnp.zeros((), jnp.int32), params=params, opt={"network": self.tx.init(params["network"])}, extra=extra
        )

    # ------------------------------------------------------------------------------------------------------- training

    def train_step(self, state, batch, key, shard, stage) -> tuple[State, Metrics]:
        """An update for each `sequence` of the segment; the state of the recurrences goes on from one to the next."""
        del key, stage
        codes, label = self.starting(batch.wave), batch.label if self.conditional else None
        begin = self.first(self.ready(state.params["network"]), batch.wave.shape[0])

        def update(held, part):
            network, opt, carry = held
            loss = partial(self.loss, codes=self.part(codes, part), carry=carry, label=label, part=part)
            network, opt, metrics = descend(self.tx, loss, network, opt, shard)
            return (network, opt, metrics.pop("carry").value), metrics

        held = (state.params["network"], state.opt["network"], begin)
        (network, opt, _), metrics = jax.lax.scan(update, held, jnp.arange(self.segment // self.sequence))
        skipped = jnp.min(metrics["skipped"])  # 1 where no part could be learned from
        metrics = {**jax.tree.map(jnp.mean, metrics), "skipped": skipped}
        extra = {}
        if self.decay:
            averaged = average(state.extra["average"], network, self.decay, state.step)
            extra = unless_skipped(metrics, {"average": averaged}, state.extra)
        state = State(step=state.step + 1, params={"network": network}, opt={"network": opt}, extra=extra)
        return state, {f"network/{name}": value for name, value in metrics.items()}

    def loss(self, network: Params, *, codes, carry: Carry, label: Labels | None, part: Int[Array, ""]):
        """Bits per sample of one sequence. Gradients end at the carry, but for the first one's, which is learned."""
        weights = self.ready(network)
        first = self.first(weights, codes.shape[0])
        carry = jax.tree.map(lambda a, b: jnp.where(part == 0, a, b), first, carry)
        logits, carry, alone = self.predicted(weights, codes, carry, label)
        bits, alone = jnp.mean(self.cost(logits, codes)), jnp.mean(alone)
        metrics = {"bits": bits, "carry": Own(jax.tree.map(jax.lax.stop_gradient, carry))}
        return bits + alone, metrics | ({"independent_bits": alone} if self.independent else {})

    def evaluate(self, state, batch, key) -> Metrics:
        """Bits per sample from a cold start."""
        del key
        return {"bits": self.bits(self.weights(state), batch.wave, batch.label if self.conditional else None)}

    def weights(self, state) -> Params:
        """The averaged network, if there is one."""
        return state.extra["average"] if self.decay else state.params["network"]

    def bits(self, params, wave, label) -> Float[Array, "batch"]:
        """Sequence by sequence, so that the logits of one alone are held; silence fills up the last."""
        weights, length = self.ready(params), wave.shape[1]
        count = -(-length // self.sequence)
        codes = self.starting(jnp.pad(wave, ((0, 0), (0, count * self.sequence - length), (0, 0))))

        def go(carry, part):
            window = self.part(codes, part)
            logits, carry, _ = self.predicted(weights, window, carry, label)
            return carry, self.cost(logits, window)

        _, bits = jax.lax.scan(go, self.first(weights, wave.shape[0]), jnp.arange(count))
        return jnp.mean(jnp.moveaxis(bits, 0, 1).reshape(wave.shape[0], -1)[:, :length], 1)

    # -------------------------------------------------------------------------------------------------------- network

    def ready(self, network: Params) -> "Ready":
        """The weights as they are used: weight norm applied, the embedding and the kernel behind it in one table."""
        return self.network.apply({"params": network})

    def first(self, weights: "Ready", batch: int) -> Carry:
        """The learned states, of each tier and layer."""
        spread = lambda x: jnp.broadcast_to(x, (batch, *x.shape[1:]))
        return tuple(tuple(jax.tree.map(spread, layer.first) for layer in tier.layers) for tier in weights.tiers)

    def encode(self, wave: Wave) -> Symbols:
        """[batch, time, softmaxes]: codes, the 16-bit ones in halves. What is not finite becomes code -1."""
        code = {"mu_law": mu_law_encode, "linear": linear_encode}[self.law](wave[..., 0], self.levels)
        halves = jnp.stack(coarse_fine(code), -1) if self.softmaxes == 2 else code[..., None]
        return jnp.where(jnp.isfinite(wave), halves, -1)

    def decode(self, symbols: Symbols) -> Wave:
        """Amplitudes of codes; not a number where a code is negative."""
        code = symbols[..., 0] * BYTE + symbols[..., 1] if self.softmaxes == 2 else symbols[..., 0]
        wave = {"mu_law": mu_law_decode, "linear": linear_decode}[self.law](code, self.levels)
        return jnp.where(jnp.min(symbols, -1) < 0, jnp.nan, wave)[..., None]

    def starting(self, wave: Wave) -> Symbols:
        """The codes with a frame of silence in front."""
        return self.encode(jnp.pad(wave, ((0, 0), (self.frame, 0), (0, 0))))

    def part(self, codes: Symbols, part: Int[Array, ""]) -> Window:
        """Sequence number `part` and the frame before it."""
        return jax.lax.dynamic_slice_in_dim(codes, part * self.sequence, self.frame + self.sequence, 1)

    def level(self, symbols: Symbols) -> Float[Array, "batch samples"]:
        """What recurrent tiers see of codes: -2 to 2."""
        code = symbols[..., 0] * BYTE + symbols[..., 1] if self.softmaxes == 2 else symbols[..., 0]
        return 2 * linear_decode(code, self.levels)

    def predicted(self, weights: "Ready", codes: Window, carry: Carry, label: Labels | None):
        """The logits [batch, time, symbols] of each softmax for all codes behind the first frame, the carry behind
        them, and the bits of the frames that the top tier predicts alone; codes: [batch, frame + time]."""
        time, seen = codes.shape[1] - self.frame, self.level(codes)
        above, after, alone = None, [], jnp.zeros(())
        for tier, frame, states in zip(weights.tiers, self.frames, carry, strict=True):
            frames = seen[:, self.frame - frame : self.frame - frame + time].reshape(len(seen), -1, frame)
            x, states = tier.over(self.cell, jnp.swapaxes(frames, 0, 1), above, states, label)
            after.append(states)
            if tier.independent:
                logits = tier.independent(jax.lax.stop_gradient(x)).reshape(*x.shape[:2], frame, -1)
                target = codes[:, self.frame :, 0].reshape(len(codes), -1, frame).swapaxes(0, 1)
                alone = surprise(logits, target)
            above = tier.apart(x)
        near = self.frames[-1]
        recent = (codes[:, at : at + time] for at in range(self.frame - near, self.frame))
        hidden = weights.hidden(recent, jnp.swapaxes(above, 0, 1))
        return weights.logits(hidden, codes[:, self.frame :]), tuple(after), alone

    def cost(self, logits: Sequence[Array], codes: Window) -> Float[Array, "batch time"]:
        """Bits of the codes behind the first frame."""
        return sum(surprise(one, codes[:, self.frame :, i]) for i, one in enumerate(logits))

    # ------------------------------------------------------------------------------------------------------- sampling

    def begin(self, params, n, label) -> Carry:
        """Behind a frame of silence."""
        return self.hear(params, jnp.zeros((n, 0, 1)), label)

    def hear(self, params, wave, label) -> Carry:
        """The states of the recurrences, the codes of the last frame, how many samples were drawn, the labels."""
        weights, codes = self.ready(params), self.starting(wave)
        states, count = self.first(weights, wave.shape[0]), wave.shape[1] // self.sequence
        if count:
            go = lambda states, part: (self.predicted(weights, self.part(codes, part), states, label)[1], ())
            states, _ = jax.lax.scan(go, states, jnp.arange(count))
        if rest := codes[:, count * self.sequence :].shape[1] - self.frame:
            _, states, _ = self.predicted(weights, codes[:, -rest - self.frame :], states, label)
        return {"states": states, "codes": codes[:, -self.frame :], "drawn": jnp.zeros((), jnp.int32), "label": label}

    def extend(self, params, carry, key, frames) -> tuple[Carry, Wave]:
        """One scan over the frames of the slowest tier, with those of the faster ones inside."""
        weights, label = self.ready(params), carry["label"]
        rows = carry["codes"].shape[0]
        numbers = uniforms(key, carry["drawn"], frames * self.frame, rows, self.softmaxes)
        go = lambda held, numbers: self.tier_step(weights, 0, held, numbers, None, label)
        held = (carry["states"], carry["codes"])
        (states, recent), codes = jax.lax.scan(go, held, numbers.reshape(frames, self.frame, self.softmaxes, rows))
        codes = jnp.moveaxis(codes.reshape(frames * self.frame, rows, self.softmaxes), 0, 1)
        drawn = carry["drawn"] + frames * self.frame
        return {"states": states, "codes": recent, "drawn": drawn, "label": label}, self.decode(codes)

    def tier_step(self, weights: "Ready", number: int, held, numbers, above, label):
        """One step of a tier, and all that the faster ones make of it. held: the states of all tiers and the codes of
        the last frame; numbers: [samples, softmaxes, batch]. Returns held and the codes [samples, batch, softmaxes]."""
        states, recent = held
        tier, frame = weights.tiers[number], self.frames[number]
        x, mine = tier.step(self.cell, self.level(recent)[:, -frame:], above, states[number], label)
        states = (*states[:number], mine, *states[number + 1 :])
        below = tier.apart(x[None])  # [frames of the next tier, or samples, batch, units]
        if number + 1 < len(self.frames):
            go = lambda held, given: self.tier_step(weights, number + 1, held, given[0], given[1], None)
        else:
            go = lambda held, given: self.sample_step(weights, held, given[0][0], given[1])
        given = (numbers.reshape(len(below), -1, *numbers.shape[1:]), below)
        held, codes = scan_ahead(go, (states, recent), given)
        return held, codes.reshape(-1, *codes.shape[-2:])

    def sample_step(self, weights: "Ready", held, numbers: Float[Array, "softmaxes batch"], above):
        """One sample of each stream."""
        states, recent = held
        near, code = self.frames[-1], jnp.zeros((recent.shape[0], 0), recent.dtype)
        hidden = weights.hidden((recent[:, i - near] for i in range(near)), above)
        for number in numbers:
            logits = weights.logits(hidden, code)[-1]
            code = jnp.concatenate([code, pick(logits, number, self.temperature, self.top_p)[:, None]], 1)
        return (states, jnp.concatenate([recent[:, 1:], code[:, None]], 1)), code


class Layer(NamedTuple):
    """A recurrent layer, and its first carry [1, units]."""

    weights: Weights
    first: Carry


class Tier(NamedTuple):
    """A recurrence over frames."""

    expand: Linear | None  # of the frame, to which what the tier above says is added; none: the top tier
    layers: tuple[Layer, ...]
    up: Linear  # units -> as many vectors as the next tier has steps meanwhile
    ratio: int
    label: Float[Array, "classes gates"] | None
    independent: Linear | None

    def into(self, frames: Float[Array, "*time batch frame"], above, label: Labels | None):
        """The input of the first layer, projected."""
        x = frames if self.expand is None else self.expand(frames) + above
        x = self.layers[0].weights.input(x)
        if label is None or self.label is None:
            return x
        return x + self.label[label].reshape((1,) * (x.ndim - 2) + x.shape[-2:])

    def over(self, cell: Cell, frames: Float[Array, "time batch frame"], above, states: Carry, label):
        """The outputs [time, batch, units] of all frames, and the states behind them."""
        x, after = self.into(frames, above, label), []
        for i, (layer, state) in enumerate(zip(self.layers, states, strict=True)):
            state, x = sequence(cell, layer.weights, state, layer.weights.input(x) if i else x)
            after.append(state)
        return x, tuple(after)

    def step(self, cell: Cell, frame: Float[Array, "batch frame"], above, states: Carry, label):
        """The output [batch, units] of one frame, and the states."""
        x, after = self.into(frame, above, label), []
        for i, (layer, state) in enumerate(zip(self.layers, states, strict=True)):
            state = advance(cell, layer.weights, state, layer.weights.input(x) if i else x)
            after.append(state)
            x = output(state)
        return x, tuple(after)

    def apart(self, x: Float[Array, "time batch units"]) -> Float[Array, "longer batch units"]:
        """What each step says to the steps of the next tier in its time: learned upsampling."""
        time, batch, _ = x.shape
        y = self.up(x).reshape(time, batch, self.ratio, -1)
        return jnp.swapaxes(y, 1, 2).reshape(time * self.ratio, batch, -1)


class Fine(NamedTuple):
    """What the second softmax of a sample has of its own."""

    tables: Tables  # of the first one's code
    third: Linear
    out: Linear


class Ready(NamedTuple):
    """All weights of the network."""

    tiers: tuple[Tier, ...]
    tables: tuple[Tables, ...]  # of each of the nearest samples
    second: Linear
    third: Linear
    out: Linear
    fine: Fine | None

    def hidden(self, recent: Iterable[Int[Array, "*batch softmaxes"]], above: Float[Array, "*batch units"]):
        """What the output layers share, of the codes just before a sample and what the last tier says of it."""
        for table, codes in zip(self.tables, recent, strict=True):
            above = above + looked_up(table, codes)
        return relu(self.second(above))

    def logits(self, hidden: Float[Array, "*batch units"], code: Int[Array, "*batch known"]) -> list[Array]:
        """Of the first softmax and, where there is one and the first one's code is known, of the second."""
        found = [self.out(relu(self.third(hidden)))]
        if self.fine and code.shape[-1]:
            found.append(self.fine.out(relu(self.fine.third(hidden) + looked_up(self.fine.tables, code[..., :1]))))
        return found


class Network(nn.Module):
    """Makes the weights."""

    model: SampleRNN

    @nn.compact
    def __call__(self) -> Ready:
        model = self.model
        dense = partial(Dense, weight_norm=model.weight_norm, dtype=model.dtype)
        width, near = model.width, model.frames[-1]
        embedding = self.param(
            "embedding", nn.initializers.normal(1.0), (model.softmaxes, model.symbols, model.embedding)
        )
        ahead = dense(near * model.softmaxes * model.embedding, width, False, kernel_init=he, name="first")().kernel
        ahead = ahead.reshape(near, model.softmaxes, model.embedding, width)
        embedding = embedding.astype(model.dtype)
        tables = tuple(tuple(e @ kernel for e, kernel in zip(embedding, each, strict=True)) for each in ahead)
        fine = None
        if model.softmaxes == 2:
            table = self.param("coarse", nn.initializers.normal(1 / math.sqrt(width)), (1, model.symbols, width))
            fine = Fine(
                tuple(table.astype(model.dtype)),
                dense(width, width, kernel_init=he, name="third_fine")(),
                dense(width, model.symbols, dtype=jnp.float32, name="out_fine")(),
            )
        return Ready(
            tuple(self.tier(i, dense) for i in range(len(model.frames))),
            tables,
            dense(width, width, kernel_init=he, name="second")(),
            dense(width, width, kernel_init=he, name="third")(),
            dense(width, model.symbols, dtype=jnp.float32, name="out")(),
            fine,
        )

    def tier(self, number: int, dense: Any) -> Tier:
        """Tier `number`, the slowest first."""
        model, frame, name = self.model, self.model.frames[number], f"tier_{number}"
        ratio = frame // (*model.frames, 1)[number + 1]
        top = number == 0
        layers = []
        for i in range(model.layers):
            inputs = frame if top and i == 0 else model.width
            layer = Recurrent(
                inputs,
                model.width,
                model.cell,
                model.weight_norm,
                forget_bias=3.0,
                name=f"{name}_{model.cell}_{i}",
            )()
            shape = (2 if model.cell == "lstm" else 1, model.width)
            first = self.param(f"{name}_first_{i}", nn.initializers.zeros, shape)
            layers.append(Layer(layer, (first[:1], first[1:]) if model.cell == "lstm" else first))
        label = None
        if top and model.conditional:
            gates = layers[0].weights.input.kernel.shape[1]
            label = self.param("label", nn.initializers.normal(0.1), (model.classes, gates))
        return Tier(
            None if top else dense(frame, model.width, kernel_init=he, name=f"{name}_expand")(),
            tuple(layers),
            dense(model.width, ratio * model.width, kernel_init=he, name=f"{name}_up")(),
            ratio,
            label,
            dense(model.width, model.symbols * frame, kernel_init=he, dtype=jnp.float32, name="independent")()
            if top and model.independent
            else None,
        )


def looked_up(tables: Tables, symbols: Int[Array, "*batch softmaxes"]) -> Float[Array, "*batch units"]:
    """The sum of the rows of these codes."""
    return sum(table[symbols[..., i]] for i, table in enumerate(tables))


def surprise(logits: Float[Array, "*batch symbols"], code: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Bits; not a number where the code is negative, and nor is their gradient."""
    bits = -log_likelihood(logits.astype(jnp.float32), code) / math.log(2)
    return bits * jnp.where(code >= 0, 1, jnp.nan)
