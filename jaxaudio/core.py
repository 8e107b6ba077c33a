"""The contract between the training loop and a paper: what a model is, what it may know, how it descends.

A model is a frozen dataclass of hyper-parameters with pure methods. The loop (`train.py`) calls `init`, `train_step`,
`evaluate` and `weights`; what else a model can do is told by the capabilities it inherits (`Generates`, `Classifies`).
"""

import abc
import dataclasses
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

Wave = Float[Array, "batch time channels"]  # amplitude in [-1, 1]
Labels = Int[Array, "batch"]  # class index
Latent = Float[Array, "batch frames latent"]  # of an autoencoder
Frames = Float[Array, "batch frames features"]  # of a vocoder
Codes = Int[Array, "batch frames codebooks"]  # of a codec, each from 0 to less than the codebook's size
Gap = Float[Array, "batch time"]  # 1 where sound is lost, else 0
Params = Mapping[str, Any]  # a pytree of arrays
Carry = Any  # a pytree of arrays
Metrics = Mapping[str, Any]  # of arrays
Loss = Callable[[Params], tuple[Float[Array, ""], Metrics]]


class InputError(Exception):
    """Something the caller can mend: one line that names the thing, its value, the rule and the remedy. Exit code 2."""


class Batch(NamedTuple):
    """Training examples: `wave` [batch, time, channels] in [-1, 1]; `label` [batch], zeros where the data has none."""

    wave: Wave  # of a model that learns from `given` alone: 0 samples
    label: Labels
    noise: Wave | None = None  # other recordings, for a model that `needs_noise`
    given: Codes | Frames | None = (
        None  # of a model that `needs_codes`: those of recordings; of one that vocodes: theirs
    )


class State(NamedTuple):
    """All that training changes. Arrays only, none of size zero, so that it can be saved, sharded and donated."""

    step: Int[Array, ""]
    params: Mapping[str, Params]  # one entry per network
    opt: Mapping[str, optax.OptState]  # one entry per optimiser
    extra: Mapping[str, Any]  # what no gradient reaches: averages, batch statistics


class Own(NamedTuple):
    """Among metrics: what belongs to each device's own examples, such as a carry; no mean over devices is taken."""

    value: Any


@dataclasses.dataclass(frozen=True)
class Shard:
    """What a step knows of the other devices: `axis` is None where it sees the whole batch (jit), else pmap's axis.

    Where each device keeps a part of the networks (fsdp), `parts` has each compute its own part of a tree that looks
    like the state's parameters, and `whole` brings the parts together on every device.
    """

    axis: str | None = None
    whole: Callable[[Any], Any] = lambda tree: tree
    parts: Callable[[Any], Any] = lambda tree: tree

    def mean(self, tree: Any) -> Any:
        """The mean over all devices, leaf by leaf, but for what is `Own`."""
        if self.axis is None:
            return tree
        own = lambda x: isinstance(x, Own)
        return jax.tree.map(lambda x: x if own(x) else jax.lax.pmean(x, self.axis), tree, is_leaf=own)

    def keys(self, key: Key[Array, ""], n: int) -> Key[Array, "n"]:
        """One key per example, from its index in the whole batch: every device layout draws the same numbers."""
        first = 0 if self.axis is None else jax.lax.axis_index(self.axis) * n
        return jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(n))

    def gather(self, x: Float[Array, "rows *more"]) -> Float[Array, "all_rows *more"]:
        """The rows of all devices, in the order of the whole batch."""
        return x if self.axis is None else jax.lax.all_gather(x, self.axis, tiled=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model(abc.ABC):
    """A paper: hyper-parameters as fields, pure functions as methods."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]]  # at least "paper" and "tiny"
    published: ClassVar[Mapping[str, float]]  # parameters of the paper preset, in millions, per network
    criterion: ClassVar[str]  # the metric of `evaluate` that picks the best checkpoint; smaller is better
    needs_labels: ClassVar[bool | property] = False
    needs_noise: ClassVar[bool | property] = False
    needs_codes: ClassVar[bool] = False
    label: ClassVar[str] = "label"  # what a recording's class is: a column of metadata.csv
    cut: ClassVar[Literal["anywhere", "beginning"]] = "anywhere"  # which part of a longer recording is an example

    sample_rate: int  # Hz
    segment: int  # samples per training example
    batch_size: int  # examples consumed by one train_step
    channels: int = 1  # 1: mono
    gain: Literal["peak", "none"] = "none"  # peak: every recording is scaled to a peak of 1
    balanced: bool = False  # training takes its examples from all classes in turn; False: from all recordings alike
    classes: int = 0  # labels; 0: unconditional; filled in from the data
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; parameters stay float32

    @property
    def steps(self) -> int:
        """How many training steps a run takes where none are asked for."""
        return 200_000

    def measure(self, batches: Iterable[Batch]) -> Mapping[str, Array]:
        """Statistics of the training data that `init` needs, from one pass over it; none for most models.

        They live in the state, so a run measures once, before its first step. Without any batch: the same arrays with
        values that do no harm, for where only shapes matter.
        """
        del batches
        return {}

    @abc.abstractmethod
    def init(self, key: Key[Array, ""], measured: Mapping[str, Array]) -> State:
        """The state before the first step."""

    def stage(self, step: int) -> Hashable:
        """Which variant of `train_step` comes next, by the step number alone; None where there is one."""
        del step
        return None

    @property
    def variants(self) -> tuple[Hashable, ...]:
        """Every value of `stage`, in the order in which training first meets them."""
        return (self.stage(0),)

    @abc.abstractmethod
    def train_step(
        self, state: State, batch: Batch, key: Key[Array, ""], shard: Shard, stage: Hashable
    ) -> tuple[State, Metrics]:
        """One step; metrics are scalars, alike on all devices, those of `descend` among them."""

    @abc.abstractmethod
    def evaluate(self, state: State, batch: Batch, key: Key[Array, ""]) -> Metrics:
        """Metrics on recordings it was not trained on, each of shape [batch]; the loop averages."""

    @abc.abstractmethod
    def weights(self, state: State) -> Params:
        """What the capabilities take: the averaged weights where the paper samples from those."""


class Generates(Model):
    """Makes sound from nothing but a key and, if it is conditional, a label."""

    @abc.abstractmethod
    def generate(self, params: Params, key: Key[Array, ""], n: int, length: int, label: Labels | None) -> Wave:
        """`n` sounds of `length` samples; sound i depends on (key, i, label[i]) alone. label: [n], if conditional."""


class Continues(Generates):
    """Makes sound frame by frame, each from all that came before."""

    levels: int  # of a sample: it predicts one of so many codes
    law: Literal["mu_law", "linear"]  # how amplitudes become codes: dsp/companding.py

    @property
    @abc.abstractmethod
    def frame(self) -> int:
        """Samples that come at once, and the fewest that can be gone on from."""

    @abc.abstractmethod
    def begin(self, params: Params, n: int, label: Labels | None) -> Carry:
        """What is known before the first of `n` sounds. label: [n], if conditional."""

    @abc.abstractmethod
    def hear(self, params: Params, wave: Wave, label: Labels | None) -> Carry:
        """What is known behind these sounds, a whole number of frames each."""

    @abc.abstractmethod
    def extend(self, params: Params, carry: Carry, key: Key[Array, ""], frames: int) -> tuple[Carry, Wave]:
        """The next frames. What is random in sample i of row b, counted from where `begin` or `hear` left off, depends
        on (key, b, i) alone, so that a long sound may be made in parts. The key is the same for all parts."""

    @abc.abstractmethod
    def bits(self, params: Params, wave: Wave, label: Labels | None) -> Float[Array, "batch"]:
        """Bits per sample that the model needs for these sounds, a whole number of frames each, from a cold start."""

    def generate(self, params: Params, key: Key[Array, ""], n: int, length: int, label: Labels | None) -> Wave:
        """From a cold start; any length, all at once."""
        _, wave = self.extend(params, self.begin(params, n, label), key, -(-length // self.frame))
        return wave[:, :length]


class Morphs(Generates):
    """Generates from a latent vector, so that there is a path between two sounds."""

    @abc.abstractmethod
    def latents(self, key: Key[Array, ""], n: int) -> Float[Array, "n latent"]:
        """Draws from the prior; row i depends on (key, i) alone."""

    @abc.abstractmethod
    def render(self, params: Params, latent: Float[Array, "n latent"], label: Labels | None) -> Wave:
        """The sounds at these points of the latent space."""

    def generate(self, params: Params, key: Key[Array, ""], n: int, length: int, label: Labels | None) -> Wave:
        """Renders draws from the prior; at most `segment` samples."""
        if not 0 < length <= self.segment:
            raise InputError(f"length is {length}: this model makes 1 to {self.segment} samples (its segment)")
        return self.render(params, self.latents(key, n), label)[:, :length]


class Plays(Morphs):
    """Makes notes: its classes are pitches, its latent vectors instruments."""

    label = "pitch"
    cut = "beginning"
    needs_labels = True
    pitches: tuple[int, ...]  # MIDI numbers, one for each class, in their order; filled in from the data


class Encodes(Model):
    """Turns sound into latent frames, `hop` samples each, and back."""

    @property
    @abc.abstractmethod
    def hop(self) -> int:
        """Samples per latent frame."""

    @property
    @abc.abstractmethod
    def reach(self) -> int:
        """Latent frames before and after a stretch that bear on its sound: the overlap of a long recording's parts."""

    @property
    def delay(self) -> int:
        """Samples by which sound that was encoded and decoded lags behind the original."""
        return 0

    @abc.abstractmethod
    def encode(self, params: Params, wave: Wave) -> Latent:
        """The latent frames of a sound of a whole number of hops; the component that varies most comes first."""

    @abc.abstractmethod
    def decode(self, params: Params, latent: Latent, key: Key[Array, ""], first: Int[Array, ""] | int = 0) -> Wave:
        """The sound of latent frames, `hop` samples each.

        latent: its leading components; those that are missing take their mean. What is random in frame i of row b
        depends on (key, b, first + i) alone, so that a long sound may be decoded in parts.
        """

    @abc.abstractmethod
    def spread(self, params: Params) -> Float[Array, "latent"]:
        """The variance of each component over the training data, the largest first."""


class Streams(Model):
    """Takes sound through itself and back while it comes: what encodes and decodes, or a vocoder and its features."""

    @property
    @abc.abstractmethod
    def hop(self) -> int:
        """Samples of which a chunk has a whole number."""

    @property
    def delay(self) -> int:
        """Samples by which what comes out lags behind the original."""
        return 0

    @abc.abstractmethod
    def open(self, params: Params, batch: int) -> Carry:
        """What `push` knows of the past, before the first chunk. Where the model looks ahead, this or `push` raises
        InputError."""

    @abc.abstractmethod
    def push(self, params: Params, carry: Carry, wave: Wave, key: Key[Array, ""]) -> tuple[Carry, Wave]:
        """The next chunk, a whole number of hops, in and out; `delay` samples late. The key is the same for all chunks.

        The outputs, joined, are those of everything at once.
        """


class Vocodes(Model):
    """Turns sound into frames of features, such as a mel spectrogram, `hop` samples each, and features into sound.

    Training takes the frames `given` beside a batch's sounds, one for each of their hops, in place of its own.
    """

    faintest: ClassVar[float] = -float("inf")  # what features are at least

    @property
    @abc.abstractmethod
    def hop(self) -> int:
        """Samples per frame."""

    @property
    @abc.abstractmethod
    def reach(self) -> int:
        """Frames to either side of a stretch that bear on its sound."""

    @abc.abstractmethod
    def features(self, wave: Wave) -> Frames:
        """The frames of a sound of a whole number of hops: frame i is centred on the middle of its `hop` samples."""

    def from_log(self, frames: Frames) -> Frames:
        """Features of natural logarithms of the magnitudes of mels: in most models these are the features."""
        return frames

    def open(self, params: Params, batch: int) -> Carry:
        """What `vocode` knows of the past before the first frame: nothing, in most models."""
        del params, batch
        return ()

    def prepared(self, params: Params) -> Params:
        """The weights as `vocode` takes them fastest; done once, outside of any program, where values can be seen."""
        return params

    @abc.abstractmethod
    def vocode(self, params: Params, carry: Carry, frames: Frames, key: Key[Array, ""]) -> tuple[Carry, Wave]:
        """The sound of the frames but for the first and the last `reach`, which are what lies around them. What is
        random in sample i of row b, counted from `open`, depends on (key, b, i) alone."""


class Quantizes(Encodes):
    """Turns sound into codes, a few small whole numbers per frame, and back. Its latent frames are what codes tell."""

    codebooks: int  # codes of a frame, the coarsest first
    codebook_size: int  # values that a code has

    @abc.abstractmethod
    def codes(self, params: Params, wave: Wave) -> Codes:
        """All codes of a sound of a whole number of hops. Raises InputError where the model has a continuous latent."""

    @abc.abstractmethod
    def frames_of(self, params: Params, codes: Codes) -> Latent:
        """The latent frames that codes tell, or the leading ones of each frame: what `decode` takes."""


class Composes(Model):
    """Makes the codes of a codec frame by frame, each from all that came before."""

    needs_codes = True
    codebooks: int  # these three: filled in from the codec
    codebook_size: int
    hop: int  # samples per frame of codes; the segment is a whole number of them

    @abc.abstractmethod
    def begin(self, params: Params, n: int, label: Labels | None) -> Carry:
        """What is known before the first frame of `n` sounds. label: [n], if conditional."""

    @abc.abstractmethod
    def hear(self, params: Params, codes: Codes, label: Labels | None) -> Carry:
        """What is known behind these codes."""

    @abc.abstractmethod
    def extend(self, params: Params, carry: Carry, key: Key[Array, ""], frames: int) -> tuple[Carry, Codes]:
        """The next frames. What is random in frame i of row b, counted from where `begin` or `hear` left off, depends
        on (key, b, i) alone, so that long codes may be made in parts. The key is the same for all parts."""

    @abc.abstractmethod
    def bits(self, params: Params, codes: Codes, label: Labels | None) -> Float[Array, "batch codebooks"]:
        """Bits that the model needs for a code of each codebook, the mean over the frames, from a cold start."""


class Restores(Model):
    """Gives damaged sound back as it was: without noise, or whole again where a part of it is lost."""

    @property
    @abc.abstractmethod
    def hop(self) -> int:
        """Samples of which a sound has a whole number."""

    @property
    @abc.abstractmethod
    def reach(self) -> int:
        """Hops to either side of a stretch that bear on what it is restored to."""

    @property
    def longest(self) -> int:
        """Samples of the longest gap that it fills; 0: it fills none."""
        return 0

    @abc.abstractmethod
    def damaged(self, batch: Batch, key: Key[Array, ""], shard: Shard) -> tuple[Wave, Gap]:
        """What training does to the recordings of a batch, and where it took sound away."""

    @abc.abstractmethod
    def restore(
        self, params: Params, wave: Wave, gap: Gap | None, key: Key[Array, ""], first: Int[Array, ""] | int = 0
    ) -> Wave:
        """The sound restored. gap: where it is lost, one stretch in each row at most; None: nowhere. What is random in
        hop i of row b depends on (key, b, first + i) alone, so that a long sound may be restored in parts."""


class Classifies(Model):
    """Tells which class a sound belongs to."""

    @abc.abstractmethod
    def classify(
        self, params: Params, wave: Wave
    ) -> tuple[Float[Array, "batch classes"], Float[Array, "batch features"]]:
        """Logits, and the embedding that they are read from; wave: [batch, segment, channels]."""


def split(tree: Any, parts: int) -> list[Any]:
    """`parts` trees of every `parts`-th example: the interleaved split moves no data between devices."""
    rows = jax.tree.leaves(tree)[0].shape[0]
    if rows % parts:
        raise InputError(f"{rows} examples do not split into {parts} equal parts: change batch_size or the devices")
    parted = jax.tree.map(lambda x: x.reshape(rows // parts, parts, *x.shape[1:]), tree)
    return [jax.tree.map(lambda x, i=i: x[:, i], parted) for i in range(parts)]


def descend(
    tx: optax.GradientTransformation, loss: Loss, params: Params, opt: optax.OptState, shard: Shard
) -> tuple[Params, optax.OptState, Metrics]:
    """One optimiser update; the only place where gradients are averaged over devices.

    `loss(params)` returns the scalar and its metrics. An update whose averaged gradient is not finite is not applied:
    parameters and optimiser state come back bit for bit, and the metric `skipped` is 1. Metrics are averaged over
    devices but for what is `Own`.
    """
    (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params)
    grads, value, metrics = shard.mean((grads, value, metrics))
    params, grads = shard.parts((params, grads))
    norm = optax.tree.norm(grads)
    updates, new_opt = tx.update(grads, opt, params)
    metrics = {"loss": value, **metrics, "grad_norm": norm, "skipped": 1.0 - jnp.isfinite(norm)}
    params, opt = unless_skipped(metrics, (optax.apply_updates(params, updates), new_opt), (params, opt))
    return shard.whole(params), opt, metrics


def replay(found: Any, pull: Callable[[Any], tuple[Params]]) -> Callable[[Params], Any]:
    """What `jax.vjp` gave, as a function of the parameters it was called with: the updates of two networks take it,
    computed once. (XLA does not see that the forward pass of a gradient is one that was there before.)"""
    again = jax.custom_vjp(lambda params: found)
    again.defvjp(lambda params: (found, None), lambda _, slope: pull(slope))
    return again


def unless_skipped(metrics: Metrics, new: Any, old: Any) -> Any:
    """`new` where the update that gave `metrics` was applied, else `old`: what follows a skipped update keeps still.

    A select, not `lax.cond`: XLA's CPU backend runs a branch on one core, which doubled the time of a step.
    """
    return jax.tree.map(lambda a, b: jnp.where(metrics["skipped"] == 0, a, b), new, old)


def average(old: Any, new: Any, decay: float, updates: Int[Array, ""]) -> Any:
    """Exponential moving average of weights; after u updates the decay is at most (1 + u) / (10 + u)."""
    decay = jnp.minimum(decay, (1 + updates) / (10 + updates))
    return jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, old, new)
