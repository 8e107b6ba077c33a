"""WaveGAN: one second of raw audio from a 100-dimensional latent vector, in one pass.

Donahue, McAuley, Puckette: Adversarial Audio Synthesis, ICLR 2019 (arXiv 1802.04208), and its official code.
Reproduced: generator and critic for 16384, 32768 or 65536 samples, WGAN-GP and the code's other losses, phase shuffle,
nearest-neighbour upsampling, post filter, batch norm. Added: a class label as condition, averaged weights to sample
from. Departs: the generated clips of all `n_critic` updates of a step come from one pass of the generator.

    python train.py wavegan:digits --data FOLDER
"""

import dataclasses
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from jaxaudio.core import (
    Batch,
    InputError,
    Labels,
    Metrics,
    Morphs,
    Params,
    Shard,
    State,
    Wave,
    average,
    descend,
    split,
    unless_skipped,
)
from jaxaudio.losses import spectral_energy_distance
from jaxaudio.nn.conv import Conv, ConvTranspose, biased, conv_transpose

TAPS = 25
STRIDES = {256: (4, 4), 16384: (4,) * 5, 32768: (4,) * 5 + (2,), 65536: (4,) * 6}  # of both networks, in their order
FRAMES = 16  # time steps of the innermost layer


@dataclasses.dataclass(frozen=True, kw_only=True)
class WaveGAN(Morphs):
    """Table 2 and 3 of the paper, and the flags of its code."""

    sample_rate: int = 16000  # Hz
    segment: int = 16384  # samples: 16384, 32768 or 65536
    batch_size: int = 320  # clips per step: n_critic updates of the critic on 64 each
    channels: int = 1  # 1: mono
    gain: Literal["peak", "none"] = "peak"  # peak: every recording is scaled to a peak of 1, as the official code does
    width: int = 64  # channels of the outermost layer, d in the paper
    latent: int = 100  # dimensions of z, uniform in [-1, 1]
    loss: Literal["wgan-gp", "wgan", "dcgan", "lsgan"] = "wgan-gp"
    n_critic: int = 5  # critic updates per generator update
    penalty: float = 10.0  # weight of the gradient penalty (wgan-gp), lambda; 0: not computed
    clip: float = 0.01  # bound of the critic's weights (wgan)
    learning_rate: float = 0.0  # 0: the official code's for this loss, 1e-4 for wgan-gp
    shuffle: int = 2  # samples of phase shuffle to either side, n in the paper; 0: off
    upsample: Literal["zeros", "nearest"] = "zeros"  # zeros: transposed convolution
    batch_norm: bool = False  # in both networks; not with wgan-gp, whose penalty is per example
    post_filter: int = 0  # taps of a learned filter behind the generator; 512 in the paper; 0: none
    conditional: bool = False  # on the class label: one-hot beside z, projection in the critic
    decay: float = 0.999  # of the averaged generator weights; 0: sample from the last ones

    criterion: ClassVar = "spectral_energy"
    published: ClassVar = MappingProxyType({"generator": 19.07, "critic": 17.43})
    presets: ClassVar = MappingProxyType(
        {
            "paper": {},
            "digits": {"width": 16, "batch_size": 80, "conditional": True, "learning_rate": 3e-4},
            "tiny": {
                **{"segment": 256, "width": 8, "batch_size": 64, "n_critic": 2, "latent": 8, "conditional": True},
                "learning_rate": 5e-3,
            },
        }
    )

    def __post_init__(self):
        if self.segment not in STRIDES:
            raise InputError(f"segment is {self.segment}: WaveGAN makes 16384, 32768 or 65536 samples (256 in tests)")
        counts = {name: getattr(self, name) for name in ("n_critic", "batch_size", "width", "latent", "channels")}
        for name, value in counts.items():
            if value < 1:
                raise InputError(f"{name} is {value}: it is at least 1")
        if not 0 <= self.shuffle < FRAMES:
            raise InputError(
                f"shuffle is {self.shuffle}: the critic's innermost layers have room for 0 to {FRAMES - 1}"
            )
        if self.batch_size % self.n_critic:
            raise InputError(
                f"batch_size {self.batch_size} does not split into n_critic {self.n_critic} updates: make it a multiple"
            )
        if self.batch_norm and self.loss == "wgan-gp":
            raise InputError("batch_norm with loss wgan-gp: the penalty is per example; choose dcgan, lsgan or wgan")

    @property
    def needs_labels(self) -> bool:
        """A conditional model cannot do without."""
        return self.conditional

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """The official code's for each loss."""
        rate, adam = self.learning_rate, self.loss in ("wgan-gp", "dcgan")
        defaults = {"wgan-gp": 1e-4, "wgan": 5e-5, "dcgan": 2e-4, "lsgan": 1e-4}
        rate = rate or defaults[self.loss]
        if adam:
            return optax.adam(rate, b1=0.5, b2=0.9 if self.loss == "wgan-gp" else 0.999)
        return optax.rmsprop(rate, decay=0.9, eps=1e-10, initial_scale=1.0)

    def init(self, key: Key[Array, ""], measured) -> State:
        """Glorot-uniform kernels, zero biases (TensorFlow's defaults)."""
        del measured
        generator_key, critic_key = jax.random.split(key)
        label = jnp.zeros(1, int)
        generator = Generator(self).init(generator_key, jnp.zeros((1, self.latent)), label, Shard(), False)
        wave = jnp.zeros((1, self.segment, self.channels))
        critic = Critic(self).init(critic_key, wave, label, critic_key, Shard())["params"]
        params = {"generator": generator["params"], "critic": critic}
        copy = jax.tree.map(jnp.copy, generator["params"])  # arrays of its own: all of a state are donated
        extra = {"average": copy, "statistics": generator.get("batch_stats", {})}
        opt = {name: self.optimizer.init(params[name]) for name in params}
        return State(step=jnp.zeros((), jnp.int32), params=params, opt=opt, extra=extra)

    def train_step(self, state, batch, key, shard, stage) -> tuple[State, Metrics]:
        """`n_critic` critic updates on fresh clips, then one generator update."""
        del stage
        generator, critic = state.params["generator"], state.params["critic"]
        generator_opt, critic_opt = state.opt["generator"], state.opt["critic"]
        latent_key, critic_key, generator_key = jax.random.split(key, 3)

        latent = self.draw(shard.keys(latent_key, batch.label.shape[0]))
        statistics = state.extra["statistics"]
        fakes, _ = self.sound(generator, statistics, latent, batch.label, shard)  # for all the critic's updates
        updates = []
        for i, (real, fake) in enumerate(split((batch, fakes), self.n_critic)):
            at = jax.random.fold_in(critic_key, i)
            loss = partial(self.critic_loss, real=real, fake=fake, key=at, shard=shard)
            critic, critic_opt, metrics = descend(self.optimizer, loss, critic, critic_opt, shard)
            if self.loss == "wgan":
                clipped = jax.tree.map(lambda w: jnp.clip(w, -self.clip, self.clip), critic)
                critic = unless_skipped(metrics, clipped, critic)
            updates.append(metrics)
        critic_metrics = jax.tree.map(lambda *values: sum(values) / self.n_critic, *updates)

        given = {"critic": critic, "statistics": statistics, "label": real.label, "key": generator_key}
        loss = partial(self.generator_loss, **given, shard=shard)
        generator, generator_opt, metrics = descend(self.optimizer, loss, generator, generator_opt, shard)

        averaged = average(state.extra["average"], generator, self.decay, state.step)
        extra = {"average": averaged, "statistics": metrics.pop("statistics")}
        state = State(
            step=state.step + 1,
            params={"generator": generator, "critic": critic},
            opt={"generator": generator_opt, "critic": critic_opt},
            extra=unless_skipped(metrics, extra, state.extra),
        )
        both = {"critic": critic_metrics, "generator": metrics}
        return state, {f"{net}/{name}": value for net, values in both.items() for name, value in values.items()}

    def critic_loss(self, critic, *, real: Batch, fake: Wave, key, shard: Shard):
        """Scores of real and generated clips, and the penalty on the slope between them (Algorithm 1 of WGAN-GP)."""
        alpha_key, *calls = jax.random.split(key, 4)
        score = lambda wave, at: self.score(critic, wave, real.label, at, shard)
        real_score, fake_score = score(real.wave, calls[0]), score(fake, calls[1])
        metrics = {"real": jnp.mean(real_score), "fake": jnp.mean(fake_score)}
        if self.loss == "dcgan":
            return jnp.mean(nn.softplus(-real_score) + nn.softplus(fake_score)) / 2, metrics
        if self.loss == "lsgan":
            return jnp.mean((real_score - 1) ** 2 + fake_score**2) / 2, metrics
        terms = {"adversarial": jnp.mean(fake_score - real_score)}
        if self.loss == "wgan-gp" and self.penalty:
            alpha = jax.vmap(lambda at: jax.random.uniform(at, (1, 1)))(shard.keys(alpha_key, len(fake)))
            between = real.wave + alpha * (fake - real.wave)
            slopes = jax.grad(lambda wave: jnp.sum(score(wave, calls[2])))(between)
            norms = jnp.sqrt(jnp.maximum(jnp.sum(slopes**2, (1, 2)), 1e-24))  # a slope of zero has a gradient too
            terms["penalty"] = self.penalty * jnp.mean((norms - 1) ** 2)
        return sum(terms.values()), {**metrics, **terms}

    def generator_loss(self, generator, *, critic, statistics, label, key, shard: Shard):
        """The generated clips' scores, to be raised."""
        latent_key, call = jax.random.split(key)
        latent = self.draw(shard.keys(latent_key, label.shape[0]))
        fake, statistics = self.sound(generator, statistics, latent, label, shard)
        score = self.score(critic, fake, label, call, shard)
        metrics = {"rms": jnp.mean(jnp.sqrt(jnp.mean(fake**2, (1, 2)))), "statistics": statistics}
        if self.loss == "dcgan":
            return jnp.mean(nn.softplus(-score)), metrics
        if self.loss == "lsgan":
            return jnp.mean((score - 1) ** 2), metrics
        return -jnp.mean(score), metrics

    def evaluate(self, state, batch, key) -> Metrics:
        """How far generated sound is from held-out sound, and what the critic thinks of both (it overfits first)."""
        call, latent_key = jax.random.split(key)
        latent = self.draw(Shard().keys(latent_key, batch.wave.shape[0]))
        fake = self.render(self.weights(state), latent, batch.label)
        score = partial(self.score, state.params["critic"], label=batch.label, key=call, shard=Shard())
        distance = spectral_energy_distance(batch.wave, fake)
        return {"spectral_energy": distance, "real": score(batch.wave), "fake": score(fake)}

    def weights(self, state) -> Params:
        """The averaged generator, and the statistics of its batch norm."""
        return {"generator": state.extra["average"], "statistics": state.extra["statistics"]}

    def latents(self, key, n) -> Float[Array, "n latent"]:
        """Uniform in [-1, 1]."""
        return self.draw(Shard().keys(key, n))

    def render(self, params, latent, label) -> Wave:
        """The sounds at these latents; label [n] if conditional."""
        if self.conditional and label is None:
            raise InputError(f"this model is conditional: give a label, 0 to {self.classes - 1}")
        variables = {"params": params["generator"], "batch_stats": params["statistics"]}
        return Generator(self).apply(variables, latent, label, Shard(), False)

    def draw(self, keys) -> Float[Array, "n latent"]:
        """One latent per key."""
        return jax.vmap(lambda key: jax.random.uniform(key, (self.latent,), minval=-1.0))(keys)

    def sound(self, generator, statistics, latent, label, shard):
        """Generated clips in training, and the new running statistics of the batch norm."""
        variables = {"params": generator, "batch_stats": statistics}
        wave, changed = Generator(self).apply(variables, latent, label, shard, True, mutable="batch_stats")
        return wave, changed.get("batch_stats", {})

    def score(self, critic, wave, label, key, shard) -> Float[Array, "n"]:
        """The critic's logit of every clip; `key` draws the phase shuffle. Its batch norm always goes by the batch."""
        return Critic(self).apply({"params": critic}, wave, label, key, shard, mutable="batch_stats")[0]


glorot = nn.initializers.glorot_uniform()


class Generator(nn.Module):
    """[batch, latent], [batch] -> [batch, segment, channels] (Table 3)."""

    model: WaveGAN

    @nn.compact
    def __call__(self, latent: Float[Array, "batch latent"], label: Labels | None, shard: Shard, train: bool) -> Wave:
        model, strides = self.model, STRIDES[self.model.segment]
        width = model.width * 2 ** (len(strides) - 1)
        norm = partial(batch_norm, model, shard, train)
        if model.conditional:
            latent = jnp.concatenate([latent, jax.nn.one_hot(label, model.classes)], -1)
        x = nn.Dense(FRAMES * width, dtype=model.dtype, kernel_init=glorot, name="dense")(latent)
        x = nn.relu(norm("norm")(x.reshape(-1, FRAMES, width)))
        for i, stride in enumerate(strides[:-1]):
            width //= 2
            x = nn.relu(norm(f"norm_{i}")(self.up(f"up_{i}", width, stride, model.dtype)(x)))
        x = jnp.tanh(self.up(f"up_{len(strides) - 1}", model.channels, strides[-1], jnp.float32)(x))
        if model.post_filter:
            x = Conv(model.channels, (model.post_filter,), use_bias=False, name="filter")(x)
        return x

    def up(self, name, features, stride, dtype):
        layer = ConvTranspose if self.model.upsample == "zeros" else NearestConv
        return layer(features, (TAPS,), (stride,), dtype=dtype, name=name)


class NearestConv(nn.Module):
    """Every sample repeated `stride` times, then a SAME convolution, as one transposed convolution, a wider one."""

    features: int
    taps: tuple[int]
    stride: tuple[int]
    dtype: Any

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", glorot, (*self.taps, x.shape[-1], self.features))
        (taps,), (stride,), half = self.taps, self.stride, (self.taps[0] - 1) // 2
        spread = sum(jnp.pad(kernel[::-1], ((j, stride - 1 - j), (0, 0), (0, 0))) for j in range(stride))
        spread = spread.astype(self.dtype)
        y = conv_transpose(x.astype(self.dtype), spread, (stride,), ((half, taps - 1 - half),))
        return biased(self, y)


class Critic(nn.Module):
    """[batch, segment, channels], [batch] -> [batch] (Table 4). The label is scored by projection (Miyato 2018)."""

    model: WaveGAN

    @nn.compact
    def __call__(self, wave: Wave, label: Labels, key, shard: Shard) -> Float[Array, "batch"]:
        model, x = self.model, wave
        norm = partial(batch_norm, model, shard, True)
        for i, stride in enumerate(STRIDES[model.segment]):
            x = Conv(model.width * 2**i, (TAPS,), (stride,), dtype=model.dtype, name=f"down_{i}")(x)
            x = nn.leaky_relu(norm(f"norm_{i}")(x) if i else x, 0.2)
            if model.shuffle and i < min(4, len(STRIDES[model.segment]) - 1):
                x = phase_shuffle(x, jax.random.fold_in(key, i), model.shuffle)
        x = x.reshape(x.shape[0], -1).astype(jnp.float32)
        score = nn.Dense(1, kernel_init=glorot, name="dense")(x)[:, 0]
        if model.conditional:
            scores = nn.Dense(model.classes, use_bias=False, kernel_init=glorot, name="classes")(x)
            score += jnp.sum(scores * jax.nn.one_hot(label, model.classes), -1)
        return score


def batch_norm(model, shard, train, name):
    """The code's batch norm, or nothing."""
    if not model.batch_norm:
        return lambda x: x
    options = {"momentum": 0.99, "epsilon": 1e-3, "axis_name": shard.axis, "dtype": model.dtype}
    return nn.BatchNorm(use_running_average=not train, name=name, **options)


def phase_shuffle(x: Float[Array, "batch time channels"], key, n: int) -> Float[Array, "batch time channels"]:
    """Shifts the whole batch by one draw from -n..n, the edge reflected (section 3.3)."""
    shift = jax.random.randint(key, (), -n, n + 1)
    padded = jnp.pad(x, ((0, 0), (n, n), (0, 0)), mode="reflect")
    return jax.lax.dynamic_slice_in_dim(padded, n - shift, x.shape[1], 1)
