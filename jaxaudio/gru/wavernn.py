"""WaveRNN: a vocoder. Recurrent layers draw the sound sample by sample, from a mel spectrogram.

Kalchbrenner et al.: Efficient Neural Audio Synthesis, ICML 2018 (arXiv 1802.08435), and its public reimplementation,
fatchord/WaveRNN. Reproduced: the latter's networks `mol` (mixture of ten logistics; Salimans et al. 2017) and `raw`
(9-bit mu-law softmax) with the residual upsampling network; the paper's dual softmax of 16 bits, `dual`, one layer
whose halves draw the upper and the lower byte, conditioned by the same upsampling network (the paper does not tell its
own); block-sparse pruning of the recurrent matrices, as in the paper and in LPCNet. Departs: frames are centred on the
middle of their hop and see silence beyond the ends; cells of the mixture are integrated exactly, and its draws are
rounded to 16 bits; biases of `dual` are those of PyTorch's GRU; a pruned matrix keeps as many blocks in every group of
outputs. `small` is this project's own.

    python train.py wavernn:small --data FOLDER --eval-every 500

On digits16k's held-out speakers after 2500 steps: 4.74 bits per 9-bit sample (README).
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from types import MappingProxyType
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from jaxaudio.autoregressive import (
    BYTE,
    Autoregressive,
    coarse_fine,
    log_likelihood,
    mixture_log_likelihood,
    mixture_pick,
    pick,
    uniforms,
)
from jaxaudio.core import (
    Batch,
    Frames,
    InputError,
    Metrics,
    Params,
    Shard,
    State,
    Vocodes,
    Wave,
    average,
    descend,
    unless_skipped,
)
from jaxaudio.dsp.companding import linear_decode, linear_encode, mu_law_decode, mu_law_encode
from jaxaudio.dsp.mel import mel_filters
from jaxaudio.dsp.stft import frames as cut_frames
from jaxaudio.dsp.stft import window as taper
from jaxaudio.nn import sparse
from jaxaudio.nn.recurrent import CELLS, Linear, advance, relu, scan_ahead, silent
from jaxaudio.nn.upsampling import REACH, mix
from jaxaudio.nn.wavernn import Network, Ready, behind, conditions, teach

Codes = Int[Array, "*shape"]  # 0 to levels - 1

RANGE_DB = 100.0  # that the features span
FEW = 0.25  # share of its blocks up to which a recurrent kernel is applied block by block
FLOOR = 1e-5  # of the mel magnitudes, before the logarithm


@dataclasses.dataclass(frozen=True, kw_only=True)
class WaveRNN(Autoregressive, Vocodes):
    """What is seen of a sound, the network, the training, the pruning."""

    sample_rate: int = 22050  # Hz
    segment: int = 3575  # samples: whole hops; those around the ones to predict are what their frames see
    batch_size: int = 32  # recordings per step
    channels: int = 1  # 1: mono
    window: int = 1100  # samples of the Hann window
    fft: int = 2048  # samples of the Fourier transform, zeros around the window
    mels: int = 80  # mel bands, up to half the sample rate
    low: float = 40.0  # Hz, edge of the lowest band
    loudest_db: float = 0.0  # dB of a mel band that becomes 1; what is 100 dB softer becomes 0

    output: Literal["mol", "raw", "dual"] = "mol"  # mixture of logistics, softmax of mu-law codes, two of 8 bits each
    bits: int = 9  # of the mu-law codes (raw)
    factors: tuple[int, ...] = (5, 5, 11)  # of the upsampling; their product is the hop
    width: int = 128  # features of the network over frames
    blocks: int = 10  # residual ones of it
    aux: int = 32  # features of a frame for each recurrent and each dense layer; of `dual`: for the recurrent one
    units: int = 512  # of each recurrent layer
    layers: int = 2  # recurrent
    hidden: int = 512  # units of each dense layer
    dense: int = 2  # layers before the output

    learning_rate: float = 1e-4  # at its highest
    decay_steps: int = 0  # steps after which it has fallen to zero along a cosine; 0: constant
    clip: float = 4.0  # of the gradient's norm
    decay: float = 0.0  # of the averaged weights; 0: the last ones

    sparsity: float = 0.0  # share of the blocks of the recurrent matrices that are zero in the end
    block: int = 16  # neighbouring outputs of one input, which are pruned together
    prune_from: int = 1000  # step of the first pruning
    prune_until: int = 200_000  # step of the last one
    prune_every: int = 500  # steps

    criterion: ClassVar = "bits"
    faintest: ClassVar = 0.0
    published: ClassVar = MappingProxyType({"network": 4.23})
    presets: ClassVar = MappingProxyType(
        {
            "paper": {},
            "mol": {},
            "raw": {"output": "raw"},
            "dual": {"output": "dual", "units": 896, "layers": 1, "hidden": 448, "dense": 1, "aux": 128},
            "small": {
                **{"sample_rate": 16000, "segment": 3200, "batch_size": 16, "window": 800, "fft": 1024},
                **{"loudest_db": 20.0, "output": "raw", "factors": (5, 5, 8), "width": 64, "blocks": 4, "aux": 32},
                **{"units": 128, "layers": 1, "hidden": 64, "dense": 1},
                **{"learning_rate": 5e-3, "decay_steps": 4000, "decay": 0.99},
                **{"prune_from": 500, "prune_until": 2500, "prune_every": 100},
            },
            "tiny": {
                **{"sample_rate": 16000, "segment": 160, "batch_size": 8, "window": 48, "fft": 128, "mels": 8},
                **{"low": 0.0, "output": "raw", "bits": 6, "factors": (2, 8), "width": 8, "blocks": 1, "aux": 4},
                **{"units": 16, "hidden": 16, "learning_rate": 1e-2, "decay": 0.9},
                **{"sparsity": 0.5, "block": 4, "prune_from": 2, "prune_until": 20, "prune_every": 3},
            },
        }
    )

    def __post_init__(self):
        super().__post_init__()
        least = dict.fromkeys(("batch_size", "window", "width", "aux", "units", "layers", "hidden", "dense"), 1)
        least |= {"blocks": 0, "decay_steps": 0, "block": 1, "prune_from": 0, "prune_every": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise InputError(f"{name} is {getattr(self, name)}: it is at least {value}")
        for name in ("learning_rate", "clip"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name} is {getattr(self, name)}: it is above 0")
        if self.channels != 1:
            raise InputError(f"channels is {self.channels}: WaveRNN makes mono sound, pass 1")
        if not self.factors or min(self.factors) < 2:
            raise InputError(f"factors is {self.factors}: they are at least 2 each, and their product is the hop")
        if not self.hop <= self.window <= self.fft:
            raise InputError(
                f"window is {self.window}: it is at least the hop, {self.hop} (the product of factors), and at most "
                f"fft, {self.fft}"
            )
        if self.segment % self.hop or self.predicted < self.hop:
            raise InputError(
                f"segment is {self.segment}: it is whole hops of {self.hop}, {2 * self.margin + 1} at least, since the "
                f"{self.margin} first and last are what the frames of the others see"
            )
        if not 4 <= self.bits <= 16:
            raise InputError(f"bits is {self.bits}: pass 4 to 16")
        if not 0 <= self.decay < 1:
            raise InputError(f"decay is {self.decay}: it is at least 0 and below 1")
        if self.output == "dual" and (self.units % 2 or self.layers != 1 or self.dense != 1):
            raise InputError(
                f"units is {self.units}, layers {self.layers} and dense {self.dense}: dual has one recurrent layer of "
                "two halves, an even number of units, and one dense layer for each"
            )
        if self.output == "mol" and self.top_p < 1:
            raise InputError(f"top_p is {self.top_p}: a mixture of logistics has no levels to choose from, pass 1")
        if not abs(self.loudest_db) < float("inf"):
            raise InputError(f"loudest_db is {self.loudest_db}: it is a level in dB")
        self._check_pruning()
        _ = self.filters  # refuses bands without a bin

    def _check_pruning(self):
        if not 0 <= self.sparsity < 1:
            raise InputError(f"sparsity is {self.sparsity}: it is a share, at least 0 and below 1")
        if self.sparsity and self.units % self.block:
            raise InputError(f"block is {self.block}: it divides units, {self.units}")
        if self.prune_until <= self.prune_from:
            raise InputError(f"prune_until is {self.prune_until}: it is above prune_from, {self.prune_from}")
        if self.sparsity and self.prune_until > self.steps:
            raise InputError(f"prune_until is {self.prune_until}: training ends at step {self.steps}, choose less")

    @property
    def steps(self) -> int:
        """To where the learning rate has fallen to zero; else as many as the public code takes."""
        return self.decay_steps or 1_000_000

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return math.prod(self.factors)

    @property
    def reach(self) -> int:
        """Frames to either side of a stretch that bear on its sound."""
        return REACH

    @property
    def edges(self) -> tuple[int, int]:
        """Samples before and behind its hop that a frame sees."""
        return (self.window - self.hop) // 2, (self.window - self.hop + 1) // 2

    @property
    def margin(self) -> int:
        """Hops on each side of a training example that are not predicted."""
        return REACH + -(-self.edges[1] // self.hop)

    @property
    def predicted(self) -> int:
        """Samples of a training example that are."""
        return self.segment - 2 * self.margin * self.hop

    @property
    def levels(self) -> int:
        """Codes that a sample can have."""
        return 2**self.bits if self.output == "raw" else BYTE**2

    @property
    def filters(self) -> np.ndarray:
        """[bins, mels]."""
        return mel_filters(self.sample_rate, self.fft, self.mels, self.low)

    @property
    def tx(self) -> optax.GradientTransformation:
        """Adam with its schedule, behind the clipping of the gradient."""
        rate = self.learning_rate
        if self.decay_steps:
            rate = optax.cosine_decay_schedule(rate, self.decay_steps)
        return optax.chain(optax.clip_by_global_norm(self.clip), optax.adam(rate))

    # -------------------------------------------------------------------------------------------------- sound and codes

    def codes(self, wave: Float[Array, "*shape"]) -> Codes:
        """Of amplitudes."""
        return (mu_law_encode if self.output == "raw" else linear_encode)(wave, self.levels)

    def amplitudes(self, codes: Codes) -> Float[Array, "*shape"]:
        """Of codes."""
        return (mu_law_decode if self.output == "raw" else linear_decode)(codes, self.levels)

    def inputs(self, codes: Codes) -> Float[Array, "*shape parts"]:
        """As the network sees them, in [-1, 1]; of `dual`: the upper and the lower byte."""
        if self.output == "dual":
            return jnp.stack([linear_decode(part, BYTE) for part in coarse_fine(codes)], -1)
        return linear_decode(codes, self.levels)[..., None]

    def features(self, wave) -> Frames:
        """Mel bands in dB, scaled to [0, 1]; silence lies before and behind the sound."""
        if wave.shape[1] % self.hop:
            raise InputError(f"{wave.shape[1]} samples are no whole number of hops of {self.hop}: fill up with zeros")
        return self.seen(jnp.pad(wave[..., 0], ((0, 0), self.edges)))

    def seen(self, wave: Float[Array, "batch time"]) -> Frames:
        """The frames that lie wholly in these samples."""
        cut = cut_frames(wave.astype(jnp.float32), self.window, self.hop)
        magnitude = jnp.abs(jnp.fft.rfft(cut * taper("hann", self.window).reshape(1, 1, -1), self.fft))
        return self.from_log(jnp.log(jnp.maximum(magnitude @ jnp.asarray(self.filters), FLOOR)))

    def from_log(self, frames: Frames) -> Frames:
        """In dB, scaled to [0, 1]."""
        return jnp.clip((20 / math.log(10) * frames - self.loudest_db) / RANGE_DB + 1, 0, 1)

    # --------------------------------------------------------------------------------------------------------- training

    def init(self, key: Key[Array, ""], measured) -> State:
        """One network, nothing of it pruned."""
        del measured
        variables = Network(self).init(key, jnp.zeros((1, 2 * REACH + 1, self.mels)), Shard(), False)
        network = variables["params"]
        masks = {name: sparse.everything(kernel, self.block) for name, kernel in self.pruned(network).items()}
        extra = {"average": jax.tree.map(jnp.copy, network), "statistics": variables["batch_stats"], "masks": masks}
        opt = {"network": self.tx.init(network)}
        return State(step=jnp.zeros((), jnp.int32), params={"network": network}, opt=opt, extra=extra)

    def train_step(self, state, batch, key, shard, stage) -> tuple[State, Metrics]:
        """One update; then what is pruned is set to zero."""
        del key, stage
        loss = partial(self.loss, batch=batch, statistics=state.extra["statistics"], shard=shard)
        network, opt, metrics = descend(self.tx, loss, state.params["network"], state.opt["network"], shard)
        masks = unless_skipped(metrics, self.renewed(network, state.extra["masks"], state.step), state.extra["masks"])
        network = masked(network, masks)
        averaged = average(state.extra["average"], network, self.decay, state.step)
        kept = {"average": averaged, "statistics": metrics.pop("statistics")}
        extra = {**unless_skipped(metrics, kept, {name: state.extra[name] for name in kept}), "masks": masks}
        metrics = {f"network/{name}": value for name, value in metrics.items()}
        if masks:
            metrics["sparsity"] = 1 - jnp.mean(jnp.stack([jnp.mean(mask) for mask in masks.values()]))
        return State(state.step + 1, {"network": network}, {"network": opt}, extra), metrics

    def loss(self, network, *, batch: Batch, statistics, shard: Shard):
        """Nats per sample. Codes hide what is not finite in a wave; its frames show it."""
        given, frames = {"params": network, "batch_stats": statistics}, self.frames_of(batch)
        ready, changed = Network(self).apply(given, frames, shard, True, mutable="batch_stats")
        value = -jnp.mean(sum(self.likelihoods(ready, batch.wave).values()))
        return value, {"bits": value / math.log(2), "statistics": changed["batch_stats"]}

    def evaluate(self, state, batch, key) -> Metrics:
        """Bits per sample: of 16-bit samples or, of `raw`, of mu-law codes; of `dual` also those of each byte."""
        del key
        ready = self.ready(self.weights(state), self.frames_of(batch))
        bits = {name: -value / math.log(2) for name, value in self.likelihoods(ready, batch.wave).items()}
        return {"bits": sum(bits.values()), **(bits if len(bits) > 1 else {})}

    def frames_of(self, batch: Batch) -> Frames:
        """Of training examples: those of the predicted samples, and REACH to either side."""
        wave, beyond = batch.wave, self.margin - REACH
        if batch.given is not None:
            return batch.given[:, beyond : batch.given.shape[1] - beyond]
        around = beyond * self.hop
        return self.seen(wave[:, around - self.edges[0] : wave.shape[1] - around + self.edges[1], 0])

    def likelihoods(self, ready: Ready, wave: Wave) -> dict[str, Float[Array, "batch"]]:
        """ln of the probability of a training example's predicted samples, as a mean, given the true ones before each,
        from silent recurrent layers on; of `dual` by byte."""
        first = self.margin * self.hop
        codes = self.codes(wave[:, first - 1 : first + self.predicted, 0]).T
        outputs, codes = teach(ready, self.taught(codes)), codes[1:]
        if self.output == "mol":
            found = {"sample": mixture_log_likelihood(outputs, codes, self.levels)}
        elif self.output == "raw":
            found = {"sample": log_likelihood(outputs, codes)}
        else:
            named = zip(("coarse", "fine"), jnp.split(outputs, 2, -1), coarse_fine(codes), strict=True)
            found = {name: log_likelihood(logits, part) for name, logits, part in named}
        return {name: jnp.mean(value, 0) for name, value in found.items()}

    def taught(self, codes: Int[Array, "one_more batch"]) -> Float[Array, "time batch parts"]:
        """What the network is given to predict all codes but the first: the one before; the lower byte, which comes
        second, also the upper byte of its own."""
        before = self.inputs(codes[:-1])
        return jnp.concatenate([before, self.inputs(codes[1:])[..., :1]], -1) if self.output == "dual" else before

    # ---------------------------------------------------------------------------------------------------------- pruning

    def pruned(self, network: Params) -> dict[str, Array]:
        """The kernels that are pruned."""
        names = [f"layer_{i}" for i in range(self.layers)] if self.sparsity else []
        return {name: network[name]["recurrent_0"]["kernel"] for name in names}

    def renewed(self, network: Params, masks, step: Int[Array, ""]):
        """The masks behind this step."""
        if not masks:
            return masks
        on_time = ((step - self.prune_from) % self.prune_every == 0) | (step == self.prune_until)
        due = on_time & (step >= self.prune_from) & (step <= self.prune_until)
        sparsity = sparse.schedule(step, self.sparsity, self.prune_from, self.prune_until)
        return sparse.renewed(due, self.pruned(network), masks, sparsity, self.block)

    def weights(self, state) -> Params:
        """The averaged network, the statistics of its batch norm, and which blocks of its recurrent matrices are not
        zero (none named: all)."""
        masks = state.extra["masks"]
        network = masked(state.extra["average"], masks)
        return {"network": network, "statistics": state.extra["statistics"], "masks": masks}

    # --------------------------------------------------------------------------------------------------------- sampling

    def ready(self, params: Params, frames: Frames) -> Ready:
        """The network for these frames, REACH at each end being what lies around them."""
        given = {"params": params["network"], "batch_stats": params["statistics"]}
        ready = Network(self).apply(given, frames, Shard(), False)
        packed = params.get("packed", {}) if len(frames) == 1 else {}
        layers = (
            layer._replace(recurrent=(packed.get(f"layer_{i}", *layer.recurrent),))
            for i, layer in enumerate(ready.layers)
        )
        return ready._replace(layers=tuple(layers))

    def prepared(self, params) -> Params:
        """With the kept blocks of the recurrent kernels by themselves, where they are few: faster for one sound at a
        time, not for 16. Not of `dual`."""
        masks = {name: np.asarray(mask) for name, mask in params["masks"].items()}
        most = max((int(mask.sum(0).max()) for mask in masks.values()), default=self.units)
        if most > FEW * self.units or self.output == "dual":
            return params
        layers = {name: params["network"][name]["recurrent_0"] for name in masks}
        pack = lambda name, of: sparse.packed(of["kernel"], of["bias"], jnp.asarray(masks[name]), most)
        return {**params, "packed": {name: pack(name, of) for name, of in layers.items()}}

    def open(self, params, batch) -> "Past":
        """Silence."""
        del params
        hidden = tuple(silent("gru", batch, self.units) for _ in range(self.layers))
        return Past(hidden, self.codes(jnp.zeros(batch)), jnp.zeros((), jnp.int32))

    def vocode(self, params, carry, frames, key) -> tuple["Past", Wave]:
        """Sample by sample, in one program."""
        batch, count, bands = frames.shape
        if bands != self.mels:
            raise InputError(f"the frames have {bands} mel bands: this model takes {self.mels}, as its features")
        if count <= 2 * REACH:
            raise InputError(f"{count} frames: {REACH} at each end lie around the sound, pass {2 * REACH + 1} at least")
        ready, count = self.ready(params, frames), count - 2 * REACH
        draws = 1 if self.output == "raw" else 2
        numbers = uniforms(key, carry.position, count * self.hop, batch, draws)
        given, step = (bytes_in_turn if self.output == "dual" else one_by_one)(self, ready)

        def frame(state, given):
            numbers, around, *stills = given
            return scan_ahead(partial(step, stills), state, (mix(ready.smoothing, around), numbers))

        numbers = numbers.reshape(count, self.hop, draws, batch)
        (hidden, code), codes = jax.lax.scan(frame, (carry.hidden, carry.code), (numbers, *given))
        past = Past(hidden, code, carry.position + count * self.hop)
        codes = codes.reshape(-1, batch).T
        return past, jnp.where(codes < 0, jnp.nan, self.amplitudes(codes))[..., None]

    def drawn(self, outputs: Float[Array, "batch outputs"], numbers: Float[Array, "draws batch"]) -> Codes:
        """The next code of `mol` or `raw`."""
        if self.output == "raw":
            return pick(outputs, numbers[0], self.temperature, self.top_p)
        drawn = mixture_pick(outputs, numbers, self.temperature)
        return jnp.where(jnp.isnan(drawn), -1, self.codes(drawn))


class Past(NamedTuple):
    """What is known before a sample."""

    hidden: tuple[Float[Array, "batch units"], ...]
    code: Int[Array, "batch"]  # of the sample before
    position: Int[Array, ""]  # samples since the start


def masked(network: Params, masks) -> Params:
    """With zeros in the recurrent kernels where no block is kept."""
    done = dict(network)
    for name, mask in masks.items():
        product = network[name]["recurrent_0"]
        done[name] = {**network[name], "recurrent_0": {**product, "kernel": sparse.masked(product["kernel"], mask)}}
    return done


def one_by_one(model: WaveRNN, ready: Ready) -> tuple[tuple[Array, ...], Callable]:
    """Sampling of `mol` and `raw`: what a frame's samples are given, and the step for it.

    What the source adds to each layer that reads the residual path is linear in the sample and the frame: it is folded
    into one vector and a few rows per frame, and only what the recurrent layers add goes through a matrix.
    """
    readers = [*(layer.input for layer in ready.layers), ready.dense[0]]
    own, of_aux = zip(*(jnp.split(reader.kernel, (model.units,)) for reader in readers), strict=True)
    shared = Linear(jnp.concatenate(own, 1), jnp.concatenate([reader.bias for reader in readers]))
    folded = behind(ready.source, shared)
    of_aux = [jnp.zeros((model.aux, own[0].shape[1])), *of_aux[1:]]  # the source has seen what the first layer sees
    still = jnp.concatenate([a @ kernel for a, kernel in zip(ready.aux, of_aux, strict=False)], -1)
    around = conditions(ready, folded, 1).at[:, -1].add(jnp.moveaxis(still, 1, 0))
    ends = np.cumsum([kernel.shape[1] for kernel in own])[:-1].tolist()
    *later, last = ready.dense[1:]
    kernels, stills = [], []
    for linear, aux in zip(later, ready.aux[len(readers) :], strict=True):
        kernel, of_aux = jnp.split(linear.kernel, (model.hidden,))
        kernels.append(kernel)
        stills.append(jnp.moveaxis(linear._replace(kernel=of_aux)(aux), 0, 1))

    def step(stills, state, given):
        (hidden, code), (around, numbers) = state, given
        given = jnp.split(around + model.inputs(code) * folded.kernel[:1], ends, -1)
        total, carried = jnp.zeros_like(hidden[0]), []
        for i, (layer, before) in enumerate(zip(ready.layers, hidden, strict=True)):
            carried.append(advance("gru", layer, before, given[i] + total @ own[i] if i else given[i]))
            total = total + carried[-1]
        y = relu(given[-1] + total @ own[-1])
        for kernel, still in zip(kernels, stills, strict=True):
            y = relu(y @ kernel + still)
        code = model.drawn(last(y), numbers)
        return (tuple(carried), code), code

    return (around, *stills), step


def bytes_in_turn(model: WaveRNN, ready: Ready) -> tuple[tuple[Array, ...], Callable]:
    """Sampling of `dual`: the product with the state is one for both halves, then comes the upper byte, then the lower.

    The columns of each half's three gates lie side by side.
    """

    def sorted_by_half(x):
        parted = x.reshape(*x.shape[:-1], 3, 2, -1)
        return jnp.moveaxis(parted, -2, -3).reshape(x.shape)

    (layer,), gate = ready.layers, CELLS["gru"].stages[-1]
    layer = jax.tree.map(sorted_by_half, layer)
    of_upper = jnp.split(layer.input.kernel[2], 2)[1]
    (product,) = layer.recurrent
    both = list(zip(ready.dense[::2], ready.dense[1::2], strict=True))

    def step(stills, state, given):
        ((h,), code), (around, numbers) = state, given
        x = jnp.split(around + model.inputs(code) @ layer.input.kernel[:2], 2, -1)
        halves, products = jnp.split(h, 2, -1), jnp.split(product(h), 2, -1)
        carried, drawn = [], []
        for i, (first, last) in enumerate(both):
            if i:
                x[1] = x[1] + linear_decode(drawn[0], BYTE)[:, None] * of_upper[None]
            carried.append(gate(halves[i], x[i], [products[i]]))
            logits = last(relu(first(carried[i])))
            drawn.append(pick(logits, numbers[i], model.temperature, model.top_p))
        code = drawn[0] * BYTE + drawn[1]
        return ((jnp.concatenate(carried, -1),), code), code

    return (conditions(ready, layer.input, 3),), step
