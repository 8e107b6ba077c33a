"""A generator and a critic that train each other: what the papers that pair two networks have in common.

The algorithm is that of WGAN-GP (Gulrajani et al. 2017, Algorithm 1), with the losses of Wasserstein GAN (Arjovsky et
al. 2017), DCGAN (Radford et al. 2016) and least-squares GAN (Mao et al. 2017) beside it. A paper says what its two
networks are, what picture of a sound the critic looks at, and how a picture becomes sound.
"""

import abc
import dataclasses
from functools import partial
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from jaxaudio.core import (
    InputError,
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

Picture = Float[Array, "batch *space channels"]  # what the critic looks at


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adversarial(Morphs):
    """Fields and training of a pair of networks."""

    latent: int = 100  # dimensions of z
    loss: Literal["wgan-gp", "wgan", "dcgan", "lsgan"] = "wgan-gp"
    n_critic: int = 5  # critic updates per generator update
    penalty: float = 10.0  # weight of the gradient penalty (wgan-gp), lambda; 0: not computed
    clip: float = 0.01  # bound of the critic's weights (wgan)
    learning_rate: float = 0.0  # 0: the WaveGAN code's for this loss, 1e-4 for wgan-gp
    batch_norm: bool = False  # in both networks; not with wgan-gp, whose penalty is per example
    conditional: bool = False  # on the class label: one-hot beside z, projection in the critic
    decay: float = 0.999  # of the averaged generator weights; 0: sample from the last ones

    criterion: ClassVar = "spectral_energy"

    def __post_init__(self):
        counts = ("n_critic", "batch_size", "width", "latent", "channels")
        for name, value in ((name, getattr(self, name)) for name in counts if hasattr(self, name)):
            if value < 1:
                raise InputError(f"{name} is {value}: it is at least 1")
        if self.batch_size % self.n_critic:
            raise InputError(
                f"batch_size {self.batch_size} does not split into n_critic {self.n_critic} updates: make it a multiple"
            )
        if self.batch_norm and self.loss == "wgan-gp":
            raise InputError("batch_norm with loss wgan-gp: the penalty is per example; choose dcgan, lsgan or wgan")

    @property
    @abc.abstractmethod
    def generator(self) -> nn.Module:
        """(latent [batch, latent], label [batch] or None, shard, train) -> picture."""

    @property
    @abc.abstractmethod
    def critic(self) -> nn.Module:
        """(picture, label [batch], key, shard) -> score [batch]; the key draws what it does at random."""

    @abc.abstractmethod
    def picture(self, wave: Wave, measured: Any) -> Picture:
        """What the critic sees of a sound; `measured` is what `measure` gave."""

    @abc.abstractmethod
    def sound(self, picture: Picture, measured: Any) -> Wave:
        """The sound that a picture shows."""

    @property
    def apart(self) -> bool:
        """Whether the critic sees real and generated pictures in two calls, since it treats a batch as a whole."""
        return self.batch_norm

    @property
    def needs_labels(self) -> bool:
        """A conditional model cannot do without."""
        return self.conditional

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """The WaveGAN code's for each loss."""
        rate, adam = self.learning_rate, self.loss in ("wgan-gp", "dcgan")
        defaults = {"wgan-gp": 1e-4, "wgan": 5e-5, "dcgan": 2e-4, "lsgan": 1e-4}
        rate = rate or defaults[self.loss]
        if adam:
            return optax.adam(rate, b1=0.5, b2=0.9 if self.loss == "wgan-gp" else 0.999)
        return optax.rmsprop(rate, decay=0.9, eps=1e-10, initial_scale=1.0)

    def init(self, key: Key[Array, ""], measured) -> State:
        """Both networks as their layers start, the average at the generator."""
        generator_key, critic_key = jax.random.split(key)
        label = jnp.zeros(1, int)
        generator = self.generator.init(generator_key, jnp.zeros((1, self.latent)), label, Shard(), False)
        picture = self.picture(jnp.zeros((1, self.segment, self.channels)), measured)
        critic = self.critic.init(critic_key, picture, label, critic_key, Shard())["params"]
        params = {"generator": generator["params"], "critic": critic}
        copies = jax.tree.map(jnp.copy, (generator["params"], dict(measured)))  # all arrays of a state are donated
        extra = {"average": copies[0], "statistics": generator.get("batch_stats", {}), "measured": copies[1]}
        opt = {name: self.optimizer.init(params[name]) for name in params}
        return State(step=jnp.zeros((), jnp.int32), params=params, opt=opt, extra=extra)

    def train_step(self, state, batch, key, shard, stage) -> tuple[State, Metrics]:
        """`n_critic` critic updates on fresh clips, then one generator update."""
        del stage
        generator, critic = state.params["generator"], state.params["critic"]
        generator_opt, critic_opt = state.opt["generator"], state.opt["critic"]
        latent_key, critic_key, generator_key = jax.random.split(key, 3)

        latent = self.draw(shard.keys(latent_key, batch.label.shape[0]))
        statistics, measured = state.extra["statistics"], state.extra["measured"]
        fakes, _ = self.generated(generator, statistics, latent, batch.label, shard)  # for all the critic's updates
        reals = batch._replace(wave=self.picture(batch.wave, measured))
        updates = []
        for i, (real, fake) in enumerate(split((reals, fakes), self.n_critic)):
            at = jax.random.fold_in(critic_key, i)
            loss = partial(self.critic_loss, real=real.wave, fake=fake, label=real.label, key=at, shard=shard)
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
        extra = {"average": averaged, "statistics": metrics.pop("statistics"), "measured": measured}
        state = State(
            step=state.step + 1,
            params={"generator": generator, "critic": critic},
            opt={"generator": generator_opt, "critic": critic_opt},
            extra=unless_skipped(metrics, extra, state.extra),
        )
        both = {"critic": critic_metrics, "generator": metrics}
        return state, {f"{net}/{name}": value for net, values in both.items() for name, value in values.items()}

    def critic_loss(self, critic, *, real: Picture, fake: Picture, label, key, shard: Shard):
        """Scores of real and generated pictures, and the penalty on the slope between them."""
        alpha_key, *calls = jax.random.split(key, 4)
        score = lambda picture, at: self.score(critic, picture, label, at, shard)
        if self.apart:
            real_score, fake_score = score(real, calls[0]), score(fake, calls[1])
        else:  # neighbours in one batch: no device needs another's rows
            both = jnp.stack([real, fake], 1).reshape(-1, *real.shape[1:])
            scores = self.score(critic, both, jnp.repeat(label, 2), calls[0], shard).reshape(-1, 2)
            real_score, fake_score = scores[:, 0], scores[:, 1]
        metrics = {"real": jnp.mean(real_score), "fake": jnp.mean(fake_score)}
        if self.loss == "dcgan":
            return jnp.mean(nn.softplus(-real_score) + nn.softplus(fake_score)) / 2, metrics
        if self.loss == "lsgan":
            return jnp.mean((real_score - 1) ** 2 + fake_score**2) / 2, metrics
        terms = {"adversarial": jnp.mean(fake_score - real_score)}
        if self.loss == "wgan-gp" and self.penalty:
            shape = (1,) * (fake.ndim - 1)
            alpha = jax.vmap(lambda at: jax.random.uniform(at, shape))(shard.keys(alpha_key, len(fake)))
            between = real + alpha * (fake - real)
            slopes = jax.grad(lambda picture: jnp.sum(score(picture, calls[2])))(between)
            norms = jnp.sqrt(jnp.maximum(jnp.sum(slopes**2, range(1, fake.ndim)), 1e-24))  # a slope of 0 has a gradient
            terms["penalty"] = self.penalty * jnp.mean((norms - 1) ** 2)
        return sum(terms.values()), {**metrics, **terms}

    def generator_loss(self, generator, *, critic, statistics, label, key, shard: Shard):
        """The generated pictures' scores, to be raised."""
        latent_key, call = jax.random.split(key)
        latent = self.draw(shard.keys(latent_key, label.shape[0]))
        fake, statistics = self.generated(generator, statistics, latent, label, shard)
        score = self.score(critic, fake, label, call, shard)
        level = jnp.mean(jnp.sqrt(jnp.mean(fake**2, range(1, fake.ndim))))
        metrics = {"level": level, "statistics": statistics}
        if self.loss == "dcgan":
            return jnp.mean(nn.softplus(-score)), metrics
        if self.loss == "lsgan":
            return jnp.mean((score - 1) ** 2), metrics
        return -jnp.mean(score), metrics

    def evaluate(self, state, batch, key) -> Metrics:
        """How far generated sound is from held-out sound, and what the critic thinks of both (it overfits first)."""
        call, latent_key = jax.random.split(key)
        params, measured = self.weights(state), state.extra["measured"]
        fake = self.drawn(params, self.draw(Shard().keys(latent_key, batch.wave.shape[0])), batch.label)
        score = partial(self.score, state.params["critic"], label=batch.label, key=call, shard=Shard())
        distance = spectral_energy_distance(batch.wave, self.sound(fake, measured))
        real = self.picture(batch.wave, measured)
        return {"spectral_energy": distance, "real": score(real), "fake": score(fake)}

    def weights(self, state) -> Params:
        """The averaged generator, the statistics of its batch norm, and what was measured of the data."""
        names = {"generator": "average", "statistics": "statistics", "measured": "measured"}
        return {name: state.extra[kept] for name, kept in names.items()}

    def latents(self, key, n) -> Float[Array, "n latent"]:
        """Draws from the prior."""
        return self.draw(Shard().keys(key, n))

    def render(self, params, latent, label) -> Wave:
        """The sounds at these latents; label [n] if conditional."""
        if self.conditional and label is None:
            raise InputError(f"this model is conditional: give a label, 0 to {self.classes - 1}")
        return self.sound(self.drawn(params, latent, label), params["measured"])

    def draw(self, keys) -> Float[Array, "n latent"]:
        """One latent per key, uniform in [-1, 1]."""
        return jax.vmap(lambda key: jax.random.uniform(key, (self.latent,), minval=-1.0))(keys)

    def drawn(self, params, latent, label) -> Picture:
        """The pictures at these latents, as they are sampled."""
        variables = {"params": params["generator"], "batch_stats": params["statistics"]}
        return self.generator.apply(variables, latent, label, Shard(), False)

    def generated(self, generator, statistics, latent, label, shard):
        """Generated pictures in training, and the new running statistics of the batch norm."""
        variables = {"params": generator, "batch_stats": statistics}
        picture, changed = self.generator.apply(variables, latent, label, shard, True, mutable="batch_stats")
        return picture, changed.get("batch_stats", {})

    def score(self, critic, picture, label, key, shard) -> Float[Array, "n"]:
        """The critic's logit of every picture. Its batch norm always goes by the batch."""
        return self.critic.apply({"params": critic}, picture, label, key, shard, mutable="batch_stats")[0]


def batch_norm(model: Adversarial, shard: Shard, train: bool, name: str):
    """The WaveGAN code's batch norm, or nothing; to be called inside a network."""
    if not model.batch_norm:
        return lambda x: x
    options = {"momentum": 0.99, "epsilon": 1e-3, "axis_name": shard.axis, "dtype": model.dtype}
    return nn.BatchNorm(use_running_average=not train, name=name, **options)


def with_label(model: Adversarial, latent: Float[Array, "batch latent"], label) -> Float[Array, "batch input"]:
    """What a generator starts from: the latent, and the one-hot label if the model is conditional."""
    if not model.conditional:
        return latent
    return jnp.concatenate([latent, jax.nn.one_hot(label, model.classes)], -1)


def logit(model: Adversarial, x: Float[Array, "batch feature"], label) -> Float[Array, "batch"]:
    """What a critic ends in: one number, and the label's projection if the model is conditional (Miyato 2018); to be
    called inside a network."""
    score = nn.Dense(1, kernel_init=glorot, name="dense")(x)[:, 0]
    if not model.conditional:
        return score
    scores = nn.Dense(model.classes, use_bias=False, kernel_init=glorot, name="classes")(x)
    return score + jnp.sum(scores * jax.nn.one_hot(label, model.classes), -1)


glorot = nn.initializers.glorot_uniform()
