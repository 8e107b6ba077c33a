"""RAVE against the same model in PyTorch: losses and gradients of every stage."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxaudio import zoo
from jaxaudio.core import Shard
from jaxaudio.variational import geometric
from tests.seldom import seldom

torch = pytest.importorskip("torch", reason="the parity with PyTorch needs the extra `compare`")
from benchmarks.peers import rave as peer  # noqa: E402

TINY = dataclasses.replace(
    zoo.load("rave:tiny"), segment=1024, ratios=(4, 2), noise_strides=(4, 2), batch_size=2, critic_width=3
)

SECOND = {"network": "v2", "channels": 2, "periods": True, "relative_features": True, "feature_matching_twice": True}
GROWING = {"beta_first": 1e-4, "beta_steps": 4}
MODELS = {
    "v1": (TINY, ("autoencoder", "decoder", "critic")),
    "v2": (dataclasses.replace(TINY, **SECOND, **GROWING), ("autoencoder", "decoder", "critic")),
    "v1, causal, stereo": (dataclasses.replace(TINY, causal=True, channels=2), ("autoencoder",)),
}


def normal(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def started(model):
    """Parameters and batch statistics are not what they start from, where a mistake would not show; noise is loud."""
    state = jax.device_get(jax.jit(lambda: model.init(jax.random.key(0), {}))())
    params = jax.tree.map(lambda x: x + 0.05 * normal(*x.shape), state.params)
    params["autoencoder"]["decoder"]["noise_1"]["conv"]["scale"] *= 30
    statistics = jax.tree.map(lambda x: x + 0.3 * np.abs(normal(*x.shape)), state.extra["statistics"])
    extra = {**state.extra, "statistics": statistics}
    return jax.tree.map(jnp.asarray, state._replace(step=np.int32(2), params=params, extra=extra))


def ours(model, state, wave, stages):
    """Of every stage the loss and its gradient, and the latents and the noise that it drew as PyTorch takes them."""
    keys, frames = Shard().keys(jax.random.key(1), len(wave)), model.segment // model.hop
    losses = {"autoencoder": model.first_loss, "decoder": model.second_loss, "critic": model.critic_loss}

    def update(stage, params):
        network = "critic" if stage == "critic" else "autoencoder"
        loss = lambda p: losses[stage](p, state=state, wave=jnp.asarray(wave), keys=keys, shard=Shard())[0]
        return jax.value_and_grad(loss)(params[network])

    def draws(stage):
        latent, noise = (keys, None) if stage == "autoencoder" else jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        drawn = jax.vmap(lambda key: jax.random.normal(key, (frames, model.latent)))(latent)
        return jnp.moveaxis(drawn, 1, 2), None if noise is None else jnp.moveaxis(model.noise(noise, frames), 1, 2)

    found = jax.jit(lambda params: {stage: (update(stage, params), draws(stage)) for stage in stages})(state.params)
    return jax.tree.map(lambda x: np.array(x), found)


@pytest.mark.parametrize("name", seldom(MODELS, "v1", "v1, causal, stereo"))
def test_losses_and_gradients_equal_pytorchs(name):
    model, stages = MODELS[name]
    state, wave = started(model), 0.3 * normal(model.batch_size, model.segment, model.channels)
    params, statistics = jax.tree.map(np.asarray, (state.params, state.extra["statistics"]))
    sound, beta = torch.tensor(wave).mT, float(geometric(state.step, model.beta_first, model.beta, model.beta_steps))
    for stage, (update, draws) in ours(model, state, wave, stages).items():
        net, critic = peer.Autoencoder(model), peer.Critic(model)
        peer.load(net, params["autoencoder"], statistics)
        peer.load(critic, params["critic"])
        net.encoder.train(stage == "autoencoder")
        drawn, noise = (None if x is None else torch.tensor(x) for x in draws)
        if stage == "autoencoder":
            loss, _ = peer.first_loss(net, model, sound, drawn, beta)
        elif stage == "decoder":
            loss, _ = peer.second_loss(net, critic.requires_grad_(False), model, sound, drawn, noise)
        else:
            loss = peer.critic_loss(net, critic, model, sound, drawn, noise)
        trained, like = (critic, peer.Critic(model)) if stage == "critic" else (net, peer.Autoencoder(model))
        same(update, loss, trained, like)


def same(update, their_loss, trained, like):
    """The loss, and every gradient to 1e-4 of its norm; one that is next to nothing, to 1e-6 of the largest.

    like: a module to load our gradients into.
    """
    loss, gradient = update
    np.testing.assert_allclose(loss, their_loss.item(), rtol=1e-5)
    their_loss.backward()
    peer.load(like, gradient)
    theirs = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in trained.named_parameters()}
    largest = max(float(x.norm()) for x in theirs.values())
    for name, a in like.named_parameters():
        assert float((a.detach() - theirs[name]).norm()) <= 1e-4 * float(theirs[name].norm()) + 1e-6 * largest, name


def test_the_pytorch_model_takes_a_step_at_every_stage_and_refuses_what_it_lacks():
    for stage in TINY.variants:
        assert np.isfinite(float(peer.trainer(dataclasses.replace(TINY, decay=0.9), False, stage)()))
    with pytest.raises(ValueError, match="computes in float32"):
        peer.trainer(dataclasses.replace(TINY, dtype="bfloat16"), False, "critic")


def test_parameters_of_another_network_are_refused():
    with pytest.raises(ValueError, match="parameters are named .*encoder_first"):
        peer.load(peer.Critic(TINY), {"encoder": {"first": {"conv": {"kernel": np.zeros((7, 4, 4))}}}})
