"""The bound of a spectrogram VAE: python -m benchmarks.bound RUN [--data FOLDER] [--json FILE]

The likelihood of held-out clips' log-mels in nats per frame, with 95 % intervals: the run's bounds beside the exact
likelihood of Gaussian models with as many latents per clip, fitted to the same log-mels of the run's training clips.
    probabilistic PCA      one variance (Tipping & Bishop 1999), the maximum of the likelihood in closed form
    factor analysis        a variance per mel band, or per mel band and frame, by expectation maximisation
A density of values that lie on the floor of the mels has no upper limit: no deviation is below the run's `least`.
"""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Float

from benchmarks.recordings import clips_of, data_of, in_batches, in_turn, trained_on
from benchmarks.scorecard import Card, Row, deliver, origin
from jaxaudio.core import InputError
from jaxaudio.data.audio import shown
from jaxaudio.data.clips import Clips
from jaxaudio.data.pack import cache_folder
from jaxaudio.metrics.bootstrap import mean_interval
from jaxaudio.runtime import command, report
from jaxaudio.runtime.folder import Trained, trained
from jaxaudio.vae.specvae import SpecVAE
from jaxaudio.variational import factor_analysis

Rows = Float[np.ndarray, "n size"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of this benchmark."""

    run: Annotated[Path, tyro.conf.Positional]  # the folder that train.py wrote
    data: Path | None = None  # folder of recordings to measure on; none: the run's own
    split: Literal["valid", "test", "train"] = "valid"  # which recordings are measured
    n: int = 1000  # clips measured at most
    fitted: int = 4096  # training clips that the Gaussian models are fitted to, at most
    draws: int = 512  # of the importance-weighted estimate
    rounds: int = 50  # of expectation maximisation
    seed: int = 0  # of the draws and of the intervals
    checkpoint: str = "best"  # latest, best, or a step's number
    resamples: int = 1000  # of the bootstrap
    json: Path | None = None  # the scores are written there too


class Gaussian(NamedTuple):
    """row = mean + z @ components + noise, with z and noise independent and Gaussian."""

    mean: Float[np.ndarray, "size"]
    components: Float[np.ndarray, "latent size"]
    noise: Float[np.ndarray, "size"]  # variances

    def log_likelihood(self, rows: Rows) -> Float[np.ndarray, "n"]:
        """ln p of every row, in nats, by the matrix determinant and inversion lemmas."""
        scaled = self.components / self.noise
        centred = rows - self.mean
        precision = np.eye(len(scaled)) + scaled @ self.components.T
        root = np.linalg.cholesky(precision)
        explained = np.linalg.solve(root, scaled @ centred.T)
        determinant = np.sum(np.log(self.noise)) + 2 * np.sum(np.log(np.diag(root)))
        distance = centred**2 @ (1 / self.noise) - np.sum(explained**2, 0)
        return -(len(self.mean) * np.log(2 * np.pi) + determinant + distance) / 2


def main(arguments: list[str]) -> None:
    """Prints the card of the run."""
    options = tyro.cli(Options, args=arguments, prog="benchmarks.bound", description=__doc__)
    command.prepare(cache_folder())
    command.check_seed(options.seed)
    if min(options.n, options.fitted) < 2 or options.draws < 1 or options.rounds < 0:
        raise InputError(
            f"n is {options.n}, fitted {options.fitted}, draws {options.draws}, rounds {options.rounds}: 2 clips of "
            "both kinds and 1 draw at least"
        )
    began = time.perf_counter()
    run = trained(options.run, options.checkpoint)
    if not isinstance(run.model, SpecVAE):
        raise InputError(f"{shown(run.folder)} has no bound that is measured here: train one with train.py specvae")
    about = {**origin("benchmarks.bound", arguments), "step": run.step}
    deliver(card_of(run, options), about, options.run / "scores", options.json)
    print(f"scored in {time.perf_counter() - began:.0f} s -> {shown(report.write(options.run))}")


def card_of(run: Trained, options: Options) -> Card:
    """Every likelihood of the same clips, per frame."""
    model, pack = run.model, data_of(run, options.data)
    held = np.concatenate([taken.wave for taken in in_turn(clips_of(run, pack, options.split), options.n)])
    bounds = run_bounds(run, held, options)
    picture = jax.jit(lambda wave: model.picture(wave).reshape(len(wave), -1))
    rows_of = lambda wave: in_batches(picture, wave).astype(np.float64)
    known = Clips(trained_on(run, pack), model, 0, "train")
    train = np.concatenate([rows_of(taken.wave) for taken in in_turn(known, options.fitted)])
    likelihood = {name: values / model.shape[0] for name, values in gaussians(run, train, rows_of(held), options)}
    notes = {
        "importance-weighted": f"{options.draws} draws; below the likelihood on average",
        "evidence lower bound": f"distortion {bounds['distortion'].mean():.4g}, KL {bounds['divergence'].mean():.4g}",
        "the run's Gaussian start": "exact; fitted to training clips moved as in training",
        "probabilistic PCA": f"exact; fitted to {len(train)} training clips",
    }
    likelihood = {
        "importance-weighted": -bounds["importance"],
        "evidence lower bound": -bounds["bound"],
        **likelihood,
    }
    likelihood["gain over PCA"] = likelihood["importance-weighted"] - likelihood["probabilistic PCA"]
    notes["gain over PCA"] = "clip by clip; above 0: better"
    rows = []
    for name, values in likelihood.items():
        bound = mean_interval(values, options.resamples, seed=options.seed)
        note = notes.get(name, f"exact; {options.rounds} rounds, deviations of {model.least} nats at least")
        rows.append(Row(name, values.mean(), *bound, len(values), "nats", "higher", note))
    title = f"log-mels per frame of {len(held)} clips ({options.split}), {model.latent} latents per clip; "
    return Card("bound", f"{title}variance: {model.variance}", rows, [])


def run_bounds(run: Trained, wave: np.ndarray, options: Options) -> dict[str, np.ndarray]:
    """The run's bounds of each clip, in nats per frame."""
    model = dataclasses.replace(run.model, draws=options.draws)
    size, key, parts = min(len(wave), model.batch_size), jax.random.key(options.seed), []
    bounds = jax.jit(model.bounds)
    for first in range(0, len(wave), size):
        here = np.resize(np.arange(first, min(first + size, len(wave))), size)
        found = bounds(run.params, jnp.asarray(wave[here]), jax.random.fold_in(key, first))
        parts.append({name: np.asarray(x, np.float64)[: len(wave) - first] for name, x in found.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def gaussians(run: Trained, train: Rows, held: Rows, options: Options):
    """(name, log-likelihood of each held row) of every Gaussian model."""
    model, kinds = run.model, ("mean", "components", "noise")
    start = (np.asarray(run.params["measured"][name], np.float64) for name in kinds)
    yield "the run's Gaussian start", Gaussian(*start).log_likelihood(held)
    yield "probabilistic PCA", probabilistic_pca(train, model.latent).log_likelihood(held)
    for name, period in (("band", model.mels * model.channels), ("bin", train.shape[1])):
        found = factor_analysis(train, model.latent, period, model.least, options.rounds)
        fitted = Gaussian(*(found[kind] for kind in kinds))
        yield f"factor analysis, variance per {name}", fitted.log_likelihood(held)


def probabilistic_pca(rows: Rows, latent: int) -> Gaussian:
    """The maximum of the likelihood (Tipping & Bishop 1999, eqs. 7 and 8), from whichever of the two matrices of
    products, of rows or of columns, is the smaller. Raises InputError where rows are no more than latents."""
    n, size = rows.shape
    if n <= latent + 1 or size <= latent:
        raise InputError(
            f"{n} clips of {size} numbers: {latent} components need more of both; "
            "raise --fitted, or train with fewer latents"
        )
    mean = rows.mean(0)
    centred = rows - mean
    few = n < size
    values, vectors = np.linalg.eigh(centred @ centred.T if few else centred.T @ centred)
    values, vectors = values[::-1][:latent] / n, vectors[:, ::-1][:, :latent]
    axes = (centred.T @ vectors / np.sqrt(n * values)).T if few else vectors.T
    noise = max((np.sum(centred**2) / n - values.sum()) / (size - latent), 1e-12)
    return Gaussian(mean, axes * np.sqrt(np.maximum(values - noise, 0))[:, None], np.full(size, noise))


if __name__ == "__main__":
    sys.exit(command.guarded(main, sys.argv[1:]))
