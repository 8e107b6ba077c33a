"""The bound of a spectrogram VAE beside Gaussian models, as a user asks for it, and the equations behind it."""

import json

import numpy as np
import pytest
from scipy.stats import multivariate_normal

import train
from benchmarks import bound
from jaxaudio.core import InputError
from jaxaudio.variational import factor_analysis
from tests.commands import run


def rows(n, size=12, latent=3, seed=0):
    """Three directions and noise that differs from column to column."""
    rng = np.random.default_rng(seed)
    components, deviation = rng.standard_normal((latent, size)), np.linspace(0.2, 1.0, size)
    return rng.standard_normal((n, latent)) @ components + deviation * rng.standard_normal((n, size)) + 2.0


def dense(model):
    """Its distribution, by the covariance matrix."""
    return multivariate_normal(model.mean, model.components.T @ model.components + np.diag(model.noise))


@pytest.fixture(scope="module")
def started(recordings_of_three, tmp_path_factory):
    """A run that has not learned anything beyond its PCA, which it was fitted as to clips as they are."""
    folder = tmp_path_factory.mktemp("runs") / "started"
    moved = (f"--model.{name}=0" for name in ("shift", "warp", "level", "learning-rate"))
    words = ("--data", recordings_of_three, "--out", folder, "--steps", 2, "--eval-every", 2, *moved)
    assert run(train.main, "specvae:tiny", *words, "--model.variance", "one")[0] == 0
    return folder


@pytest.mark.parametrize("n", [9, 200], ids=["fewer rows than columns", "more"])
def test_the_likelihood_of_pca_is_that_of_its_covariance_matrix(n):
    model, held = bound.probabilistic_pca(rows(n), 3), rows(50, seed=1)
    np.testing.assert_allclose(model.log_likelihood(held), dense(model).logpdf(held), rtol=1e-9)


@pytest.mark.parametrize("n", [9, 200], ids=["fewer rows than columns", "more"])
def test_no_change_of_pca_makes_its_own_rows_more_likely(n):
    seen, rng = rows(n), np.random.default_rng(2)
    model = bound.probabilistic_pca(seen, 3)
    best = model.log_likelihood(seen).mean()
    for size in (1e-3, 1e-2):
        other = rng.standard_normal(model.components.shape)
        changes = (
            {"noise": model.noise * (1 + size)},
            {"noise": model.noise * (1 - size)},
            {"mean": model.mean + size},
            {"components": model.components * (1 + size)},
            {"components": model.components * (1 - size)},
            {"components": model.components + size * other},
            {"components": model.components - size * other},
        )
        assert all(model._replace(**change).log_likelihood(seen).mean() < best for change in changes)


def analysed(seen, period=12, least=1e-2, rounds=20):
    found = factor_analysis(seen, 3, period, least, rounds)
    return bound.Gaussian(*(found[name] for name in ("mean", "components", "noise")))


def test_factor_analysis_never_loses_likelihood_and_finds_the_noise_of_every_column():
    seen = rows(20000)
    after = [analysed(seen, rounds=rounds) for rounds in (0, 1, 2, 5, 1000)]
    likelihood = [model.log_likelihood(seen).mean() for model in after]
    assert likelihood[0] == pytest.approx(bound.probabilistic_pca(seen, 3).log_likelihood(seen).mean(), rel=1e-9)
    assert np.all(np.diff(likelihood) > 0)
    np.testing.assert_allclose(np.sqrt(after[-1].noise), np.linspace(0.2, 1.0, 12), atol=0.05)


def test_factor_analysis_shares_variances_and_keeps_them_above_the_least():
    seen = rows(500)
    shared = analysed(seen, period=3).noise.reshape(4, 3)
    assert (shared == shared[:1]).all()
    assert np.ptp(shared[0]) > 0
    floored = analysed(seen, least=0.5).noise
    assert floored.min() == 0.25 < floored.max()


def test_pca_of_too_few_clips_is_refused():
    with pytest.raises(InputError, match="4 clips of 12 numbers: 3 components need more of both"):
        bound.probabilistic_pca(rows(4), 3)


def test_a_run_that_has_learned_nothing_has_exactly_the_likelihood_of_pca(started, tmp_path, capsys):
    """Its encoder is PCA's posterior, so that every importance weight is the likelihood itself."""
    code, out, _ = run(bound.main, started, "--json", tmp_path / "bound.jsonl", "--draws", 7, capsys=capsys)
    assert code == 0
    card = json.loads((tmp_path / "bound.jsonl").read_text())
    values = {row["metric"]: row["value"] for row in card["rows"]}
    assert values["importance-weighted"] == pytest.approx(values["probabilistic PCA"], rel=1e-3)
    assert values["the run's Gaussian start"] == pytest.approx(values["probabilistic PCA"], rel=1e-4)
    assert values["evidence lower bound"] == pytest.approx(values["probabilistic PCA"], rel=0.05)
    assert values["gain over PCA"] == pytest.approx(0, abs=0.05)
    assert {row["n"] for row in card["rows"]} == {96}, "two segments each"
    assert all(row["low"] <= row["value"] <= row["high"] for row in card["rows"])
    assert "importance-weighted" in (started / "report.html").read_text()
    assert out.splitlines()[-1].endswith("report.html")


def test_what_has_no_bound_is_refused(judge, started, capsys):
    code, _, err = run(bound.main, judge, capsys=capsys)
    assert code == 2
    assert "has no bound" in err
    code, _, err = run(bound.main, started, "--draws", 0, capsys=capsys)
    assert code == 2
    assert "draws 0" in err
