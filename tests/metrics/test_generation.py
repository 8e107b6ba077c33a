"""Scores of generators against closed forms, brute force and scipy."""

import tracemalloc

import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from jaxaudio.core import InputError
from jaxaudio.metrics import generation


def softmax(seed, rows, classes=5, sharpness=2.0):
    logits = sharpness * np.random.default_rng(seed).standard_normal((rows, classes))
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def gaussian(seed, rows, mean, deviations):
    return mean + np.random.default_rng(seed).standard_normal((rows, len(deviations))) * deviations


def whitened(seed, rows, features):
    """Rows whose sample mean is 0 and whose sample covariance is 1."""
    x = np.random.default_rng(seed).standard_normal((rows, features))
    x = x - x.mean(0)
    return np.linalg.qr(x)[0] * np.sqrt(rows - 1)


def test_the_inception_score_is_1_for_a_classifier_at_a_loss_and_the_number_of_classes_for_sure_and_even_labels():
    assert generation.inception_score(np.full((100, 4), 0.25)) == pytest.approx(1)
    assert generation.inception_score(np.eye(4)[np.arange(100) % 4], splits=5) == pytest.approx(4)
    assert generation.inception_score(np.eye(4)[np.zeros(100, int)]) == pytest.approx(1)


@pytest.mark.parametrize("splits", [1, 3])
def test_the_inception_score_is_that_of_salimans_split_by_split(splits):
    p = softmax(0, 47)
    scores = []
    for i in range(splits):
        part = p[i * 47 // splits : (i + 1) * 47 // splits]
        scores.append(np.exp(np.mean([scipy.stats.entropy(row, part.mean(0)) for row in part])))
    assert generation.inception_score(p, splits) == pytest.approx(np.mean(scores), rel=1e-12)


def test_the_order_of_rows_matters_to_splits_of_the_inception_score_alone():
    p = np.eye(4)[np.sort(np.arange(160) % 4)]
    shuffled = np.random.default_rng(0).permutation(p)
    assert generation.inception_score(p, 4) == pytest.approx(1)
    assert generation.inception_score(shuffled, 4) > 3.5
    assert generation.inception_score(p, 1) == pytest.approx(generation.inception_score(shuffled, 1))


def test_splits_of_fewer_rows_than_classes_are_refused():
    with pytest.raises(InputError, match="40 rows: 10 splits of 5 classes"):
        generation.inception_score(softmax(0, 40))
    with pytest.raises(InputError, match="0 splits"):
        generation.inception_score(softmax(0, 40), splits=0)
    assert generation.inception_score(softmax(0, 50)) > 1


def test_the_modified_inception_score_is_the_mean_over_all_pairs():
    p = softmax(1, 30)
    pairs = [scipy.stats.entropy(a, b) for a in p for b in p]
    assert generation.modified_inception_score(p) == pytest.approx(np.exp(np.mean(pairs)), rel=1e-12)
    assert generation.modified_inception_score(np.tile(p[:1], (9, 1))) == pytest.approx(1)


def test_scores_are_finite_where_probabilities_are_zero():
    sure = np.eye(3)[np.arange(6) % 3]
    expected = np.exp(2 / 3 * 126 * np.log(2))  # of two rows, 2 of 3 pairs differ, each by -log(2^-126)
    assert generation.modified_inception_score(sure) == pytest.approx(expected, rel=1e-9)
    one = sure[np.zeros(6, int)]
    assert generation.am_score(one, np.full(3, 1 / 3)) == pytest.approx(2 / 3 * 126 * np.log(2) - np.log(3))


def test_the_am_score_is_the_divergence_from_the_training_labels_plus_the_mean_entropy():
    p, train = softmax(2, 40), softmax(3, 1)[0]
    expected = scipy.stats.entropy(train, p.mean(0)) + np.mean(scipy.stats.entropy(p, axis=1))
    assert generation.am_score(p, train) == pytest.approx(expected, rel=1e-12)
    uneven = np.eye(3)[[0, 0, 1, 2]]
    assert generation.am_score(uneven, np.array([0.5, 0.25, 0.25])) == pytest.approx(0, abs=1e-12)


def test_the_frechet_distance_is_its_closed_form_where_covariances_are_known():
    x = whitened(0, 60, 6)
    low, high = np.linspace(0.5, 1, 6), np.linspace(1, 3, 6)
    mean = np.arange(6.0)
    assert generation.frechet_distance(x, x + mean) == pytest.approx(np.sum(mean**2), rel=1e-9)
    assert generation.frechet_distance(x * low, x * high + mean) == pytest.approx(
        np.sum((high - low) ** 2) + np.sum(mean**2), rel=1e-9
    )
    assert generation.frechet_distance(x[:, :1], 3 * x[:, :1] + 1) == pytest.approx(1 + 4)


def test_the_frechet_distance_of_correlated_features_is_that_of_the_matrix_root():
    rng = np.random.default_rng(1)
    a = rng.standard_normal((80, 5)) @ rng.standard_normal((5, 5))
    b = rng.standard_normal((70, 5)) @ rng.standard_normal((5, 5)) + 0.3
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.trace(scipy.linalg.sqrtm(cov_a @ cov_b)).real
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a + cov_b) - 2 * root
    assert generation.frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert generation.frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_the_frechet_distance_is_nothing_to_itself_and_finite_with_fewer_clips_than_features():
    few = np.random.default_rng(2).standard_normal((10, 40))
    assert generation.frechet_distance(few, few[::-1]) == pytest.approx(0, abs=1e-5)
    assert generation.frechet_distance(few, 2 * few) == pytest.approx(
        np.sum(few.mean(0) ** 2) + np.var(few, 0, ddof=1).sum()
    )
    assert generation.frechet_distance(np.zeros((3, 4)), np.zeros((5, 4))) == 0


@pytest.mark.parametrize(("n", "m"), [(40, 40), (12, 90), (90, 12)])
def test_the_frechet_distance_is_the_same_by_rows_and_by_columns(n, m):
    """Features that are always 0 change nothing but the route."""
    rng = np.random.default_rng(3)
    mix = rng.standard_normal((10, 10))
    a, b = rng.standard_normal((n, 10)) @ mix, rng.standard_normal((m, 10)) + 0.5
    wide = [np.pad(x, ((0, 0), (0, 190))) for x in (a, b)]
    by_columns = generation.frechet_distance(a, b)
    assert generation.frechet_distance(*wide) == pytest.approx(by_columns, rel=1e-9)
    assert generation.frechet_distance(*wide[::-1]) == pytest.approx(by_columns, rel=1e-9)


def test_the_frechet_distance_of_few_wide_rows_forms_no_covariance():
    a, b = (np.random.default_rng(seed).standard_normal((30, 3000)) for seed in range(2))
    tracemalloc.start()
    distance = generation.frechet_distance(a, b)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert distance > 0
    assert peak < 20e6, "a covariance has 72 MB"


@pytest.mark.parametrize("rows", [(150, 150), (120, 240), (60, 60)])
def test_extrapolating_the_frechet_distance_takes_off_nine_tenths_of_its_bias(rows):
    deviations, mean = np.linspace(0.5, 1.5, 16), np.full(16, 0.2)
    truth = np.sum((deviations - 1) ** 2) + np.sum(mean**2)
    plain, unbiased = [], []
    for seed in range(40):
        real = gaussian(2 * seed, rows[0], 0, np.ones(16))
        fake = gaussian(2 * seed + 1, rows[1], mean, deviations)
        plain.append(generation.frechet_distance(real, fake))
        unbiased.append(generation.frechet_distance_unbiased(real, fake))
    assert np.mean(plain) - truth > 0.4
    assert abs(np.mean(unbiased) - truth) < 0.1 * (np.mean(plain) - truth)
    assert np.std(unbiased) < 1.15 * np.std(plain)


def test_the_extrapolated_frechet_distance_depends_on_the_seed_alone():
    real, fake = gaussian(0, 90, 0, np.ones(8)), gaussian(1, 90, 0.5, np.ones(8))
    first = generation.frechet_distance_unbiased(real, fake, seed=3)
    assert first == generation.frechet_distance_unbiased(real, fake, seed=3)
    assert first != generation.frechet_distance_unbiased(real, fake, seed=4)


def test_extrapolating_needs_so_many_clips_that_half_of_them_still_tell_the_covariance():
    x = gaussian(0, 70, 0, np.ones(40))
    assert np.isfinite(generation.frechet_distance_unbiased(x, x + 1))
    with pytest.raises(InputError, match="needs 70 of both"):
        generation.frechet_distance_unbiased(x, x[:69])
    with pytest.raises(InputError, match="needs 4 of both"):
        generation.frechet_distance_unbiased(x[:3, :1], x[:3, :1])


@pytest.mark.parametrize("block", [2**22, 40, 1])
def test_nearest_distances_are_those_of_all_pairs_whatever_the_block(monkeypatch, block):
    monkeypatch.setattr(generation, "BLOCK", block)
    rng = np.random.default_rng(0)
    queries, references = rng.standard_normal((17, 6)), rng.standard_normal((13, 6))
    pairs = np.linalg.norm(queries[:, None] - references[None], axis=2)
    np.testing.assert_allclose(generation.nearest_distances(queries, references), pairs.min(1), rtol=1e-12)


def test_a_copy_is_at_no_distance_and_an_offset_of_all_clips_changes_nothing():
    rng = np.random.default_rng(1)
    references = rng.standard_normal((50, 64))
    np.testing.assert_array_equal(generation.nearest_distances(references, references), 0)
    queries = references[:9] + 0.01 * rng.standard_normal((9, 64))
    near = generation.nearest_distances(queries, references)
    np.testing.assert_allclose(generation.nearest_distances(queries + 1e8, references + 1e8), near, rtol=1e-4)


def test_memorisation_is_about_1_for_new_clips_and_0_for_copies_and_more_for_clips_far_off():
    draw = lambda seed: gaussian(seed, 400, 0, np.ones(8))
    train = draw(0)
    near = lambda clips: generation.nearest_distances(clips, train)
    held_out = near(draw(1))
    assert generation.memorisation(near(draw(2)), held_out) == pytest.approx(1, abs=0.1)
    assert generation.memorisation(near(train[:50]), held_out) == 0
    assert generation.memorisation(near(train + 0.01 * draw(3)), held_out) < 0.05
    assert generation.memorisation(near(draw(4) + 5), held_out) > 3
    with pytest.raises(InputError, match="held_out clip is in train"):
        generation.memorisation(held_out, near(train))


def test_diversity_is_the_root_mean_square_distance_of_all_pairs():
    x = np.random.default_rng(0).standard_normal((30, 4))
    squares = [np.sum((a - b) ** 2) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]
    assert generation.diversity(x) == pytest.approx(np.sqrt(np.mean(squares)), rel=1e-12)
    assert generation.diversity(3 * x + 7) == pytest.approx(3 * generation.diversity(x))
    assert generation.diversity(np.ones((5, 3))) == 0


def test_balance_is_1_for_even_labels_and_0_for_one_class():
    assert generation.balance(np.arange(40) % 10, 10) == pytest.approx(1)
    assert generation.balance(np.full(40, 3), 10) == 0
    assert generation.balance(np.arange(40) % 5, 10) == pytest.approx(np.log(5) / np.log(10))
    with pytest.raises(InputError, match="labels are 0 to 10"):
        generation.balance(np.arange(11), 10)
    with pytest.raises(InputError, match="classes is 1"):
        generation.balance(np.zeros(4, int), 1)


def test_agreement_is_1_where_the_label_is_as_asked():
    np.testing.assert_array_equal(generation.agreement(np.array([1, 2, 3]), np.array([1, 0, 3])), [1.0, 0.0, 1.0])


@pytest.mark.parametrize("metric", ["inception_score", "modified_inception_score"])
@pytest.mark.parametrize(
    ("p", "message"),
    [
        (np.full((1, 4), 0.25), "1 row: a score needs 2"),
        (np.full((50, 4), 0.3), "sum of 1.2"),
        (np.tile([1.5, -0.5], (50, 1)), "values from -0.5"),
        (np.full((50, 4), np.nan), "sum of nan"),
    ],
)
def test_rows_that_are_no_probabilities_are_refused(metric, p, message):
    with pytest.raises(InputError, match=message):
        getattr(generation, metric)(p)


def test_a_softmax_of_single_precision_is_accepted_and_made_to_sum_to_1():
    p = softmax(0, 50)
    assert generation.inception_score(p.astype(np.float32)) == pytest.approx(generation.inception_score(p), rel=1e-6)
    assert generation.inception_score(p * 1.0005) == pytest.approx(generation.inception_score(p))


def test_a_training_marginal_of_other_classes_is_refused():
    with pytest.raises(InputError, match="5 wide and train_marginal 4"):
        generation.am_score(softmax(0, 9), np.full(4, 0.25))
    with pytest.raises(InputError, match="train_marginal row 0"):
        generation.am_score(softmax(0, 9), np.full(5, 1.0))


@pytest.mark.parametrize("metric", ["frechet_distance", "frechet_distance_unbiased", "nearest_distances"])
def test_embeddings_that_cannot_be_compared_are_refused(metric):
    score, x = getattr(generation, metric), np.random.default_rng(0).standard_normal((30, 4))
    with pytest.raises(InputError, match="has 1 row"):
        score(x, x[:1])
    with pytest.raises(InputError, match="4 wide and .* 3: both must come from the same classifier"):
        score(x, x[:, :3])
    with pytest.raises(InputError, match=r"row 2 \(of 1 such\) is not finite"):
        score(np.where(np.arange(30)[:, None] == 2, np.inf, x), x)
