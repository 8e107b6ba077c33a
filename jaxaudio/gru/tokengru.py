"""TokenGRU: a codec's codes drawn frame by frame, by one recurrent network over time and one over a frame's codebooks.

This project's own. The division of labour is that of RQ-Transformer (Lee et al. 2022, arXiv 2203.01941) and of Moshi
(Defossez et al. 2024, arXiv 2410.00037), with gated recurrent units in place of attention: the network over time hears
the sum of the embeddings of all codes of a frame and foretells the next one as a whole; the network over codebooks,
which starts from that and knows the codes drawn so far, draws the frame's codes one after another, the coarsest first,
each by an output layer of its own. What a code tells of those of its own frame is so not lost, as it is where all are
drawn at once; a second of sound is a few hundred small steps. Dropout is of whole units for a whole recording (Gal and
Ghahramani 2016, arXiv 1512.05287), which costs nothing.

    python train.py tokengru:small --data FOLDER --codec RUN
"""

import dataclasses
import math
from functools import partial
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from jaxaudio.autoregressive import GROUP, Autoregressive, log_likelihood, pick, uniforms
from jaxaudio.core import (
    Carry,
    Codes,
    Composes,
    InputError,
    Labels,
    Metrics,
    Params,
    State,
    average,
    descend,
    unless_skipped,
)
from jaxaudio.nn.recurrent import Dense, Linear, Recurrent, Weights, advance, sequence, silent

CELL = "gru"
Outputs = Float[Array, "time batch width"]  # of the network over time


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenGRU(Autoregressive, Composes):
    """The two networks and their training; what is said of the sound is that of the codec."""

    sample_rate: int = 44100  # Hz; filled in from the codec
    channels: int = 1  # 1: mono; filled in from the codec
    hop: int = 512  # samples per frame of codes; filled in from the codec
    codebooks: int = 9  # codes of a frame; filled in from the codec
    codebook_size: int = 1024  # values of a code; filled in from the codec
    segment: int = 221184  # samples per recording and step: a whole number of hops
    batch_size: int = 64  # recordings per step
    embedding: int = 512  # dimensions of a code
    width: int = 1024  # units of each layer over time
    layers: int = 3  # over time, each but the first adding to what the one before says
    depth: int = 512  # units of the layer over the codebooks of a frame
    dropout: float = 0.1  # share of the units that a recording does without: of the embedding and of both networks
    conditional: bool = False  # on the class label
    learning_rate: float = 1e-3  # of Adam
    decay_steps: int = 100_000  # steps after which the rate has fallen to zero along a cosine; 0: constant
    clip: float = 1.0  # of the gradient's norm
    decay: float = 0.999  # of the averaged weights; 0: the last ones

    criterion: ClassVar = "bits"
    published: ClassVar = MappingProxyType({"network": 30.45})  # counted: there is no paper; without labels
    presets: ClassVar = MappingProxyType(
        {
            "paper": {},
            "small": {
                **{"sample_rate": 16000, "hop": 320, "codebooks": 8, "segment": 32000, "batch_size": 16},
                **{"embedding": 128, "width": 256, "layers": 2, "depth": 192},
                **{"learning_rate": 3e-3, "decay_steps": 4000, "decay": 0.99},
            },
            "tiny": {
                **{"sample_rate": 16000, "hop": 8, "codebooks": 3, "codebook_size": 40, "segment": 64, "batch_size": 8},
                **{"embedding": 8, "width": 16, "layers": 2, "depth": 16, "conditional": True},
                **{"learning_rate": 1e-2, "decay_steps": 0, "decay": 0.5},
            },
        }
    )

    def __post_init__(self):
        super().__post_init__()
        least = ("segment", "batch_size", "embedding", "width", "layers", "depth", "hop", "codebooks", "channels")
        for name, value in (dict.fromkeys(least, 1) | {"codebook_size": 2, "decay_steps": 0}).items():
            if getattr(self, name) < value:
                raise InputError(f"{name} is {getattr(self, name)}: it is at least {value}")
        for name in ("learning_rate", "clip"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name} is {getattr(self, name)}: it is above 0")
        for name in ("dropout", "decay"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: it is at least 0 and less than 1")

    @property
    def needs_labels(self) -> bool:
        """A conditional model cannot do without."""
        return self.conditional

    @property
    def steps(self) -> int:
        """To where the learning rate has fallen to zero."""
        return self.decay_steps or super().steps

    @property
    def tx(self) -> optax.GradientTransformation:
        """Adam, behind the clipping."""
        rate = self.learning_rate
        rate = optax.cosine_decay_schedule(rate, self.decay_steps) if self.decay_steps else rate
        return optax.chain(optax.clip_by_global_norm(self.clip), optax.adam(rate))

    def init(self, key: Key[Array, ""], measured) -> State:
        """One network, the average at it."""
        del measured
        params = {"network": Network(self).init(key)["params"]}
        extra = {"average": jax.tree.map(jnp.copy, params["network"])} if self.decay else {}
        return State(
            step=jnp.zeros((), jnp.int32), params=params, opt={"network": self.tx.init(params["network"])}, extra=extra
        )

    # ------------------------------------------------------------------------------------------------------- training

    def train_step(self, state, batch, key, shard, stage) -> tuple[State, Metrics]:
        """One update, on the true codes before each."""
        del stage
        label = batch.label if self.conditional else None
        loss = partial(self.loss, codes=batch.given, label=label, masks=self.masks(shard.keys(key, len(batch.given))))
        network, opt, metrics = descend(self.tx, loss, state.params["network"], state.opt["network"], shard)
        extra = {}
        if self.decay:
            averaged = average(state.extra["average"], network, self.decay, state.step)
            extra = unless_skipped(metrics, {"average": averaged}, state.extra)
        metrics = {f"network/{name}": value for name, value in metrics.items()}
        return State(state.step + 1, {"network": network}, {"network": opt}, extra), metrics

    def loss(self, network: Params, *, codes: Codes, label: Labels | None, masks: "Masks | None"):
        """Bits per code, from a cold start."""
        ready = self.ready(network)
        x = self.inputs(ready, codes, label)[:, :-1]
        outputs, _ = ready.over(x, self.silence(len(codes)), masks)
        bits = jnp.mean(self.cost(ready, outputs, codes, masks))
        return bits, {"bits": bits}

    def masks(self, keys: Key[Array, "batch"]) -> "Masks | None":
        """What the units of each recording are multiplied by."""
        if not self.dropout:
            return None
        sizes = self.embedding, self.width, self.depth
        of_all = lambda key: jax.random.bernoulli(key, 1 - self.dropout, (sum(sizes),)) / (1 - self.dropout)
        ends = (sizes[0], sizes[0] + sizes[1])
        return Masks(*jnp.split(jax.vmap(of_all)(keys), ends, 1))

    def evaluate(self, state, batch, key) -> Metrics:
        """Bits per code, and kilobits per second of sound, from a cold start."""
        del key
        bits = self.bits(self.weights(state), batch.given, batch.label if self.conditional else None)
        frames_per_second = self.sample_rate / self.hop
        return {"bits": jnp.mean(bits, 1), "kbps": jnp.sum(bits, 1) * frames_per_second / 1000}

    def weights(self, state) -> Params:
        """The averaged network, if there is one."""
        return state.extra["average"] if self.decay else state.params["network"]

    def bits(self, params, codes, label) -> Float[Array, "batch codebooks"]:
        """Part by part, so that the logits of one alone are held."""
        ready = self.ready(params)
        _, bits = self.read(codes, self.inputs(ready, codes, label), ready, partial(self.cost, ready))
        return jnp.mean(bits, 1)

    # -------------------------------------------------------------------------------------------------------- network

    def ready(self, network: Params) -> "Ready":
        """The weights as they are used."""
        return Network(self).apply({"params": network})

    def silence(self, batch: int) -> Carry:
        """The states before the first frame."""
        return tuple(silent(CELL, batch, self.width) for _ in range(self.layers))

    def inputs(self, ready: "Ready", codes: Codes, label: Labels | None) -> Float[Array, "batch one_more embedding"]:
        """What the network over time hears before each frame, and behind the last one."""
        begin = jnp.broadcast_to(ready.begin[None, None], (len(codes), 1, self.embedding))
        return ready.told(jnp.concatenate([begin, ready.heard(codes)], 1), label)

    def cost(self, ready: "Ready", outputs: Outputs, codes: Codes, masks: "Masks | None" = None) -> Array:
        """Bits [batch, time, codebooks] of the codes that the outputs foretell; not a number where a code is none."""
        time, batch = outputs.shape[:2]
        rows = codes.reshape(batch * time, -1)  # the batch first: a row stays on the device that has its example
        mask = None if masks is None else jnp.repeat(masks.depth, time, 0)
        logits = ready.taught(jnp.swapaxes(outputs, 0, 1).reshape(batch * time, -1), rows, mask)
        known = rows.T
        bits = -log_likelihood(logits.astype(jnp.float32), known) / math.log(2)
        bits = bits * jnp.where((known >= 0) & (known < self.codebook_size), 1, jnp.nan)
        return bits.reshape(-1, batch, time).transpose(1, 2, 0)

    def read(self, codes: Codes, x: Array, ready: "Ready", make):
        """The states behind the codes and what `make` makes of the outputs before each frame and of its codes, a
        segment of frames at a time; x: `inputs`."""
        size, states = max(1, self.segment // self.hop), self.silence(len(codes))
        count, x = codes.shape[1] // size, x[:, :-1]

        def go(states, part):
            outputs, states = ready.over(part[0], states)
            return states, make(outputs, part[1])

        cut = lambda each: jnp.moveaxis(each[:, : count * size].reshape(len(x), count, size, each.shape[-1]), 1, 0)
        join = lambda each: jnp.moveaxis(each, 0, 1).reshape(len(x), count * size, each.shape[-1])
        states, made = jax.lax.scan(go, states, (cut(x), cut(codes)))
        made = jax.tree.map(join, made)
        if codes.shape[1] > count * size:
            states, rest = go(states, (x[:, count * size :], codes[:, count * size :]))
            made = jax.tree.map(lambda *each: jnp.concatenate(each, 1), made, rest)
        return states, made

    # ------------------------------------------------------------------------------------------------------- sampling

    def begin(self, params, n, label) -> Carry:
        """Before the first frame."""
        return self.hear(params, jnp.zeros((n, 0, self.codebooks), jnp.int32), label)

    def hear(self, params, codes, label) -> Carry:
        """The states of the network over time, what it hears next, how many frames were drawn, the labels."""
        ready = self.ready(params)
        x = self.inputs(ready, codes, label)
        states, _ = self.read(codes, x, ready, lambda outputs, codes: ())
        return {"states": states, "x": x[:, -1], "drawn": jnp.zeros((), jnp.int32), "label": label}

    def extend(self, params, carry, key, frames) -> tuple[Carry, Codes]:
        """One scan over the frames. A code is -1 where the network does not give numbers."""
        ready, label = self.ready(params), carry["label"]
        numbers = uniforms(key, carry["drawn"], frames, len(carry["x"]), self.codebooks)

        def step(held, numbers):
            states, x = held
            outputs, states = ready.over(x[:, None], states)
            codes = self.drawn(ready, outputs[0], numbers)
            return (states, ready.told(ready.heard(codes[:, None]), label)[:, 0]), codes

        (states, x), codes = jax.lax.scan(step, (carry["states"], carry["x"]), numbers)
        after = {"states": states, "x": x, "drawn": carry["drawn"] + frames, "label": label}
        return after, jnp.swapaxes(codes, 0, 1)

    def drawn(
        self, ready: "Ready", outputs: Float[Array, "batch width"], numbers: Float[Array, "codebooks batch"]
    ) -> Int[Array, "batch codebooks"]:
        """The codes of one frame, each knowing those before it."""
        state, around = ready.opened(outputs)
        known, drawn = jnp.zeros((len(outputs), self.embedding), ready.embedding.dtype), []
        for i, number in enumerate(numbers):
            state = advance(CELL, ready.depth, state, ready.given(known, around, i))
            logits = ready.heads[i](state)
            logits = jnp.pad(logits, ((0, 0), (0, -self.codebook_size % GROUP)), constant_values=-jnp.inf)
            drawn.append(pick(logits, number, self.temperature, self.top_p))
            known = ready.embedding[i, drawn[-1]]
        return jnp.stack(drawn, 1)


class Masks(NamedTuple):
    """What units are multiplied by, for each recording: 0, or more than 1 so that the mean stays."""

    embedding: Float[Array, "batch embedding"]
    width: Float[Array, "batch width"]
    depth: Float[Array, "batch depth"]


class Ready(NamedTuple):
    """All weights of the two networks."""

    embedding: Float[Array, "codebooks codebook_size embedding"]
    begin: Float[Array, "embedding"]  # heard before the first frame
    label: Float[Array, "classes embedding"] | None
    time: tuple[Weights, ...]
    start: Linear  # width -> depth: the first state of the network over codebooks
    around: Linear  # width -> gates: what it is told at every codebook
    position: Float[Array, "codebooks gates"]
    depth: Weights
    heads: tuple[Linear, ...]  # depth -> codebook_size

    def heard(self, codes: Codes) -> Float[Array, "batch frames embedding"]:
        """The sum of the embeddings of a frame's codes."""
        return sum(table[codes[..., i]] for i, table in enumerate(self.embedding))

    def told(self, x: Float[Array, "batch frames embedding"], label: Labels | None) -> Array:
        """With the label added."""
        return x if label is None or self.label is None else x + self.label[label][:, None]

    def over(
        self, x: Float[Array, "batch frames embedding"], states: Carry, masks: Masks | None = None
    ) -> tuple[Outputs, Carry]:
        """The outputs of the network over time, and its states behind them."""
        x, after, total = jnp.swapaxes(x, 0, 1).astype(jnp.float32), [], 0.0
        x = x if masks is None else x * masks.embedding[None]
        for i, (layer, state) in enumerate(zip(self.time, states, strict=True)):
            state, x = sequence(CELL, layer, state, layer.input(total if i else x))
            after.append(state)
            total = total + x
        return (total if masks is None else total * masks.width[None]), tuple(after)

    def opened(self, outputs: Float[Array, "rows width"]) -> tuple[Carry, Float[Array, "rows gates"]]:
        """The first state of the network over codebooks, and what it is told at every one."""
        return jnp.tanh(self.start(outputs).astype(jnp.float32)), self.around(outputs).astype(jnp.float32)

    def given(self, known: Float[Array, "rows embedding"], around: Float[Array, "rows gates"], i: int) -> Array:
        """Its input at codebook i; known: the embedding of the code before, zeros before the first one."""
        return self.depth.input(known.astype(jnp.float32)) + around + self.position[i][None]

    def taught(
        self,
        outputs: Float[Array, "rows width"],
        codes: Int[Array, "rows codebooks"],
        mask: Float[Array, "rows depth"] | None = None,
    ) -> Float[Array, "codebooks rows codebook_size"]:
        """The logits of all codes of frames, each knowing the true ones before it."""
        state, around = self.opened(outputs)
        known = [table[codes[:, i]] for i, table in enumerate(self.embedding[:-1])]
        known = [jnp.zeros((len(codes), self.embedding.shape[-1]), self.embedding.dtype), *known]
        xs = jnp.stack([self.given(each, around, i) for i, each in enumerate(known)])
        _, x = sequence(CELL, self.depth, state, xs)
        x = x if mask is None else x * mask[None]
        return jnp.stack([head(each) for head, each in zip(self.heads, x, strict=True)])


class Network(nn.Module):
    """Makes the weights."""

    model: TokenGRU

    @nn.compact
    def __call__(self) -> Ready:
        model = self.model
        size, small = model.embedding, nn.initializers.normal(0.1)
        shape = (model.codebooks, model.codebook_size, size)
        dense = partial(Dense, dtype=model.dtype)
        embedding = self.param("embedding", nn.initializers.normal(1 / math.sqrt(model.codebooks)), shape)
        label = self.param("label", small, (model.classes, size)) if model.conditional else None
        return Ready(
            embedding.astype(model.dtype),
            self.param("begin", small, (size,)).astype(model.dtype),
            label,
            tuple(Recurrent(model.width if i else size, model.width, name=f"time_{i}")() for i in range(model.layers)),
            dense(model.width, model.depth, name="start")(),
            dense(model.width, 3 * model.depth, False, name="around")(),
            self.param("position", small, (model.codebooks, 3 * model.depth)),
            Recurrent(size, model.depth, name="depth")(),
            tuple(Dense(model.depth, model.codebook_size, name=f"head_{i}")() for i in range(model.codebooks)),
        )
