"""Simple predictors: of sources whose entropy is known, and equal to a loop over samples."""

import numpy as np
import pytest
from scipy import stats

from jaxaudio.core import InputError
from jaxaudio.data import audio
from jaxaudio.metrics import prediction as P
from jaxaudio.metrics.prediction import Linear, Quantiser

LAWS = [(levels, law) for levels in (2, 3, 255, 256, 4096) for law in ("mu_law", "linear")]


def entropy(quantiser, scale):
    """Bits of a Laplace-distributed sample's code."""
    p = np.diff(stats.laplace.cdf(quantiser.edges, scale=scale))
    return -np.sum(p[p > 0] * np.log2(p[p > 0]))


def noise(shape, scale, seed=0):
    return np.random.default_rng(seed).laplace(scale=scale, size=shape)


@pytest.mark.parametrize(("levels", "law"), LAWS)
def test_edges_are_where_codes_change_and_every_value_lies_in_its_cell(levels, law):
    quantiser = Quantiser(levels, law)
    edges, values = quantiser.edges, quantiser.values
    assert len(edges) == levels + 1
    assert edges[0] == -np.inf
    assert edges[-1] == np.inf
    assert (edges[:-1] < values).all()
    assert (values < edges[1:]).all()
    inner, step = edges[1:-1], 0.02 * np.diff(values)
    np.testing.assert_array_equal(quantiser.encode(inner - step), np.arange(levels - 1))
    np.testing.assert_array_equal(quantiser.encode(inner + step), np.arange(1, levels))
    np.testing.assert_array_equal(quantiser.encode(values), np.arange(levels))
    assert edges[quantiser.zero] <= 1e-12
    assert edges[quantiser.zero + 1] > 0


@pytest.mark.parametrize(("levels", "law"), [*LAWS, (2**16, "mu_law"), (2**16, "linear")])
def test_the_probabilities_of_all_cells_sum_to_one(levels, law):
    edges = Quantiser(levels, law).edges
    for scale in (1e-7, 1e-3, 0.1, 30.0):
        for foretold in (0.0, 1e-4, -0.37, 1.0, -1.5):
            log_p = P.laplace_log_probability(edges[:-1] - foretold, edges[1:] - foretold, scale)
            assert np.exp(log_p).sum() == pytest.approx(1, abs=1e-10)


def test_the_logarithm_is_exact_in_the_tails_of_either_side_and_for_narrow_cells():
    found = lambda lower, upper, scale=1.0: P.laplace_log_probability(np.array([lower]), np.array([upper]), scale)[0]
    tail = np.log(0.5) - 5000 + np.log1p(-np.exp(-10))
    assert found(50.0, 50.1, 0.01) == pytest.approx(tail, rel=1e-12)
    assert found(-50.1, -50.0, 0.01) == pytest.approx(tail, rel=1e-12)
    assert found(50.0, np.inf, 0.01) == pytest.approx(np.log(0.5) - 5000, rel=1e-12)
    assert found(-np.inf, -50.0, 0.01) == pytest.approx(np.log(0.5) - 5000, rel=1e-12)
    assert found(-1e-13, 1e-13, 0.5) == pytest.approx(np.log(2e-13), rel=1e-9)
    assert found(0.0, 1e-13, 0.5) == pytest.approx(np.log(1e-13), rel=1e-9)
    assert found(-30.0, 0.2) == pytest.approx(np.log1p(-np.exp(-0.2) / 2), rel=1e-9)
    assert found(-np.inf, np.inf) == 0
    for lower, upper in ((-0.3, 0.2), (0.1, 0.4), (-2.0, -1.0), (0.0, 1.0), (-1.0, 0.0)):
        p = stats.laplace.cdf(upper, scale=0.7) - stats.laplace.cdf(lower, scale=0.7)
        assert found(lower, upper, 0.7) == pytest.approx(np.log(p), rel=1e-12)


def by_a_loop(codes, quantiser, predictor):
    """Sample by sample, as the docstrings have it."""
    bits = []
    for clip in codes:
        past, average, own = np.zeros(len(predictor.taps)), predictor.start, []
        for code in clip:
            foretold = predictor.taps @ past
            scale = predictor.floor + predictor.multiplier * average
            lower, upper = quantiser.edges[code : code + 2]
            p = stats.laplace.cdf(upper, foretold, scale) - stats.laplace.cdf(lower, foretold, scale)
            own.append(-np.log2((1 - predictor.uniform) * p + predictor.uniform / quantiser.levels))
            value = quantiser.values[code]
            average = predictor.decay * average + (1 - predictor.decay) * abs(value - foretold)
            past = np.concatenate([[value], past[:-1]])
        bits.append(np.mean(own))
    return np.array(bits)


@pytest.mark.parametrize("law", ["mu_law", "linear"])
@pytest.mark.parametrize("multiplier", [0.0, 0.8])
def test_bits_are_those_of_a_loop_that_knows_the_past_alone(law, multiplier, monkeypatch):
    quantiser = Quantiser(64, law)
    codes = quantiser.encode(np.cumsum(noise((5, 40), 0.1), 1))
    predictor = Linear(np.array([1.2, -0.5, 0.2]), 0.03, multiplier, 0.7, 0.05, 0.01)
    expected = by_a_loop(codes, quantiser, predictor)
    np.testing.assert_allclose(P.linear_bits(codes, quantiser, predictor), expected, rtol=1e-9)
    monkeypatch.setattr(P, "BLOCK", 90)
    np.testing.assert_allclose(P.linear_bits(codes, quantiser, predictor), expected, rtol=1e-9)


@pytest.mark.parametrize("time", [3, 16, 50])
def test_taps_are_the_least_squares_over_all_samples_from_the_first_on(time, monkeypatch):
    monkeypatch.setattr(P, "BLOCK", 4 * time)
    quantiser = Quantiser(256, "mu_law")
    codes = quantiser.encode(np.cumsum(noise((11, time), 0.05), 1))
    x = quantiser.values[codes]
    past = np.pad(x, ((0, 0), (5, 0)))
    rows = np.stack([past[:, 5 - lag : 5 - lag + time] for lag in range(1, 6)], -1).reshape(-1, 5)
    expected = np.linalg.lstsq(rows, x.ravel(), rcond=None)[0]
    np.testing.assert_allclose(P.fit_taps(codes, quantiser, 5), expected, rtol=1e-6, atol=1e-9)


def test_of_laplace_noise_the_scale_is_found_and_the_bits_are_the_entropy_of_its_code():
    for quantiser in (Quantiser(64, "linear"), Quantiser(64, "mu_law")):
        train, held = (quantiser.encode(noise((20, 5000), 0.05, seed)) for seed in (0, 1))
        taps = P.fit_taps(train, quantiser)
        assert np.abs(taps).max() < 0.02
        one = P.fit_scale(train, quantiser, np.zeros(16), False)
        assert one.floor == pytest.approx(0.05, rel=0.02)
        bits = P.linear_bits(held, quantiser, one)
        error = bits.std() / np.sqrt(len(bits))
        assert bits.mean() == pytest.approx(entropy(quantiser, 0.05), abs=4 * error)
        assert error < 0.01
        follows = P.fit_scale(train, quantiser, np.zeros(16), True)
        assert P.linear_bits(held, quantiser, follows).mean() == pytest.approx(bits.mean(), abs=0.01)


def test_of_a_second_order_process_the_taps_are_found_and_the_bits_are_those_of_its_innovation():
    quantiser, x = Quantiser(2**15, "linear"), noise((40, 4000), 0.01)
    for t in range(2, 4000):
        x[:, t] += 1.6 * x[:, t - 1] - 0.8 * x[:, t - 2]
    assert np.abs(x).max() < 1
    codes = quantiser.encode(x)
    taps = P.fit_taps(codes[:30], quantiser)
    np.testing.assert_allclose(taps, [1.6, -0.8, *[0] * 14], atol=0.015)
    bits = P.linear_bits(codes[30:], quantiser, P.fit_scale(codes[:30], quantiser, taps, False))
    expected = np.log2(2 * np.e * 0.01 / (2 / (2**15 - 1)))
    assert bits.mean() == pytest.approx(expected, abs=4 * bits.std() / np.sqrt(10) + 0.002)


def test_a_scale_that_follows_knows_how_loud_it_is_and_one_scale_does_not():
    quantiser, scales = Quantiser(256, "linear"), np.where(np.arange(8000) // 1000 % 2, 0.004, 0.1)
    train, held = (quantiser.encode(noise((16, 8000), 1.0, seed) * scales) for seed in (0, 1))
    taps = np.zeros(16)
    one, follows = (
        P.linear_bits(held, quantiser, P.fit_scale(train, quantiser, taps, which)).mean() for which in (False, True)
    )
    known = (entropy(quantiser, 0.004) + entropy(quantiser, 0.1)) / 2
    assert known < follows < known + 0.12
    assert one > known + 0.5


@pytest.mark.parametrize("follows", [False, True])
def test_what_is_fitted_is_a_minimum_of_the_training_clips_bits(follows):
    quantiser = Quantiser(256, "mu_law")
    rng = np.random.default_rng(0)
    loud = np.exp(np.cumsum(0.05 * rng.standard_normal((8, 4000)), 1)).clip(0.2, 5)
    codes = quantiser.encode(0.02 * loud * rng.standard_normal((8, 4000)))
    found = P.fit_scale(codes, quantiser, P.fit_taps(codes, quantiser), follows)
    least = P.linear_bits(codes, quantiser, found).mean()
    changed = {"floor": (0.8, 1.25), "uniform": (0.7, 1.4)}
    if follows:
        changed |= {"multiplier": (0.9, 1.1), "decay": (0.98, 1.01)}
    with_other = lambda **fields: P.linear_bits(codes, quantiser, found._replace(**fields)).mean()
    for name, factors in changed.items():
        bounds = P.SHARES if name == "uniform" else (0, np.inf)
        for factor in factors:
            assert with_other(**{name: np.clip(getattr(found, name) * factor, *bounds)}) > least - 1e-3, (name, factor)
    assert with_other(floor=2 * found.floor, multiplier=2 * found.multiplier) > least + 0.05
    assert (found.multiplier > 0) == follows


def test_the_share_that_nothing_foretells_is_found():
    quantiser, rng = Quantiser(256, "linear"), np.random.default_rng(2)
    codes = quantiser.encode(noise((20, 5000), 0.01))
    codes = np.where(rng.random(codes.shape) < 0.05, rng.integers(256, size=codes.shape), codes)
    found = P.fit_scale(codes, quantiser, np.zeros(16), False)
    assert found.uniform == pytest.approx(0.05, rel=0.1)
    assert found.floor == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize("levels", [2, 255, 256, 2**16])
@pytest.mark.parametrize("law", ["mu_law", "linear"])
def test_silence_and_what_was_never_foretold_cost_a_finite_price(levels, law):
    quantiser = Quantiser(levels, law)
    silence = np.full((3, 400), quantiser.zero, np.int32)
    shock = silence.copy()
    shock[:, 200::2], shock[:, 201::2] = 0, levels - 1
    taps = P.fit_taps(silence, quantiser)
    assert np.isfinite(taps).all()
    for follows in (False, True):
        predictor = P.fit_scale(silence, quantiser, taps, follows)
        assert predictor.floor >= P.NARROW * np.diff(quantiser.values).min()
        assert (P.linear_bits(silence, quantiser, predictor) < 0.1).all()
        bits = P.linear_bits(shock, quantiser, predictor._replace(taps=0.0 * taps))
        assert np.isfinite(bits).all()
        assert (bits <= np.log2(levels / predictor.uniform) + 1e-9).all()
        assert P.SHARES[0] <= predictor.uniform <= P.SHARES[1]


def test_the_table_of_pairs_counts_from_the_code_of_silence_on_and_adds_the_smoothing(monkeypatch):
    monkeypatch.setattr(P, "BLOCK", 1)
    quantiser = Quantiser(3, "linear")
    codes = np.array([[0, 0, 2], [1, 2, 2]])
    counts = np.array([[1, 0, 1], [1, 1, 1], [0, 0, 1]])  # 1, 0, 0, 2 and 1, 1, 2, 2
    expected = (counts + 0.25) / (counts + 0.25).sum(1, keepdims=True)
    table = P.fit_bigram(codes, quantiser, 0.25)
    np.testing.assert_allclose(2.0**table, expected)
    held = np.array([[2, 0, 1], [1, 1, 1]])
    p = expected[[[1, 2, 0], [1, 1, 1]], held]
    np.testing.assert_allclose(P.bigram_bits(held, quantiser, table), -np.log2(p).mean(1))


def test_of_a_markov_chain_the_table_reaches_the_entropy_rate():
    rng, quantiser = np.random.default_rng(0), Quantiser(4, "mu_law")
    matrix = np.array([[0.7, 0.1, 0.1, 0.1], [0.05, 0.05, 0.9, 0.0], [0.25] * 4, [0.5, 0.0, 0.0, 0.5]])
    codes = np.zeros((200, 500), np.int64)
    for t in range(1, 500):
        codes[:, t] = (rng.random((200, 1)) > np.cumsum(matrix, 1)[codes[:, t - 1], :3]).sum(1)
    stationary = np.linalg.matrix_power(matrix, 100)[0]
    rate = -np.sum(stationary[:, None] * matrix * np.log2(np.where(matrix > 0, matrix, 1)))
    bits = P.bigram_bits(codes[100:], quantiser, P.fit_bigram(codes[:100], quantiser))
    assert bits.mean() == pytest.approx(rate, abs=4 * bits.std() / 10)
    assert bits.std() / 10 < 0.01


def test_clips_are_scored_each_by_itself_and_by_what_was_fitted_alone():
    quantiser = Quantiser(256, "mu_law")
    codes = quantiser.encode(np.cumsum(noise((6, 300), 0.02), 1))
    predictor = P.fit_scale(codes, quantiser, P.fit_taps(codes, quantiser), True)
    table = P.fit_bigram(codes, quantiser)
    for scored in (
        lambda clips: P.linear_bits(clips, quantiser, predictor),
        lambda clips: P.bigram_bits(clips, quantiser, table),
    ):
        alone = np.concatenate([scored(codes[i : i + 1]) for i in range(6)])
        np.testing.assert_allclose(scored(codes[::-1])[::-1], alone, rtol=1e-12)
        assert np.ptp(alone) > 0


def test_on_held_out_speech_the_following_scale_is_best_and_one_scale_worst(recordings):
    folder = recordings / "digits16k"
    quantiser = Quantiser(256, "mu_law")
    read = lambda split: [audio.read(p, 16000, 1)[:, 0] for p in sorted((folder / split).rglob("*.flac"))[::20]]
    train, held = (quantiser.encode(np.stack(read(split))) for split in ("train", "valid"))
    taps = P.fit_taps(train, quantiser)
    one, follows = (
        P.linear_bits(held, quantiser, P.fit_scale(train, quantiser, taps, which)).mean() for which in (False, True)
    )
    pairs = P.bigram_bits(held, quantiser, P.fit_bigram(train, quantiser)).mean()
    assert follows == pytest.approx(4.39, abs=0.3)
    assert follows + 0.3 < pairs < one


def test_what_cannot_be_predicted_is_refused():
    quantiser, codes = Quantiser(256, "mu_law"), np.zeros((2, 9), np.int32)
    with pytest.raises(InputError, match="levels is 8192: a table of pairs of codes has 4096 at most"):
        P.fit_bigram(codes, Quantiser(8192, "linear"))
    with pytest.raises(InputError, match="smoothing is 0.0: it is above 0"):
        P.fit_bigram(codes, quantiser, 0.0)
    with pytest.raises(InputError, match="levels is 1: pass 2 to 65536"):
        Quantiser(1, "linear")
    table, predictor = np.zeros((256, 256)), Linear(np.zeros(2), 1.0, 0.0, 0.0, 1.0, 0.1)
    for refused in (
        lambda codes: P.fit_taps(codes, quantiser),
        lambda codes: P.fit_scale(codes, quantiser, np.zeros(2), True),
        lambda codes: P.linear_bits(codes, quantiser, predictor),
        lambda codes: P.fit_bigram(codes, quantiser),
        lambda codes: P.bigram_bits(codes, quantiser, table),
    ):
        with pytest.raises(InputError, match=r"codes are \[0, 9\]: pass \[clips, time\]"):
            refused(codes[:0])
        with pytest.raises(InputError, match="codes are 0 to 256: 256 levels"):
            refused(codes + 256 * np.eye(2, 9, dtype=np.int32))
        with pytest.raises(InputError, match="codes are -1 to -1"):
            refused(codes - 1)
