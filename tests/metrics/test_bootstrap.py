"""Intervals: the draws, the coverage, and where a bootstrap does not hold."""

import numpy as np
import pytest

from jaxaudio.core import InputError
from jaxaudio.metrics import bootstrap
from jaxaudio.metrics.generation import frechet_distance, frechet_distance_unbiased


def test_the_interval_is_that_of_a_loop_over_resamples_of_the_rows():
    rng = np.random.default_rng(5)
    scores, labels = rng.standard_normal(20), rng.integers(2, size=20)
    statistic = lambda s, y: float(np.mean(s[y == 1]))
    draws, values = np.random.default_rng(9), []
    for _ in range(200):
        rows = draws.integers(20, size=20)
        values.append(np.mean(scores[rows][labels[rows] == 1]))
    found = bootstrap.interval(statistic, (scores, labels), resamples=200, level=0.9, seed=9)
    assert found == pytest.approx(tuple(np.quantile(values, [0.05, 0.95])))


@pytest.mark.parametrize("block", [2**22, 50])
def test_the_fast_interval_of_a_mean_is_the_general_one(monkeypatch, block):
    monkeypatch.setattr(bootstrap, "BLOCK", block)
    values = np.random.default_rng(0).standard_normal(23)
    mean = lambda x: float(np.mean(x))
    assert bootstrap.mean_interval(values, 300, 0.9, 4) == pytest.approx(
        bootstrap.interval(mean, (values,), 300, 0.9, 4)
    )


def test_the_interval_depends_on_the_seed_alone():
    values = np.random.default_rng(0).standard_normal(50)
    first = bootstrap.mean_interval(values, seed=1)
    assert first == bootstrap.mean_interval(values, seed=1)
    assert first != bootstrap.mean_interval(values, seed=2)


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says():
    rng, covered = np.random.default_rng(0), []
    for seed in range(300):
        low, high = bootstrap.mean_interval(rng.gamma(4, size=80), 400, 0.9, seed)
        covered.append(low <= 4 <= high)
    assert 0.9 - 4 * np.sqrt(0.09 / 300) < np.mean(covered) < 0.9 + 3 * np.sqrt(0.09 / 300)


def test_arrays_of_one_set_are_drawn_together_and_sets_apart():
    x = np.random.default_rng(0).standard_normal(40)
    difference = lambda a, b: float(np.mean(a) - np.mean(b))
    assert bootstrap.interval(difference, (x, x)) == (0, 0)
    low, high = bootstrap.interval(difference, (x, x), independent=True)
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(2) * x.std() / np.sqrt(40), rel=0.1)
    assert bootstrap.interval(difference, (x, np.zeros(7)), independent=True)[0] < x.mean()


def test_the_jackknife_of_a_mean_is_its_standard_error_from_block_means():
    x = np.random.default_rng(1).standard_normal(60)
    blocks = np.array([x[b::12].mean() for b in range(12)])
    error = blocks.std(ddof=1) / np.sqrt(12)
    mean = lambda a: float(np.mean(a))
    expected = (x.mean() - 1.959964 * error, x.mean() + 1.959964 * error)
    assert bootstrap.jackknife_interval(mean, (x,), blocks=12) == pytest.approx(expected, rel=1e-6)


def test_the_jackknife_holds_for_frechet_distances_where_the_bootstrap_does_not():
    """Features with deviations 0.5 to 1.5 against 1: the expectations are means over other draws."""
    deviations = np.linspace(0.5, 1.5, 8)
    truth = np.sum((deviations - 1) ** 2) + 8 * 0.09
    draws = [np.random.default_rng(seed).standard_normal((2, 100, 8)) for seed in range(40)]
    sets = [(real, 0.3 + fake * deviations) for real, fake in draws]
    expected = np.mean([frechet_distance(*pair) for pair in sets])
    covers = lambda interval, value: interval[0] <= value <= interval[1]
    apart = {"independent": True}
    bootstrapped = [bootstrap.interval(frechet_distance, pair, 100, **apart) for pair in sets[:20]]
    assert np.mean([covers(found, expected) for found in bootstrapped]) < 0.8
    jackknifed = [bootstrap.jackknife_interval(frechet_distance, pair, **apart) for pair in sets]
    assert np.mean([covers(found, expected) for found in jackknifed]) > 0.85
    unbiased = [bootstrap.jackknife_interval(frechet_distance_unbiased, pair, 10, **apart) for pair in sets[:15]]
    assert np.mean([covers(found, truth) for found in unbiased]) > 0.85


def test_what_gives_no_interval_is_refused():
    x, mean = np.arange(10.0), lambda *a: float(np.mean(a[0]))
    with pytest.raises(InputError, match=r"\[1\] rows: an interval needs 2"):
        bootstrap.interval(mean, (x[:1],))
    with pytest.raises(InputError, match=r"\[10, 9\] rows: those of one set"):
        bootstrap.interval(mean, (x, x[1:]))
    with pytest.raises(InputError, match="resamples is 39: a level of 0.95 needs 40"):
        bootstrap.mean_interval(x, resamples=39)
    with pytest.raises(InputError, match="level is 1.0"):
        bootstrap.jackknife_interval(mean, (x,), level=1.0)
    with pytest.raises(InputError, match="6 blocks of 10 rows"):
        bootstrap.jackknife_interval(mean, (x,), blocks=6)
    with pytest.raises(InputError, match="the statistic is nan"):
        bootstrap.interval(lambda a: float("nan"), (x,))
    with pytest.raises(InputError, match="the statistic is nan"):
        bootstrap.mean_interval(np.where(x == 3, np.nan, x))
