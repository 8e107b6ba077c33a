"""Scores of classifiers against scikit-learn."""

import numpy as np
import pytest

from jaxaudio.core import InputError
from jaxaudio.metrics import classification


def cases(seed, rows=60, classes=6, levels=None):
    """(scores, labels of one class each, labels of several); with `levels`, scores are rounded: some are equal."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=rows)
    several = rng.random((rows, classes)) < 0.2
    scores = rng.standard_normal((rows, classes)) + 2 * (several | np.eye(classes, dtype=bool)[labels])
    return scores if levels is None else np.round(scores * levels) / levels, labels, several


@pytest.mark.parametrize("levels", [None, 1])
def test_average_precision_is_that_of_scikit_learn_with_equal_scores_too(levels):
    metrics = pytest.importorskip("sklearn.metrics")
    scores, labels, several = cases(0, levels=levels)
    expected = metrics.average_precision_score(several, scores, average="macro")
    assert classification.mean_average_precision(scores, several) == pytest.approx(expected, rel=1e-12)
    assert classification.mean_average_precision(scores, several.astype(np.int32)) == pytest.approx(expected, rel=1e-12)
    expected = metrics.average_precision_score(np.eye(6)[labels], scores, average="macro")
    assert classification.mean_average_precision(scores, labels) == pytest.approx(expected, rel=1e-12)


def test_average_precision_needs_an_order_only_and_leaves_classes_without_positives_out():
    scores, _, several = cases(1)
    whole = classification.mean_average_precision(scores, several)
    assert classification.mean_average_precision(np.exp(scores) - 7, several) == pytest.approx(whole)
    assert classification.mean_average_precision(several.astype(float), several) == 1
    missing = several & (np.arange(6) != 2)
    kept = [0, 1, 3, 4, 5]
    expected = classification.mean_average_precision(scores[:, kept], several[:, kept])
    assert classification.mean_average_precision(scores, missing) == pytest.approx(expected)
    shares = np.mean(several, 0)
    at_a_loss = classification.mean_average_precision(np.zeros((60, 6)), several)
    assert at_a_loss == pytest.approx(shares.mean())


def test_average_precision_refuses_what_has_no_order_or_no_positive():
    scores, labels, several = cases(2)
    with pytest.raises(InputError, match="not all finite"):
        classification.mean_average_precision(np.where(scores > 2, np.nan, scores), several)
    with pytest.raises(InputError, match="no positive"):
        classification.mean_average_precision(scores, np.zeros((60, 6), int))
    with pytest.raises(InputError, match="of 0 and 1"):
        classification.mean_average_precision(scores, several * 2)
    with pytest.raises(InputError, match="labels are 0 to 5: 4 classes"):
        classification.mean_average_precision(scores[:, :4], labels)


def test_the_confusion_has_labels_as_rows_and_its_diagonal_is_the_accuracy():
    metrics = pytest.importorskip("sklearn.metrics")
    scores, labels, _ = cases(3)
    predicted = scores.argmax(1)
    matrix = classification.confusion(labels, predicted, 7)
    np.testing.assert_array_equal(matrix, metrics.confusion_matrix(labels, predicted, labels=range(7)))
    assert classification.accuracy(labels, predicted) == pytest.approx(np.trace(matrix) / 60)
    assert classification.confusion(np.array([0]), np.array([2]), 3)[0, 2] == 1


def test_group_accuracy_gives_each_group_its_share_and_its_size():
    correct = np.array([True, False, True, True, False])
    speakers = np.array(["eve", "ada", "eve", "ada", "eve"])
    assert classification.group_accuracy(correct, speakers) == {"ada": (0.5, 2), "eve": (pytest.approx(2 / 3), 3)}
    assert classification.group_accuracy(correct.astype(float), np.array([7, 7, 7, 7, 7])) == {7: (0.6, 5)}


def test_no_rows_are_refused():
    none = np.zeros(0, int)
    with pytest.raises(InputError, match="0 rows"):
        classification.accuracy(none, none)
    with pytest.raises(InputError, match="0 rows"):
        classification.group_accuracy(none.astype(float), none)


def test_labels_beyond_the_classes_are_refused():
    for labels, predicted in ((np.array([0, 3]), np.array([0, 1])), (np.array([0, 1]), np.array([-1, 1]))):
        with pytest.raises(InputError, match="3 classes have 0 to 2"):
            classification.confusion(labels, predicted, 3)
