"""Losses are what their formulas say."""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from tasks.judging.metrics import image_losses, right_images
from tasks.training.step import class_weights, smoothed_cross_entropy

LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3], [-3.0, 4.0, 0.0], [1.0, 1.0, 1.0]])
LABELS = torch.tensor([0, 2, 0, 1])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_smoothed_loss_is_the_cross_entropy_with_smoothed_labels(smoothing: float):
    wanted = np.full((4, 3), smoothing / 3)
    wanted[np.arange(4), LABELS.numpy()] += 1 - smoothing
    log_shares = torch.log_softmax(LOGITS, dim=1).numpy()
    expected = -(wanted * log_shares).sum(axis=1).mean()
    loss = smoothed_cross_entropy(LOGITS, LABELS, smoothing=smoothing, weights=None)
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_class_weights_make_every_class_count_the_same():
    labels = LABELS.numpy()
    weights = class_weights(labels, 3)
    losses = image_losses(LOGITS.numpy(), labels)
    by_class = [losses[labels == label].mean() for label in range(3)]
    loss = smoothed_cross_entropy(LOGITS, LABELS, smoothing=0.0, weights=weights)
    assert float(loss) == pytest.approx(np.mean(by_class), rel=1e-6)


def test_balanced_classes_are_those_of_sklearn():
    labels = np.repeat([0, 1, 3], [50, 8, 2])
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels)
    weights = class_weights(labels, 4)
    assert weights[[0, 1, 3]].tolist() == pytest.approx(expected.tolist())
    assert weights[2] == 0
    logits = torch.randn((60, 4), generator=torch.Generator().manual_seed(3))
    wanted = torch.from_numpy(labels)
    loss = smoothed_cross_entropy(logits, wanted, smoothing=0.0, weights=weights)
    theirs = functional.cross_entropy(logits, wanted, weight=weights)
    assert float(loss) == pytest.approx(float(theirs), rel=1e-6)


def test_losses_of_images_are_exact_for_large_logits():
    logits = np.float32([[1000, 0], [0, 1000]])
    np.testing.assert_allclose(image_losses(logits, np.array([0, 0])), [0, 1000])
    assert right_images(logits, np.array([0, 0])).tolist() == [True, False]
