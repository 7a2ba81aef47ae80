"""The metrics against the protocol written out as loops over scikit-learn's folds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import KFold

from app.evaluate.metrics import PairsError, roc_curve, tar_at_far, ten_fold_accuracy, verification_metrics


def scores(pairs: int, seed: int, *, rounded: bool) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    issame = generator.random(pairs) < 0.5
    distances = np.clip(generator.normal(np.where(issame, 1.0, 1.8), 0.4), 0, 4)
    return (distances.round(2) if rounded else distances), issame


@settings(deadline=None, max_examples=30)
@given(st.integers(10, 200), st.integers(0, 10**6), st.booleans())
def test_ten_fold_accuracy_is_that_of_the_loops(pairs: int, seed: int, rounded: bool) -> None:
    distances, issame = scores(pairs, seed, rounded=rounded)
    thresholds = np.arange(0, 4, 0.01)
    expected, chosen = [], []
    for train, test in KFold(10, shuffle=False).split(distances):
        accuracy = [((distances[train] < t) == issame[train]).mean() for t in thresholds]
        best = thresholds[int(np.argmax(accuracy))]
        chosen.append(best)
        expected.append(((distances[test] < best) == issame[test]).mean())
    accuracies, found = ten_fold_accuracy(distances, issame)
    np.testing.assert_allclose(accuracies, expected)
    np.testing.assert_array_equal(found, chosen)


def test_tar_at_far_takes_repeated_rates_and_is_that_of_the_loops() -> None:
    distances, issame = scores(600, 3, rounded=True)
    thresholds, far = np.arange(0, 4, 0.001), 0.05
    tars = []
    for train, test in KFold(10, shuffle=False).split(distances):
        rates = np.array([(distances[train][~issame[train]] < t).mean() for t in thresholds])
        below, above = thresholds[rates <= far].max(), rates[rates > far].min()
        low = rates[rates <= far].max()
        high = thresholds[rates == above].max()
        threshold = below + (high - below) * (far - low) / (above - low)
        tars.append((distances[test][issame[test]] < threshold).mean())
    assert tar_at_far(distances, issame, far) == pytest.approx(np.mean(tars))


def test_the_roc_curve_counts_pairs() -> None:
    far, tar = roc_curve(np.array([0.1, 0.2, 0.2, 0.9]), np.array([True, True, False, False]))
    assert far.tolist() == [0, 0, 0.5, 1]
    assert tar.tolist() == [0, 0.5, 1, 1]


def test_separable_and_random_scores_have_the_known_values() -> None:
    issame = np.tile([True, False], 500)
    perfect = verification_metrics(np.where(issame, 0.5, 2.0), issame)
    assert (perfect.accuracy, perfect.auc, perfect.eer, perfect.tar["1e-2"]) == (1.0, 1.0, 0.0, 1.0)
    chance = verification_metrics(np.random.default_rng(0).random(1000) * 4, issame)
    assert 0.4 < chance.accuracy < 0.6
    assert 0.45 < chance.auc < 0.55


def test_a_far_finer_than_the_impostors_is_left_out() -> None:
    issame = np.tile([True, False], 50)
    metrics = verification_metrics(np.where(issame, 0.5, 2.0), issame)
    assert list(metrics.tar) == ["1e-1"]


@pytest.mark.parametrize("count", [0, 1, 6, 9])
def test_fewer_pairs_than_folds_are_refused_by_number(count: int) -> None:
    issame = np.arange(count) % 2 == 0
    with pytest.raises(PairsError, match=f"{count} pairs, but accuracy over 10 folds"):
        verification_metrics(np.where(issame, 0.2, 1.8), issame)


@pytest.mark.parametrize("same", [True, False])
def test_one_kind_of_pair_alone_is_refused(same: bool) -> None:
    issame = np.full(20, same)
    with pytest.raises(PairsError, match="all of its 20 pairs are " + ("genuine" if same else "impostor")):
        verification_metrics(np.linspace(0.1, 0.5, 20), issame)


def test_ten_separated_pairs_are_right() -> None:
    issame = np.arange(10) % 2 == 0
    assert verification_metrics(np.where(issame, 0.2, 1.8), issame).accuracy == 1.0
