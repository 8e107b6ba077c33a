"""What models with one number to learn share: its training by the model's `error`, and itself as a trained run."""

import jax.numpy as jnp
import numpy as np
import optax

from jaxaudio.core import Model, Shard, State, descend
from jaxaudio.runtime.folder import Trained


class Single(Model):
    """The number is `loud`. A model's own is error(params, batch, key, shard), of each example."""

    criterion = "error"

    def init(self, key, measured):
        params = {"own": {"loud": jnp.float32(0.1)}}
        return State(jnp.int32(0), params, {"own": self.tx.init(params["own"])}, {})

    @property
    def tx(self):
        return optax.adam(1e-2)

    def train_step(self, state, batch, key, shard, stage):
        loss = lambda params: (jnp.mean(self.error(params, batch, key, shard)), {})
        own, opt, metrics = descend(self.tx, loss, state.params["own"], state.opt["own"], shard)
        return State(state.step + 1, {"own": own}, {"own": opt}, state.extra), metrics

    def evaluate(self, state, batch, key):
        return {"error": self.error(state.params["own"], batch, key, Shard())}

    def weights(self, state):
        return state.params["own"]


def run_of(folder, model, loud=0.5, labels=()):
    """As a trained run."""
    return Trained(folder, model, {"loud": np.float32(loud)}, 2, labels)
